"""The table of bench/engine.py: what was measured, beside what the machine could do and what is wanted."""
import json, os, subprocess, time
from typing import NamedTuple, Optional

from peers import BATCHES, DTYPES, folder

DOCS, BEGIN, END = "docs/benchmarks.md", "<!-- make bench -->\n", "<!-- end of make bench -->\n"
LOWER = ("seconds", "rss_anon_bytes")  # the least of the rounds is the best
BATCHED = {8: (0.85, 1.5), 32: (0.70, 2.0)}  # of the bytes' limit, and times llama.cpp
WHOLE = {512: 0.60, 4096: 0.65}  # of the peak
NEAR = 0.85  # of the bandwidth: whoever is there can hardly be beaten
HELD = 0.25  # of a core that threads share with other work: with more, figures compare nothing


class Row(NamedTuple):
    what: str
    ours: str
    llama: str = ""
    hf: str = ""
    limit: str = ""
    goal: str = ""
    met: str = ""
    again: Optional[tuple] = None  # arguments of speed that do this again
    figures: tuple = ()  # what it rests on, as Results has it, the engine's first


class Results:
    """The best of each figure."""

    def __init__(self, path):
        self.rows = {}
        with open(path) as file:
            lines = file.readlines()
        for row in map(json.loads, lines):
            best = self.rows.setdefault((row.pop("side"), row.pop("what"), row.pop("dtype"), row.pop("threads")), {})
            others = row.pop("others", 0.0)
            for name, value in row.items():
                better = min if name in LOWER else max
                if name not in best or better(value, best[name]) != best[name]:
                    best[name], best["others"] = value, others

    def get(self, name, side, what, dtype="", threads=0):
        return self.rows.get((side, what, dtype, threads), {}).get(name)

    def threads(self):
        return sorted({threads for side, what, _, threads in self.rows if what == "limits"})

    def limit(self, name, threads):
        """What the machine gave, in the best of all moments."""
        return max(self.get(name, "ours", "limits", dtype, threads) or 0 for dtype in DTYPES)

    def busy(self, *figures):
        """Whether one of the figures was taken while other work had cores that its threads were meant to have: peers whose threads wait for
        each other by spinning are many times slower then. `figures` are (side, what, dtype, threads)."""
        shared = [row["others"] + key[3] - self.rows[("run", "options", "", 0)]["cores"] for key in figures if (row := self.rows.get(key))]
        return any(cores > HELD for cores in shared)


def number(value, unit=""):
    if value is None:
        return "-"
    return f"{value:.1f}{unit}" if value < 100 else f"{value:.0f}{unit}"


def verdict(*goals):
    """`goals` are (text, own figure, figure that it should reach at least); a figure that is None was not measured."""
    known = [own >= wanted for _, own, wanted in goals if own is not None and wanted is not None]
    met = "" if not goals else "no" if not all(known) else "yes" if len(known) == len(goals) else "not measured"
    return "; ".join(text for text, _, _ in goals), met


def times(value, factor):
    return None if value is None else value * factor


def label(threads):
    return f"{threads} thread" + "s" * (threads > 1)


def rates(results, threads, dtype, what, hf):
    """Tokens per second of the three sides, and the figures that these are; transformers' goes by `hf`, (what, dtype)."""
    figures = (("ours", what, dtype, threads), ("llama.cpp", what, dtype, threads), ("transformers", *hf, threads))
    return [results.get("tokens_per_second", *figure) for figure in figures], figures


