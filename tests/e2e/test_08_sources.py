"""Weights that lie elsewhere: the hub's protocol and a plain web address, served by this process to the pods of the cluster.

Pods reach this machine at the first address of the cluster's own network (tests/cluster); on another cluster M1_E2E_HOST names an
address of this machine, or the tests are left out.
"""

import os

import client
import kube
import pytest
from conftest import MODEL, demo
from hub import REPOSITORY, hub

NAME = "m1-elsewhere"
TOKEN = "hf_e2e"
STRICT = "m1-e2e-strict"
# The bridge of tests/cluster.
BRIDGE = f"{os.environ.get('M1_CLUSTER_NET', '10.245.0')}.1"


def address():
    """Where pods reach this machine; none where nobody says."""
    given = os.environ.get("M1_E2E_HOST")
    if given:
        return given
    with open("/proc/net/fib_trie", encoding="utf-8") as routes:
        return BRIDGE if f"|-- {BRIDGE}\n" in routes.read() else None


@pytest.fixture(scope="module")
def served():
    host = address()
    if not host:
        pytest.skip("nothing says where pods reach this machine: set M1_E2E_HOST")
    with hub(os.path.join(kube.REPOSITORY, "demo/m1-demo"), host=host, token=TOKEN) as found:
        yield found


def elsewhere(source, **spec):
    return demo(NAME, **{"model.source": source, **spec})


def from_hub(served, key="good"):
    source = {"huggingFace": {"repo": REPOSITORY, "tokenSecret": {"name": "hub", "key": key}}}
    env = [{"name": "HF_ENDPOINT", "value": served.url}]
    return elsewhere(source, **{"worker.podTemplate": {"spec": {"containers": [{"name": "worker", "env": env}]}}})


def answers():
    with client.endpoint(NAME) as url:
        look = lambda: client.chat(url, "What is a Pod?", MODEL).choices[0].message.content.strip()
        assert kube.eventually(look, "an answer", timeout=60)


def remove():
    kube.kubectl("delete", "m1d", NAME, "--wait")
    kube.eventually(lambda: not kube.workers(NAME) and not kube.routers(NAME), "its pods gone", timeout=90)


def test_a_wrong_token_is_named_and_a_right_one_serves(served):
    kube.apply({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "hub"},
        "stringData": {"good": TOKEN, "bad": "hf_wrong"},
    })
    kube.apply(from_hub(served, "bad"))
    message = kube.wait_condition(NAME, "WeightsReady", "False", "WeightsUnavailable")
    assert "TokenRefused" in message and REPOSITORY in message and served.url in message and "tokenSecret" in message, message
    assert "hf_wrong" not in message
    remove()
    # Two of the shards break off on the way.
    served.cuts.extend([1_000_000, 3_000_000])
    kube.apply(from_hub(served))
    kube.ready(NAME)
    answers()
    status = kube.get("m1d", NAME)["status"]["weights"]
    assert status["bytesLoaded"] == status["bytesTotal"] > 0, status
    # The token has reached the hub's own host and nobody else.
    signed = [token for path, _, token in served.log if "signature=" in path]
    assert signed and not any(signed), signed
    remove()


def test_a_plain_address_serves(served):
    kube.apply(elsewhere({"url": {"url": f"{served.url}/plain"}}))
    kube.ready(NAME)
    answers()
    assert any(path == "/plain/SHA256SUMS" for path, _, _ in served.log)
    remove()
    kube.apply(elsewhere({"url": {"url": f"{served.url}/plain/nowhere"}}))
    message = kube.wait_condition(NAME, "WeightsReady", "False", "WeightsUnavailable")
    assert "FileNotFound" in message and "config.json" in message, message
    remove()


def test_an_image_serves_under_the_strictest_rules():
    """The checkpoint as an image volume, in a namespace that takes no pod with a privilege."""
    image = os.environ.get("M1_E2E_MODEL_IMAGE")
    if not image:
        pytest.skip("M1_E2E_MODEL_IMAGE is not set: no image with the demo checkpoint")
    kube.run("kubectl", "create", "namespace", STRICT)
    kube.run("kubectl", "label", "namespace", STRICT, "pod-security.kubernetes.io/enforce=restricted")
    manifest = elsewhere({"image": {"reference": image}})
    manifest["metadata"]["namespace"] = STRICT
    kube.apply(manifest, namespace=STRICT)
    kube.kubectl("wait", "--for=condition=Ready", f"m1d/{NAME}", "--timeout=120s", namespace=STRICT)
    volumes = kube.items("pods", "app.kubernetes.io/component=worker", namespace=STRICT)[0]["spec"]["volumes"]
    assert any(volume.get("image", {}).get("reference") == image for volume in volumes), volumes
    with client.endpoint(NAME, namespace=STRICT) as url:
        look = lambda: client.chat(url, "What is a Pod?", MODEL).choices[0].message.content.strip()
        assert kube.eventually(look, "an answer", timeout=60)
    kube.run("kubectl", "delete", "namespace", STRICT, "--timeout=120s")


def test_what_is_not_built_is_refused_by_name(served):
    kube.apply(elsewhere({"url": {"url": "s3://bucket/m1"}}))
    message = kube.wait_condition(NAME, "Accepted", "False", "NotImplemented")
    assert "spec.model.source.url.url: s3://bucket/m1" in message, message
    remove()
    assert "model.cache: only with" in kube.refused(demo(NAME, **{"model.cache": {"emptyDir": {}}}))
