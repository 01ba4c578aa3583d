"""The others: well-behaved streamed requests at a steady rate, each measured from the moment it was due, in a process of their own.

Arguments: PORT RATE MODEL KEY. A line on standard input asks for what was seen since the last one, as one line of JSON: times in milliseconds to the first token
and to the end, failures, and how late this process's own timer was (what the machine costs, not the router). It ends with its standard input.
"""

import asyncio
import json
import sys
import time

TOKENS = 16
LIMIT = 60.0  # seconds: an answer that takes longer is a failure


class Others:
    def __init__(self, port, rate, model, key):
        body = {"model": model, "prompt": "the pod", "max_tokens": TOKENS, "stream": True, "temperature": 0}
        body = json.dumps(body).encode()
        self.request = b"POST /v1/completions HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n%s" % (
            key.encode(), len(body), body)
        self.port, self.rate, self.idle = port, rate, []
        self.open, self.done, self.late = {}, [], []
        self.tasks = set()

    async def run(self):
        """Starts requests when they are due, however long earlier ones take."""
        due = time.monotonic()
        while True:
            due += 1 / self.rate
            await asyncio.sleep(max(0, due - time.monotonic()))
            self.late.append(1e3 * (time.monotonic() - due))
            task = asyncio.create_task(self.one(due))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    async def one(self, due):
        record = {"due": due, "first": None, "total": None, "fault": None}
        self.open[due] = record
        try:
            async with asyncio.timeout(LIMIT):
                await self.ask(record)
        except TimeoutError:
            record["fault"] = f"no end within {LIMIT:.0f} s"
        except (OSError, asyncio.IncompleteReadError) as error:
            record["fault"] = f"the connection broke: {type(error).__name__}"
        record["total"] = time.monotonic() - due
        self.done.append(self.open.pop(due))

    async def ask(self, record):
        fresh = not self.idle
        reader, writer = self.idle.pop() if self.idle else await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 20)
        try:
            writer.write(self.request)
            head = await reader.readuntil(b"\r\n\r\n")
        except (OSError, asyncio.IncompleteReadError):
            writer.close()
            if fresh:
                raise
            # A kept connection may have been closed while it was idle: that is no failure.
            self.idle.clear()
            return await self.ask(record)
        whole = await self.body(reader, head, record)
        if whole:
            self.idle.append((reader, writer))
        else:
            writer.close()

    async def body(self, reader, head, record):
        """Reads an answer to its end; whether the connection is good for another one."""
        if not head.startswith(b"HTTP/1.1 200"):
            record["fault"] = head.split(b"\r\n")[0].decode("latin-1")
            return False
        done, tokens = False, 0
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            part = (await reader.readexactly(size + 2))[:-2]
            if b'"error"' in part:
                record["fault"] = "an error event: " + part.decode("utf-8", "replace")[:200]
            if b'"text":" ' in part or b'"text": " ' in part:
                tokens += 1
                record["first"] = record["first"] or time.monotonic() - record["due"]
            done = done or b"[DONE]" in part
        await reader.readuntil(b"\r\n")
        if not record["fault"] and not (done and tokens):
            record["fault"] = "an answer without an end"
        return not record["fault"]

    def take(self):
        """What was seen since the last time. What is still open counts with the time it took so far, so that a standstill is seen."""
        now = time.monotonic()
        seen, self.done = self.done, []
        late, self.late = self.late, []
        waits = [now - record["due"] for record in self.open.values() if record["first"] is None]
        first = [record["first"] for record in seen if record["first"] is not None]
        total = [record["total"] for record in seen if record["fault"] is None]
        return {
            "first": [1e3 * time for time in first + waits],
            "total": [1e3 * time for time in total + waits],
            "late": late,
            "answered": len(total),
            "failed": [record["fault"] for record in seen if record["fault"] and record["first"] is None],
            "broken": [record["fault"] for record in seen if record["fault"] and record["first"] is not None],
        }


async def main():
    port, rate, model, key = sys.argv[1:]
    others = Others(int(port), float(rate), model, key)
    running = asyncio.create_task(others.run())
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while await reader.readline():
        print(json.dumps(others.take()), flush=True)
    running.cancel()


asyncio.run(main())
