"""What the operator costs with many deployments: pods that only seem to run (KWOK), everything else real. Prints a table.

Started by scripts/scale.sh, which makes the cluster. The operator runs as a process of this machine, so that its memory is its own
and it can be killed. With --lws the same number of groups of the same size is made by LeaderWorkerSet's controller in the same run.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request

REPOSITORY = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(REPOSITORY, "tests/e2e"))

import kube  # noqa: E402

ADMIN = "127.0.0.1:18080"
NAMESPACE = "scale"
KWOK = {"key": "kwok.x-k8s.io/node", "operator": "Exists", "effect": "NoSchedule"}


class Operator:
    """The operator as a process, with its memory watched."""

    def __init__(self, program):
        self.log = open("/tmp/m1-scale-operator.log", "a", encoding="utf-8")
        self.process = subprocess.Popen([program, "--admin", ADMIN, "--namespace", "default"], stderr=self.log, env={**os.environ, "RUST_LOG": "warn"})
        self.peak = 0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self):
        while self.process.poll() is None:
            self.peak = max(self.peak, self.memory())
            time.sleep(0.5)

    def memory(self):
        """Resident bytes."""
        return resident(self.process.pid)

    def metrics(self):
        with urllib.request.urlopen(f"http://{ADMIN}/metrics", timeout=5) as answer:
            return answer.read().decode()

    def value(self, name):
        return sum(float(v) for v in re.findall(rf"^{name}(?:{{[^}}]*}})? ([0-9.e+]+)$", self.metrics(), re.M))

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self):
        self.process.terminate()
        self.process.wait(timeout=30)


def resident(pid):
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmRSS"))
    except (OSError, StopIteration):
        return 0


def quantile(text, name, q):
    """The smallest bucket's bound that holds the quantile, as Prometheus would begin from."""
    buckets = [(float(b), float(c)) for b, c in re.findall(rf'^{name}_bucket{{le="([^"]+)"}} ([0-9.e+]+)$', text, re.M) if b != "+Inf"]
    total = float(re.search(rf"^{name}_count ([0-9.e+]+)$", text, re.M).group(1))
    return next((bound for bound, count in buckets if count >= q * total), float("inf"))


def deployment(number, pods):
    with open(os.path.join(REPOSITORY, "demo/m1-demo/config.json"), encoding="utf-8") as file:
        config = json.load(file)
    return {
        "apiVersion": "serving.minimax-m1.dev/v1alpha1",
        "kind": "MiniMaxM1Deployment",
        "metadata": {"name": f"m1-{number}", "namespace": NAMESPACE},
        "spec": {
            "model": {"source": {"hostPath": {"path": "/m"}}, "config": config, "maxContextTokens": 2048},
            "parallelism": {"expert": pods},
            "worker": {"tolerations": [KWOK], "nodeSelector": {"type": "kwok"}, "resources": {"requests": {"cpu": "10m", "memory": "10Mi"}}},
        },
    }


def lws(number, pods):
    container = {"name": "worker", "image": "x.test/x:1", "resources": {"requests": {"cpu": "10m"}}}
    pod = {"spec": {"containers": [container], "tolerations": [KWOK], "nodeSelector": {"type": "kwok"}}}
    return {
        "apiVersion": "leaderworkerset.x-k8s.io/v1",
        "kind": "LeaderWorkerSet",
        "metadata": {"name": f"lws-{number}", "namespace": NAMESPACE},
        "spec": {"replicas": 1, "leaderWorkerTemplate": {"size": pods, "workerTemplate": pod}},
    }


def count(selector):
    """Pods by phase; only their names travel."""
    path = f"/api/v1/namespaces/{NAMESPACE}/pods?limit=1&labelSelector={selector}"
    page = json.loads(kube.run("kubectl", "get", "--raw", path))
    return len(page["items"]) + page["metadata"].get("remainingItemCount", 0)


def make(objects):
    """Creates objects in lists of a hundred, as fast as the API server takes them."""
    began = time.monotonic()
    for start in range(0, len(objects), 100):
        text = "\n---\n".join(json.dumps(o) for o in objects[start : start + 100])
        kube.run("kubectl", "create", "-f", "-", input=text, timeout=600)
    return time.monotonic() - began


def until(look, what, timeout):
    end = time.monotonic() + timeout
    while not look():
        if time.monotonic() > end:
            raise SystemExit(f"scale: {what}: not within {timeout} s")
        time.sleep(0.5)


def settled(operator):
    """Waits until five seconds pass without a write; returns when the last one was."""
    last, since = operator.value("m1_operator_writes_total"), time.monotonic()
    while time.monotonic() - since < 5:
        time.sleep(0.5)
        now = operator.value("m1_operator_writes_total")
        if now != last:
            last, since = now, time.monotonic()
    return since


def mib(size):
    return f"{size / 2**20:.0f} MiB"


