"""Tables of probes: bytes that are sent on a connection of their own, and what may come back."""

import re

import raw
from stage import Violation, expect

# The worker's address in scripted messages, and every loopback port: none of them is a client's business.
INTERNAL = re.compile(rb"10\.98\.76\.54|127\.0\.0\.1:\d+")
# Longest run of a client's own bytes in an error.
ECHO = 120
# Longest error in all: a sentence or two and an echo.
MESSAGE = 600


def clean(answer):
    """What holds for every answer."""
    found = INTERNAL.search(answer.body)
    expect(not found, f"an internal address is in the answer: {found and found[0]!r}")
    for name, value in answer.headers:
        expect(len(value) <= 512, f"the header {name} has {len(value)} bytes")
    expect(len(answer.all("x-request-id")) <= 1, "more than one x-request-id")


def error(answer, *statuses, code=None, says=None):
    """Holds an answer against an error in OpenAI's shape; in short what it was."""
    expect(answer.status in statuses, f"answered {answer.status} {answer.body[:100]!r}, not {' or '.join(map(str, statuses))}")
    told = answer.error()
    expect(told is not None, f"{answer.status} without an error in OpenAI's shape: {answer.body[:80]!r}")
    clean(answer)
    message = told["message"]
    expect(len(message) <= MESSAGE, f"the message has {len(message)} characters")
    runs = [len(run[0]) for run in re.finditer(r"(.)\1*", message, re.S)]
    expect(max(runs) <= ECHO, f"the message echoes {max(runs)} characters")
    expect(code is None or told["code"] in code, f"the code is {told['code']}, not {code}")
    expect(says is None or re.search(says, message, re.I), f"the message does not say {says}: {message[:160]}")
    return f"{answer.status} {told['code']}"


def refused(answer, *statuses):
    """An error of the protocol itself: in OpenAI's shape, or without any body."""
    expect(answer.status in statuses, f"answered {answer.status} {answer.body[:100]!r}, not {' or '.join(map(str, statuses))}")
    clean(answer)
    expect(not answer.body or answer.error() is not None, f"{answer.status} with a body of another shape: {answer.body[:80]!r}")
    return str(answer.status)


def good(answer, status=200):
    expect(answer.status == status, f"answered {answer.status} {answer.body[:120]!r}, not {status}")
    expect(answer.whole, "the answer is cut")
    clean(answer)
    return str(status)


def run(stage, probes, patience=8.0, last=False):
    """Sends every probe, (name, bytes, judge); judges take an answer, or None where the connection was closed without one. With
    `last` the connection must end behind that answer, and nothing more be answered. In short what happened."""
    seen, wrong = {}, []
    for name, data, judge in probes:
        try:
            with stage.conn() as conn:
                conn.send(data)
                try:
                    answer = conn.answer(patience)
                except raw.Cut as cut:
                    expect("nothing came" not in str(cut), f"neither an answer nor an end within {patience:.0f} s")
                    answer = None
                short = judge(answer) if answer or getattr(judge, "closes", False) else silent()
                seen[short] = seen.get(short, 0) + 1
                expect(not last or answer is None or b"HTTP/1." not in conn.rest(patience), "what stands behind it was answered")
        except (raw.Cut, Violation, OSError) as problem:
            wrong.append(f"{name}: {problem}")
    if wrong:
        raise Violation("; ".join(wrong[:6]) + (f"; and {len(wrong) - 6} more" if len(wrong) > 6 else ""))
    return ", ".join(f"{short} x{count}" if count > 1 else short for short, count in sorted(seen.items()))


def silent():
    raise Violation("the connection was closed without an answer")


def or_closed(judge):
    """Makes the end of the connection good enough."""
    def either(answer):
        return "closed" if answer is None else judge(answer)
    either.closes = True
    return either
