"""The processes of one stand: a real m1-router, workers that misbehave on demand, and the others whose answers must not suffer. Bounded waits only."""

import json
import os
import re
import resource
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from functools import cache
from pathlib import Path

import raw

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
MODEL = ROOT / "demo/m1-demo"
NAME = "m1-demo"
KEY = "sk-hostile"  # of stands with API keys
RATE = 60  # requests of the others per second: enough for a p99, few enough for two cores
WINDOW = 4096
START = 30.0  # seconds that a process may take to be ready


class Violation(Exception):
    """The router did something else than it should."""


def expect(holds, text):
    """Raises where something does not hold."""
    if not holds:
        raise Violation(text)


def binary(name):
    """A built binary: of the folder in M1_BIN, else of target/debug."""
    folder = Path(os.environ.get("M1_BIN", ROOT / "target/debug"))
    path = folder / name
    if not path.exists():
        sys.exit(f"hostile: {path} is missing: run `cargo build -p m1-router -p m1-hostile`")
    return str(path)


@cache
def flags():
    """The router's flags: a stand asks for what there is."""
    text = subprocess.run([binary("m1-router"), "--help"], capture_output=True, text=True, timeout=20).stdout
    return set(re.findall(r"--[a-z][a-z0-9-]+", text))


def line(process, patience):
    """A line of a process, or nothing."""
    end = time.monotonic() + patience
    data = b""
    while not data.endswith(b"\n"):
        ready, _, _ = select.select([process.stdout], [], [], max(0, end - time.monotonic()))
        part = os.read(process.stdout.fileno(), 1 << 16) if ready else b""
        if not part:
            return None
        data += part
    return json.loads(data)


class Worker:
    """An engine double; see src/script.rs for what it can be told."""

    def __init__(self, slots=64, mode="ok", standing="ready", gap_ms=5, reset=False, window=WINDOW):
        self.arguments = ["--slots", slots, "--mode", mode, "--standing", standing, "--gap-ms", gap_ms, "--max-context", window]
        self.arguments = [str(word) for word in self.arguments] + (["--reset"] if reset else [])
        self.port, self.process = 0, None
        self.start()

    def start(self):
        command = [binary("m1-hostile-worker"), "--listen", f"127.0.0.1:{self.port}", *self.arguments]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        told = line(self.process, START)
        if told is None:
            raise RuntimeError("a worker did not start")
        self.port = int(told["address"].rsplit(":", 1)[1])

    def alive(self):
        return self.process.poll() is None

    def tell(self, command):
        """Does a command; what it answers."""
        self.process.stdin.write(command.encode() + b"\n")
        self.process.stdin.flush()
        answer = line(self.process, 10)
        if answer is None or "error" in answer:
            raise RuntimeError(f"{command}: {answer}")
        return answer

    def kill(self):
        self.process.kill()
        self.process.wait(10)

    def stop(self):
        self.kill()
        self.process.stdin.close()
        self.process.stdout.close()


class Plain:
    """A worker's address where somebody else answers: bytes that are no HTTP/2, nothing at all, or the end of the connection."""

    def __init__(self, kind):
        self.kind, self.held = kind, []
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        while True:
            try:
                conn, _ = self.listener.accept()
            except OSError:
                return
            try:
                if self.kind == "http1":
                    conn.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nhi\n")
                elif self.kind == "random":
                    conn.sendall(os.urandom(1 << 16))
                elif self.kind == "close":
                    conn.close()
                    continue
            except OSError:
                pass
            self.held = [*self.held[-63:], conn]

    def alive(self):
        return True

    def stop(self):
        self.listener.close()
        for conn in self.held:
            conn.close()


