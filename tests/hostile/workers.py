"""Cases of workers that misbehave: for one request (its script travels with it), for all of theirs, and as processes that die."""

import time

import raw
from bodies import CHAT, COMPLETIONS, GENERATE
from probes import clean, error, good
from raw import post
from stage import Plain, Stage, Violation, Worker, chat, completion, expect
from table import SLACK, STANDS, TIMERS, case

# gRPC's codes but OK; 8 (no room) has a case of its own.
CODES = [code for code in range(1, 17) if code not in (3, 8, 11)]
# Requests that a worker in trouble may still draw, of a hundred: one at a time, again and again.
SHARE = 20
# Requests that may fail until it is known which workers fail at once, where most do.
MISSED = 5

STANDS["strangers"] = lambda: Stage([Worker(), *(Plain(kind) for kind in ("http1", "random", "mute", "close"))], TIMERS)


def asked(stage, script, stream=True, path=COMPLETIONS, patience=15.0, **changes):
    """One request with a script, and its answer."""
    if path == CHAT:
        body = chat(stop=[f"@double {script}"], max_tokens=4, stream=stream, **changes)
    else:
        body = completion(script=script, stream=stream, **changes)
    return stage.ask(post(path, body), patience)


def failed(answer, *statuses):
    """A request that failed: an error before the head, or an event behind it; ended once, and nothing behind the end."""
    expect(answer.whole, "the answer is cut rather than ended")
    clean(answer)
    if answer.status != 200:
        return error(answer, *statuses)
    events = answer.events()
    expect(events, "an answer of no events")
    found = [raw.Answer(200, [], event).error() for event in events]
    errors = [one for one in found if one]
    expect(len(errors) == 1 and found[-1], f"{len(errors)} error events, the last event is {events[-1][:80]!r}")
    expect(len(errors[0]["message"]) <= 600, "the error event is long")
    expect(b"[DONE]" not in events, "an error and [DONE]")
    expect(b"xxxx" * 40 not in answer.body, "the error echoes a worker's message at length")
    return f"event {errors[0]['code']}"


def tried(stage, script, most=2):
    """No request of a script was tried on more workers than allowed, and none twice with the same number."""
    for request, attempts in stage.attempts(script).items():
        expect(len(attempts) <= most, f"{script}: {request} was tried {len(attempts)} times")
        expect(len(set(attempts)) == len(attempts), f"{script}: {request} has attempts {attempts}")


@case("refusals by code", "a worker refuses with each code of gRPC, with 9,000 characters that name an address", stand="four workers", repeat=True)
def refusals(stage):
    for code in CODES:
        script = f"break:{code}:{6000}"
        for stream in (True, False):
            try:
                failed(asked(stage, script, stream), 500)
            except Violation as problem:
                raise Violation(f"code {code}: {problem}")
        tried(stage, script)
    for code in (3, 11):
        error(asked(stage, f"break:{code}"), 400, 500)
        tried(stage, f"break:{code}")
    return f"500 after two workers x{2 * len(CODES)}, 400 after one for what is the request's own fault"


@case("no room anywhere", "every worker refuses with RESOURCE_EXHAUSTED, again and again", stand="four workers", short=False)
def no_room(stage):
    start = time.monotonic()
    short = error(asked(stage, "break:8"), 429, 500, 503)
    took = time.monotonic() - start
    asked_for = max((len(attempts) for attempts in stage.attempts("break:8").values()), default=0)
    expect(asked_for < 100, f"one request was tried {asked_for} times in {took:.1f} s")
    return f"{short} after {took:.1f} s and {asked_for} tries"


# Script, whether a whole answer may be good.
FAULTS = {
    "end": False, "tokens:2,end": False, "tokens:2,break:14:6000": False, "tokens:2,break:13:6000": False, "break:14": False,
    "tokens:1,break:1": False, "tokens:2,fail": False, "fail": False, "empty,tokens:1,end": False, "tokens:1,empty,empty,end": False,
    "logits,finish": False, "tokens:1,logits,finish": False,
}


