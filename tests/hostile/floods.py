"""Cases of chance and number: requests cut anywhere, bytes changed at random (by a seed), more requests than there is room for."""

import json
import random
import time

import raw
from bodies import CHAT, COMPLETIONS, GENERATE, MEGABYTE, NAME
from probes import clean, error, good, or_closed, run
from raw import head, post
from readers import freed
from stage import chat, completion, expect
from table import case

SEED = 20


@case("requests cut anywhere", "a request cut at each of 150 places, ended by a FIN, by a reset", memory=16)
def cut_anywhere(stage):
    before = stage.descriptors()
    data = post(CHAT, chat(stream=True, max_tokens=2), [("X-Request-Id", "cut")])
    for place in range(0, len(data), max(1, len(data) // 150)):
        for reset in (True, False):
            conn = stage.conn()
            conn.send(data[:place])
            conn.reset() if reset else conn.socket.close()
    stage.until(lambda: stage.descriptors() <= before + 20, 5, "connections of clients that have gone stay open")
    return "all closed"


@case("bytes changed at random", "400 requests with up to 8 bytes changed, taken out or doubled, from a seed", memory=32)
def mutations(stage):
    dice, seen = random.Random(SEED), {}
    models = [post(CHAT, chat(stream=True, max_tokens=2)), post(COMPLETIONS, completion(max_tokens=2)), post(GENERATE, {"input": "a", "max_output_tokens": 2}),
              head("POST", COMPLETIONS, [("Transfer-Encoding", "chunked")]) + b"5\r\n{\"a\":\r\n2\r\n1}\r\n0\r\n\r\n"]
    for turn in range(400):
        data = bytearray(dice.choice(models))
        for _ in range(dice.randint(1, 8)):
            place = dice.randrange(len(data))
            change = dice.choice(["change", "take", "double"])
            if change == "change":
                data[place] = dice.choice([0, 10, 13, 32, 34, 58, 92, 123, 125, 128, 255, dice.randrange(256)])
            elif change == "take":
                del data[place]
            else:
                data[place:place] = data[place:place + dice.randint(1, 40)]
        with stage.conn() as conn:
            conn.send(bytes(data))
            conn.finish()
            try:
                answer = conn.answer(8)
            except raw.Cut as problem:
                expect("nothing came" not in str(problem), f"mutation {turn} of seed {SEED}: neither an answer nor an end")
                seen["closed"] = seen.get("closed", 0) + 1
                continue
            clean(answer)
            expect(answer.status < 500 or answer.status in (501, 505), f"mutation {turn} of seed {SEED}: {answer.status} {answer.body[:100]!r}")
            seen[str(answer.status)] = seen.get(str(answer.status), 0) + 1
    return ", ".join(f"{status} x{count}" for status, count in sorted(seen.items()))


@case("gone in the queue", "200 clients that wait for a slot, and reset", stand="one slot", judged=False)
def gone_in_the_queue(stage):
    holder = stage.conn()
    holder.send(post(COMPLETIONS, completion(script="tokens:1,hold", stream=True)))
    stage.until(lambda: stage.scripted() == 1, 5, "the first request does not run")
    conns = [stage.conn() for _ in range(200)]
    for place, conn in enumerate(conns):
        conn.send(post(COMPLETIONS, completion(stream=place % 2 == 0)))
    stage.until(lambda: stage.metric("m1_router_queue_depth") >= 200, 5, "200 requests do not queue")
    for conn in conns:
        conn.reset()
    took = stage.until(lambda: stage.metric("m1_router_queue_depth") < 100, 2, "requests of clients that have gone stay in the queue")
    holder.reset()
    freed(stage, "the one that ran")
    good(stage.ask(post(COMPLETIONS, completion(max_tokens=1))))
    return f"out of the queue after {1e3 * took:.0f} ms"


@case("more than the queue holds", "400 requests where one runs and 256 may wait", stand="one slot", judged=False, short=False)
def full_queue(stage):
    holder = stage.conn()
    holder.send(post(COMPLETIONS, completion(script="tokens:1,hold", stream=True)))
    stage.until(lambda: stage.scripted() == 1, 5, "the first request does not run")
    conns = []
    for _ in range(400):
        # At once: a busy machine takes longer to connect them all than one may be idle.
        conns.append(stage.conn())
        conns[-1].send(post(COMPLETIONS, completion(stream=True)))
    told, end = {}, time.monotonic() + 10
    for conn in conns:
        answer = conn.answer(max(0.01, end - time.monotonic()))
        short = error(answer, 429) if answer.status != 200 else f"200 and {json.loads(answer.events()[-1])['error']['code']}"
        expect(answer.status == 200 or answer.header("retry-after"), "429 without Retry-After")
        told[short] = told.get(short, 0) + 1
    holder.reset()
    freed(stage, "the one that ran")
    return ", ".join(f"{short} x{count}" for short, count in sorted(told.items()))


TEXT = "the pod " * (2 * MEGABYTE)


@case("16 MB of text in fields", "16 MB in `stop`, `model`, `role`, the description of a tool, a field that nobody knows, a million keys", memory=97)
def text_in_fields(stage):
    tool = {"type": "function", "function": {"name": "f", "description": TEXT, "parameters": {}}}
    either = or_closed(lambda answer: good(answer) if answer.status == 200 else error(answer, 400, 404, 413))
    probes = [
        ("stop", COMPLETIONS, completion(stop=TEXT)),
        ("model", COMPLETIONS, {"model": TEXT, "prompt": "a"}),
        ("role", CHAT, chat(messages=[{"role": TEXT, "content": "a"}])),
        ("tool", CHAT, chat(tools=[tool], max_tokens=2)),
        ("unknown", COMPLETIONS, completion(user=TEXT)),
        ("name of a field", COMPLETIONS, {**completion(), TEXT: 1}),
    ]
    happened = []
    for name, path, body in probes:
        happened.append(run(stage, [(name, post(path, body), either)], 10))
    keys = b",".join(b'"k%d":0' % n for n in range(1_000_000))
    happened.append(run(stage, [("keys", post(COMPLETIONS, b'{"model":"%s","prompt":"a","max_tokens":2,%s}' % (NAME.encode(), keys)), either)], 10))
    return ", ".join(happened)


@case("gone while it is tokenised", "2 clients that send 30 MB of words to /tokenize, and reset a moment later; the same to chat, whose window it does not fit", memory=2 * 181 + 2 * 32)
def gone_while_tokenised(stage):
    calm = stage.busy(0.5)
    words = "the pod " * (30 * MEGABYTE // 8 - 64)
    for path, body in [("/tokenize", {"prompt": words}), (CHAT, chat(messages=[{"role": "user", "content": words}]))]:
        data = post(path, body)
        conns = [stage.conn() for _ in range(2)]
        for conn in conns:
            conn.send(data)
        time.sleep(0.3)
        for conn in conns:
            conn.reset()
        time.sleep(0.7)
        busy = stage.busy(0.5)
        expect(busy < calm + 0.4, f"{path}: a second after its clients have gone the router keeps {busy:.1f} cores busy, {calm:.1f} before")
    return f"{busy:.1f} cores busy a second later, {calm:.1f} before"


@case("long texts to /tokenize", "4 clients, 30 MB of words each: all of it is tokenised, and others go on", memory=181 + 3 * 31, short=False)
def tokenize(stage):
    data = post("/tokenize", {"prompt": "the pod " * (30 * MEGABYTE // 8 - 64)})
    told = stage.together(4, lambda _: good(stage.ask(data, 50)))
    return ", ".join(told)
