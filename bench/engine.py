#!/usr/bin/env python3
"""The engine's speed beside llama.cpp and Hugging Face transformers: same machine, weights (355 M parameters, bench/hf/make_m355.py) and threads,
in one run, in turns, with what the machine could do. Prints the table of docs/benchmarks.md; of the rounds the best counts, for everybody.

    python3 bench/engine.py [--rounds 3] [--threads 1,2] [--no-peers] [--write] [--profile] [--table]

--write puts the table into docs/benchmarks.md, --profile lists the functions that take the time where a goal is missed (needs perf), --table
makes the table of the last run again. What is needed is installed and built below target/ by the first run."""
import argparse, json, os, re, subprocess, sys, time

import peers, table
from peers import DTYPES, WORK, folder, gguf, say

RESULTS = f"{WORK}/results.jsonl"
SPEED, DISPATCH = "target/release/examples/speed", ["target/release/bench-dispatch", "2000"]
NOTHING = "", 0.0
LONGEST = 1800  # seconds of one command, some twenty times what it takes
SEQUENCES = 8  # of two workers, and of one
DEPLOYMENT = """apiVersion: serving.minimax-m1.dev/v1alpha1
kind: MiniMaxM1Deployment
metadata: {{name: bench}}
spec:
  model:
    servedName: bench
    source: {{hostPath: {{path: {model}}}}}
    maxContextTokens: 4096
  parallelism: {{tensor: 1, expert: {workers}}}
  worker:
    resources: {{limits: {{cpu: "{threads}"}}}}
"""


def spent():
    """Seconds on the clock, of all cores' work, and of the work of what this script started."""
    with open("/proc/stat") as file:
        user, nice, system, _idle, _waiting, irq, softirq, steal = map(int, file.readline().split()[1:9])
    own = os.times()
    work = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    return time.perf_counter(), work, own.children_user + own.children_system


def others_since(before):
    """Cores that other work had since then."""
    clock, work, own = (after - earlier for after, earlier in zip(spent(), before))
    return max(0.0, (work - own) / clock)