class Stage:
    """One router before its workers, with the others at work."""

    def __init__(self, workers, options=(), stderr=None, stdout=None, env=None, descriptors=None, others=True):
        self.scratch = tempfile.TemporaryDirectory(prefix="m1-hostile-")
        self.workers, self.options = workers, dict(options)
        self.others = self.router = None
        self.has_others = others
        if self.options.pop("keys", None):
            (Path(self.scratch.name) / "keys").mkdir()
            (Path(self.scratch.name) / "keys/one").write_text(KEY)
            self.options["--api-keys"] = Path(self.scratch.name) / "keys"
        self.port = free_port()
        command = [binary("m1-router"), "--listen", f"127.0.0.1:{self.port}", "--model", MODEL, "--served-name", NAME]
        for worker in workers:
            command += ["--workers", f"127.0.0.1:{worker.port}"]
        self.options.setdefault("--max-context", WINDOW)
        for flag, value in self.options.items():
            command += [flag, value] if flag in flags() else []
        self.log = Path(self.scratch.name) / "router.log"
        with self.log.open("wb") as log:
            out = {"stdout": stdout or subprocess.DEVNULL, "stderr": stderr or log}
            out["preexec_fn"] = lambda: descriptors and resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))
            self.router = subprocess.Popen([str(word) for word in command], stdin=subprocess.DEVNULL, env={**os.environ, **(env or {})}, **out)
        self.until(lambda: self.status("/health") == 200, START, "the router did not start: " + self.tail())

    def option(self, flag, other):
        """What a flag was given; `other` where this router has no such flag."""
        return self.options[flag] if flag in self.options and flag in flags() else other

    def ready(self):
        """Waits until the router serves."""
        self.until(lambda: self.status("/ready") == 200, START, "the router did not become ready: " + self.tail())

    def tail(self):
        return self.log.read_text(errors="replace")[-2000:] if self.log.exists() else ""

    def status(self, path, patience=2.0):
        """The status of a GET; none where it was not answered in time."""
        try:
            return raw.ask(self.port, raw.head("GET", path), patience).status
        except (raw.Cut, OSError):
            return None

    def until(self, holds, patience, text):
        """Waits until something holds; a violation where it does not. How long it took."""
        start = time.monotonic()
        while not holds():
            expect(time.monotonic() - start < patience, text)
            time.sleep(0.01)
        return time.monotonic() - start

    def conn(self, **options):
        return raw.Conn(self.port, **options)

    def ask(self, data, patience=raw.PATIENCE):
        return raw.ask(self.port, data, patience)

    def together(self, count, work):
        """Does the same so many times at once, in threads; the results, or the first failure."""
        results, failures = [None] * count, []

        def one(place):
            try:
                results[place] = work(place)
            except Exception as error:  # told below, in the thread that waits
                failures.append(error)

        threads = [threading.Thread(target=one, args=(place,), daemon=True) for place in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            expect(not thread.is_alive(), "a client did not come to an end within 60 s")
        if failures:
            raise failures[0]
        return results

    # The router from outside.

    def memory(self, name="VmRSS"):
        """Megabytes of the router: VmRSS now, VmHWM at most since the last `settle`."""
        text = Path(f"/proc/{self.router.pid}/status").read_text()
        return int(re.search(rf"^{name}:\s+(\d+)", text, re.M)[1]) / 1024

    def settle(self):
        """Forgets the peak of memory so far."""
        Path(f"/proc/{self.router.pid}/clear_refs").write_text("5")

    def busy(self, seconds):
        """Cores that the router keeps busy, over some seconds from now."""
        def spent():
            parts = Path(f"/proc/{self.router.pid}/stat").read_text().rsplit(")", 1)[1].split()
            return (int(parts[11]) + int(parts[12])) / os.sysconf("SC_CLK_TCK")
        before = spent()
        time.sleep(seconds)
        return (spent() - before) / seconds

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.router.pid}/fd"))

    def scripted(self):
        """Sequences with a script of their own that the doubles run now."""
        return sum(worker.tell("count")["scripted"] for worker in self.workers if isinstance(worker, Worker) and worker.alive())

    def attempts(self, script):
        """How many attempts of each request with a script the doubles saw, by request id."""
        found = {}
        for worker in self.workers:
            if isinstance(worker, Worker) and worker.alive():
                for request, attempt in worker.tell(f"seen {script}")["seen"]:
                    found.setdefault(request, []).append(attempt)
        return found

    def metric(self, name):
        """The sum of a metric's series."""
        text = self.ask(raw.head("GET", "/metrics")).body.decode()
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if re.match(rf"{name}(\{{|\s)", line))

    # The others.

    def begin_others(self, rate=RATE):
        if not self.has_others:
            return
        command = [sys.executable, str(HERE / "background.py"), str(self.port), str(rate), NAME, KEY]
        self.others = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def take_others(self):
        """What the others saw since the last time; see background.py."""
        if not self.has_others:
            return {"first": [], "total": [], "late": [], "answered": 0, "failed": [], "broken": []}
        self.others.stdin.write(b"take\n")
        self.others.stdin.flush()
        told = line(self.others, 30)
        if told is None:
            raise RuntimeError("the others are gone")
        return told

    def stop(self):
        """Ends every process; whether the router was alive until now."""
        lived = self.router is not None and self.router.poll() is None
        for process in [self.others, self.router]:
            if process and process.poll() is None:
                process.kill()
            if process:
                process.wait(10)
        for worker in self.workers:
            worker.stop()
        self.scratch.cleanup()
        return lived


def free_port():
    """A port that nobody has now. The router says its own only in its log."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def p99(values):
    """The value that 99 of 100 do not exceed; none without values."""
    ordered = sorted(values)
    return ordered[-(-99 * len(ordered) // 100) - 1] if ordered else None


def chat(**changes):
    return {"model": NAME, "messages": [{"role": "user", "content": "the pod"}], **changes}


def completion(script=None, **changes):
    """A completion; with a script for the worker that gets it."""
    body = {"model": NAME, "prompt": "the pod", "max_tokens": 4, **changes}
    return {**body, "stop": [f"@double {script}"]} if script else body


signal.signal(signal.SIGPIPE, signal.SIG_IGN)
