"""Cases of clients that read slowly, do not read, or go."""

import socket
import time

import raw
from bodies import CHAT, COMPLETIONS
from heads import OK
from probes import error, good
from raw import post
from stage import chat, completion, expect
from table import SLACK, case

# Seconds within which a sequence is free after its client has gone: "at once", on a busy machine.
FREED = 1.0
# A client's receive buffer: as small as the kernel allows.
SMALL = 4096


def freed(stage, what):
    took = stage.until(lambda: stage.scripted() == 0, FREED, f"{what}: the sequence still runs {FREED:.0f} s after its client has gone")
    return 1e3 * took


def running(stage, count=1):
    stage.until(lambda: stage.scripted() >= count, 5, "the sequence does not run")


def wordy(script, tokens, **changes):
    """A chat with log-probabilities: two kilobytes a token on the client's side."""
    return post(CHAT, chat(max_tokens=tokens, logprobs=True, top_logprobs=20, stop=[f"@double {script}"], **changes))


def unread(stage, count, data):
    """Clients that ask and do not read, until their sequences have ended; the clients."""
    script = data.split(b"@double ", 1)[1].split(b'"', 1)[0].decode()
    before = len(stage.attempts(script))
    conns = [stage.conn(receive_buffer=SMALL) for _ in range(count)]
    for conn in conns:
        conn.send(data)
    came = lambda: len(stage.attempts(script)) - before >= count
    stage.until(came, 15, f"after 15 s not all {count} requests have reached a worker: slots are held")
    stage.until(lambda: stage.scripted() == 0, 15, "slots are held by clients that do not read")
    return conns


def cut(stage, conns, what):
    """Clients that have not read for the whole write deadline are cut: they find the answer's beginning and no end of it."""
    # Without reading, so that nothing is taken: the connection is reset, and the client's kernel knows it.
    limit = stage.option("--write-timeout", 2) + SLACK
    took = stage.until(lambda: all(conn.is_over() for conn in conns), limit, f"{what} that nobody reads are still open after {limit:.1f} s")
    time.sleep(0.2)
    whole = 0
    for conn in conns:
        conn.socket.settimeout(raw.PATIENCE)
        ended = conn.ends_with(b"[DONE]\n\n" if what == "streams" else b"}", 10)
        whole += ended
        conn.socket.close()
    expect(whole == 0, f"{whole} of {len(conns)} {what} went on after nothing was read for longer than the write deadline")
    return f"slots free at once, {len(conns)} cut after {took:.1f} s"


# The others wait for a slot while the worker says 240,000 tokens as fast as it can.
@case("readers that stop for ever", "24 streams of 10,000 tokens with log-probabilities that nobody reads, before 16 slots", stand="few slots", memory=128, judged=False)
def stopped_readers(stage):
    conns = unread(stage, 24, wordy("burst:250:40,finish", 10_000, stream=True))
    return cut(stage, conns, "streams")


# The worker answers the others too, so it must not be the one that is busy.
@case("readers that stop where there is room", "24 streams of 2,000 tokens with log-probabilities in a second each, before 64 slots", stand="many slots", memory=128)
def stopped_beside(stage):
    conns = unread(stage, 24, wordy("burst:50,wait:25," * 40 + "finish", 2_000, stream=True))
    return cut(stage, conns, "streams")


@case("whole answers that nobody reads", "12 whole answers of 2,000 tokens with log-probabilities (2.5 MB), unread", stand="few slots", memory=200, short=False)
def stopped_whole(stage):
    conns = unread(stage, 12, wordy("burst:250:8,finish", 2_000))
    return cut(stage, conns, "whole answers")


@case("96 readers that stop", "96 streams of 10,000 tokens with log-probabilities that nobody reads, before 16 slots", stand="few slots", memory=400, short=False, judged=False)
def many_stopped_readers(stage):
    conns = unread(stage, 96, wordy("burst:250:40,finish", 10_000, stream=True))
    return cut(stage, conns, "streams")


@case("slow readers", "24 streams of 400 tokens with log-probabilities (1 MB), read at 250 KB/s, before 16 slots", stand="few slots", memory=64)
def slow_readers(stage):
    data = wordy("burst:50:8,finish", 400, stream=True)

    def read(_):
        with stage.conn(receive_buffer=SMALL) as conn:
            conn.send(data)
            start = time.monotonic()
            while b"[DONE]" not in conn.buffer[-100:]:
                expect(time.monotonic() - start < 30, "a slow reader's answer has no end after 30 s")
                expect(conn.fill(5), "a slow reader is cut")
                time.sleep(max(0, len(conn.buffer) / 250_000 - (time.monotonic() - start)))
            return len(conn.buffer)
    sizes = stage.together(24, read)
    return f"all 24 whole, {min(sizes) // 1000} KB each"


