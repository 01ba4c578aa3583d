#!/usr/bin/env python3
"""One worker against Hugging Face transformers: same machine, weights (355 M parameters, make_m355.py), threads and precision (fp32).

    python bench/hf/compare.py [--rounds 2] [--threads 1,2]      run from the repository's root, in an environment with
                                                                 torch==2.11.0 transformers==5.23.0 safetensors

The two take turns, so that a noisy neighbour hits both. Prints a table in Markdown; figures are the best of the rounds."""
import argparse, json, os, re, subprocess, sys

FOLDER = "target/m355"


def run(*command):
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed")
    return done.stdout


def transformers(threads):
    lines = run(sys.executable, "bench/hf/bench_hf.py", FOLDER, str(threads)).splitlines()
    return {row["what"]: row["tokens_per_second"] for row in map(json.loads, lines)}


def ours(threads):
    text = run("target/release/examples/speed", FOLDER, str(threads))
    print(text, file=sys.stderr)
    rates = {what: float(rate) for what, rate in re.findall(r"(decode batch \d+): ([\d.]+) tok/s", text)}
    for what, first, second in re.findall(r"(prefill \d+): (\d+) (\d+) tok/s", text):
        rates[what] = max(float(first), float(second))
    return rates


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", default="1,2")
    options = parser.parse_args()
    if not os.path.exists(f"{FOLDER}/config.json"):
        run(sys.executable, "bench/hf/make_m355.py", FOLDER, "demo/m1-demo/tokenizer.json")
    run("cargo", "build", "--release", "-p", "m1-cpu", "--example", "speed")
    print("| threads | work | transformers tok/s | one worker tok/s | ratio |\n|---|---|---|---|---|")
    for threads in map(int, options.threads.split(",")):
        best = ({}, {})
        for _ in range(options.rounds):
            for side, rates in zip(best, (transformers(threads), ours(threads))):
                for what, rate in rates.items():
                    side[what] = max(rate, side.get(what, 0))
        for what in best[1]:
            print(f"| {threads} | {what} | {best[0][what]:.1f} | {best[1][what]:.1f} | {best[1][what] / best[0][what]:.2f} |", flush=True)


if __name__ == "__main__":
    main()
