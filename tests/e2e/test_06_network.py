"""Who reaches a worker, on a cluster that enforces NetworkPolicies: members do, strangers do not. A cluster without an enforcer lets
everybody through, which the first look shows."""

import time

import kube
import pytest
from conftest import NAME

IMAGE = "minimax-m1.dev/operator:0.1.0"
WORKER_PORT, ADMIN_PORT = 9000, 9090
MEMBER = {"serving.minimax-m1.dev/name": NAME, "app.kubernetes.io/component": "router"}


def reaches(name, labels, port):
    """Whether a pod with these labels gets a connection to a worker's port."""
    address = kube.workers(NAME)[0]["status"]["podIP"]
    container = {
        "name": "probe",
        "image": IMAGE,
        "command": ["/usr/local/bin/m1ctl", "probe", f"http://{address}:{port}/livez"],
        "securityContext": {"allowPrivilegeEscalation": False, "runAsNonRoot": True, "capabilities": {"drop": ["ALL"]}},
    }
    kube.apply({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels},
        "spec": {"restartPolicy": "Never", "automountServiceAccountToken": False, "containers": [container]},
    })
    try:
        end = time.monotonic() + 20
        while time.monotonic() < end:
            phase = kube.get("pod", name)["status"].get("phase")
            if phase in ("Succeeded", "Failed"):
                said = kube.kubectl("logs", name)
                # gRPC's port answers no plain request, but only one that came through.
                return phase == "Succeeded" or not any(word in said.lower() for word in ("timed out", "no route", "refused", "unreachable"))
            time.sleep(0.3)
        return False
    finally:
        kube.kubectl("delete", "pod", name, "--now", "--wait=false")


@pytest.fixture(scope="module", autouse=True)
def enforced():
    assert reaches("network-member", MEMBER, WORKER_PORT), "a member does not reach a worker"
    if reaches("network-canary", {"app": "stranger"}, WORKER_PORT):
        pytest.skip("no enforcer of NetworkPolicies: a stranger reached a worker")


def test_a_stranger_does_not_reach_a_worker():
    assert not reaches("network-stranger", {"app": "stranger"}, WORKER_PORT)


def test_whoever_scrapes_reaches_the_metrics():
    assert reaches("network-scraper", {"app": "prometheus"}, ADMIN_PORT)
