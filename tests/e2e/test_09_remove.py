"""What is left: after an upgrade everything, after a deployment nothing, after the chart nothing but the CRDs."""

import os
import shutil

import kube
from conftest import NAME, demo

OWNED = "secrets,statefulsets,deployments,replicasets,pods,services,serviceaccounts,roles,rolebindings,poddisruptionbudgets,networkpolicies,m1ep,controllerrevisions,endpointslices"


def replace(path, before, after):
    with open(path, encoding="utf-8") as file:
        text = file.read()
    assert before in text, f"{path}: no {before!r}"
    with open(path, "w", encoding="utf-8") as file:
        file.write(text.replace(before, after, 1))


def test_an_upgrade_to_another_version_and_back_restarts_nothing(tmp_path):
    """Another version of the chart: other CRDs, other default images, another operator pod."""
    chart = str(tmp_path / "chart")
    shutil.copytree(os.path.join(kube.REPOSITORY, "charts/minimax-m1-operator"), chart)
    replace(f"{chart}/Chart.yaml", "version: 0.1.0", "version: 0.2.0")
    replace(f"{chart}/Chart.yaml", "appVersion: 0.1.0", "appVersion: 0.2.0")
    replace(f"{chart}/files/crds/minimaxm1deployments.yaml", "    - m1d\n", "    - m1d\n    - m1next\n")
    kube.apply(demo())
    kube.ready(NAME)
    pods = lambda: {pod["metadata"]["uid"] for pod in kube.workers(NAME) + kube.routers(NAME)}
    operators = lambda: {pod["metadata"]["name"] for pod in kube.items("pods", "app.kubernetes.io/name=minimax-m1-operator", namespace=kube.SYSTEM)}
    before, operator = pods(), operators()
    kube.run("helm", "upgrade", "minimax-m1-operator", chart, "-n", kube.SYSTEM, "--wait", "--timeout", "120s", "--reuse-values",
             "--set", "image.tag=0.1.0")
    kube.eventually(lambda: kube.kubectl("get", "m1next", NAME), "the CRD's new short name", timeout=30)
    kube.eventually(lambda: not operators() & operator, "the operator of before gone", timeout=60)
    # The deployment that was there keeps its images; a new one gets those of the new version.
    kube.kubectl("annotate", "m1d", NAME, "example.test/look=again")
    kube.apply(demo("newer"))
    image = lambda name: kube.get("m1d", name)["status"]["workerImage"]
    assert kube.eventually(lambda: image("newer"), "its image").endswith(":0.2.0")
    kube.wait_condition("newer", "Ready", "False", "ImageUnavailable")
    assert image(NAME).endswith(":0.1.0")
    kube.ready(NAME)
    assert pods() == before
    kube.run("helm", "rollback", "minimax-m1-operator", "-n", kube.SYSTEM, "--wait", "--timeout", "120s")
    kube.eventually(lambda: "m1next" not in kube.kubectl("api-resources", "--cached=false"), "the short name gone", timeout=60)
    kube.ready(NAME)
    assert pods() == before
    # What never came up for want of an image takes the one that is the default now.
    kube.ready("newer")
    assert image("newer").endswith(":0.1.0")
    kube.kubectl("delete", "m1d", "newer")


def test_helm_uninstall_leaves_the_crds_and_what_serves():
    before = {pod["metadata"]["uid"] for pod in kube.workers(NAME)}
    kube.run("helm", "uninstall", "minimax-m1-operator", "-n", kube.SYSTEM, "--wait")
    kinds = "all,roles,rolebindings,serviceaccounts,networkpolicies,leases"
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
