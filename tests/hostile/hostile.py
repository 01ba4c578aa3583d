"""Runs the hostile-client suite: cases on stands, one line per case, and docs/reliability.md. See scripts/hostile.sh.

--short leaves out what takes long; --only TEXT runs cases whose name contains it; --write writes the document; --list says which cases there are.
"""

import argparse
import sys
import time

import raw
import stage
import table
from document import write

import heads  # noqa: F401  (each module adds its cases)
import bodies  # noqa: F401
import readers  # noqa: F401
import workers  # noqa: F401
import process  # noqa: F401
import floods  # noqa: F401

TRIES = 3  # of a case in which nothing but others' times was off, in the short form of any that failed: a busy machine looks like that too


def shown(result):
    """One line for people who wait."""
    number = lambda value: "-" if value is None else f"{value:.0f}"
    calm, under = result.calm, result.under
    verdict = "ok  " if not result.violations else "FAIL"
    times = f"p99 first {number(calm[0])}->{number(under[0])} end {number(calm[1])}->{number(under[1])} ms"
    memory = f"{result.before:.0f}->{result.peak:.0f} MB"
    text = f"{verdict} {result.case.name:38} {memory:14} {times:44} {result.seconds:4.1f} s  {result.happened}"
    return "\n".join([text.rstrip(), *(f"       {text}" for text in result.violations)])


def on_stand(key, cases, short):
    """Runs cases on one stand; one that a case has spoiled is made anew."""
    results, stand, calm = [], None, None
    try:
        for one in cases:
            for attempt in range(TRIES):
                try:
                    stand, calm = (stand, calm) if stand else begin(key, short)
                    result = table.run(one, stand, calm, short)
                except (stage.Violation, raw.Cut, RuntimeError, OSError) as problem:
                    result = table.Result(one, violations=[f"the stand: {problem}"])
                # The short form runs beside whatever else a test machine does: there a limit may be missed once.
                again = result.violations if short else table.is_noise(result)
                if not again or attempt == TRIES - 1:
                    break
                if stand and not table.is_noise(result):
                    stand.stop()
                    stand = None
            results.append(result)
            print(shown(result), flush=True)
            if result.violations and stand:
                stand.stop()
                stand = None
    finally:
        if stand:
            stand.stop()
    return results


def begin(key, short):
    """A stand at work, and its others in peace."""
    stand = table.STANDS[key]()
    try:
        stand.ready()
        stand.begin_others()
        time.sleep(0.5 if stand.has_others else 0)  # connections and pages that the first requests need are there afterwards
        stand.take_others()
        time.sleep(table.CALM[short] if stand.has_others else 0)
        calm = stand.take_others()
        stage.expect(calm["answered"] > 0 or not stand.has_others, "the others are not answered in peace")
        stage.expect(not calm["failed"], f"the others are not answered in peace: {calm['failed'][:1]}")
    except BaseException:
        stand.stop()
        raise
    return stand, calm


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--list", action="store_true")
    given = parser.parse_args()
    chosen = [one for one in table.CASES if (one.short or not given.short)]
    chosen = [one for one in chosen if not given.only or any(text in one.name for text in given.only)]
    if given.list or not chosen:
        print("\n".join(f"{one.group}: {one.name}: {one.sent}" for one in table.CASES))
        return 0 if given.list else 2
    start, results = time.monotonic(), []
    for key in dict.fromkeys(one.stand for one in chosen):
        results += on_stand(key, [one for one in chosen if one.stand == key], given.short)
    # Times are told, and judged where there is a machine for it: not in a test.
    failed = [result for result in results if result.violations and not (given.short and table.is_noise(result))]
    print(f"hostile: {len(results)} cases in {time.monotonic() - start:.0f} s, {len(failed)} with violations")
    if given.write:
        write(results)
    return 1 if failed else 0


sys.exit(main())
