"""Cases of the router as a process: streams that nobody reads, too few descriptors, signals among hostile clients."""

import os
import signal
import time

import raw
from bodies import COMPLETIONS
from heads import OK
from probes import good
from raw import head, post
from readers import SMALL, wordy
from stage import Stage, Worker, completion, expect
from table import SLACK, STANDS, TIMERS, case

NOISY = {"RUST_LOG": "trace"}


def full_pipe():
    """The writing end of a pipe that is full and that nobody reads."""
    _, end = os.pipe()
    os.set_blocking(end, False)
    try:
        while os.write(end, bytes(4096)):
            pass
    except BlockingIOError:
        pass
    os.set_blocking(end, True)
    return end


STANDS["blocked stderr"] = lambda: Stage([Worker(), Worker()], TIMERS, stderr=full_pipe(), env=NOISY)
STANDS["blocked stdout"] = lambda: Stage([Worker()], TIMERS, stdout=full_pipe())
STANDS["full disk"] = lambda: Stage([Worker()], TIMERS, stderr=open("/dev/full", "wb"), env=NOISY)
STANDS["few descriptors"] = lambda: Stage([Worker()], TIMERS, descriptors=96)


def noisy(stage):
    """Requests that are worth a line each."""
    for _ in range(20):
        stage.ask(head("GET", "/nowhere"))
        stage.ask(post(COMPLETIONS, completion(script="tokens:1,break:14")))
        good(stage.ask(post(COMPLETIONS, completion())))
        good(stage.ask(OK, 1.0))


@case("blocked stderr", "standard error is a full pipe that nobody reads, at level trace", stand="blocked stderr")
def blocked_stderr(stage):
    end = time.monotonic() + 8
    while not (dropped := stage.metric("m1_[a-z_]*lines_dropped_total")):
        expect(time.monotonic() < end, "no metric counts lines that were dropped")
        noisy(stage)
    return f"all answered, {dropped:,.0f} dropped lines counted"


@case("blocked stdout", "standard output is a full pipe that nobody reads", stand="blocked stdout")
def blocked_stdout(stage):
    noisy(stage)
    return "all answered"


@case("stderr that fails", "standard error is a full disk", stand="full disk", short=False)
def full_disk(stage):
    noisy(stage)
    return "all answered"


@case("more connections than descriptors", "300 connections where the process may have 96 descriptors", stand="few descriptors", judged=False, memory=16)
def few_descriptors(stage):
    conns = []
    while len(conns) < 300:
        try:
            conns.append(raw.Conn(stage.port, patience=0.2))
        except TimeoutError:
            break  # the kernel's own queue is full too
    time.sleep(1)
    for conn in conns:
        conn.reset()
    stage.until(lambda: stage.status("/health") == 200, 5, "no connection is taken after all others ended")
    good(stage.ask(post(COMPLETIONS, completion())))
    # Those that were under way when no descriptor was left are not this case's.
    time.sleep(1)
    stage.take_others()
    return "taken again after they ended"


@case("SIGTERM among hostile clients", "20 half heads, 20 half bodies, 20 unread streams, 20 idle connections, then SIGTERM", judged=False)
def sigterm(stage):
    own = Stage([Worker()], {**TIMERS, "--drain-seconds": 2})
    try:
        own.ready()
        conns = []
        for data in [b"GET / HTTP/1.1\r\nX", post(COMPLETIONS, completion())[:-1], wordy("burst:100:30,hold", 3500, stream=True), OK]:
            for _ in range(20):
                conns.append(own.conn(receive_buffer=SMALL))
                conns[-1].send(data)
        own.until(lambda: own.scripted() == 20, 5, "not all streams run")
        own.router.send_signal(signal.SIGTERM)
        took = own.until(lambda: own.router.poll() is not None, 2 + SLACK, f"the router still runs {2 + SLACK} s after SIGTERM with --drain-seconds 2")
        expect(own.router.returncode == 0, f"it ended with {own.router.returncode}")
        expect(own.scripted() == 0, "sequences still run on the worker")
        return f"ended after {took:.1f} s"
    finally:
        own.stop()


@case("SIGTERM lets answers end", "a stream under way and a request on a kept connection, then SIGTERM", judged=False)
def sigterm_stream(stage):
    own = Stage([Worker()], {**TIMERS, "--drain-seconds": 5})
    try:
        own.ready()
        conn = own.conn()
        conn.send(post(COMPLETIONS, completion(script="tokens:2,wait:700,tokens:2,finish", stream=True)))
        own.until(lambda: own.scripted() == 1, 5, "the stream does not run")
        own.router.send_signal(signal.SIGTERM)
        answer = conn.answer()
        good(answer)
        expect(answer.events()[-1] == b"[DONE]", "the stream was cut")
        took = own.until(lambda: own.router.poll() is not None, SLACK, "the router does not end with its last answer")
        return f"answered whole, ended {took:.1f} s later"
    finally:
        own.stop()
