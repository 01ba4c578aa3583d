"""Cases of request bodies."""

import gzip
import json
import os
import threading
import time
import zlib
from functools import cache

from heads import OK, trickle
from probes import error, good, or_closed, refused, run
from raw import head, post
from stage import NAME, chat, completion, expect
from table import SLACK, case

COMPLETIONS, CHAT, GENERATE = "/v1/completions", "/v1/chat/completions", "/v1/minimax-m1/generate"
RELEASE = "release" in os.environ.get("M1_BIN", "")
# Seconds in which 8 MB are refused; builds without optimisation take longer for the JSON alone.
REFUSAL = 0.1 if RELEASE else 1.0
MEGABYTE = 1 << 20


def chunked(*parts):
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)


def begun(*headers):
    """The head of a request whose body comes in chunks."""
    return head("POST", COMPLETIONS, [("Content-Type", "application/json"), ("Transfer-Encoding", "chunked"), *headers])


@case("slow bodies", "60 bodies, a byte every 100 ms: 30 with a length, 30 in chunks", memory=16)
def slow_bodies(stage):
    limit = stage.option("--body-timeout", 2) + SLACK
    conns = [stage.conn() for _ in range(60)]
    for place, conn in enumerate(conns):
        conn.send(begun() if place % 2 else head("POST", COMPLETIONS, [("Content-Length", "100000")]) + b"{")
    happened = [trickle(stage, conns[place::2], data, 0.1, limit, "bodies") for place, data in enumerate([b" ", b"1\r\n \r\n"])]
    return f"with a length: {happened[0]}; in chunks: {happened[1]}"


@case("bodies that stop", "60 bodies of which the last byte never comes", memory=16)
def stopped_bodies(stage):
    limit = stage.option("--body-timeout", 2) + SLACK
    whole = post(COMPLETIONS, completion())
    conns = [stage.conn() for _ in range(60)]
    for conn in conns:
        conn.send(whole[:-1])
    start, told = time.monotonic(), set()
    for conn in conns:
        answer = conn.answer(max(0.01, start + limit - time.monotonic()))
        told.add(error(answer, 408))
    return f"{told.pop()} x60 after {time.monotonic() - start:.1f} s"


@case("long bodies that come slowly", "20 bodies in chunks and 20 of 30 MB, of which little comes; others send a body in chunks meanwhile", memory=64)
def long_slow_bodies(stage):
    conns = [stage.conn() for _ in range(40)]
    for place, conn in enumerate(conns):
        conn.send(begun() + chunked(b" " * 9000) if place % 2 else head("POST", COMPLETIONS, [("Content-Length", str(30 * MEGABYTE))]) + b" " * 9000)
    start, body = time.monotonic(), json.dumps(completion()).encode()
    while time.monotonic() - start < 1.5:
        good(stage.ask(begun() + chunked(body) + b"0\r\n\r\n", 1.5))
        good(stage.ask(post(COMPLETIONS, gzip.compress(body), [("Content-Encoding", "gzip")]), 1.5))
    took = time.monotonic() - start
    for conn in conns:
        conn.reset()
    return f"bodies in chunks and in gzip are answered meanwhile, for {took:.1f} s"


def padded(size):
    """A good request of about so many bytes."""
    return post(COMPLETIONS, json.dumps(completion()).encode() + b" " * size)


def meanwhile(stage, seconds, most, *requests):
    """Other requests, one of each again and again for a while; the longest wait in seconds."""
    start, longest = time.monotonic(), 0.0
    while time.monotonic() - start < seconds:
        for request in requests:
            asked = time.monotonic()
            good(stage.ask(request, most))
            longest = max(longest, time.monotonic() - asked)
        time.sleep(0.05)
    return longest


