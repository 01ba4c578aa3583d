"""Edits under load: whole groups at a time, no request fails, a request never crosses revisions; pause, restart, rollback."""

import time

import client
import kube
from conftest import MODEL, NAME, demo

TWO = {"replicas": 2}


def revisions():
    return {pod["metadata"]["labels"]["serving.minimax-m1.dev/template-revision-hash"] for pod in kube.workers(NAME)}


def test_scaling_up_by_kubectl_scale():
    kube.kubectl("scale", "m1d", NAME, "--replicas=2")
    kube.ready(NAME)
    assert kube.get("m1d", NAME)["status"]["readyReplicas"] == 2
    scale = kube.run("kubectl", "get", "--raw", f"/apis/serving.minimax-m1.dev/v1alpha1/namespaces/{kube.NAMESPACE}/minimaxm1deployments/{NAME}/scale")
    assert f"serving.minimax-m1.dev/name={NAME}" in scale
    leaders = kube.items("pods", kube.get("m1d", NAME)["status"]["selector"])
    assert len(leaders) == 2, "the selector names one pod per group"


def test_an_edit_rolls_out_in_groups_and_no_request_fails(url):
    before = revisions()
    with client.Load(url, MODEL) as load:
        kube.eventually(lambda: load.answers > 2, "answers before the edit")
        kube.apply(demo(**TWO, **{"experts.loss": {"waitSeconds": 20}}))
        seen = set()

        def rolled():
            groups = {}
            for pod in kube.workers(NAME):
                group = pod["metadata"]["name"].rpartition("-")[0]
                groups[group] = groups.get(group, 0) + kube.is_ready(pod)
            seen.add(sum(ready == 2 for ready in groups.values()))
            return not (revisions() & before) and kube.condition(NAME, "Ready")[0] == "True"

        kube.eventually(rolled, "the new revision everywhere", timeout=180)
        answered = load.answers
        kube.eventually(lambda: load.answers > answered + 2, "answers after the edit")
    assert not load.failures, load.failures[:5]
    assert 0 not in seen, "there was a moment without a ready group"
    print(f"{load.answers} answers during the rollout, the slowest {load.slowest:.2f} s")


def test_a_pause_holds_an_edit_back():
    before = revisions()
    kube.apply(demo(**TWO, **{"rollout": {"paused": True}}))
    message = kube.wait_condition(NAME, "Progressing", "False", "RolloutPaused")
    assert "0 of 2 groups are up to date" in message
    assert revisions() == before
    kube.apply(demo(**TWO, **{"experts.loss": {"waitSeconds": 20}}))
    kube.ready(NAME)
    assert revisions() == before, "the old spec is the old revision"


def test_the_last_group_is_not_taken_without_leave(url):
    kube.apply(demo(**{"experts.loss": {"waitSeconds": 20}}))
    kube.ready(NAME)
    before = revisions()
    kube.apply(demo())
    assert "rollout.maxSurge: 1" in kube.wait_condition(NAME, "Progressing", "False", "NoHandoverTarget")
    assert kube.condition(NAME, "Available")[0] == "True" and revisions() == before
    done = kube.kubectl("wait", "--for=condition=Ready", f"m1d/{NAME}", "--timeout=2s", check=False)
    assert done.returncode, "kubectl wait must not succeed for an old revision"
    with client.Load(url, MODEL) as load:
        kube.apply(demo(**{"rollout": {"maxUnavailable": 0, "maxSurge": 1}}))
        kube.ready(NAME)
    assert not load.failures, load.failures[:5]
    assert not revisions() & before


def test_a_restart_on_request_replaces_the_groups():
    before = {pod["metadata"]["uid"] for pod in kube.workers(NAME)}
    kube.kubectl("annotate", "m1d", NAME, f"serving.minimax-m1.dev/restartedAt={time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}")
    kube.eventually(lambda: not {pod["metadata"]["uid"] for pod in kube.workers(NAME)} & before, "other pods", timeout=180)
    kube.ready(NAME)
    kube.apply(demo())
    kube.ready(NAME)


def test_scaling_from_one_to_three_and_back_fails_no_request(url):
    with client.Load(url, MODEL) as load:
        kube.kubectl("scale", "m1d", NAME, "--replicas=3")
        kube.ready(NAME)
        assert kube.get("m1d", NAME)["status"]["readyReplicas"] == 3
        answered = load.answers
        kube.eventually(lambda: load.answers > answered + 4, "answers of three groups")
        kube.kubectl("scale", "m1d", NAME, "--replicas=1")
        kube.eventually(lambda: len(kube.workers(NAME)) == 2, "one group's pods", timeout=120)
        kube.ready(NAME)
    assert not load.failures, load.failures[:5]
    assert len(kube.get("m1d", NAME)["status"]["groups"]) == 1


def test_scaling_to_none_and_back(url):
    kube.kubectl("scale", "m1d", NAME, "--replicas=0")
    kube.eventually(lambda: not kube.workers(NAME), "no worker", timeout=90)
    kube.wait_condition(NAME, "Available", "False", "ScaledToZero")
    status, body, headers = client.get(f"{url}/ready")
    assert status == 503 and int(headers["Retry-After"]) > 0, body
    assert client.get(f"{url}/v1/models")[0] == 200, "a model without a group is no unknown model"
    kube.kubectl("scale", "m1d", NAME, "--replicas=1")
    kube.ready(NAME)
    assert client.chat(url, "What is 1 plus 1?", MODEL).choices[0].message


def test_what_somebody_changes_by_hand_is_set_back():
    kube.kubectl("patch", "service", f"{NAME}-router", "--type=merge", "-p", '{"spec": {"selector": {"app.kubernetes.io/component": "nobody"}}}')
    component = lambda: kube.get("service", f"{NAME}-router")["spec"]["selector"]["app.kubernetes.io/component"]
    kube.eventually(lambda: component() == "router", "the selector as it was")
    kube.eventually(lambda: "set back" in kube.kubectl("get", "events", "--field-selector", "reason=DriftCorrected"), "an event")


def test_a_port_that_somebody_changes_is_set_back():
    before = kube.get("service", f"{NAME}-router")["spec"]["ports"]
    kube.kubectl("patch", "service", f"{NAME}-router", "--type=json", "-p", '[{"op": "replace", "path": "/spec/ports/0/port", "value": 8123}]')
    ports = lambda: [port["port"] for port in kube.get("service", f"{NAME}-router")["spec"]["ports"]]
    kube.eventually(lambda: ports() == [port["port"] for port in before], "the port as it was", timeout=30)


def test_a_statefulset_that_is_deleted_without_its_pods_comes_back():
    name = kube.get("statefulset", kube.workers(NAME)[0]["metadata"]["name"].rpartition("-")[0])["metadata"]["name"]
    uids = lambda: {pod["metadata"]["uid"] for pod in kube.workers(NAME)}
    before = uids()
    kube.kubectl("delete", "statefulset", name, "--cascade=orphan")
    kube.eventually(lambda: len(now := uids()) == 2 and not now & before, "other pods", timeout=90)
    kube.ready(NAME)


def test_what_somebody_else_owns_is_not_taken_over():
    kube.kubectl("create", "serviceaccount", "taken-worker")
    kube.apply(demo("taken"))
    kube.eventually(lambda: "it is not taken over" in kube.kubectl("get", "events", "--field-selector", "reason=OwnedByOther"), "an event")
    assert "ownerReferences" not in kube.get("serviceaccount", "taken-worker")["metadata"]
    kube.kubectl("delete", "serviceaccount", "taken-worker")
    kube.ready("taken")
    kube.kubectl("delete", "m1d", "taken")