def decode(results, threads, dtype, batch):
    what = f"decode {batch}"
    (own, cpp, hf), figures = rates(results, threads, dtype, what, (f"decode batch {batch}", dtype))
    if own is None:
        return
    bandwidth = results.limit("bytes_per_second", threads)
    limit = batch * bandwidth / results.get("bytes_per_step", "ours", what, dtype, threads)
    experts = results.get("experts_per_layer", "ours", what, dtype, threads)
    goals = []
    if batch == 1:
        factor = 1.0 if cpp and cpp > NEAR * limit else 1.1
        goals.append((f"{factor}x llama.cpp", own, times(cpp, factor)))
    elif dtype == "bf16":
        share, factor = BATCHED[batch]
        goals += [(f"{share:.0%} of the limit", own, share * limit), (f"{factor:g}x llama.cpp", own, times(cpp, factor))]
    if dtype == "fp32" and batch in (1, 8):
        goals.append(("2x transformers", own, times(hf, 2)))
    name = f"decode b{batch}, {dtype}, {label(threads)}, {experts:.1f} experts a layer"
    again = (folder(dtype), str(threads), "--only", "decode")
    yield Row(name, number(own, " tok/s"), number(cpp), number(hf) if dtype == "fp32" else "", f"{limit:.0f}", *verdict(*goals), again, figures)


def product(results, threads, dtype):
    found = [(row["flop_per_second"], what) for (_, what, of, by), row in results.rows.items() if what.startswith("product") and (of, by) == (dtype, threads)]
    if not found:
        return
    peak, (least, slowest), (most, _) = results.limit("flop_per_second", threads), min(found), max(found)
    name = f"products with 128 and 512 rows, {dtype}, {label(threads)}; slowest: {slowest.removeprefix('product ')}"
    again = (folder(dtype), str(threads), "--only", "product")
    yield Row(name, f"{least / 1e9:.0f} to {most / 1e9:.0f} GFLOP/s", "", "", f"{peak / 1e9:.0f}",
              *verdict(("75% of the peak", least, 0.75 * peak)), again, (("ours", slowest, dtype, threads),))


def prefill(results, threads, dtype, tokens):
    what = f"prefill {tokens}"
    (own, cpp, hf), figures = rates(results, threads, dtype, what, (what, "fp32"))
    if own is None:
        return
    limit = results.limit("flop_per_second", threads) / results.get("flop_per_token", "ours", what, dtype, threads)
    goals = ((f"{WHOLE[tokens]:.0%} of the peak", own, WHOLE[tokens] * limit), ("ahead of both", own, max(cpp, hf) if cpp and hf else None))
    again = (folder(dtype), str(threads), "--only", "prefill")
    yield Row(f"{what}, {dtype}, {label(threads)}", number(own, " tok/s"), number(cpp), number(hf), f"{limit:.0f}", *verdict(*goals), again, figures)


def others(results):
    two, one = (results.get("tokens_per_second", "ours", f"workers {count}", "bf16", 2) for count in (2, 1))
    if one and two:
        goal = ("at most 1.15x the time", -one / two, -1.15)
        name = "8 sequences, bf16: two workers of one thread (4 + 4), one worker of two"
        figures = (("ours", "workers 2", "bf16", 2), ("ours", "workers 1", "bf16", 2))
        yield Row(name, f"{two:.0f} and {one:.0f} tok/s, {one / two:.2f}x", "", "", "", *verdict(goal), None, figures)
    for side, what, _, _ in sorted(results.rows, key=lambda key: (len(key[1]), key[1])):
        if side == "dispatch":
            own, echo = (results.get("seconds", name, what) for name in ("dispatch", "echo"))
            if echo:
                goal = ("at most 2x a raw echo", -own, -2 * echo)
                yield Row(f"dispatch {what} B, p50", f"{own * 1e6:.0f} us, {own / echo:.1f}x", "", "", f"{echo * 1e6:.0f} us", *verdict(goal))
    for state in ("from disk", "from the page cache"):
        own, reading = (results.get("seconds", side, f"weights {state}") for side in ("ours", "reading"))
        if own and reading:
            size = results.get("bytes", "ours", f"weights {state}") / 1e6
            goal = ("at most 1.5x of reading the bytes", -own, -1.5 * reading)
            yield Row(f"{size:.0f} MB of weights ready, {state}", f"{own:.2f} s, {own / reading:.2f}x", "", "", f"{reading:.2f} s", *verdict(goal))
    ends = [row for (side, what, _, _), row in results.rows.items() if what == "memory at the end"]
    if ends:
        worst = max(ends, key=lambda row: row["rss_anon_bytes"] - row["cache_bytes"])
        own, caches = worst["rss_anon_bytes"], worst["cache_bytes"]
        goal = ("at most caches + 100 MB", caches + 100e6, own)
        yield Row("RssAnon after decode and prefill", f"{own / 1e6:.0f} MB", "", "", f"caches {caches / 1e6:.0f} MB", *verdict(goal))
    rate = results.get("tokens_per_second", "ours", "decode 1", "bf16", 1)
    step = f" (a step of b1, bf16: {1e3 / rate:.1f} ms)" if rate else ""
    for (side, what, dtype, threads), row in results.rows.items():
        if what.startswith("sampling"):
            goal = ("at most 0.3 ms", -row["seconds"], -0.3e-3)
            again = (folder("bf16"), "1", "--only", "sampling")
            yield Row(f"{what}: a row of 200,064 ids, top_p 0.95", f"{row['seconds'] * 1e3:.2f} ms{step}", "", "", "", *verdict(goal), again)