@case("streams that fail", "streams that end early, break with a code, say that they failed, are empty, send raw logits: before and after a token", stand="four workers", repeat=True)
def failing(stage):
    seen, wrong = {}, []
    for script in FAULTS:
        for path in (COMPLETIONS, CHAT):
            for stream in (True, False):
                try:
                    short = failed(asked(stage, script, stream, path), 500, 502)
                    seen[short] = seen.get(short, 0) + 1
                    tried(stage, script)
                except (Violation, raw.Cut) as problem:
                    wrong.append(f"{script}: {problem}")
    expect(not wrong, "; ".join(wrong[:5]) + f" ({len(wrong)} in all)")
    return ", ".join(f"{short} x{count}" for short, count in sorted(seen.items()))


@case("more than was asked", "two ends, tokens behind the end, 5,000 tokens where 4 were asked for, ids that do not exist, counts that do not add up", stand="four workers", repeat=True)
def too_much(stage):
    scripts = ["tokens:2,finish,finish", "tokens:2,finish,tokens:5", "flood:5000,finish", "burst:5000,finish", "badid,finish",
               "tokens:2,miscount", "miscount", "tokens:4,hold", "finish,hold", "empty,empty,tokens:4,finish"]
    wrong = []
    for script in scripts:
        for stream in (True, False):
            try:
                if script.endswith("hold"):
                    stalls = "finish" not in script
                    judge_held(stage, script, stream, stalls)
                    continue
                answer = asked(stage, script, stream)
                if answer.status == 200 and b'"error"' not in answer.body:
                    once(answer, stream)
                else:
                    failed(answer, 500, 502)
            except (Violation, raw.Cut) as problem:
                wrong.append(f"{script}: {problem}")
    expect(not wrong, "; ".join(wrong[:5]) + f" ({len(wrong)} in all)")
    return "each ended once: an answer of what was asked, or an error"


def judge_held(stage, script, stream, stalls):
    """After its last token, or its end, a worker's stream stays open: an end all the same."""
    if not stalls:
        once(asked(stage, script, stream), stream)
        stage.until(lambda: stage.scripted() == 0, 2, "the stream of a sequence that has ended is kept")


def once(answer, stream):
    """A good answer with one end, of at most the four tokens that were asked for."""
    good(answer)
    if stream:
        events = answer.events()
        expect(events.count(b"[DONE]") == 1 and events[-1] == b"[DONE]", "not one [DONE] at the end")
        expect(answer.body.count(b'"finish_reason":"') == 1, "not one finish_reason")
        expect(len(events) < 20, f"{len(events)} events where four tokens were asked for")
    else:
        text = answer.json()["choices"][0]["text"]
        expect(len(text.split()) <= 5, f"{len(text.split())} words where four tokens were asked for")


@case("counts that do not add up", "/generate from workers whose counts are absurd", stand="four workers", repeat=True)
def miscounts(stage):
    for worker in stage.workers:
        worker.tell("seed 4711 tokens:2,miscount")
    for stream in (True, False):
        body = {"input": "the pod", "max_output_tokens": 4, "stream": stream, "seed": 4711}
        answer = stage.ask(post(GENERATE, body))
        clean(answer)
        expect(answer.status in (200, 400, 500, 502), f"answered {answer.status}")
        expect(answer.whole, "the answer is cut")
    used = stage.metric("m1_router_expert_tokens_total")
    expect(used < 1e9, f"absurd counts were booked: {used:.0f}")
    return f"{answer.status}; nothing absurd is booked"


@case("silence before the first token", "workers that take a request and say nothing; that do not even take it", stand="impatient")
def silence(stage):
    told = {}
    for script in ("mute", "hold"):
        start = time.monotonic()
        short = failed(asked(stage, script, patience=10), 500)
        told[script] = f"{short} after {time.monotonic() - start:.1f} s"
        tried(stage, script)
        stage.until(lambda: stage.scripted() == 0, 1, f"{script}: its sequence still runs")
    return f"not taken: {told['mute']}; taken: {told['hold']}"