@case("whole answers beyond the bound", "64 whole answers of 2,000 tokens with log-probabilities (2.5 MB each), read at 3 KB/s; /metrics is asked for meanwhile", stand="roomy defaults", memory=300, short=False, judged=False)
def slow_whole(stage):
    conns = [stage.conn(receive_buffer=SMALL) for _ in range(64)]
    for conn in conns:
        conn.send(wordy("burst:250:8,finish", 2_000))
    start, pages = time.monotonic(), 0
    while time.monotonic() - start < 20:
        for conn in conns:
            try:
                conn.socket.recv(3000, socket.MSG_DONTWAIT)
            except OSError:
                pass
        good(stage.ask(raw.head("GET", "/metrics"), 3))
        pages += 1
        time.sleep(max(0, start + pages - time.monotonic()))
    cut = sum(conn.is_over() for conn in conns)
    now = stage.memory() - stage.memory_before
    expect(0 < cut < 64, f"{cut} of 64 are cut, so that the rest take 128 MB at the most")
    for conn in conns:
        conn.socket.close()
    return f"{pages} pages of metrics; {cut} cut after 20 s, {now:.0f} MB for the rest"


@case("metrics that nobody reads", "1,000 clients that ask for /metrics and do not read", stand="defaults", memory=400, short=False, judged=False)
def unread_metrics(stage):
    conns = [stage.conn(receive_buffer=SMALL) for _ in range(1000)]
    for conn in conns:
        conn.send(raw.head("GET", "/metrics"))
    start = time.monotonic()
    longest = 0.0
    while time.monotonic() - start < 10:
        asked = time.monotonic()
        good(stage.ask(raw.head("GET", "/v1/models"), 3))
        longest = max(longest, time.monotonic() - asked)
        time.sleep(0.05)
    for conn in conns:
        conn.socket.close()
    return f"others answered within {1e3 * longest:.0f} ms"


@case("a FIN behind much", "a whole answer, a megabyte of requests behind it, then a FIN", repeat=True)
def fin_behind(stage):
    conn = stage.conn()
    conn.send(post(COMPLETIONS, completion(script="tokens:2,hold")))
    running(stage)
    conn.push(OK * 25_000)
    conn.finish()
    took = freed(stage, "a FIN behind a megabyte")
    conn.socket.close()
    return f"free after {took:.0f} ms"


@case("half-close", "the end of sending right behind a request: a stream goes on, a whole answer is given up", repeat=True)
def half_close(stage):
    with stage.conn() as conn:
        conn.send(post(COMPLETIONS, completion(script="tokens:3,wait:300,tokens:1,finish", stream=True)))
        conn.finish()
        answer = conn.answer(5)
        good(answer)
        expect(answer.events()[-1] == b"[DONE]", "a half-closed stream has no end")
    with stage.conn() as conn:
        conn.send(post(COMPLETIONS, completion(script="tokens:1,hold")))
        running(stage)
        conn.finish()
        took = freed(stage, "a half-closed whole answer")
        expect(conn.ends(2), "the connection of a half-closed whole answer stays open")
    return f"a stream is answered whole; a whole answer is freed after {took:.0f} ms"


def gone(stage, what, data, more=b"", stream=True, wait=False):
    """A client that goes while its sequence waits; milliseconds until that is free."""
    conn = stage.conn()
    conn.send(data)
    running(stage)
    if stream and not wait:
        conn.hear(1)
    if more:
        conn.push(more)
    conn.reset()
    return freed(stage, what)


@case("resets", "clients that reset: before the first token, within a stream, within a whole answer", repeat=True)
def resets(stage):
    held = lambda script, **changes: post(COMPLETIONS, completion(script=script, **changes))
    times = [
        gone(stage, "before the worker accepts", held("mute", stream=True), wait=True),
        gone(stage, "before the first token", held("hold", stream=True), wait=True),
        gone(stage, "within a stream", held("tokens:2,hold", stream=True)),
        gone(stage, "within a whole answer", held("tokens:2,hold"), stream=False),
    ]
    return f"free after at most {max(times):.0f} ms"


@case("gone after more bytes", "clients that reset after bytes behind the body, after a second request, after half of one", repeat=True)
def gone_after_more(stage):
    times = []
    for what, more in [("bytes behind the body", b"\r\n\r\nmore and more"), ("a second request", OK), ("half a request", OK[:9]), ("100 KB", OK * 2000), ("1 MB", OK * 25_000)]:
        for stream in (True, False):
            name = f"{what}, {'stream' if stream else 'whole'}"
            data = post(COMPLETIONS, completion(script="tokens:2,hold", stream=stream))
            times.append(gone(stage, name, data, more, stream))
    return f"free after at most {max(times):.0f} ms"


@case("closed without a reset", "clients that close a stream, or a whole answer, by a FIN; also after a second request", repeat=True)
def closed(stage):
    times = []
    for more in (b"", OK):
        for stream in (True, False):
            conn = stage.conn()
            conn.send(post(COMPLETIONS, completion(script="tokens:2,hold", stream=stream)) + more)
            running(stage)
            if stream:
                conn.hear(1)
            conn.socket.close()
            kind = "a stream" if stream else "a whole answer"
            times.append(freed(stage, f"{kind}, {'a second request' if more else 'nothing more'}"))
    return f"free after at most {max(times):.0f} ms"


