"""Several operators, and one that watches a namespace only."""

import json
import os

import kube
from conftest import NAME, demo

CHART = os.path.join(kube.REPOSITORY, "charts/minimax-m1-operator")
OPERATOR = "app.kubernetes.io/name=minimax-m1-operator"


def upgrade(*values):
    kube.run("helm", "upgrade", "minimax-m1-operator", CHART, "-n", kube.SYSTEM, "--wait", "--timeout", "120s", "--reuse-values", *values)


def operators():
    found = kube.items("pods", OPERATOR, namespace=kube.SYSTEM)
    return {pod["metadata"]["name"] for pod in found if "deletionTimestamp" not in pod["metadata"] and kube.is_ready(pod)}


def another_than(pod):
    """Waits until an operator is ready that is not this pod."""
    kube.eventually(lambda: operators() - {pod}, "another operator that is ready", timeout=90)


def lease():
    spec = kube.get("lease", "minimax-m1-operator", namespace=kube.SYSTEM)["spec"]
    return spec.get("holderIdentity") or "", spec.get("leaseTransitions", 0), spec.get("renewTime")


def leader():
    """The pod that leads, whose name is in the lease, and how often that has changed. A process that died may stand there a while."""
    renewed = lease()[2]

    def leads():
        nonlocal renewed
        before, (holder, transitions, now) = renewed, lease()
        renewed = now
        return now != before and next(((name, transitions) for name in operators() if name in holder), None)

    return kube.eventually(leads, "a leader", timeout=60)


def test_another_operator_takes_over_from_one_that_stops_and_from_one_that_dies():
    upgrade("--set", "replicaCount=2")
    kube.eventually(lambda: len(operators()) == 2, "two operators")
    for manner in [(), ("--grace-period=0", "--force")]:
        first, before = leader()
        kube.kubectl("delete", "pod", first, "--wait=false", *manner, namespace=kube.SYSTEM)
        # Asked for while nobody leads: whoever comes next does it.
        replicas = 1 if manner else 2
        kube.kubectl("patch", "m1d", NAME, "--type=merge", "-p", f'{{"spec": {{"router": {{"replicas": {replicas}}}}}}}')
        another = lambda: (holder := lease()[0]) and first not in holder
        kube.eventually(another, "another leader", timeout=45)
        assert lease()[1] > before
        wanted = lambda: kube.get("deployment", f"{NAME}-router")["spec"]["replicas"] == replicas
        kube.eventually(wanted, "what was asked for meanwhile", timeout=60)
        kube.eventually(lambda: len(operators()) == 2, "two operators again")
    kube.ready(NAME)


def test_an_operator_of_one_namespace_touches_no_other():
    kube.run("kubectl", "create", "namespace", "m1-e2e-other")
    try:
        upgrade("--set", "replicaCount=1", "--set", f"watchNamespaces={{{kube.NAMESPACE}}}")
        account = f"system:serviceaccount:{kube.SYSTEM}:minimax-m1-operator"
        for namespace, words in [(kube.NAMESPACE, "yes"), ("m1-e2e-other", "no")]:
            done = kube.kubectl("auth", "can-i", "create", "statefulsets", f"--as={account}", namespace=namespace, check=False)
            assert done.stdout.strip() == words, (namespace, done)
        other = demo("other")
        other["metadata"]["namespace"] = "m1-e2e-other"
        kube.apply(other, namespace="m1-e2e-other")
        kube.apply(demo(**{"router.replicas": 2}))
        kube.eventually(lambda: kube.get("deployment", f"{NAME}-router")["spec"]["replicas"] == 2, "an edit where it watches")
        kube.ready(NAME)
        assert "status" not in kube.get("m1d", "other", namespace="m1-e2e-other")
        upgrade("--set-json", "watchNamespaces=[]")
        kube.kubectl("wait", "--for=condition=Ready", "m1d/other", "--timeout=120s", namespace="m1-e2e-other")
    finally:
        upgrade("--set-json", "watchNamespaces=[]")
        kube.run("kubectl", "delete", "namespace", "m1-e2e-other", "--timeout=90s")
    kube.apply(demo())
    kube.ready(NAME)


def test_a_watched_namespace_that_is_gone_stops_no_other():
    kube.run("kubectl", "create", "namespace", "m1-e2e-gone")
    try:
        upgrade("--set", f"watchNamespaces={{m1-e2e-gone,{kube.NAMESPACE}}}")
        kube.run("kubectl", "delete", "namespace", "m1-e2e-gone", "--timeout=90s")
        (pod,) = operators()
        kube.kubectl("delete", "pod", pod, "--wait=false", namespace=kube.SYSTEM)
        another_than(pod)
        kube.apply(demo(**{"router.replicas": 2}))
        kube.eventually(lambda: kube.get("deployment", f"{NAME}-router")["spec"]["replicas"] == 2, "an edit where it watches")
        log = kube.kubectl("logs", "-l", OPERATOR, "--tail=-1", namespace=kube.SYSTEM)
        assert "m1-e2e-gone" in log and "may not be read" in log, log[-2000:]
    finally:
        upgrade("--set-json", "watchNamespaces=[]")
        kube.run("kubectl", "delete", "namespace", "m1-e2e-gone", "--ignore-not-found", "--timeout=90s")
    kube.apply(demo())
    kube.ready(NAME)


def test_a_deployment_of_a_newer_kind_stops_no_other():
    fields = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties"
    crd = "minimaxm1deployments.serving.minimax-m1.dev"
    kube.run("kubectl", "patch", "crd", crd, "--type=json", "-p", json.dumps([{"op": "add", "path": f"{fields}/later", "value": {"type": "string"}}]))
    try:
        newer = demo("newer", later="x", replicas=0)
        taken = lambda: kube.kubectl("apply", "-f", "-", input=json.dumps(newer), check=False).returncode == 0
        kube.eventually(taken, "the newer CRD")
        words = kube.wait_condition("newer", "Accepted", "False", "InvalidSpec")
        assert "unknown field `later`" in words and "this version of the operator" in words, words
        # Who starts anew lists them all.
        (pod,) = operators()
        kube.kubectl("delete", "pod", pod, "--wait=false", namespace=kube.SYSTEM)
        another_than(pod)
        kube.apply(demo(**{"router.replicas": 2}))
        kube.eventually(lambda: kube.get("deployment", f"{NAME}-router")["spec"]["replicas"] == 2, "an edit of another deployment")
        kube.kubectl("patch", "m1d", "newer", "--type=json", "-p", '[{"op": "remove", "path": "/spec/later"}]')
        kube.wait_condition("newer", "Accepted", "True")
    finally:
        kube.kubectl("delete", "m1d", "newer", "--ignore-not-found", "--timeout=60s")
        kube.run("kubectl", "patch", "crd", crd, "--type=json", "-p", json.dumps([{"op": "remove", "path": f"{fields}/later"}]))
    kube.apply(demo())
    kube.ready(NAME)