@case("stalls within an answer", "a worker that says one token and then nothing; everything but its end", stand="impatient")
def stalls(stage):
    told = []
    for script in ("tokens:1,hold", "tokens:4,hold"):
        for stream in (True, False):
            start = time.monotonic()
            answer = asked(stage, script, stream, patience=10)
            told.append(f"{failed(answer, 500, 502)} after {time.monotonic() - start:.1f} s")
    stage.until(lambda: stage.scripted() == 0, 1, "the sequence still runs")
    return "; ".join(told)


@case("a worker that falls silent", "one of two workers takes every request and says nothing, for 8 s", stand="impatient", memory=48, short=False)
def falls_silent(stage):
    stage.workers[1].tell("mode hold")
    try:
        time.sleep(4)
        seen = stage.take_others()
        expect(not seen["failed"], f"{len(seen['failed'])} requests of others failed: {seen['failed'][:1]}")
        late = sum(first > 500 for first in seen["first"])
        # From here on it is out but for single tries, and the others' p99 counts.
        time.sleep(4)
    finally:
        stage.workers[1].tell("mode ok")
    return f"{late} of {len(seen['first'])} requests came late until it was out, none failed"


@case("default patience", "a worker that takes a request and says nothing, with the deadlines as they come", stand="defaults", short=False)
def default_patience(stage):
    start = time.monotonic()
    short = failed(asked(stage, "hold", patience=120), 500)
    return f"{short} after {time.monotonic() - start:.0f} s"


def with_mode(stage, mode, seconds, workers=(1,)):
    """Some workers do something else for a while; what part of the requests they drew, in percent."""
    before = [worker.tell("count")["started"] for worker in stage.workers]
    try:
        for place in workers:
            stage.workers[place].tell(f"mode {mode}")
        time.sleep(seconds)
        counts = [worker.tell("count")["started"] for worker in stage.workers]
    finally:
        for place in workers:
            stage.workers[place].tell("mode ok")
    drawn = [now - then for now, then in zip(counts, before)]
    expect(sum(drawn) > 0, f"{mode}: nobody was asked anything")
    return 100 * sum(drawn[place] for place in workers) / sum(drawn)


@case("workers that fail at once", "three of four workers refuse every request with UNAVAILABLE for 4 s")
def failing_fast(stage):
    own = Stage([Worker() for _ in range(4)], TIMERS)
    try:
        own.ready()
        own.begin_others()
        time.sleep(1)
        own.take_others()
        share = with_mode(own, "break:14", 4, (1, 2, 3))
        seen = own.take_others()
        # Two workers are tried; while it is not known that three are bad, both may be.
        expect(len(seen["failed"]) <= MISSED and not seen["broken"], f"{len(seen['failed'])} requests failed and {seen['answered']} were answered: {seen['failed'][:1]}")
        expect(share <= 2 * SHARE, f"the three drew {share:.0f} of 100 attempts")
        return f"{seen['answered']} requests answered, {len(seen['failed'])} not; the three drew {share:.0f} of 100 attempts"
    finally:
        own.stop()


@case("a worker that answers garbage", "one of two workers: wrong protobufs, frames of 4 GB, short and compressed frames, no trailers, HTML, status 500")
def garbage(stage):
    for kind in ("protobuf", "huge", "short", "compressed", "no-trailers", "html", "500"):
        with_mode(stage, f"garble:{kind}", 0.3)
    return "all requests answered by the other"


@case("strangers at workers' addresses", "four addresses of five: HTTP/1.1, random bytes, silence, closed at once", stand="strangers")
def strangers(stage):
    spent = stage.busy(2)
    expect(spent < 0.9, f"the router keeps {spent:.1f} cores busy")
    return "all requests answered by the fifth"