def output(*command):
    """What a command prints, and how many cores other work had meanwhile; nothing, said in one line, where it fails."""
    before = spent()
    try:
        with open(f"{WORK}/measure.log", "a") as log:
            text = subprocess.run(command, stdout=subprocess.PIPE, stderr=log, text=True, timeout=LONGEST, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        say(f"not measured: {error}; see {WORK}/measure.log")
        return NOTHING
    return text, others_since(before)


def put(side, what, dtype="", threads=0, **figures):
    with open(RESULTS, "a") as file:
        file.write(json.dumps(dict(side=side, what=what, dtype=dtype, threads=threads, **figures)) + "\n")


def put_lines(said, side, dtype, threads):
    text, others = said
    for line in text.splitlines():
        if line.startswith("{"):
            row = json.loads(line)
            put(side, row.pop("what"), dtype, threads, others=others, **row)


def ours(dtype, threads, only, *more):
    put_lines(output(SPEED, folder(dtype), str(threads), "--json", "--only", only, *more), "ours", dtype, threads)


def llama(dtype, threads):
    bench = [f"{peers.LLAMA}/build/bin/llama-bench", "-m", gguf(dtype), "-t", str(threads), "-lm", "mmap", "-n", "0", "-p", "512,4096", "-r", "2",
             "--no-warmup", "-o", "json"]
    text, others = output(*bench)
    for row in json.loads(text or "[]"):
        put("llama.cpp", f"prefill {row['n_prompt']}", dtype, threads, others=others, tokens_per_second=max(row["samples_ts"]))
    batches = ",".join(map(str, peers.BATCHES))
    batched = [f"{peers.LLAMA}/build/bin/llama-batched-bench", "-m", gguf(dtype), "-t", str(threads), "-tb", str(threads), "-c", "8192", "-lm", "mmap",
               "-npp", str(peers.PROMPT), "-ntg", str(peers.STEPS), "-npl", batches, "--output-format", "jsonl"]
    text, others = output(*batched)
    for line in text.splitlines():
        if line.startswith("{"):
            row = json.loads(line)
            put("llama.cpp", f"decode {row['pl']}", dtype, threads, others=others, tokens_per_second=row["speed_tg"])


def transformers(threads):
    put_lines(output(peers.PYTHON, "bench/hf/bench_hf.py", folder("fp32"), str(threads)), "transformers", "fp32", threads)


def weights():
    """Reading a checkpoint's bytes, and making it ready, with and without its files in the page cache."""
    files = [f"{folder('fp32')}/{name}" for name in sorted(os.listdir(folder("fp32"))) if name.endswith(".safetensors")]

    def forget():
        for name in files:
            with open(name, "rb") as file:
                os.fsync(file.fileno())  # pages that are not written yet stay
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def read():
        room, begun = bytearray(4 << 20), time.perf_counter()
        for name in files:
            with open(name, "rb", buffering=0) as file:
                while file.readinto(room):
                    pass
        return time.perf_counter() - begun

    read()  # so that what lies below this machine's own cache is the same for both
    for state, before in (("from disk", forget), ("from the page cache", read)):
        before()
        put("reading", f"weights {state}", seconds=read())
        before()
        for line in output(SPEED, folder("fp32"), "1", "--json", "--only", "load")[0].splitlines():
            row = json.loads(line)
            if row["what"] == "load":
                put("ours", f"weights {state}", seconds=row["seconds"], bytes=row["bytes"])


def workers(count, threads):
    """The rate of SEQUENCES sequences over so many workers of so many threads."""
    before, rate, state = spent(), None, os.path.abspath(f"{WORK}/up")
    os.makedirs(state, exist_ok=True)
    with open(f"{state}/bench.yaml", "w") as file:
        file.write(DEPLOYMENT.format(model=os.path.abspath(folder("bf16")), workers=count, threads=threads))
    with open(f"{WORK}/measure.log", "a") as log:
        up = subprocess.Popen(["target/release/m1ctl", "up", "-f", f"{state}/bench.yaml", "--listen", "127.0.0.1:0", "--state-dir", state],
                              stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        if not any(line.startswith("ready") for line in up.stdout):
            return say(f"{count} workers do not serve; see {WORK}/measure.log")
        pods = json.load(open(f"{state}/group.json"))["pods"]
        rate, _ = output("target/release/examples/workers", str(SEQUENCES), *(pod["address"] for pod in pods))
    finally:
        up.terminate()
        try:
            up.wait(60)
        except subprocess.TimeoutExpired:
            up.kill()
    # The workers' own time is counted once they have ended.
    if rate:
        put("ours", f"workers {count}", "bf16", count * threads, others=others_since(before), tokens_per_second=float(rate))


def round_trips(text):
    """(who, bytes, seconds) of medians: bench-dispatch prints tables whose header says the bytes, with rows for the echo and for dispatch."""
    size = None
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        bytes_said = [re.search(r"([\d,]+) B\b", cell) for cell in cells]
        size = next((int(found[1].replace(",", "")) for found in bytes_said if found), size)
        name = next((name for name in ("echo", "dispatch") if any(name in cell for cell in cells)), None)
        numbers = [float(cell) for cell in cells if re.fullmatch(r"[\d.]+", cell)]
        if line.startswith("|") and size and name and numbers:
            yield name, size, numbers[0] / 1e6


def measure(options, peer):
    for number in range(options.rounds):
        for threads in options.threads:
            say(f"round {number + 1} of {options.rounds}, {threads} thread{'s' * (threads > 1)}")
            for dtype in DTYPES:
                ours(dtype, threads, "limits")
                ours(dtype, threads, "product,decode,prefill", "--ids", options.ids)
                if peer["llama.cpp"]:
                    llama(dtype, threads)
                if peer["transformers"] and dtype == "fp32":
                    transformers(threads)
        if 2 in options.threads:
            workers(2, 1)
            workers(1, 2)
        for name, size, seconds in round_trips(output(*DISPATCH)[0]):
            put(name, f"round trip {size}", seconds=seconds)
        weights()
        ours("bf16", 1, "sampling")
        put("run", "options", load=os.getloadavg()[1])


def profile(rows):
    """The functions that take most of the time where a goal is missed."""
    seen = set()
    for row in rows:
        if row.met != "no" or not row.again or row.again in seen:
            continue
        seen.add(row.again)
        say(f"profile of {row.what}")
        if output("perf", "record", "-q", "-F", "499", "-o", f"{WORK}/perf.data", "--", SPEED, *row.again) == NOTHING:
            return
        report, _ = output("perf", "report", "-i", f"{WORK}/perf.data", "--stdio", "-q", "--no-children", "--no-inline", "-F", "overhead,symbol")
        lines = [line.strip() for line in report.splitlines() if "%" in line]
        print(f"\n`speed {' '.join(row.again)}` ({row.what}):\n\n" + "\n".join(f"    {line}" for line in lines[:10]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=lambda text: [int(word) for word in text.split(",")], default=[1, 2])
    for flag in ("--no-peers", "--write", "--profile", "--table"):
        parser.add_argument(flag, action="store_true")
    options = parser.parse_args()
    os.chdir(os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
    os.makedirs(WORK, exist_ok=True)
    if not options.table:
        # The model is made with torch: without peers too the environment is needed once.
        if not all(map(peers.made, DTYPES)) and not peers.environment():
            sys.exit("bench: without torch the model cannot be made")
        peer = {"transformers": not options.no_peers and peers.environment(), "llama.cpp": not options.no_peers and peers.llama()}
        peers.models(peer["llama.cpp"])
        options.ids = peers.ids(json.load(open(f"{folder('bf16')}/config.json"))["vocab_size"])
        built = subprocess.run(["cargo", "build", "--release", "-p", "m1-cpu", "-p", "m1-bench", "-p", "m1-worker", "-p", "m1-router", "-p", "m1ctl",
                                "--features", "m1-bench/engine", "--bins", "--example", "speed", "--example", "workers"])
        if built.returncode:
            sys.exit("bench: the engine does not build")
        if os.path.exists(RESULTS):
            os.remove(RESULTS)
        put("run", "options", rounds=options.rounds, load=os.getloadavg()[1], **table.machine(), **peers.versions())
        measure(options, peer)
    text, rows = table.make(RESULTS)
    print(text)
    if options.write:
        table.write(text)
    if options.profile:
        profile(rows)


if __name__ == "__main__":
    main()