def ours(args, rows):
    operator = Operator(args.operator)
    until(lambda: operator.process.poll() is None and reachable(operator), "the operator's admin port", 60)
    kube.run("kubectl", "create", "namespace", NAMESPACE)
    time.sleep(1)
    began = time.monotonic()
    kube.apply(deployment(0, args.pods), namespace=NAMESPACE)
    applied = time.monotonic()
    until(lambda: count("app.kubernetes.io/component=worker") == args.pods, "pods of one deployment", 60)
    rows.append(("one deployment: apply until its pods are there", f"{time.monotonic() - applied:.2f} s", f"kubectl itself took {applied - began:.2f} s"))
    settled(operator)
    rows.append(("memory with 1 deployment", mib(operator.memory()), ""))
    made = make([deployment(n, args.pods) for n in range(1, args.deployments)])
    started = time.monotonic() - made
    until(lambda: count("app.kubernetes.io/component=worker") >= args.deployments * args.pods, "all pods", 3600)
    rows.append((f"{args.deployments} deployments: all {args.deployments * args.pods} worker pods made", f"{time.monotonic() - started:.0f} s", f"creating the objects took {made:.0f} s"))
    end = settled(operator)
    rows.append(("until the last write", f"{end - started:.0f} s", ""))
    text = operator.metrics()
    name = "m1_operator_reconcile_duration_seconds"
    reconciles = operator.value("m1_operator_reconciles_total")
    rows.append(("reconciles; p50, p99 at most", f"{reconciles:.0f}; {quantile(text, name, 0.5) * 1000:.0f} ms, {quantile(text, name, 0.99) * 1000:.0f} ms", "calls to the API server included"))
    rows.append(("writes per deployment", f"{operator.value('m1_operator_writes_total') / args.deployments:.1f}", "objects created; status not counted"))
    rows.append((f"memory with {args.deployments} deployments; peak", f"{mib(operator.memory())}; {mib(operator.peak)}", ""))
    before = operator.value("m1_operator_writes_total"), operator.value("m1_operator_reconciles_total")
    kube.run("kubectl", "annotate", "m1d", "--all", "-n", NAMESPACE, "example.test/touched=1", timeout=900)
    settled(operator)
    after = operator.value("m1_operator_writes_total"), operator.value("m1_operator_reconciles_total")
    rows.append(("touching every deployment", f"{after[1] - before[1]:.0f} reconciles, {after[0] - before[0]:.0f} writes", "nothing changed, so nothing is written"))
    operator.kill()
    began = time.monotonic()
    operator = Operator(args.operator)
    until(lambda: reachable(operator) and operator.value("m1_operator_reconciles_total") >= args.deployments, "every deployment after a restart", 600)
    rows.append(("operator killed: until every deployment was looked at again", f"{time.monotonic() - began:.0f} s", "15 s of it the lease of the dead one"))
    settled(operator)
    rows.append(("writes after the restart; memory", f"{operator.value('m1_operator_writes_total'):.0f}; {mib(operator.memory())}", ""))
    text = operator.metrics()
    rows.append(("reconciles after the restart: p99 at most", f"{quantile(text, name, 0.99) * 1000:.0f} ms", "nothing to write"))
    operator.stop()


def reachable(operator):
    try:
        return bool(operator.metrics())
    except OSError:
        return False


def theirs(args, rows):
    """LeaderWorkerSet's controller: groups of the same size. Its process is found by name; its pod runs on a real node."""
    kube.run("kubectl", "create", "namespace", NAMESPACE, check=False)
    pid = int(kube.run("pgrep", "-f", args.lws_process).split()[0])
    began = time.monotonic()
    made = make([lws(n, args.pods) for n in range(args.deployments)])
    selector = "leaderworkerset.sigs.k8s.io/name"
    until(lambda: count(selector) >= args.deployments * args.pods, "all pods of LeaderWorkerSets", 3600)
    rows.append((f"LeaderWorkerSet: {args.deployments} sets of {args.pods}: all pods made", f"{time.monotonic() - began:.0f} s", f"creating the objects took {made:.0f} s"))
    rows.append(("LeaderWorkerSet's controller: memory", mib(resident(pid)), ""))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--deployments", type=int, default=1000)
    parser.add_argument("--pods", type=int, default=10, help="worker pods of a deployment")
    parser.add_argument("--operator", default=os.path.join(REPOSITORY, "target/release/m1-operator"))
    parser.add_argument("--lws-process", help="part of the command line of LeaderWorkerSet's controller; without it only ours is measured")
    args = parser.parse_args()
    rows = []
    try:
        ours(args, rows)
        if args.lws_process:
            kube.run("kubectl", "delete", "namespace", NAMESPACE, "--timeout=1800s", timeout=1900)
            theirs(args, rows)
    finally:
        print("\n| what | measured | remark |\n|---|---|---|")
        for row in rows:
            print("| " + " | ".join(row) + " |")


main()
