"""Gangs with a real gang scheduler, that of scheduler-plugins: a group starts as a whole or not at all. On an operator of its own,
because the tests before it removed theirs."""

import json
import os
import re
import time

import client
import kube
import pytest
from conftest import MODEL, demo

CHART = os.path.join(kube.REPOSITORY, "charts/minimax-m1-operator")
PODGROUPS = "podgroups.scheduling.x-k8s.io"
SEAT = "example.test/seat"
SURGE = {"rollout": {"maxSurge": 1}}


def has_crd(name):
    return bool(kube.run("kubectl", "get", "crd", name, "--ignore-not-found", "-o", "name").strip())


@pytest.fixture(scope="module", autouse=True)
def operator():
    if not has_crd(PODGROUPS):
        pytest.skip(f"the cluster has no {PODGROUPS}: tests/cluster/gang.sh up installs it, with its scheduler")
    kube.kubectl("create", "namespace", kube.NAMESPACE)
    kube.run("helm", "install", "minimax-m1-operator", CHART, "-n", kube.SYSTEM, "--create-namespace", "--wait", "--timeout", "120s",
             "--set", "logFormat=text")
    yield
    kube.kubectl("delete", "m1d", "--all")
    kube.eventually(lambda: not kube.items("pods"), "no pod left", timeout=90)
    kube.run("helm", "uninstall", "minimax-m1-operator", "-n", kube.SYSTEM, "--wait")
    kube.run("kubectl", "delete", "namespace", kube.NAMESPACE, "--timeout=90s")
    kube.run("kubectl", "delete", "crds", "minimaxm1deployments.serving.minimax-m1.dev", "expertplacements.serving.minimax-m1.dev", "--timeout=30s")


@pytest.fixture(scope="module")
def seats():
    """A resource that nodes have one of, so that it is known to the pod how much fits, whatever else runs on the cluster."""
    nodes = [node["metadata"]["name"] for node in kube.items("nodes", "!node-role.kubernetes.io/control-plane,!kwok.x-k8s.io/node")][:2]
    if len(nodes) < 2:
        pytest.skip("needs two nodes")

    def have(count):
        room = {SEAT: count}
        for node in nodes:
            kube.run("kubectl", "patch", "node", node, "--subresource=status", "--type=merge", "-p",
                     json.dumps({"status": {"capacity": room, "allocatable": room}}))

    have("1")
    yield {"worker.resources": {"limits": {SEAT: "1"}}, "worker.drainSeconds": 5}
    have(None)


def gang(name, **spec):
    return demo(name, **{"scheduling.gang": "Coscheduling", **spec})


def pod_groups(name):
    return kube.items(PODGROUPS, f"serving.minimax-m1.dev/name={name}")


def bound(name):
    """The pods that have a node, by group."""
    groups = {}
    for pod in kube.workers(name):
        if pod["spec"].get("nodeName"):
            groups.setdefault(pod["metadata"]["name"].rsplit("-", 1)[0], []).append(pod["metadata"]["name"])
    return groups


def ever_bound(name):
    """The workers that any scheduler gave a node, at any time, gone or not."""
    pods = {event["involvedObject"]["name"] for event in kube.items("events") if event["reason"] == "Scheduled"}
    return {pod for pod in pods if re.match(rf"{name}-\d", pod)}


def delete(name):
    kube.kubectl("delete", "m1d", name)
    kube.eventually(lambda: not kube.items("pods", f"serving.minimax-m1.dev/name={name}"), f"no pod of {name}", timeout=90)


def test_a_gang_whose_kind_is_not_there_is_refused_by_name():
    if has_crd("podgroups.scheduling.volcano.sh"):
        pytest.skip("this cluster has Volcano")
    kube.apply(demo("volcano", **{"scheduling.gang": "Volcano"}))
    message = kube.wait_condition("volcano", "Accepted", "False", "InvalidSpec", timeout=30)
    assert "spec.scheduling.gang: Volcano" in message and "PodGroup (scheduling.volcano.sh/v1beta1)" in message, message
    assert not kube.workers("volcano")
    delete("volcano")


def test_a_gang_that_fits_serves():
    kube.apply(gang("fits", **SURGE))
    kube.ready("fits")
    (group,) = pod_groups("fits")
    assert group["spec"]["minMember"] == 2, group
    pods = kube.workers("fits")
    assert {pod["spec"]["schedulerName"] for pod in pods} == {"scheduler-plugins-scheduler"}
    assert {pod["metadata"]["labels"]["scheduling.x-k8s.io/pod-group"] for pod in pods} == {group["metadata"]["name"]}
    with client.endpoint("fits") as url:
        assert client.chat(url, "What is 1 plus 1?", MODEL).choices[0].message


def test_a_lost_pod_of_a_gang_comes_back():
    (old, _) = sorted(kube.workers("fits"), key=lambda pod: pod["metadata"]["name"])
    kube.kubectl("delete", "pod", old["metadata"]["name"], "--wait=false")
    kube.eventually(lambda: old["metadata"]["uid"] not in {pod["metadata"]["uid"] for pod in kube.workers("fits")}, "the pod is gone")
    kube.eventually(lambda: len([pod for pod in kube.workers("fits") if kube.is_ready(pod)]) == 2, "two ready pods")
    kube.ready("fits")


def test_switching_the_gang_off_prunes_its_pod_group():
    kube.apply(demo("fits", **{"scheduling.gang": "Off", **SURGE}))
    kube.eventually(lambda: not pod_groups("fits"), "no PodGroup")
    kube.ready("fits")
    assert {pod["spec"]["schedulerName"] for pod in kube.workers("fits")} == {"default-scheduler"}
    delete("fits")


def test_a_gang_that_does_not_fit_whole_takes_no_node(seats):
    # Two seats, one taken: room for one pod of two.
    kube.apply(demo("first", **{"parallelism.expert": 1, **seats}))
    kube.ready("first")

    # Without a gang one of the two takes it, and serves nobody.
    kube.apply(demo("half", **seats))
    kube.eventually(lambda: [len(pods) for pods in bound("half").values()] == [1], "one of two pods has a node")
    message = kube.wait_condition("half", "Ready", "False", "Unschedulable", timeout=30)
    assert "1 of 2 pods find no node" in message and f"Insufficient {SEAT}" in message, message
    delete("half")

    kube.apply(gang("whole", **seats))
    kube.wait_condition("whole", "Ready", "False", "Unschedulable", timeout=30)
    told = lambda: all(words in kube.condition("whole", "Ready")[2] for words in ["2 of 2 pods find no node", f"Insufficient {SEAT}"])
    kube.eventually(told, "the condition names what is missing", timeout=30)
    # The scheduler tries again and again, and rejects now the one pod and now the other.
    for _ in range(6):
        assert not bound("whole")
        kube.eventually(told, "the condition still names it", timeout=3)
        time.sleep(1)
    print(kube.condition("whole", "Ready")[2])
    assert not ever_bound("whole") and len(ever_bound("half")) == 1

    delete("first")
    kube.ready("whole")
    assert [len(pods) for pods in bound("whole").values()] == [2] and len(ever_bound("whole")) == 2
    delete("whole")


def test_of_two_gangs_in_the_room_of_one_one_serves(seats):
    kube.apply(gang("two", replicas=2, **seats))
    kube.wait_condition("two", "Available", "True")
    kube.wait_condition("two", "Ready", "False", "Unschedulable", timeout=30)
    assert [len(pods) for pods in bound("two").values()] == [2]
    assert len(ever_bound("two")) == 2, "the other group had a node"
    assert [group["spec"]["minMember"] for group in pod_groups("two")] == [2, 2]
    delete("two")
