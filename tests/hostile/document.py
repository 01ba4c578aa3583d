"""docs/reliability.md: the words that stay, and the table of one run."""

import os
import platform
import subprocess

import stage
import table

TEXT = """# Reliability

What the router does when clients, workers or its surroundings are at their worst. The table is written by one command, which starts the real `m1-router`
before workers that misbehave on demand, and sends over raw sockets what no library would:

    scripts/hostile.sh --write      # all cases, release build, and this file; a few minutes
    scripts/hostile.sh              # all cases
    scripts/hostile.sh --short      # what `make test` runs, some two minutes
    scripts/hostile.sh --only smuggling

While a case runs, other clients ask for streamed answers of 16 tokens, 5 ms apart, {rate} times a second, each measured from the moment it was due. A case
fails when its own expectation does not hold, when the router grows by more than the case allows, when any request of the others fails, or when their
99th percentile to the first token or to the end is more than twice what it was before the case (differences below {noise:.0f} ms are noise, and so is what the clients' own
timer was late). Where workers die, answers that had begun on them may break; requests that had not begun may not.

Deadlines are shortened for the suite by their flags ({timers}), so that a case shows in seconds what takes longer by default;
the cases on the stand `defaults` take them as they come.

## How to read a row
*Memory* is the router's resident memory before the case, its peak during the case (`VmHWM`), and after it. *Others* is their 99th percentile before and during the
case: to the first token, to the end.

"""

# Measured by hand, with the commands it names.
BESIDE = """
## Seen beside this suite
Two cores, the demo model, two workers, `m1ctl bench --concurrency 16` on them all the while (2026-11-30):

| what | what became of the requests |
|---|---|
| `kill -9` of one of two pods that share the experts (`m1ctl up`) | 1,477 answered; 6 failed, all after their first token; the others waited 0.7 s for the pod to come back |
| `kill -9` of one of two workers that hold all experts, three times | 1,407 answered, 7 failed after their first token, 1 was tried again on the other worker |
| SIGSTOP of a pod for 4 s, of the other for 5 s | 1,269 and 1,127 answered, 6 and 7 failed after their first token |
| SIGSTOP of a worker for 2.5 s, three times | 1,226 answered, none failed |
| a client in a network namespace from which every packet is dropped, with two streams and a whole answer under way | all three free after 60 to 75 s |
| 40 `m1ctl up` at once (`M1_TEST_UPS=40 cargo test -p m1-tests --test members together`) | all serve, each with workers of its own |

Properties: `M1_ENGINE_CASES=100000 cargo test -p m1-engine --test properties` runs 100,000 interleavings of token, stop text, end id, length, budget, cancel,
failure, drain, two steps in flight and being set aside (30 s, release build); each stream ends once. `M1_DEVICE_CASES=3000 cargo test -p m1-worker --lib device` puts the device
threads of up to four pods through random orders of work and delivery, lost connections and moves of experts, `M1_BITS_CASES=300` of the same holds their logits to an idle
machine's, to the bit (170 s). `make soak` is ten minutes of random requests, lengths, cancels and priorities on two pods, each answer held to an idle machine's: in five minutes 5,200
answers and 940 given up, none wrong, 450 to 510 tok/s throughout. Ejection and retries are simulated in `router/core/tests`, liveness between pods in `worker/exchange/tests`.
"""


def cell(text):
    return text.replace("|", "\\|").replace("\n", " ")


def pair(before, now):
    number = lambda value: "-" if value is None else f"{value:.0f}"
    return f"{number(before)} → {number(now)}"


def row(result):
    happened = result.happened if not result.violations else "**violation:** " + "; ".join(result.violations)
    memory = f"{result.before:.0f} → {result.peak:.0f} → {result.after:.0f}"
    one = result.case
    others = [pair(*values) for values in zip(result.calm, result.under)] if one.judged else ["", ""]
    return "| " + " | ".join(map(cell, [one.name, one.sent, happened, memory, *others])) + " |"


def write(results):
    """Writes the document."""
    timers = ", ".join(f"`{flag} {value}`" for flag, value in table.TIMERS.items())
    text = TEXT.format(rate=stage.RATE, noise=table.NOISE, timers=timers)
    version = subprocess.run([stage.binary("m1-router"), "--version"], capture_output=True, text=True, timeout=20).stdout.strip()
    build = "release" if "release" in os.environ.get("M1_BIN", "") else "debug"
    text += f"Measured with {version} ({build} build) on {os.cpu_count()} cores of {processor()}, Linux {platform.release().split('-')[0]}.\n"
    for group in dict.fromkeys(result.case.group for result in results):
        text += f"\n## {TITLES[group]}\n| case | what was sent | what happened | memory, MB | others' first token, ms | others' end, ms |\n"
        text += "|---|---|---|---|---|---|\n"
        text += "".join(row(result) + "\n" for result in results if result.case.group == group)
    (stage.ROOT / "docs/reliability.md").write_text(text + BESIDE)


TITLES = {
    "heads": "Connections and heads",
    "bodies": "Bodies",
    "readers": "Readers",
    "workers": "Workers",
    "process": "The process",
    "floods": "Chance and number",
}


def processor():
    for line in open("/proc/cpuinfo"):
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()