@case("bytes behind the body", "a whole request and 100 bytes that are none", repeat=True)
def bytes_behind(stage):
    with stage.conn() as conn:
        conn.send(post(COMPLETIONS, completion()) + b"x" * 100 + b"\r\n\r\n")
        first = good(conn.answer())
        expect(b"HTTP/1.1 200" not in conn.rest(5), "bytes that are no request are answered 200")
    return f"{first}, then closed"


@case("pipelining", "2 streams, 100 whole answers, 1,000 requests of /health, each at once on one connection")
def pipelining(stage):
    with stage.conn() as conn:
        conn.send(post(COMPLETIONS, completion(stream=True)) * 2)
        for _ in range(2):
            answer = conn.answer()
            good(answer)
            expect(answer.events()[-1] == b"[DONE]", "a pipelined stream has no end")
    with stage.conn() as conn:
        conn.send(b"".join(post(COMPLETIONS, completion(max_tokens=1 + n % 2)) for n in range(100)))
        for n in range(100):
            answer = conn.answer()
            good(answer)
            expect(answer.json()["usage"]["completion_tokens"] == 1 + n % 2, "answers are out of order")
    with stage.conn() as conn:
        conn.send(OK * 1000)
        for _ in range(1000):
            good(conn.answer())
    return "all in order"


@case("requests that nobody reads", "2,000 requests of /metrics pipelined and unread on 8 connections", memory=64, short=False)
def unread_pipeline(stage):
    before, start = stage.descriptors(), time.monotonic()
    conns = [stage.conn(receive_buffer=SMALL) for _ in range(8)]
    for conn in conns:
        conn.socket.settimeout(1)
        try:
            conn.socket.sendall(raw.head("GET", "/metrics") * 250)
        except OSError:
            pass
    limit = stage.option("--write-timeout", 2) + SLACK
    stage.until(lambda: stage.descriptors() <= before + 4, limit, f"still open after nothing was read for {limit:.1f} s")
    for conn in conns:
        conn.socket.close()
    return f"8 cut, all within {time.monotonic() - start:.1f} s"


@case("idle connections", "2,000 connections that have had one answer and say nothing more", stand="defaults", memory=64, short=False)
def idle(stage):
    conns = []
    for _ in range(2000):
        conns.append(stage.conn())
        conns[-1].send(OK)
        good(conns[-1].answer())
    grown = stage.memory() - stage.memory_before
    for conn in conns:
        conn.socket.close()
    stage.until(lambda: stage.descriptors() < 200, 5, "connections of clients that have gone stay open")
    return f"{1e3 * grown / 2000:.0f} KB each"


@case("quiet streams", "200 streams that have had one token, and then nothing for 12 s", stand="defaults", memory=32, short=False)
def quiet_streams(stage):
    conns = [stage.conn() for _ in range(100)]
    for conn in conns:
        conn.send(post(COMPLETIONS, completion(script="tokens:1,hold", stream=True)))
    end = time.monotonic() + 13
    for conn in conns:
        while b"\n:" not in conn.buffer:
            expect(time.monotonic() < end, "no comment within 13 s of silence")
            expect(conn.fill(max(0.01, end - time.monotonic())), "a quiet stream is cut")
        conn.reset()
    return f"a comment to each, all freed after {freed(stage, 'quiet streams'):.0f} ms"


@case("default deadlines", "slow heads, slow bodies at 100 B/s and streams that nobody reads, with the deadlines as they come", stand="defaults", memory=96, short=False)
def default_deadlines(stage):
    start, kinds = time.monotonic(), {"heads": 12, "bodies": 20, "streams": 40}
    conns = {kind: [stage.conn(receive_buffer=SMALL) for _ in range(10)] for kind in kinds}
    for head, body, stream in zip(*conns.values()):
        head.send(b"GET /health HTTP/1.1\r\nX: ")
        body.send(raw.head("POST", COMPLETIONS, [("Content-Length", "100000")]))
        stream.send(wordy("burst:250:14,finish", 3500, stream=True))
    happened = {}
    while any(conns.values()):
        for kind, some in conns.items():
            for conn in list(some):
                if kind == "streams":
                    ended = conn.is_over()
                else:
                    ended = not conn.send(b" " * (1 if kind == "heads" else 10))
                    try:
                        ended = ended or not conn.fill(0.001) or b"HTTP/1.1 4" in conn.buffer
                    except raw.Cut:
                        pass
                if ended:
                    some.remove(conn)
                    happened[kind] = time.monotonic() - start
            expect(not some or time.monotonic() - start < kinds[kind], f"{len(some)} of 10 {kind} still open after {kinds[kind]} s")
        time.sleep(0.1)
    return ", ".join(f"{kind} after {took:.0f} s" for kind, took in happened.items())
