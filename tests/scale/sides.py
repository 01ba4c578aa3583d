"""The two controllers, with one face: what they are given, where their figures are, and how they are killed."""

import json
import os
import re
import signal
import ssl
import subprocess
import time
import urllib.request

import kube
from api import namespace, until

REPOSITORY = kube.REPOSITORY
KWOK = {"key": "kwok.x-k8s.io/node", "operator": "Exists", "effect": "NoSchedule"}
ADMIN = "127.0.0.1:18080"
TICKS = os.sysconf("SC_CLK_TCK")


def processor(pid):
    """Seconds of CPU that a process has used."""
    with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def memory(pid):
    """Resident bytes, now and at most."""
    with open(f"/proc/{pid}/status", encoding="utf-8") as file:
        found = dict(re.findall(r"(VmRSS|VmHWM):\s+(\d+) kB", file.read()))
    return int(found["VmRSS"]) * 1024, int(found["VmHWM"]) * 1024


def processes():
    """Command lines of all processes, by pid."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", encoding="utf-8") as file:
                yield int(pid), file.read().replace("\0", " ")
        except OSError:
            continue


class Page:
    """One reading of a controller's metrics."""

    def __init__(self, text, at):
        self.text, self.at = text, at

    def sum(self, name, label=""):
        return sum(float(v) for v in re.findall(rf"^{name}(?:{{[^}}]*{label}[^}}]*}})? ([0-9.e+]+)$", self.text, re.M))

    def by(self, name, label):
        found = {}
        for word, value in re.findall(rf'^{name}{{[^}}]*{label}="([^"]+)"[^}}]*}} ([0-9.e+]+)$', self.text, re.M):
            found[word] = found.get(word, 0) + float(value)
        return found

    def buckets(self, name):
        return self.by(f"{name}_bucket", "le")


def read(address, context=None):
    """A controller's metrics now; none where they cannot be read."""
    try:
        with urllib.request.urlopen(address, timeout=10, context=context) as answer:
            return Page(answer.read().decode(), time.monotonic())
    except OSError:
        return None


def quantile(before, after, q):
    """The bound of the bucket that holds the quantile of what came between two readings, in seconds: it took at most this."""
    counts = {float(bound): count - before.get(bound, 0) for bound, count in after.items()}
    total = counts.get(float("inf"), 0)
    return next((bound for bound in sorted(counts) if total and counts[bound] >= q * total), None)


class Ours:
    """The operator as a process of this machine, under a service account like any controller."""

    name, plural, group = "ours", "minimaxm1deployments", "serving.minimax-m1.dev/v1alpha1"
    workers, sets = "app.kubernetes.io/component=worker", "app.kubernetes.io/managed-by=minimax-m1-operator"
    requests, durations = ("m1_operator_api_requests_total", "method"), "m1_operator_reconcile_duration_seconds"

    def __init__(self, api, args):
        self.program, (self.kubeconfig, _) = args.operator, api.kubeconfig()
        self.log = open(os.path.join(os.environ["M1_CLUSTER_DIR"], "operator.log"), "ab")
        with open(os.path.join(REPOSITORY, "demo/m1-demo/config.json"), encoding="utf-8") as file:
            self.config = json.load(file)
        self.start()

    def start(self):
        environment = {**os.environ, "KUBECONFIG": self.kubeconfig, "RUST_LOG": "warn"}
        command = [self.program, "--admin", ADMIN, "--namespace", "default"]
        self.process = subprocess.Popen(command, stderr=self.log, stdout=self.log, env=environment)
        self.pid = self.process.pid
        until(lambda: self.page(), "the operator's admin port", 60)

    def page(self):
        if self.process.poll() is not None:
            raise SystemExit(f"scale: the operator ended with {self.process.returncode}; see {self.log.name}")
        return read(f"http://{ADMIN}/metrics")

    def reconciles(self, page):
        return page.sum("m1_operator_reconciles_total")

    def looked_at_all(self, page, count):
        return self.reconciles(page) >= count

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def again(self):
        self.start()

    def stop(self):
        self.process.terminate()
        self.process.wait(timeout=30)

    def object(self, name, pods):
        return {
            "apiVersion": self.group,
            "kind": "MiniMaxM1Deployment",
            "metadata": {"name": name, "namespace": namespace(name)},
            "spec": {
                "model": {"source": {"hostPath": {"path": "/m"}}, "config": self.config, "maxContextTokens": 2048},
                "parallelism": {"expert": pods},
                "worker": {"tolerations": [KWOK], "nodeSelector": {"type": "kwok"}, "resources": {"requests": {"cpu": "10m", "memory": "10Mi"}}},
            },
        }


class Lws:
    """LeaderWorkerSet's controller in its pod on a real node, as its chart installs it."""

    name, plural, group = "lws", "leaderworkersets", "leaderworkerset.x-k8s.io/v1"
    workers = sets = "leaderworkerset.sigs.k8s.io/name"
    requests, durations = ("rest_client_requests_total", "method"), "controller_runtime_reconcile_time_seconds"

    def __init__(self, api, args):
        # Its metrics ask for a token; its certificate is its own.
        self.token = api.kubeconfig()[1]
        self.context = ssl._create_unverified_context()
        self.find()
        until(lambda: self.page(), "the metrics of LeaderWorkerSet's controller", 60)

    def find(self):
        """Its process. Another cluster of this machine may have one too; the pod's cgroup tells whose it is."""

        def mine():
            for pid, line in processes():
                if line.startswith("/manager --config="):
                    with open(f"/proc/{pid}/cgroup", encoding="utf-8") as file:
                        if f"/{os.environ['M1_CLUSTER_CGROUP']}/" in file.read():
                            return pid
            return None

        self.pid = until(mine, "LeaderWorkerSet's controller", 120)
        pod = kube.items("pods", "control-plane=controller-manager", namespace="lws-system")[0]
        self.address = pod["status"]["podIP"]

    def page(self):
        request = urllib.request.Request(f"https://{self.address}:8443/metrics", headers={"Authorization": f"Bearer {self.token}"})
        return read(request, self.context)

    def reconciles(self, page):
        return page.sum("controller_runtime_reconcile_total")

    def looked_at_all(self, page, count):
        return page.sum("controller_runtime_reconcile_total", 'controller="leaderworkerset"') >= count

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)

    def again(self):
        """Its kubelet starts it again."""
        before = self.pid
        until(lambda: not os.path.exists(f"/proc/{before}"), "the end of LeaderWorkerSet's controller", 10)
        self.find()
        until(lambda: self.page(), "the metrics of LeaderWorkerSet's controller", 120)

    def stop(self):
        pass

    def object(self, name, pods):
        resources = {"requests": {"cpu": "10m", "memory": "10Mi"}}
        pod = {"tolerations": [KWOK], "nodeSelector": {"type": "kwok"}, "containers": [{"name": "worker", "image": "x.test/x:1", "resources": resources}]}
        return {
            "apiVersion": self.group,
            "kind": "LeaderWorkerSet",
            "metadata": {"name": name, "namespace": namespace(name)},
            "spec": {"replicas": 1, "leaderWorkerTemplate": {"size": pods, "workerTemplate": {"spec": pod}}},
        }