@case("long bodies that trickle", "140 bodies of a megabyte and 20 of 30 MB that come at once but for their end, which trickles; others send 30 KB, 120 KB and 900 KB meanwhile", stand="defaults", memory=800, short=False, judged=False)
def trickling_bodies(stage):
    sizes = [MEGABYTE - 50_000] * 140 + [30 * MEGABYTE] * 20
    conns = [stage.conn() for _ in sizes]

    def trickled(place):
        conns[place].send(head("POST", COMPLETIONS, [("Content-Length", str(sizes[place] + 50_000))]))
        conns[place].push(b" " * sizes[place], 4)
    threads = [threading.Thread(target=trickled, args=(place,), daemon=True) for place in range(len(sizes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    longest = meanwhile(stage, 8, 3.0, padded(30_000), padded(120_000), padded(900_000))
    for conn in conns:
        conn.reset()
    return f"all others answered, the slowest after {longest:.1f} s"


@case("packed texts of 31 MB", "3 clients that send 31 MB of words in 90 KB of gzip to /tokenize, again and again; others send short gzip and 120 KB meanwhile", memory=600, short=False)
def packed_texts(stage):
    text = json.dumps({"model": NAME, "prompt": "abc def " * (31 * MEGABYTE // 8)}).encode()
    long = post("/tokenize", gzip.compress(text), [("Content-Encoding", "gzip")])
    short = post(COMPLETIONS, gzip.compress(json.dumps(completion()).encode()), [("Content-Encoding", "gzip")])
    end = time.monotonic() + 4
    answered = []

    def hog():
        while time.monotonic() < end:
            answered.append(good(stage.ask(long, 30)))
    hogs = [threading.Thread(target=hog, daemon=True) for _ in range(3)]
    for thread in hogs:
        thread.start()
    longest = meanwhile(stage, 4, 1.0, short, padded(120_000))
    for thread in hogs:
        thread.join(30)
    return f"{len(answered)} long ones; the others' slowest after {1e3 * longest:.0f} ms"


@case("a pipeline of long requests", "500 requests of 15 KB to /tokenize at once on one connection, and on another", repeat=True)
def pipelined_texts(stage):
    one = post("/tokenize", {"model": NAME, "prompt": "abc def " * 1900})

    def pipelined(_):
        with stage.conn() as conn:
            sender = threading.Thread(target=conn.push, args=(one * 500, 20), daemon=True)
            sender.start()
            for _ in range(500):
                good(conn.answer())
            sender.join(10)
    stage.together(2, pipelined)
    return "all answered"


@case("lengths that are lies", "Content-Length of 99 GB, of 2^63, 40 MB in chunks without end, 33 MB with its length", repeat=True, memory=80)
def lengths(stage):
    too_large = lambda answer: error(answer, 413)
    lengths = {"99 GB": 99_000_000_000, "2^63": 1 << 63, "33 MB": 33 * MEGABYTE + 1}
    probes = [(name, head("POST", COMPLETIONS, [("Content-Length", str(length))]), too_large) for name, length in lengths.items()]
    with stage.conn() as conn:
        conn.send(begun() + chunked(*[b" " * MEGABYTE] * 40))
        endless = error(conn.answer(8), 413)
    return run(stage, probes, patience=2.0) + f"; without end: {endless}"


@case("bad chunks", "chunk sizes of letters, signs, 17 digits; no CRLF behind a chunk; extensions and trailers of 10 MB", repeat=True)
def bad_chunks(stage):
    closed = or_closed(lambda answer: refused(answer, 400, 413, 431))
    return run(stage, [
        ("letters", begun() + b"zz\r\n", closed),
        ("sign", begun() + b"-1\r\n", closed),
        ("0x10", begun() + b"0x10\r\n", closed),
        ("17 digits", begun() + b"F" * 17 + b"\r\n", closed),
        ("no size", begun() + b"\r\n\r\n", closed),
        ("no CRLF behind", begun() + b"2\r\n{}XX0\r\n\r\n", closed),
        ("an extension of 10 MB", begun() + b"2;" + b"a" * 10 * MEGABYTE + b"\r\n{}\r\n0\r\n\r\n", closed),
        ("10 MB in trailers", begun() + b"2\r\n{}\r\n0\r\n" + b"X: " + b"a" * 10 * MEGABYTE + b"\r\n\r\n", closed),
        ("100,000 trailers", begun() + b"2\r\n{}\r\n0\r\n" + b"X: a\r\n" * 100_000 + b"\r\n", closed),
        ("100,000 chunks", begun() + b"1\r\n \r\n" * 100_000 + b"0\r\n\r\n", lambda answer: error(answer, 400)),
        ("good ones", begun() + chunked(json.dumps(completion()).encode(), b" ") + b"0\r\n\r\n", good),
    ])


def nested(depth, key=b""):
    return b"[" * depth + b"]" * depth if not key else b"{\"a\":" * depth + b"1" + b"}" * depth


@case("deep JSON", "10,000 and a million levels of arrays, objects, in a field that is used and in one that is not, unclosed", repeat=True, memory=64)
def deep_json(stage):
    deep = lambda answer: error(answer, 400, says="level|deep|depth|128|recursion")
    inside = lambda field, value: b'{"model":"%s","max_tokens":2,"prompt":"a","%s":%s}' % (NAME.encode(), field.encode(), value)
    probes = [(f"{depth} arrays", post(COMPLETIONS, nested(depth)), deep) for depth in (129, 10_000, 1_000_000)]
    probes += [(f"{depth} objects", post(CHAT, nested(depth, b"a")), deep) for depth in (10_000, 1_000_000)]
    return run(stage, probes + [
        ("unclosed", post(COMPLETIONS, b"[" * 1_000_000), deep),
        ("in messages", post(CHAT, inside("messages", nested(10_000))), deep),
        ("in an unknown field", post(COMPLETIONS, inside("other", nested(10_000))), deep),
        ("in tools", post(CHAT, inside("tools", nested(10_000, b"a"))), deep),
        ("100 levels", post(COMPLETIONS, inside("other", nested(100))), good),
    ])


@case("odd JSON", "huge numbers, duplicate keys, a BOM, comments, NaN, NUL, broken UTF-8 and surrogates, other types, long names in fields", repeat=True)
def odd_json(stage):
    bad = lambda answer: error(answer, 400)
    fields = lambda text: b'{"model":"%s","prompt":"a","max_tokens":2,%s}' % (NAME.encode(), text)
    name = "x" * 10_000
    probes = [(text.decode("latin-1"), post(COMPLETIONS, fields(text)), bad) for text in [
        b'"max_tokens":1e999', b'"max_tokens":-0.5', b'"max_tokens":18446744073709551616', b'"temperature":1e400', b'"temperature":NaN',
        b'"temperature":-1e308', b'"seed":36893488147419103232', b'"top_p":0e999999999', b'"stop":{"a":1}', b'"logprobs":true', b'"a":/* */1',
        b'"prompt":"\\ud800"', b'"prompt":"\xff"', b'"prompt":"a\0b"', b'"stream":"yes"', b'"stop":["a","b","c","d","e"]', b'"prompt":[-1]',
    ]]
    probes += [("a megabyte of digits", post(COMPLETIONS, fields(b'"max_tokens":' + b"9" * MEGABYTE)), bad)]
    probes += [(f"10 KB in {field}", post(path, body), judge) for path, field, body, judge in [
        (COMPLETIONS, "model", {"model": name, "prompt": "a"}, lambda answer: error(answer, 404, 400)),
        (COMPLETIONS, "n", completion(n=name), bad),
        (COMPLETIONS, "stop", completion(stop=[name] * 9), bad),
        (CHAT, "role", chat(messages=[{"role": name, "content": "a"}]), bad),
        (CHAT, "content", chat(messages=[{"role": "user", "content": {name: name}}]), bad),
        (CHAT, "tool_choice", chat(tools=[{"type": "function", "function": {"name": "f"}}], tool_choice={"type": name}), bad),
        (CHAT, "tools", chat(tools=[{"type": name}]), bad),
        (GENERATE, "input", {"input": {name: name}}, bad),
        ("/detokenize", "tokens", {"tokens": [name]}, bad),
    ]]
    happened = run(stage, [
        *probes,
        ("BOM", post(COMPLETIONS, b"\xef\xbb\xbf" + json.dumps(completion()).encode()), lambda answer: good(answer) if answer.status == 200 else bad(answer)),
        ("nothing", post(COMPLETIONS, b""), bad),
        ("no object", post(COMPLETIONS, b'"a"'), bad),
        ("two objects", post(COMPLETIONS, b"{}{}"), bad),
    ])
    answer = stage.ask(post(COMPLETIONS, b'{"model":"nobody","max_tokens":7,"prompt":"a","prompt":"the","max_tokens":2,"model":"%s"}' % NAME.encode()))
    good(answer)
    expect(answer.json()["usage"]["completion_tokens"] == 2, "of duplicate keys the last does not win")
    return happened + ", the last of duplicate keys wins"


ZEROS = b"[" + b"0," * (8 * MEGABYTE - 1) + b"0]"


def zeros(field, path, memory=97):
    """16 MB of zeros in an array: at most six times the body and a megabyte."""
    @case(f"16 MB of zeros: {field}", f"an array of 8 million zeros in `{field}` of {path}", memory=memory, short=field == "prompt")
    def sent(stage):
        others = {"prompt": b'"prompt":"a",', "messages": b'"messages":[{"role":"user","content":"a"}],'}
        rest = b"".join(text for name, text in others.items() if name != field and (name == "messages") == (path == CHAT))
        start = time.monotonic()
        answer = stage.ask(post(path, b'{"model":"%s","max_tokens":2,%s"%s":%s}' % (NAME.encode(), rest, field.encode(), ZEROS)), 30)
        short = good(answer) if field == "other" else error(answer, 400)
        return f"{short} after {time.monotonic() - start:.1f} s"
    return sent


for _field, _path in [("prompt", COMPLETIONS), ("messages", CHAT), ("stop", COMPLETIONS), ("tools", CHAT), ("other", COMPLETIONS), ("input", GENERATE)]:
    zeros(_field, _path)


@case("8 MB of text", "texts of 8 MB against a window of 4,096 tokens: letters, spaces, words, emoji, random bytes in hex; three endpoints", memory=64)
def long_texts(stage):
    texts = {"letters": "a" * 8 * MEGABYTE, "spaces": " " * 8 * MEGABYTE, "words": "the pod " * MEGABYTE,
             "emoji": "\U0001f600" * (2 * MEGABYTE), "hex": os.urandom(4 * MEGABYTE).hex()}
    slowest, told = 0.0, set()
    for name, text in texts.items():
        for path, body in [
            (COMPLETIONS, completion(prompt=text)),
            (CHAT, chat(messages=[{"role": "user", "content": text}])),
            (GENERATE, {"input": text}),
        ]:
            data = json.dumps(body, ensure_ascii=False).encode()
            start = time.monotonic()
            answer = stage.ask(post(path, data), 60)
            took = time.monotonic() - start
            told.add(error(answer, 400, code=["context_length_exceeded"]))
            expect(took < REFUSAL, f"{name} on {path}: refused after {took:.2f} s, allowed: {REFUSAL} s")
            slowest = max(slowest, took)
    return f"{told.pop()} x15, the slowest after {1e3 * slowest:.0f} ms"


@case("8 MB of text from many", "16 clients at once, each with 8 MB against a window of 4,096 tokens, three times", memory=16 * 16, short=False)
def many_long_texts(stage):
    data = post(CHAT, chat(messages=[{"role": "user", "content": "the pod " * MEGABYTE}]))
    told = stage.together(16, lambda _: [error(stage.ask(data, 60), 400, 408, 429) for _ in range(3)])
    return ", ".join(sorted({one for some in told for one in some}))


@case("clients gone while they are read", "8 clients that send 30 MB of JSON and reset at its last byte, three times", memory=8 * 120, short=False)
def gone_while_read(stage):
    data = post(COMPLETIONS, b'{"model":"%s","prompt":%s}' % (NAME.encode(), b"[" + b"0," * (15 * MEGABYTE - 64) + b"0]"))

    def gone(_):
        for _ in range(3):
            conn = stage.conn()
            conn.send(data)
            conn.reset()
    stage.together(8, gone)
    took = stage.until(lambda: stage.status("/health", 0.5) == 200, 3, "/health is not answered")
    return f"/health after {1e3 * took:.0f} ms"


def zipped(text, *more, coding="gzip"):
    """A POST of a gzip body."""
    return post(COMPLETIONS, text, [("Content-Encoding", coding), *more])


@cache
def bomb(megabytes):
    """A gzip stream of so many megabytes of spaces within a string; made in no time, because a part behind a full flush may be repeated."""
    pack = zlib.compressobj(9, zlib.DEFLATED, 31)
    parts = [pack.compress(b) + pack.flush(zlib.Z_FULL_FLUSH) for b in (b'{"prompt":"', b" " * MEGABYTE)]
    return parts[0] + parts[1] * megabytes


@case("encodings", "gzip: good, truncated, broken, two members, bytes behind, bombs of 64 MB and 1 GB; br, zstd, deflate, gzip twice, unknown", repeat=True, memory=80)
def encodings(stage):
    body = json.dumps(completion()).encode()
    packed = gzip.compress(body)
    bad = lambda answer: error(answer, 400)
    large = lambda answer: error(answer, 413)
    by_name = lambda name: lambda answer: error(answer, 415, says=name)
    return run(stage, [
        ("good", zipped(packed), good),
        ("identity", post(COMPLETIONS, body, [("Content-Encoding", "identity")]), good),
        ("two members", zipped(gzip.compress(body[:9]) + gzip.compress(body[9:])), lambda answer: good(answer) if answer.status == 200 else bad(answer)),
        ("truncated", zipped(packed[:-9]), bad),
        ("no gzip", zipped(body), bad),
        ("wrong sum", zipped(packed[:-8] + bytes(8)), bad),
        ("bytes behind", zipped(packed + b"more"), lambda answer: good(answer) if answer.status == 200 else bad(answer)),
        ("empty", zipped(b""), bad),
        ("bomb of 64 MB", zipped(bomb(64)), large),
        ("bomb of 1 GB", zipped(bomb(1024)), large),
        ("bomb in members", zipped(gzip.compress(bytes(MEGABYTE)) * 2000), large),
        *[(name, zipped(body, coding=name), by_name(name.split(",")[0])) for name in ["br", "zstd", "compress", "gzip, gzip", "gzip, br"]],
        ("10 KB name", zipped(body, coding="z" * 10_000), lambda answer: error(answer, 415)),
        ("encoding twice", zipped(packed, ("Content-Encoding", "br")), lambda answer: error(answer, 415, 400)),
    ])


@case("Expect: 100-continue", "with a body that is good, too large, unauthorised, never sent; other expectations", stand="keys", repeat=True)
def expect_continue(stage):
    body = json.dumps(completion()).encode()
    key, wait = ("Authorization", "Bearer sk-hostile"), ("Expect", "100-continue")

    def first(*headers):
        conn = stage.conn()
        conn.send(head("POST", COMPLETIONS, [wait, *headers]))
        status, _ = conn.head(2)
        return conn, status

    conn, status = first(key, ("Content-Length", str(len(body))))
    expect(status == 100, f"a good request is answered {status} before its body")
    conn.send(body)
    good(conn.answer())
    conn.socket.close()
    for name, headers, wanted in [
        ("too large", [key, ("Content-Length", "99000000000")], 413),
        ("unauthorised", [("Content-Length", str(len(body)))], 401),
        ("wrong key", [("Authorization", "Bearer no"), ("Content-Length", str(len(body)))], 401),
        ("unknown encoding", [key, ("Content-Encoding", "br"), ("Content-Length", "9")], 415),
    ]:
        conn, status = first(*headers)
        expect(status == wanted, f"{name}: {status}, not {wanted}, before the body")
        conn.socket.close()
    conn, status = first(key, ("Content-Length", "9"))
    conn.reset()
    answer = stage.ask(head("POST", COMPLETIONS, [key, ("Expect", "wonders"), ("Content-Length", str(len(body)))]) + body)
    expect(answer.status in (200, 417), f"another expectation is answered {answer.status}")
    return f"100 and 200; 413, 401 and 415 instead of 100; another: {answer.status}"


@case("401 before the body", "unauthorised bodies of 99 GB, in chunks without end, and keys of 7 KB and raw bytes", stand="keys", repeat=True)
def unauthorised(stage):
    no = lambda answer: error(answer, 401)
    return run(stage, [
        ("no key", head("POST", COMPLETIONS, [("Content-Length", "30000000")]), no),
        ("99 GB", head("POST", COMPLETIONS, [("Content-Length", "99000000000")]), lambda answer: error(answer, 401, 413)),
        ("chunks", begun(), no),
        ("7 KB key", head("GET", "/v1/models", [("Authorization", "Bearer " + "k" * 7000)]), no),
        ("raw bytes", head("GET", "/v1/models", [("Authorization", "Bearer \xff\xfe")]), no),
        ("two keys", head("GET", "/v1/models", [("Authorization", "Bearer no"), ("Authorization", "Bearer sk-hostile")]), or_closed(lambda answer: error(answer, 401, 400))),
        ("unknown path", head("GET", "/nowhere"), no),
    ], patience=2.0) + f"; /health: {good(stage.ask(OK))}"
