"""Wrong edits: which the API server refuses, and which become Accepted=False. Whatever is wrong, what runs runs on."""

import json

import client
import kube
import pytest
from conftest import M1CTL, MODEL, NAME, demo

# The API server's own: schema and CEL, with the words that m1ctl plan has too.
REFUSED = {
    "negative replicas": ({"replicas": -1}, "spec.replicas"),
    "no pods": ({"parallelism.expert": 0}, "spec.parallelism.expert"),
    "more copies than pods": ({"experts.copies": 3}, "experts.copies: copies of one expert lie on different pods"),
    "two sources": ({"model.source.url": {"url": "https://example.test/m"}}, "model.source: exactly one of"),
    "a relative path": ({"model.source": {"hostPath": {"path": "demo"}}}, "hostPath.path: an absolute path without '..'"),
    "no room to roll": ({"rollout": {"maxUnavailable": 0, "maxSurge": 0}}, "rollout: one of maxUnavailable and maxSurge must be more than 0"),
    "keys without a secret": ({"router.auth": {"mode": "ApiKeys"}}, "router.auth.secretRef: required with mode ApiKeys"),
    "a word nobody knows": ({"experts.placement": "Random"}, "Unsupported value"),
}

# What needs the model's numbers or this build's limits: refused by the operator.
NOT_ACCEPTED = {
    "more pods than experts": ({"parallelism.expert": 33}, "Unsplittable", "at most 32"),
    "too little GPU memory": ({"worker.memoryPerGpu": "1M"}, "InsufficientMemory", "is too little by"),
    "too little pod memory": ({"worker.resources": {"limits": {"memory": "10Mi"}}}, "InsufficientMemory", "per pod is too little by"),
    "a model that is none": ({"model.config": {"hidden_size": 12}}, "InvalidSpec", "spec.model.config"),
    "what is not built": ({"model.dtype": "BFloat16"}, "NotImplemented", "spec.model.dtype: BFloat16: not implemented by the operator yet"),
    "a patch with a wrong value": (
        {"worker.podTemplate": {"spec": {"tolerations": [{"operator": "Perhaps"}]}}},
        "WriteRefused",
        "spec.template.spec.tolerations[0].operator: Unsupported value",
    ),
    "a patch with a field nobody knows": (
        {"worker.podTemplate": {"spec": {"tolerationz": []}}},
        "WriteRefused",
        "spec.template.spec.tolerationz: field not declared in schema",
    ),
    "a patch that breaks pods": ({"worker.podTemplate": {"spec": {"hostNetwork": True}}}, "InvalidSpec", "podTemplate.spec.hostNetwork"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_the_api_server_refuses(case):
    spec, words = REFUSED[case]
    assert words in kube.refused(demo(**spec))


# To m1ctl a relative path begins at the file's folder.
@pytest.mark.parametrize("case", [case for case in REFUSED if ": " in REFUSED[case][1] and case != "a relative path"])
def test_m1ctl_says_the_same(case, tmp_path):
    spec, words = REFUSED[case]
    file = tmp_path / "cr.json"
    file.write_text(json.dumps(demo(**spec)))
    done = kube.run(M1CTL, "plan", "-f", str(file), check=False)
    assert done.returncode == 1 and words.split(": ")[1] in done.stderr, done


def test_a_field_nobody_knows_is_refused():
    assert "unknown field" in kube.refused(demo(**{"paralelism": {"expert": 4}}))


@pytest.mark.parametrize("case", NOT_ACCEPTED)
def test_the_operator_refuses_and_changes_nothing(case, url):
    spec, reason, words = NOT_ACCEPTED[case]
    before = {pod["metadata"]["uid"] for pod in kube.workers(NAME)}
    kube.apply(demo(**spec))
    assert words in kube.wait_condition(NAME, "Accepted", "False", reason)
    assert kube.condition(NAME, "Ready")[0] == "False"
    assert kube.condition(NAME, "Available")[0] == "True"
    assert {pod["metadata"]["uid"] for pod in kube.workers(NAME)} == before
    assert client.chat(url, "What is 1 plus 1?", MODEL).choices[0].finish_reason in ("stop", "length")
    kube.apply(demo())
    kube.ready(NAME)
    assert {pod["metadata"]["uid"] for pod in kube.workers(NAME)} == before
    assert json.dumps(kube.get("m1d", NAME)["status"]["conditions"]).count('"False"') == 2  # Progressing, Degraded


def test_only_the_operator_writes_placements():
    (placement,) = kube.items("m1ep", f"serving.minimax-m1.dev/name={NAME}")
    name = placement["metadata"]["name"]
    done = kube.kubectl("patch", "m1ep", name, "--type=merge", "-p", '{"spec": {"traffic": "Closed"}}', check=False)
    assert done.returncode and "the operator writes their spec" in done.stderr, done
    kube.kubectl("label", "m1ep", name, "example.test/note=mine")
