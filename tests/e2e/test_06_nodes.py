"""Nodes that are drained, and nodes that die."""

import os
import subprocess

import client
import kube
import pytest
from conftest import MODEL, NAME, demo

STOP, START = os.environ.get("M1_E2E_STOP_NODE"), os.environ.get("M1_E2E_START_NODE")


def drain(node, timeout=60):
    command = ["kubectl", "drain", node, "--ignore-daemonsets", "--delete-emptydir-data", f"--timeout={timeout}s", "--pod-selector",
               f"serving.minimax-m1.dev/name={NAME},app.kubernetes.io/component=worker"]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout + 30)


def test_a_drain_without_another_group_stops_and_says_so(url):
    kube.apply(demo())
    kube.ready(NAME)
    node = kube.workers(NAME)[0]["spec"]["nodeName"]
    try:
        done = drain(node, timeout=10)
        assert done.returncode and "disruption budget" in done.stderr + done.stdout, done
        message = kube.wait_condition(NAME, "Degraded", "True", "NoHandoverTarget")
        assert node in message and "allowDowntime" in message, message
        assert client.chat(url, "What is 1 plus 1?", MODEL).choices[0].message
    finally:
        kube.run("kubectl", "uncordon", node)
    kube.wait_condition(NAME, "Degraded", "False")


def test_a_drain_moves_groups_without_a_failed_request(url):
    kube.apply(demo(replicas=2))
    kube.ready(NAME)
    node = kube.workers(NAME)[0]["spec"]["nodeName"]
    if len([n for n in kube.items("nodes") if not n["spec"].get("unschedulable")]) < 2:
        pytest.skip("one node: nowhere to move to")
    try:
        with client.Load(url, MODEL) as load:
            kube.eventually(lambda: load.answers > 2, "answers before the drain")
            done = drain(node, timeout=180)
            assert done.returncode == 0, done
            kube.ready(NAME)
            answered = load.answers
            kube.eventually(lambda: load.answers > answered + 2, "answers after the drain")
        assert not load.failures, load.failures[:5]
        assert node not in {pod["spec"]["nodeName"] for pod in kube.workers(NAME)}
    finally:
        kube.run("kubectl", "uncordon", node)
    kube.apply(demo())
    kube.ready(NAME)


@pytest.mark.skipif(not STOP, reason="M1_E2E_STOP_NODE is not set: no way to stop a node of this cluster")
def test_pods_of_a_node_that_dies_are_made_elsewhere(url):
    kube.apply(demo())
    kube.ready(NAME)
    master = {n["metadata"]["name"] for n in kube.items("nodes", "node-role.kubernetes.io/control-plane")}
    victims = [pod for pod in kube.workers(NAME) if pod["spec"]["nodeName"] not in master]
    if not victims:
        pytest.skip("no worker pod beside the control plane")
    node, pod = victims[0]["spec"]["nodeName"], victims[0]["metadata"]["name"]
    kube.run(STOP, node)
    try:
        kube.eventually(lambda: kube.get("pod", pod)["metadata"]["uid"] != victims[0]["metadata"]["uid"], "another pod of that name", timeout=150)
        kube.ready(NAME, timeout=180)
        assert "PodForceDeleted" in kube.kubectl("get", "events", "--field-selector", "reason=PodForceDeleted")
        # A router may still wait for the address that is gone: its pause and its connect timeout are 2 s each.
        kube.eventually(lambda: client.get(f"{url}/ready")[0] == 200, "routers that know the new pod", timeout=10)
        assert client.chat(url, "What is 1 plus 1?", MODEL).choices[0].message
    finally:
        kube.run(START, node)
        kube.run("kubectl", "wait", "--for=condition=Ready", f"node/{node}", "--timeout=60s")
