"""Cases of connections and request heads."""

import json
import time

import raw
from probes import clean, error, good, or_closed, refused, run
from raw import head
from stage import completion, expect
from table import SLACK, case

OK = head("GET", "/health")


def trickle(stage, conns, data, pause, limit, text):
    """Sends bytes one at a time on many connections until all are ended by the other side; a violation at the limit. Answers, by status."""
    start, open_conns, place, seen = time.monotonic(), list(conns), 0, {}
    while open_conns:
        expect(time.monotonic() - start < limit, f"{len(open_conns)} of {len(conns)} {text} still open after {limit:.1f} s")
        still = []
        for conn in open_conns:
            ended = not conn.send(data[place % len(data):place % len(data) + 1])
            try:
                while not ended and conn.fill(0.001):
                    pass
                ended = True
            except raw.Cut:
                pass
            if not ended:
                still.append(conn)
                continue
            status = conn.buffer[9:12].decode("latin-1") or "closed"
            seen[status] = seen.get(status, 0) + 1
        open_conns, place = still, place + 1
        time.sleep(pause)
    return ", ".join(f"{status} x{count}" for status, count in sorted(seen.items())) + f" after {time.monotonic() - start:.1f} s"


@case("slow heads", "60 heads, a byte every 100 ms, without end", memory=16)
def slow_heads(stage):
    limit = stage.option("--header-timeout", 1) + SLACK
    conns = [stage.conn() for _ in range(60)]
    return trickle(stage, conns, b"GET /health HTTP/1.1\r\nX-Slow: " + b"a" * 1000, 0.1, limit, "heads")


@case("half heads", "60 connections that send half a head and stop; 60 that send nothing", memory=16)
def half_heads(stage):
    limit, idle = stage.option("--header-timeout", 1) + SLACK, stage.option("--idle-timeout", 2) + SLACK
    conns = [stage.conn() for _ in range(120)]
    for conn in conns[:60]:
        conn.send(b"POST /v1/completions HTTP/1.1\r\nHost: test\r\nContent-")
    start = time.monotonic()
    left = [conn for conn in conns[:60] if not conn.ends(max(0.01, start + limit - time.monotonic()))]
    expect(not left, f"{len(left)} of 60 half heads still open after {limit:.1f} s")
    took = time.monotonic() - start
    quiet = [conn for conn in conns[60:] if not conn.ends(max(0.01, start + idle - time.monotonic()))]
    expect(not quiet, f"{len(quiet)} of 60 connections that said nothing still open after {idle:.1f} s")
    return f"closed after {took:.1f} s, those that said nothing after {time.monotonic() - start:.1f} s"


@case("head floods", "heads of 70 KB and 16 MB, 200 and 100,000 headers, a header name of 70 KB, a URI of 10 KB and 1 MB", repeat=True)
def head_floods(stage):
    too_large = or_closed(lambda answer: error(answer, 431))
    return run(stage, [
        ("70 KB", head("GET", "/health", [("X-Big", "a" * 70_000)]), lambda answer: error(answer, 431)),
        ("many of 1 KB", head("GET", "/health", [(f"X-{n}", "a" * 1000) for n in range(80)]), lambda answer: error(answer, 431)),
        ("a name of 70 KB", head("GET", "/health", [("X" * 70_000, "a")]), lambda answer: error(answer, 431)),
        ("200 headers", head("GET", "/health", [(f"X-{n}", "a") for n in range(200)]), lambda answer: error(answer, 431)),
        ("a URI of 10 KB", head("GET", "/" + "a" * 10_000), lambda answer: error(answer, 414)),
        ("16 MB", head("GET", "/health", [("X-Big", "a" * (16 << 20))]), too_large),
        ("100,000 headers", head("GET", "/health", [(f"X-{n}", "a") for n in range(100_000)]), too_large),
        ("a URI of 1 MB", head("GET", "/" + "a" * (1 << 20)), or_closed(lambda answer: error(answer, 414, 431))),
        ("60 KB is allowed", head("GET", "/health", [(f"X-{n}", "a" * 1000) for n in range(60)]), good),
    ])


@case("connections beyond the bound", "300 idle connections where 100 are allowed", stand="few connections", memory=16, refuses=True, judged=False)
def many_connections(stage):
    conns = [stage.conn() for _ in range(300)]
    start, refusals, closed = time.monotonic(), 0, 0
    for conn in conns:
        try:
            if conn.fill(0.01 if time.monotonic() - start > 2 else 0.05):
                refusals += conn.head(2)[0] == 503
            closed += conn.ends(0.5)
        except raw.Cut:
            pass
    expect(closed >= 200, f"{300 - closed} of 300 connections are open where 100 are allowed")
    expect(stage.descriptors() < 220, f"the router has {stage.descriptors()} descriptors open")
    for conn in conns:
        conn.socket.close()
    stage.until(lambda: stage.status("/health") == 200, 5, "no connection is taken after all others ended")
    return f"{refusals} answered 503, {closed} closed"


