"""Nodes with GPUs: who asks for them, and who goes on as before. The GPUs do not exist (tests/cluster/fake-gpus.sh); workers compute on
the CPU all the same."""

import os

import kube
import pytest
from conftest import demo

FAKE = os.environ.get("M1_E2E_FAKE_GPUS")
GPU = "nvidia.com/gpu"
pytestmark = pytest.mark.skipif(not FAKE, reason="M1_E2E_FAKE_GPUS is not set: no way to give nodes GPUs")


@pytest.fixture(scope="module", autouse=True)
def gpus():
    """A deployment from before, then two GPUs of 80 GB on each of two nodes."""
    nodes = [node["metadata"]["name"] for node in kube.items("nodes")][:2]
    if len(nodes) < 2:
        pytest.skip("one node: a group on GPUs needs one for each of its pods")
    kube.apply(demo("before"))
    kube.ready("before")
    for node in nodes:
        kube.run(FAKE, node, "2", "81559")
    yield
    for node in nodes:
        kube.run(FAKE, node, "0")
    kube.kubectl("delete", "m1d", "before", "gpus", "cpus", "chosen", "--ignore-not-found", "--timeout=120s")


def asked(name):
    """GPUs that each worker asks for."""
    return [pod["spec"]["containers"][0]["resources"].get("limits", {}).get(GPU) for pod in kube.workers(name)]


def test_a_deployment_on_gpus_has_one_for_each_pod_each_on_a_node_of_its_own():
    kube.apply(demo("gpus"))
    kube.ready("gpus")
    assert asked("gpus") == ["1", "1"]
    assert len({pod["spec"]["nodeName"] for pod in kube.workers("gpus")}) == 2
    memory = kube.get("m1d", "gpus")["status"]["memory"]["perGpu"]
    assert sum(memory.values()) > 60e9, memory


def test_more_than_there_are_is_named_with_the_number():
    kube.apply(demo("many", **{"parallelism": {"tensor": 1, "expert": 4}}))
    message = kube.wait_condition("many", "Ready", "False", "Unschedulable", timeout=60)
    assert "2 of 4 pods find no node" in message, message
    kube.kubectl("delete", "m1d", "many")


def test_a_deployment_from_before_goes_on_as_it_was_planned():
    kube.kubectl("scale", "m1d", "before", "--replicas=2")
    kube.ready("before")
    assert asked("before") == [None] * 4, "all groups of a revision are alike"


def test_cpus_can_be_asked_for():
    kube.apply(demo("cpus", **{"worker.memoryPerGpu": "0"}))
    kube.ready("cpus")
    assert asked("cpus") == [None, None]


def test_a_node_selector_chooses_whose_gpus_count():
    node = kube.items("nodes")[0]["metadata"]["name"]
    kube.run("kubectl", "label", "node", node, "example.test/pool=cpu", "nvidia.com/gpu.memory-")
    try:
        kube.apply(demo("chosen", **{"worker.nodeSelector": {"example.test/pool": "cpu"}}))
        kube.ready("chosen")
        assert asked("chosen") == [None, None]
    finally:
        kube.run("kubectl", "label", "node", node, "example.test/pool-", "nvidia.com/gpu.memory=81559")