@case("odd status streams", "one of two workers: loading, silent, rare, ending after each message, absurd numbers", memory=48)
def odd_status(stage):
    for standing in ("loading", "broken", "absurd", "slow", "silent"):
        stage.workers[1].tell(f"standing {standing}")
        time.sleep(0.6)
        expect(stage.ask(raw.head("GET", "/metrics")).whole, f"{standing}: /metrics is cut")
    stage.workers[1].tell("standing ready")
    return "all requests answered"


@case("absurd from the first", "a router whose first worker tells of billions of layers, slots and blocks before any other is there", stand="one slot", memory=64, judged=False)
def absurd_first(stage):
    liar = Worker(standing="absurd")
    fresh = Stage([liar], TIMERS, others=False)
    try:
        before = fresh.memory()
        time.sleep(1.0)
        page = fresh.ask(raw.head("GET", "/metrics"))
        expect(page.whole and len(page.body) < 1 << 20, f"/metrics has {len(page.body)} bytes")
        for name in ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"):
            expect(fresh.metric(name) <= 1.0, f"{name} is {fresh.metric(name)}")
        expect(fresh.memory() - before < 32, "the router believes it")
        liar.tell("standing ready")
        fresh.ready()
        answer = fresh.ask(raw.post(COMPLETIONS, completion()))
        return f"not believed; served once it made sense: {good(answer)}"
    finally:
        fresh.stop()


@case("a worker killed again and again", "kill -9 of one of two workers, four times, under the others' load", breaks=True)
def killed(stage):
    for _ in range(4):
        stage.workers[1].kill()
        time.sleep(0.3)
        stage.workers[1].start()
        time.sleep(0.3)
    return "every request that had not begun was answered"


def deaths(stage, stream=True):
    """Requests that kill what they touch: at most two workers each, then an error."""
    told = {}
    for script in ("exit", "tokens:1,exit", "tokens:3,exit"):
        answer = asked(stage, script, stream)
        short = failed(answer, 500, 502, 503)
        told[short] = told.get(short, 0) + 1
        # The answer may come before the kernel has told of the death.
        time.sleep(0.1)
        dead = [worker for worker in stage.workers if not worker.alive()]
        expect(1 <= len(dead) <= 2, f"{script}: {len(dead)} workers died of one request")
        for worker in dead:
            worker.stop()
            worker.start()
        stage.until(lambda: stage.status("/ready") == 200, 10, "the router does not become ready again")
    return ", ".join(f"{short} x{count}" for short, count in sorted(told.items()))


@case("requests that kill", "a request kills its worker before it is taken, after one token, after three", stand="four workers", breaks=True, judged=False)
def killing(stage):
    return f"{deaths(stage)}; at most two workers died of each"


@case("requests that kill, with a reset", "the same, and the connection is reset rather than closed", stand="resets", breaks=True, judged=False, short=False)
def killing_with_resets(stage):
    return deaths(stage, stream=False)


@case("all workers lost", "both workers killed, requests meanwhile, both started again", breaks=True, judged=False)
def all_lost(stage):
    own = Stage([Worker(), Worker()], TIMERS)
    try:
        own.ready()
        for worker in own.workers:
            worker.kill()
        answer = own.ask(post(COMPLETIONS, completion()), 10)
        short = error(answer, 500, 503)
        expect(answer.status != 503 or answer.header("retry-after"), "503 without Retry-After")
        own.until(lambda: own.status("/ready") == 503, 5 + SLACK, "/ready does not say that nobody is left")
        answer = own.ask(post(COMPLETIONS, completion()), 10)
        error(answer, 503)
        expect(answer.header("retry-after"), "503 without Retry-After")
        for worker in own.workers:
            worker.start()
        took = own.until(lambda: own.status("/ready") == 200, 15, "the router does not become ready again")
        good(own.ask(post(COMPLETIONS, completion()), 10))
        return f"{short}, then 503 with Retry-After; ready {took:.1f} s after they came back"
    finally:
        own.stop()
