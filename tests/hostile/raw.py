"""HTTP/1.1 as bytes on a socket: what a polite library would refuse to send. Every wait has a limit."""

import json
import select
import socket
import struct
import time

PATIENCE = 20.0  # seconds: the longest wait of any read or write here


class Cut(Exception):
    """The connection ended before the answer did, or nothing came for too long."""


class Answer:
    """One answer. `whole` is false where the connection ended before it did."""

    def __init__(self, status, headers, body, whole=True):
        self.status, self.headers, self.body, self.whole = status, headers, body, whole

    def header(self, name):
        return next((value for key, value in self.headers if key == name), None)

    def all(self, name):
        return [value for key, value in self.headers if key == name]

    def json(self):
        try:
            return json.loads(self.body)
        except ValueError:
            return None

    def error(self):
        """The `error` object of an answer in OpenAI's shape, else None."""
        value = self.json()
        error = value.get("error") if isinstance(value, dict) else None
        shape = isinstance(error, dict) and {"message", "type", "param", "code"} <= error.keys()
        return error if shape and isinstance(error["message"], str) and error["message"] else None

    def events(self):
        """The data of every server-sent event, comments left out."""
        found = []
        for event in self.body.split(b"\n\n"):
            lines = [line[6:] for line in event.split(b"\n") if line.startswith(b"data: ")]
            if lines:
                found.append(b"\n".join(lines))
        return found


def head(method, path, headers=(), host=True, version="HTTP/1.1"):
    """The bytes of a request's head; headers are (name, value) pairs of text or bytes."""
    raw = lambda part: part if isinstance(part, bytes) else part.encode("latin-1")
    lines = [b"%s %s %s" % (raw(method), raw(path), raw(version))]
    lines += [b"Host: test"] if host else []
    lines += [b"%s: %s" % (raw(name), raw(value)) for name, value in headers]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def post(path, body, headers=()):
    """The bytes of a POST of a JSON value, or of bytes."""
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    fixed = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    return head("POST", path, fixed + list(headers)) + body


class Conn:
    """One connection."""

    def __init__(self, port, receive_buffer=None, patience=PATIENCE):
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(patience)
        self.socket.connect(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = bytearray()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, data):
        """Sends, as long as the other side takes it and says nothing; whether all of it went."""
        view, end = memoryview(data), time.monotonic() + PATIENCE
        self.socket.setblocking(False)
        poll = select.poll()
        poll.register(self.socket, select.POLLIN | select.POLLOUT)
        try:
            while view:
                found = sum(events for _, events in poll.poll(1000))
                if found & ~select.POLLOUT and self._closing():
                    return False
                if found & select.POLLOUT:
                    view = view[self.socket.send(view):]
                elif time.monotonic() > end:
                    return False
            return True
        except (BrokenPipeError, ConnectionResetError):
            return False
        finally:
            self.socket.settimeout(PATIENCE)

    def push(self, data, patience=0.3):
        """Sends what is taken within a moment."""
        self.socket.settimeout(patience)
        try:
            self.socket.sendall(data)
        except (TimeoutError, ConnectionError):
            pass

    def _closing(self):
        """Whether an answer is here already: an error that did not wait for the body, or the end."""
        peeked = self.socket.recv(64, socket.MSG_PEEK)
        return not peeked.startswith(b"HTTP/1.1 100") and not peeked.startswith(b"HTTP/1.1 200")

    def fill(self, patience=PATIENCE):
        """Waits for more bytes; false at the end of the connection."""
        self.socket.settimeout(max(patience, 0.001))
        try:
            data = self.socket.recv(1 << 16)
        except TimeoutError:
            raise Cut(f"nothing came for {patience:.1f} s")
        except ConnectionError:
            return False
        self.buffer += data
        return bool(data)

    def until(self, mark, patience=PATIENCE):
        """Bytes up to and with a mark."""
        end = time.monotonic() + patience
        while (at := self.buffer.find(mark)) < 0:
            if not self.fill(end - time.monotonic()):
                raise Cut(f"the connection ended after {bytes(self.buffer[:60])!r}")
        return self.take(at + len(mark))

    def take(self, count):
        part = bytes(self.buffer[:count])
        del self.buffer[:count]
        return part

    def head(self, patience=PATIENCE):
        """Status and headers of the next answer."""
        lines = self.until(b"\r\n\r\n", patience).split(b"\r\n")
        words = lines[0].split(b" ", 2)
        if len(words) < 2 or not words[0].startswith(b"HTTP/1."):
            raise Cut(f"no status line: {lines[0][:60]!r}")
        pairs = [line.split(b":", 1) for line in lines[1:] if line]
        return int(words[1]), [(name.decode("latin-1").lower(), value.strip().decode("latin-1")) for name, value in pairs]

    def answer(self, patience=PATIENCE):
        """The next whole answer; interim ones are passed over."""
        end = time.monotonic() + patience
        status, headers = self.head(patience)
        while status == 100:
            status, headers = self.head(end - time.monotonic())
        answer = Answer(status, headers, b"")
        length, coding = answer.header("content-length"), answer.header("transfer-encoding")
        body = bytearray()
        try:
            if coding == "chunked":
                while size := int(self.until(b"\r\n", end - time.monotonic()).split(b";")[0], 16):
                    self._more(size + 2, end)
                    body += self.take(size + 2)[:-2]
                self.until(b"\r\n", end - time.monotonic())
            elif length is not None:
                self._more(int(length), end)
                body += self.take(int(length))
            elif status not in (204, 304):
                while self.fill(end - time.monotonic()):
                    pass
                body += self.take(len(self.buffer))
        except Cut:
            body += self.take(len(self.buffer))
            answer.whole = False
        answer.body = bytes(body)
        return answer

    def _more(self, count, end):
        while len(self.buffer) < count:
            if not self.fill(end - time.monotonic()):
                raise Cut("the connection ended within a body")

    def ends(self, patience):
        """Whether the other side ends the connection in time; what came before is thrown away."""
        end = time.monotonic() + patience
        try:
            while self.fill(end - time.monotonic()):
                self.buffer.clear()
        except Cut:
            return False
        return True

    def rest(self, patience):
        """Everything until the other side ends the connection."""
        end = time.monotonic() + patience
        while self.fill(end - time.monotonic()):
            pass
        return self.take(len(self.buffer))

    def hear(self, count, patience=5.0):
        """Waits for so many server-sent events."""
        end = time.monotonic() + patience
        while self.buffer.count(b"data: ") < count:
            if not self.fill(end - time.monotonic()):
                raise Cut(f"the connection ended before {count} events")

    def ends_with(self, mark, patience):
        """Reads to the end of the connection; whether the last bytes are a mark. It may also go on without an end: that is no end with a mark."""
        end, last = time.monotonic() + patience, b""
        try:
            while self.fill(end - time.monotonic()):
                last = bytes(self.buffer[-64:])
                self.buffer.clear()
                if last.endswith(mark + b"\r\n0\r\n\r\n") or last.endswith(mark):
                    return True
        except Cut:
            return False
        return False

    def is_over(self):
        """Whether the kernel knows that the connection has ended, without reading from it."""
        state = self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
        return state not in (1, 2)  # established, SYN sent

    def finish(self):
        """Says that nothing more will be sent."""
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the other side has ended the connection already

    def reset(self):
        """Ends the connection as a crashed client's kernel does."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


def ask(port, data, patience=PATIENCE):
    """Sends bytes on a connection of their own and reads one answer."""
    with Conn(port) as conn:
        conn.send(data)
        return conn.answer(patience)
