"""What a controller costs with many deployments: pods that only seem to run (KWOK), everything else real.

Started by scripts/scale.sh, which makes a cluster for each of the two: ours, and LeaderWorkerSet's. Both go through the same steps:

    scale.py run ours|lws --deployments N --pods N --out FILE
    scale.py table FILE...
"""

import argparse
import json
import os
import statistics
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../e2e"))

import kube  # noqa: E402
from api import EACH, Api, Watch, namespace, until  # noqa: E402
from sides import Lws, Ours, memory, processes, processor, quantile  # noqa: E402
from table import table  # noqa: E402

REST = 30


class Run:
    """One controller, step by step."""

    def __init__(self, args):
        self.args, self.api, self.found = args, Api(), {}
        for number in range(-(-max(args.deployments, args.singles) // EACH)):
            self.api.call("POST", "/api/v1/namespaces", {"metadata": {"name": f"scale-{number}"}})
        self.side = (Ours if args.side == "ours" else Lws)(self.api, args)
        self.pods = Watch(self.api, "/api/v1/pods", self.side.workers)
        self.sets = Watch(self.api, "/apis/apps/v1/statefulsets", self.side.sets)
        self.count = 0

    def path(self, name):
        return f"/apis/{self.side.group}/namespaces/{namespace(name)}/{self.side.plural}"

    def make(self, name):
        return "POST", self.path(name), self.side.object(name, self.args.pods)

    def wait(self, groups, seen, since=0.0, timeout=3600):
        """Until every group has all its pods, made or ready since a moment. Returns when the last was seen."""
        wanted, end = self.args.pods, time.monotonic() + timeout
        while True:
            times = {}
            for name, when in list(seen.items()):
                if when >= since:
                    times.setdefault("-".join(name.split("-")[:2]), []).append(when)
            left = [group for group in groups if len(times.get(group, ())) < wanted]
            if not left:
                return max(max(times[group]) for group in groups)
            if time.monotonic() > end:
                raise SystemExit(f"scale: {len(left)} of {len(groups)} groups lack pods after {timeout} s, {len(seen)} pods are there")
            # What was seen has its time already: a slow look is as exact as a fast one.
            time.sleep(0.02 if len(groups) == 1 else 0.5)

    def page(self):
        return until(self.side.page, "metrics", 60)

    def calls(self, before, after):
        name, label = self.side.requests
        first, last = before.by(name, label), after.by(name, label)
        return {method: int(count - first.get(method, 0)) for method, count in last.items() if count > first.get(method, 0)}

    def quiet(self, seconds=5, timeout=600):
        """Until nothing but the lease is written for a while. Returns the moment of the last write."""
        page, since, end = self.page(), time.monotonic(), time.monotonic() + timeout
        while time.monotonic() - since < seconds:
            time.sleep(0.5)
            now = self.page()
            calls = self.calls(page, now)
            # A lease is renewed with PUT every two or three seconds.
            if any(calls.get(method) for method in ("POST", "PATCH", "DELETE")) or calls.get("PUT", 0) > 4:
                page, since = now, time.monotonic()
            if time.monotonic() > end:
                raise SystemExit(f"scale: it writes without an end: {calls}")
        return since

    def cost(self, before, after, cpu):
        """What happened between two readings."""
        buckets = before.buckets(self.side.durations), after.buckets(self.side.durations)
        return {
            "seconds": after.at - before.at,
            "cpu": processor(self.side.pid) - cpu,
            "reconciles": int(self.side.reconciles(after) - self.side.reconciles(before)),
            "p50": quantile(*buckets, 0.5),
            "p99": quantile(*buckets, 0.99),
            "calls": self.calls(before, after),
            "load": os.getloadavg()[0],
        }

    def single(self, name):
        """One object, from before its POST: seconds until the API server has it, a StatefulSet is there, all pods are, all are Ready."""
        began = time.monotonic()
        self.api.call(*self.make(name))
        taken = time.monotonic()
        made = self.wait([name], self.pods.made)
        ready = self.wait([name], self.pods.ready)
        first = min(when for set_, when in list(self.sets.made.items()) if set_.startswith(f"{name}-") or set_ == name)
        self.count += 1
        return {"taken": taken - began, "set": first - began, "pods": made - began, "ready": ready - began}

    def singles(self, word, count):
        runs = []
        for number in range(count):
            runs.append(self.single(f"{word}-{number}"))
            time.sleep(1)
        return {step: {"median": statistics.median(run[step] for run in runs), "worst": max(run[step] for run in runs)} for step in runs[0]}

    def bulk(self):
        names = [f"many-{number}" for number in range(self.args.deployments)]
        before, cpu, others = self.page(), processor(self.side.pid), control_plane()
        began = time.monotonic()
        taken = self.api.each([self.make(name) for name in names])
        made = self.wait(names, self.pods.made)
        ready = self.wait(names, self.pods.ready)
        last = self.quiet()
        self.count += len(names)
        cost = self.cost(before, self.page(), cpu)
        others = {name: now - others.get(name, 0) for name, now in control_plane().items()}
        return {**cost, "taken": taken, "made": made - began, "ready": ready - began, "last_write": last - began, "others": others}

    def rest(self):
        before, cpu = self.page(), processor(self.side.pid)
        time.sleep(REST)
        return self.cost(before, self.page(), cpu)

    def touch(self):
        """Annotates every object, which changes nothing: whatever is written now is written needlessly."""
        before, cpu = self.page(), processor(self.side.pid)
        patch = {"metadata": {"annotations": {"example.test/touched": "1"}}}
        names = [f"many-{number}" for number in range(self.args.deployments)]
        self.api.each([("PATCH", f"{self.path(name)}/{name}", patch, "application/merge-patch+json") for name in names])
        wanted = self.side.reconciles(before) + len(names)
        until(lambda: self.side.reconciles(self.page()) >= wanted, "a look at each after a touch", 300, pause=0.5)
        time.sleep(REST)
        return self.cost(before, self.page(), cpu)

    def restart(self):
        """Kills the controller, deletes some StatefulSets while it is dead, and waits for the pods of new ones."""
        lost = [f"many-{number}" for number in range(min(10, self.args.deployments))]
        sets = [name for name in self.sets.made if any(name == group or name.startswith(f"{group}-") for group in lost)]
        # Of LeaderWorkerSet's two, the workers' belongs to the leader's pod and goes with it.
        sets = [name for name in sets if self.side.name == "ours" or name in lost]
        self.side.kill()
        killed = time.monotonic()
        for name in sets:
            place = namespace("-".join(name.split("-")[:2]))
            self.api.call("DELETE", f"/apis/apps/v1/namespaces/{place}/statefulsets/{name}?propagationPolicy=Background")
        self.side.again()
        until(lambda: self.side.looked_at_all(self.page(), self.count), "a look at each after a restart", 600, pause=0.2)
        looked = time.monotonic()
        whole = self.wait(lost, self.pods.ready, since=killed, timeout=600)
        self.quiet()
        after = self.page()
        nothing = type(after)("", 0)
        found = {**self.cost(nothing, after, 0), "looked_at_all": looked - killed, "whole_again": whole - killed, "lost": len(lost)}
        return {**found, "memory": memory(self.side.pid)}

    def step(self, name, result):
        self.found[name] = result
        print(f"scale: {self.side.name}: {name}: {json.dumps(result)}", file=sys.stderr, flush=True)
        with open(self.args.out, "w", encoding="utf-8") as file:
            json.dump({"side": self.side.name, "deployments": self.args.deployments, "pods": self.args.pods, "found": self.found}, file)

    def all(self):
        try:
            self.step("load_before", os.getloadavg())
            self.single("first-0")
            self.quiet()
            self.step("memory_one", memory(self.side.pid))
            self.step("singles", self.singles("one", self.args.singles))
            self.step("bulk", self.bulk())
            self.step("memory_many", memory(self.side.pid))
            self.step("rest", self.rest())
            self.step("touch", self.touch())
            self.step("singles_many", self.singles("more", self.args.singles))
            self.step("restart", self.restart())
        finally:
            self.side.stop()


def control_plane():
    """Seconds of CPU of what runs beside the controller, by program."""
    names = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kwok")
    found = {}
    for pid, line in processes():
        program = os.path.basename(line.split(" ")[0])
        if program in names and os.environ["M1_CLUSTER_DIR"] + "/" in line:
            found[program] = processor(pid)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument("side", choices=["ours", "lws"])
    run.add_argument("--deployments", type=int, default=1000)
    run.add_argument("--pods", type=int, default=10, help="worker pods of a deployment")
    run.add_argument("--singles", type=int, default=20, help="deployments applied one by one, before and after the many")
    run.add_argument("--operator", default=os.path.join(kube.REPOSITORY, "target/release/m1-operator"))
    run.add_argument("--out", required=True)
    show = commands.add_parser("table")
    show.add_argument("files", nargs="+")
    args = parser.parse_args()
    if args.command == "table":
        return print(table(args.files))
    return Run(args).all()


main()
