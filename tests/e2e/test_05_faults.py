"""Things that break: processes, the operator, weights, images, capacity. The condition names the thing, and heals when it is mended."""

import os
import shutil
import tempfile

import client
import kube
import pytest
from conftest import MODEL, NAME, demo


def kill(pod, process):
    """kill -9 of a container's process, from its node."""
    command = os.environ.get("M1_E2E_NODE_EXEC")
    if not command:
        pytest.skip("M1_E2E_NODE_EXEC is not set: no way to a node of this cluster")
    kube.run(command, pod["spec"]["nodeName"], "pkill", "-KILL", "-f", process)


def restarts(pods):
    return sum(pod["status"]["containerStatuses"][0]["restartCount"] for pod in pods)


def test_a_killed_worker_comes_back_and_is_told_its_placement(url):
    pod = kube.workers(NAME)[0]
    kill(pod, "m1-worker serve")
    kube.eventually(lambda: restarts(kube.workers(NAME)) >= 1, "a restart", timeout=60)
    kube.ready(NAME)
    assert client.chat(url, "What is 1 plus 1?", MODEL).choices[0].message
    records = kube.eventually(lambda: kube.get("m1d", NAME)["status"]["groups"][0].get("restarts"), "a record of the restart")
    assert records[0]["how"].startswith("exit code 137"), records


def test_a_killed_router_comes_back(url):
    pod = kube.routers(NAME)[0]
    kill(pod, "m1-router")
    kube.eventually(lambda: restarts(kube.routers(NAME)) >= 1, "a restart", timeout=60)
    kube.eventually(lambda: client.get(f"{url}/ready")[0] == 200, "the endpoint again", timeout=60)


def test_an_operator_killed_in_a_rollout_is_succeeded(url):
    revisions = lambda: {pod["metadata"]["labels"]["serving.minimax-m1.dev/template-revision-hash"] for pod in kube.workers(NAME)}
    operators = lambda: kube.items("pods", "app.kubernetes.io/name=minimax-m1-operator", namespace=kube.SYSTEM)
    before = restarts(operators())
    with client.Load(url, MODEL) as load:
        kube.apply(demo(**{"rollout": {"maxSurge": 1}, "experts.loss": {"waitSeconds": 21}}))
        kube.eventually(lambda: len(revisions()) == 2, "groups of both revisions", pause=0.05)
        (pod,) = operators()
        kill(pod, "m1-operator")
        assert len(revisions()) == 2, "it died after the rollout"
        kube.eventually(lambda: restarts(operators()) > before, "a restart of the operator", timeout=60)
        kube.ready(NAME)
        assert len(revisions()) == 1
        kube.apply(demo(**{"rollout": {"maxSurge": 1}}))
        kube.ready(NAME)
    assert not load.failures, load.failures[:5]


@pytest.mark.skipif("M1_E2E_SOURCE" in os.environ, reason="M1_E2E_SOURCE is set: this machine's folders are not the nodes'")
def test_missing_weights_are_named_and_heal():
    folder = tempfile.mkdtemp(prefix="m1-e2e-")
    os.chmod(folder, 0o755)
    path = os.path.join(folder, "model")
    kube.apply(demo("weights", **{"model.source": {"hostPath": {"path": path}}}))
    message = kube.wait_condition("weights", "WeightsReady", "False", "WeightsUnavailable", timeout=90)
    assert path in message, message
    assert path in kube.condition("weights", "Ready")[2]
    shutil.copytree(os.path.join(kube.REPOSITORY, "demo/m1-demo"), path)
    kube.ready("weights", timeout=240)

    # The same deployment with a broken shard: the file is named; mending it heals.
    kube.kubectl("delete", "m1d", "weights")
    kube.eventually(lambda: not kube.workers("weights"), "no worker")
    shard = os.path.join(path, "model-00001-of-00002.safetensors")
    with open(shard, "rb") as file:
        whole = file.read()
    with open(shard, "wb") as file:
        file.write(whole[: len(whole) // 2])
    kube.apply(demo("weights", **{"model.source": {"hostPath": {"path": path}}}))
    message = kube.wait_condition("weights", "WeightsReady", "False", "WeightsUnavailable", timeout=90)
    assert "model-00001-of-00002.safetensors" in message, message
    with open(shard, "wb") as file:
        file.write(whole)
    kube.ready("weights", timeout=240)
    kube.kubectl("delete", "m1d", "weights")
    shutil.rmtree(folder)


def test_an_image_that_does_not_exist_is_named_and_heals():
    kube.apply(demo("image", **{"worker.image": "minimax-m1.dev/worker:no-such-tag"}))
    message = kube.wait_condition("image", "Ready", "False", "ImageUnavailable", timeout=90)
    assert "minimax-m1.dev/worker:no-such-tag" in message, message
    kube.apply(demo("image"))
    kube.ready("image")
    kube.kubectl("delete", "m1d", "image")


def test_a_checkpoint_of_another_shape_is_refused_and_heals():
    other = demo("other-model")
    config = other["spec"]["model"]["config"]
    config["intermediate_size"] *= 2
    kube.apply(other)
    message = kube.wait_condition("other-model", "Ready", "False", "ArchitectureMismatch", timeout=90)
    assert f"32 experts of {config['intermediate_size']}" in message and "spec.model.config must describe the checkpoint" in message, message
    kube.apply(demo("other-model"))
    kube.ready("other-model")
    kube.kubectl("delete", "m1d", "other-model")


def test_no_capacity_is_named_with_the_number_and_heals():
    kube.apply(demo("capacity", **{"worker.resources": {"requests": {"cpu": "500"}}}))
    message = kube.wait_condition("capacity", "Ready", "False", "Unschedulable", timeout=60)
    assert "2 of 2 pods find no node" in message and "Insufficient cpu" in message, message
    kube.apply(demo("capacity"))
    kube.ready("capacity")
    kube.kubectl("delete", "m1d", "capacity")


def test_a_quota_is_named_and_heals():
    kube.kubectl("create", "quota", "small", "--hard=count/pods=3")
    try:
        kube.apply(demo("quota"))
        message = kube.wait_condition("quota", "Ready", "False", "PodsRefused", timeout=60)
        assert "exceeded quota: small" in message, message
        message = kube.wait_condition("quota", "Available", "False", "RouterUnavailable", timeout=60)
        assert "its pods are refused by the cluster" in message and "exceeded quota: small" in message, message
    finally:
        kube.kubectl("delete", "quota", "small")
    kube.ready("quota", timeout=240)
    kube.kubectl("delete", "m1d", "quota")
