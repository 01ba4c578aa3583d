"""The figures of one or two runs, side by side."""

import json


def mib(size):
    return f"{size / 2**20:.0f} MiB"


def seconds(value):
    return "none" if value is None else f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"


def calls(found):
    return ", ".join(f"{method} {count}" for method, count in sorted(found.items())) or "none"


def both(pair):
    return f"{seconds(pair['median'])}, {seconds(pair['worst'])}"


def rows(found, many):
    """What was measured, and its words; a run that broke off has not all of it."""
    one, bulk, rest, touch, more, restart = (found.get(name, {}) for name in ("singles", "bulk", "rest", "touch", "singles_many", "restart"))
    pods = lambda singles: both(singles["pods"])  # noqa: E731
    words = {
        "one applied, until its StatefulSet is there: median, worst": lambda: both(one["set"]),
        "one applied, until its pods are there: median, worst": lambda: pods(one),
        "one applied, until its pods are Ready: median, worst": lambda: both(one["ready"]),
        "memory with 1": lambda: mib(found["memory_one"][0]),
        f"{many} applied at once: all taken by the API server": lambda: seconds(bulk["taken"]),
        "all pods made": lambda: seconds(bulk["made"]),
        "all pods Ready": lambda: seconds(bulk["ready"]),
        "the controller's last write": lambda: seconds(bulk["last_write"]),
        "its CPU time until then": lambda: f"{bulk['cpu']:.1f} s",
        "reconciles; p50, p99 at most": lambda: f"{bulk['reconciles']}; {seconds(bulk['p50'])}, {seconds(bulk['p99'])}",
        "its calls to the API server": lambda: calls(bulk["calls"]),
        "calls per deployment; per reconcile": lambda: f"{sum(bulk['calls'].values()) / many:.1f}; {sum(bulk['calls'].values()) / max(1, bulk['reconciles']):.2f}",
        "CPU time of the others meanwhile": lambda: ", ".join(f"{name} {cpu:.0f} s" for name, cpu in bulk["others"].items()),
        f"memory with {many}; peak": lambda: "; ".join(mib(size) for size in found["memory_many"]),
        "at rest, 30 s: CPU time; reconciles; calls": lambda: f"{rest['cpu']:.2f} s; {rest['reconciles']}; {calls(rest['calls'])}",
        "all touched: reconciles; p99 at most": lambda: f"{touch['reconciles']}; {seconds(touch['p99'])}",
        "calls, those of the lease among them": lambda: f"{calls(touch['calls'])} in {touch['seconds']:.0f} s",
        f"one more applied beside {many}, until its pods are there: median, worst": lambda: pods(more),
        "killed: until there were as many looks as deployments": lambda: seconds(restart["looked_at_all"]),
        "killed: until 10 groups that were lost meanwhile are whole": lambda: seconds(restart["whole_again"]),
        "reconciles after the restart; p99 at most": lambda: f"{restart['reconciles']}; {seconds(restart['p99'])}",
        "calls after the restart": lambda: calls(restart["calls"]),
        "memory after the restart": lambda: mib(restart["memory"][0]),
        "load average before, after the many": lambda: f"{found['load_before'][0]:.1f}, {bulk['load']:.1f}",
    }

    def said(word):
        try:
            return word()
        except KeyError:
            return "not reached"

    return {what: said(word) for what, word in words.items()}


def table(files):
    runs = []
    for path in files:
        with open(path, encoding="utf-8") as file:
            runs.append(json.load(file))
    named = {"ours": "this operator", "lws": "LeaderWorkerSet 0.7.0"}
    lines = ["| what | " + " | ".join(named[run["side"]] for run in runs) + " |", "|---" * (len(runs) + 1) + "|"]
    columns = [list(rows(run["found"], run["deployments"]).items()) for run in runs]
    for at, (what, _) in enumerate(columns[0]):
        lines.append(f"| {what} | " + " | ".join(column[at][1] for column in columns) + " |")
    return "\n".join(lines)
