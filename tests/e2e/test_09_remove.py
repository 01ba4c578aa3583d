"""What is left: after a deployment nothing, after the chart nothing but the CRDs."""

import kube
from conftest import NAME, demo

OWNED = "secrets,statefulsets,deployments,replicasets,pods,services,serviceaccounts,roles,rolebindings,poddisruptionbudgets,networkpolicies,m1ep,controllerrevisions,endpointslices"


def test_a_chart_upgrade_with_a_deployment_in_place_restarts_nothing():
    kube.apply(demo())
    kube.ready(NAME)
    before = {pod["metadata"]["uid"] for pod in kube.workers(NAME) + kube.routers(NAME)}
    chart = f"{kube.REPOSITORY}/charts/minimax-m1-operator"
    kube.run("helm", "upgrade", "minimax-m1-operator", chart, "-n", kube.SYSTEM, "--wait", "--timeout", "120s", "--reuse-values", "--set", "logLevel=debug")
    kube.ready(NAME)
    assert {pod["metadata"]["uid"] for pod in kube.workers(NAME) + kube.routers(NAME)} == before


def test_helm_uninstall_leaves_the_crds_and_what_serves():
    before = {pod["metadata"]["uid"] for pod in kube.workers(NAME)}
    kube.run("helm", "uninstall", "minimax-m1-operator", "-n", kube.SYSTEM, "--wait")
    kinds = "all,roles,rolebindings,serviceaccounts,networkpolicies"
    left = lambda: set(kube.kubectl("get", kinds, "-o", "name", namespace=kube.SYSTEM).split())
    # helm waits for its objects; the pods of a Deployment that is gone end a moment later.
    kube.eventually(lambda: left() <= {"serviceaccount/default"}, "nothing left of the operator", timeout=45)
    kinds = "clusterroles,clusterrolebindings,validatingadmissionpolicies,validatingadmissionpolicybindings"
    roles = kube.run("kubectl", "get", kinds, "-o", "name")
    assert "minimax-m1" not in roles
    assert "minimaxm1deployments" in kube.run("kubectl", "get", "crds", "-o", "name")
    assert {pod["metadata"]["uid"] for pod in kube.workers(NAME)} == before


def test_deleting_a_deployment_leaves_nothing():
    kube.kubectl("delete", "m1d", "--all")
    selector = f"serving.minimax-m1.dev/name={NAME}"
    kube.eventually(lambda: not kube.kubectl("get", OWNED, "-l", selector, "-o", "name").strip(), "nothing left", timeout=90)
    kube.run("kubectl", "delete", "namespace", kube.NAMESPACE, "--timeout=90s")
    kube.run("kubectl", "delete", "crds", "minimaxm1deployments.serving.minimax-m1.dev", "expertplacements.serving.minimax-m1.dev", "--timeout=30s")
