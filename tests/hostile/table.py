"""What a case is, the stands that cases run on, and how a case is run and judged."""

import time
from dataclasses import dataclass, field

from raw import Cut
from stage import Stage, Violation, Worker, p99

# Timers of the stands, in seconds: short, so that a case shows in seconds what takes half a minute by default.
TIMERS = {"--header-timeout": 1, "--body-timeout": 2, "--idle-timeout": 2, "--write-timeout": 2, "--queue-wait": 3, "--comeback-wait": 1}
# Beyond what a timer says: a loaded machine, and a look once a second.
SLACK = 2.5
# Others' p99 may double; below this many milliseconds a difference is noise. The lateness of the others' own timer comes on top: that is the machine.
NOISE = 20.0
# A case of requests that are answered at once is repeated for so long, so that the others are seen often enough.
SHORT, LONG = 1.0, 3.0
# The others' p99 without hostile load is measured for so long.
CALM = {True: 1.2, False: 3.0}

STANDS = {
    "usual": lambda: Stage([Worker(), Worker()], TIMERS),
    "keys": lambda: Stage([Worker()], {**TIMERS, "keys": True}),
    "few connections": lambda: Stage([Worker()], {**TIMERS, "--max-connections": 100}),
    "few slots": lambda: Stage([Worker(slots=16, window=32768)], {**TIMERS, "--max-context": 32768, "--queue-wait": 20}),
    "many slots": lambda: Stage([Worker(slots=64, window=32768)], {**TIMERS, "--max-context": 32768}),
    "defaults": lambda: Stage([Worker(), Worker()]),
    "roomy defaults": lambda: Stage([Worker(slots=64, window=32768)], {"--max-context": 32768}),
    "four workers": lambda: Stage([Worker() for _ in range(4)], TIMERS),
    "impatient": lambda: Stage([Worker(), Worker()], {**TIMERS, "--first-token-wait": 1, "--token-wait": 1, "--stream-comment": 1}),
    "one slot": lambda: Stage([Worker(slots=1)], TIMERS, others=False),
    "resets": lambda: Stage([Worker(reset=True) for _ in range(4)], TIMERS),
}


@dataclass
class Case:
    name: str
    sent: str
    run: object
    stand: object = "usual"
    # Megabytes that the router may grow by.
    memory: float = 32.0
    # Runs in the short form too.
    short: bool = True
    # Again and again for a while.
    repeat: bool = False
    # Whether others may lose an answer that had begun: where a worker dies.
    breaks: bool = False
    # Whether others may be refused by name: where there is room for nobody.
    refuses: bool = False
    # Whether the others' p99 is judged; not where the case makes its own stand.
    judged: bool = True
    group: str = ""


CASES = []


def case(name, sent, **options):
    """Makes a function a case."""
    def add(function):
        group = (function.__module__.rsplit(".", 1)[-1]).replace("_", " ")
        CASES.append(Case(name, sent, function, group=group, **options))
        return function
    return add


@dataclass
class Result:
    case: Case
    happened: str = ""
    violations: list = field(default_factory=list)
    before: float = 0.0
    peak: float = 0.0
    after: float = 0.0
    calm: tuple = (None, None)
    under: tuple = (None, None)
    late: float = 0.0
    seconds: float = 0.0


def times(seen):
    return p99(seen["first"]), p99(seen["total"])


def run(one, stage, calm, short):
    """Runs a case on a stage whose others have been measured in peace."""
    result = Result(one, calm=times(calm))
    stage.take_others()
    stage.settle()
    result.before = stage.memory_before = stage.memory()
    start = time.monotonic()
    try:
        result.happened = one.run(stage)
        while one.repeat and time.monotonic() - start < (SHORT if short else LONG):
            one.run(stage)
    except (Violation, Cut) as problem:
        result.violations.append(str(problem))
    except OSError as problem:
        result.violations.append(f"the connection broke: {problem!r}")
    rest = (SHORT if short else LONG) - (time.monotonic() - start)
    time.sleep(max(0.0, rest))  # the others go on, so that there are enough of them to judge
    result.seconds = time.monotonic() - start
    seen = stage.take_others()
    if stage.router.poll() is not None:
        result.violations.append(f"the router ended with {stage.router.returncode}: {stage.tail()[-400:]}")
        return result
    result.peak, result.after = stage.memory("VmHWM"), stage.memory()
    judge(result, seen)
    if stage.status("/health") != 200:
        result.violations.append("/health is not answered afterwards")
    return result


def judge(result, seen):
    """Holds memory and the others against their bounds."""
    one = result.case
    grown = result.peak - result.before
    if grown > one.memory:
        result.violations.append(f"the router grew by {grown:.0f} MB, allowed: {one.memory:.0f}")
    result.under, result.late = times(seen), p99(seen["late"]) or 0.0
    failed = [fault for fault in seen["failed"] if not (one.refuses and " 503 " in fault)]
    if failed:
        result.violations.append(f"{len(failed)} requests of others failed: {failed[0]}")
    if seen["broken"] and not one.breaks:
        result.violations.append(f"{len(seen['broken'])} answers of others broke: {seen['broken'][0]}")
    for what, before, now in zip(("first token", "end"), result.calm, result.under):
        allowed = 2 * (before or 0.0) + NOISE + min(result.late, 50.0)
        if one.judged and (now is None or now > allowed):
            shown = "nothing was answered" if now is None else f"{now:.0f} ms"
            result.violations.append(f"others' p99 to the {what}: {shown}, allowed: {allowed:.0f} ms (twice {before:.0f} and noise)")


def is_noise(result):
    """Whether all that went wrong may be the machine's doing, so that the case is tried again."""
    return bool(result.violations) and all(text.startswith("others' p99") for text in result.violations)