def of_threads(results, threads):
    for batch in BATCHES:
        for dtype in DTYPES:
            yield from decode(results, threads, dtype, batch)
    for dtype in DTYPES:
        yield from product(results, threads, dtype)
    for tokens in WHOLE:
        for dtype in DTYPES:
            yield from prefill(results, threads, dtype, tokens)


def rows(results):
    found = [row for threads in results.threads() for row in of_threads(results, threads)] + list(others(results))
    return [judged(results, row) for row in found]


def judged(results, row):
    """The row; busy where its verdict could be another without other work. That makes a figure worse only: what is met in spite of it is met,
    unless the peers had to share their cores."""
    own, peers = row.figures[:1], row.figures[1:]
    doubted = {"": (), "yes": peers, "no": own}.get(row.met, own + peers)
    return row._replace(met="busy") if results.busy(*doubted) else row


def machine():
    """What is said of this machine and this tree."""
    cpu = next((line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "unknown CPU")
    revision = subprocess.run(["git", "rev-parse", "--short", "HEAD"], stdout=subprocess.PIPE, text=True).stdout.strip() or "?"
    changed = subprocess.run(["git", "status", "--porcelain"], stdout=subprocess.PIPE, text=True).stdout.strip()
    return dict(cpu=cpu, cores=os.cpu_count(), date=time.strftime("%Y-%m-%d"), revision=revision + (" and changes" if changed else ""))


def head(results):
    run = results.rows[("run", "options", "", 0)]
    sides = {side for side, *_ in results.rows}
    cpp = f"llama.cpp of llama-cpp-python {run['llama-cpp-python']}" if "llama.cpp" in sides else "no llama.cpp"
    hf = f"transformers {run['transformers']}, torch {run['torch']}" if "transformers" in sides else "no transformers"
    limits = "; ".join(f"{label(threads)} {results.limit('bytes_per_second', threads) / 1e9:.1f} GB/s, {results.limit('flop_per_second', threads) / 1e9:.0f} GFLOP/s"
                       for threads in results.threads())
    return (f"Engine of {run['revision']}; {cpp}; {hf}; {run['cpu']}, {run['cores']} cores, {run['date']}; best of {run['rounds']} "
            f"round{'s' * (run['rounds'] > 1)}; load average up to {run['load']:.1f} (its own {max(results.threads())}). Measured limits: {limits}.")


def make(path):
    """The text, and its rows."""
    results = Results(path)
    found = rows(results)
    lines = ["| what | ours | llama.cpp | transformers fp32 | limit | goal | met |", "|---|---|---|---|---|---|---|"]
    lines += ["| " + " | ".join(row[:7]) + " |" for row in found]
    missed = [row.what.split(";")[0] for row in found if row.met == "no"]
    said = "missed: " + "; ".join(missed) if missed else "missed: none"
    return f"{head(results)}\n\n" + "\n".join(lines) + f"\n\n{said}\n", found


def write(text):
    """Puts it between the markers of docs/benchmarks.md."""
    whole = open(DOCS).read()
    before, rest = whole.split(BEGIN)
    after = rest.split(END)[1]
    with open(DOCS, "w") as file:
        file.write(f"{before}{BEGIN}{text}{END}{after}")