SMUGGLED = head("GET", "/smuggled")
# A body that is good on its own, so that only the framing can be what is refused; by both lengths of it.
BODY = json.dumps(completion(max_tokens=1)).encode()
CHUNKED = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
TE, CL = ("Transfer-Encoding", "chunked"), ("Content-Length", str(len(BODY)))

length_of_chunks = ("Content-Length", str(len(CHUNKED)))


def framed(*headers, body=CHUNKED, version="HTTP/1.1"):
    return head("POST", "/v1/completions", headers, version=version) + body + SMUGGLED


@case("smuggling", "TE and CL, two CL, TE that is not just chunked, obs-fold, bad CL, control bytes, each with a second request behind it", repeat=True)
def smuggling(stage):
    no = or_closed(lambda answer: refused(answer, 400, 501))
    length = lambda text: ("Content-Length", text)
    coding = lambda text: ("Transfer-Encoding", text)
    return run(stage, [
        ("TE and CL", framed(TE, length_of_chunks), no),
        ("CL and TE", framed(length("5"), TE), no),
        ("two CL", framed(CL, length("6"), body=BODY), no),
        ("CL list", framed(length(f"{len(BODY)}, 6"), body=BODY), no),
        ("CL +", framed(length(f"+{len(BODY)}"), body=BODY), no),
        ("CL -1", framed(length("-1"), body=b""), no),
        ("CL in hex", framed(length(hex(len(BODY))), body=BODY), no),
        ("CL of 30 digits", framed(length("9" * 30), body=BODY), or_closed(lambda answer: refused(answer, 400, 413))),
        ("CL empty", framed(length(""), body=b""), no),
        ("TE identity", framed(coding("identity")), no),
        ("TE chunked, identity", framed(coding("chunked, identity")), no),
        ("TE gzip, chunked", framed(coding("gzip, chunked")), no),
        ("TE chunked, chunked", framed(coding("chunked, chunked")), no),
        ("TE xchunked", framed(coding("xchunked")), no),
        ("TE twice", framed(TE, coding("identity")), no),
        ("TE with vertical tab", framed(coding("\x0bchunked")), no),
        ("space before colon", framed(("Transfer-Encoding ", "chunked")), no),
        ("obs-fold", framed(coding("\r\n chunked")), no),
        ("header that begins with space", framed(TE, (" X", "a")), no),
        ("NUL in a value", framed(TE, ("X", "a\0b")), no),
        ("CR in a value", framed(("X", "a\rTransfer-Encoding: chunked")), no),
        ("no colon", head("GET", "/health")[:-2] + b"nothing\r\n\r\n" + SMUGGLED, no),
        ("HTTP/1.0 and TE", framed(TE, version="HTTP/1.0"), no),
    ], last=True)


@case("equal lengths", "two equal Content-Length, and a second request behind: one answer each, or a refusal", repeat=True)
def equal_lengths(stage):
    with stage.conn() as conn:
        conn.send(framed(CL, CL, body=BODY))
        answer = conn.answer(5)
        if answer.status == 200:
            expect(conn.answer(5).status == 404, "the second request is lost")
            return "200, then 404 for what was behind"
        return refused(answer, 400)


@case("smuggling in a pipeline", "a good request, one with TE and CL behind it in the same packet, and a third behind that", repeat=True)
def smuggling_pipeline(stage):
    with stage.conn() as conn:
        conn.send(OK + framed(TE, length_of_chunks))
        good(conn.answer(5))
        answer = conn.answer(5)
        # RFC 9112 allows both: to refuse it, or to take Transfer-Encoding alone and to close.
        short = good(answer) if answer.status == 200 else refused(answer, 400)
        expect(b"HTTP/1." not in conn.rest(8), "what stands behind it was answered")
    return f"{short}, then closed"


