"""helm install, and what the cluster then knows."""

import json
import os

import kube
from kube import SYSTEM

CHART = os.path.join(kube.REPOSITORY, "charts/minimax-m1-operator")


def test_helm_installs_the_operator():
    kube.kubectl("create", "namespace", kube.NAMESPACE)
    kube.run("helm", "install", "minimax-m1-operator", CHART, "-n", SYSTEM, "--create-namespace", "--wait", "--timeout", "120s",
             "--set", "logFormat=text")
    kube.kubectl("rollout", "status", "deployment/minimax-m1-operator", "--timeout=60s", namespace=SYSTEM)


def test_helm_test_passes():
    kube.run("helm", "test", "minimax-m1-operator", "-n", SYSTEM, "--timeout", "60s")


def test_the_kinds_are_served_with_their_short_names_and_explained():
    names = kube.kubectl("api-resources", "--api-group=serving.minimax-m1.dev", "-o", "name")
    assert {"minimaxm1deployments", "expertplacements"} <= {line.split(".")[0] for line in names.split()}
    assert "Full copies of the model" in kube.kubectl("explain", "m1d.spec.replicas")


def test_the_operator_has_no_right_it_does_not_need():
    account = f"system:serviceaccount:{SYSTEM}:minimax-m1-operator"
    for verb, resource in [("get", "secrets"), ("create", "pods"), ("create", "pods/exec"), ("delete", "nodes"), ("patch", "nodes")]:
        done = kube.kubectl("auth", "can-i", verb, resource, f"--as={account}", check=False)
        assert done.stdout.strip() == "no", f"{verb} {resource}: {done.stdout}"
    roles = json.loads(kube.run("kubectl", "get", "clusterrole", "minimax-m1-operator", "-o", "json"))
    assert "*" not in json.dumps(roles["rules"])


def test_one_operator_leads():
    lease = kube.eventually(lambda: kube.get("lease", "minimax-m1-operator", namespace=SYSTEM), "a lease")
    holder = kube.eventually(lambda: kube.get("lease", "minimax-m1-operator", namespace=SYSTEM)["spec"].get("holderIdentity"), "a holder")
    assert holder.startswith("minimax-m1-operator-"), lease