@case("other protocols", "the h2 preface, an h2c upgrade, TLS, HTTP/0.9 and 9.9, SMTP, zeros, bare LF, absolute and other targets", repeat=True)
def other_protocols(stage):
    closed = or_closed(lambda answer: refused(answer, 400, 505))
    upgrade = [("Connection", "Upgrade, HTTP2-Settings"), ("Upgrade", "h2c"), ("HTTP2-Settings", "AAMAAABkAARAAAAAAAIAAAAA")]
    either = or_closed(lambda answer: good(answer) if answer.status == 200 else refused(answer, 400, 404))
    return run(stage, [
        ("h2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9), lambda answer: refused(answer, 505)),
        ("h2c upgrade", head("GET", "/health", upgrade), good),
        ("TLS", bytes.fromhex("16030100c8010000c40303") + bytes(200), closed),
        ("HTTP/9.9", head("GET", "/health", version="HTTP/9.9"), closed),
        ("HTTP/0.9", b"GET /health\r\n\r\n", closed),
        ("SMTP", b"EHLO there\r\nMAIL FROM:<a@b>\r\n\r\n", closed),
        ("zeros", bytes(100_000), closed),
        ("bare LF", b"GET /health HTTP/1.1\nHost: a\n\n", either),
        ("absolute target", head("GET", "http://else.where/health"), either),
        ("asterisk", head("OPTIONS", "*"), or_closed(lambda answer: clean(answer) or "*")),
        ("CONNECT", head("CONNECT", "else.where:443"), or_closed(lambda answer: refused(answer, 400, 404, 405))),
        ("no Host", head("GET", "/health", host=False), either),
    ])


@case("methods and paths", "known paths with other methods, unknown paths, methods and paths of 7 KB and more, raw bytes in them", repeat=True)
def methods_and_paths(stage):
    closed = or_closed(lambda answer: refused(answer, 400, 404, 405, 414, 431, 501))
    return run(stage, [
        ("GET on POST", head("GET", "/v1/chat/completions"), lambda answer: error(answer, 405)),
        ("DELETE", head("DELETE", "/v1/models"), lambda answer: error(answer, 405)),
        ("7 KB path", head("GET", "/" + "a" * 7000), lambda answer: error(answer, 404)),
        ("7 KB model", head("GET", "/v1/models/" + "a" * 7000), lambda answer: error(answer, 404)),
        ("7 KB query", head("GET", "/nowhere?" + "a" * 7000), lambda answer: error(answer, 404)),
        ("addresses in /ready", head("GET", "/ready"), good),
        ("dots", head("GET", "/v1/../../etc/passwd"), lambda answer: error(answer, 404)),
        ("percent", head("GET", "/v1/models/%00%ff%2e%2e/"), closed),
        ("non-ASCII path", b"GET /\xff\xfe HTTP/1.1\r\nHost: a\r\n\r\n", closed),
        ("NUL in path", b"GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n", closed),
        ("10 KB method", head("A" * 10_000, "/health"), closed),
        ("odd method", head("G\xe9T", "/health"), closed),
        ("lower case", head("get", "/health"), closed),
        ("obs-text header", head("GET", "/health", [("X", "\xff\xfe")]), closed_or_good),
    ])


closed_or_good = or_closed(lambda answer: good(answer) if answer.status == 200 else refused(answer, 400))


@case("x-request-id", "absent, good, 10 KB, quotes, tabs, high bytes, twice", repeat=True)
def request_ids(stage):
    with stage.conn() as conn:
        conn.send(raw.post("/v1/completions", completion(max_tokens=1), [("X-Request-Id", "abc-123.DEF_4")]))
        expect(conn.answer().header("x-request-id") == "abc-123.DEF_4", "a good x-request-id is not echoed")
        conn.send(raw.post("/v1/completions", completion(max_tokens=1)))
        expect(conn.answer().header("x-request-id"), "no x-request-id is made")
        conn.send(head("GET", "/nowhere", [("X-Request-Id", "of-an-error")]))
        expect(conn.answer().header("x-request-id") == "of-an-error", "an error does not echo x-request-id")
    for name, headers in {
        "10 KB": [("X-Request-Id", "a" * 10_000)],
        "quotes": [("X-Request-Id", "a\"'<b>{}\\")],
        "tab": [("X-Request-Id", "a\tb")],
        "high bytes": [("X-Request-Id", "\xff\xfea")],
        "twice": [("X-Request-Id", "a"), ("X-Request-Id", "b")],
        "empty": [("X-Request-Id", "")],
    }.items():
        answer = stage.ask(raw.post("/v1/completions", completion(max_tokens=1), headers))
        good(answer)
        found = answer.all("x-request-id")
        plain = len(found) == 1 and 0 < len(found[0]) <= 256 and found[0].isascii() and found[0].isprintable()
        expect(plain, f"{name}: x-request-id is {[text[:40] for text in found]}")
    return "good ones echoed, bad ones replaced"


@case("CORS", "preflights of localhost, and of other, odd and 7 KB origins, with the default of --cors", repeat=True)
def cors(stage):
    asked = [("Origin", "http://localhost:3000"), ("Access-Control-Request-Method", "POST")]
    answer = stage.ask(head("OPTIONS", "/v1/chat/completions", asked))
    expect(answer.status in (200, 204) and answer.header("access-control-allow-origin"), f"localhost is answered {answer.status}")
    for origin in ["https://chat.example", "http://localhost.evil.example", "null", "https://" + "a" * 7000, "\xff", "https://a.example\tb"]:
        wanted = [("Origin", origin), ("Access-Control-Request-Method", "POST"), ("Access-Control-Request-Headers", "authorization")]
        answer = stage.ask(head("OPTIONS", "/v1/chat/completions", wanted))
        clean(answer)
        expect(answer.status in (200, 204, 403, 404, 405), f"a preflight is answered {answer.status}")
        expect(answer.header("access-control-allow-origin") is None, f"{origin[:40]!r} may ask")
    return f"localhost may ask, others are answered {answer.status}"
