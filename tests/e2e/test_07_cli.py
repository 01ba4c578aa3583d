"""m1ctl against a cluster, and as kubectl's plugin `m1`."""

import json
import os

import kube
import pytest
from conftest import M1CTL, NAME, demo

pytestmark = pytest.mark.skipif(not os.path.exists(M1CTL), reason=f"{M1CTL} is not built")


def m1ctl(*args, check=True):
    return kube.run(M1CTL, *args, check=check)


def explain(name):
    return m1ctl("explain", name, "-n", kube.NAMESPACE, check=False)


def write(folder, manifest):
    path = folder / "cr.yaml"
    path.write_text(json.dumps(manifest))
    return str(path)


def test_explain_says_that_all_is_well_and_where():
    kube.apply(demo())
    kube.ready(NAME)
    done = explain(NAME)
    assert done.returncode == 0 and "ready; 1 of 1 groups serve at http://" in done.stdout, done


def test_explain_names_the_cause_and_the_next_step():
    kube.apply(demo("why", **{"worker.nodeSelector": {"no": "such-node"}}))
    kube.wait_condition("why", "Ready", "False", "Unschedulable")
    done = explain("why")
    assert done.returncode == 1
    assert "2 of 2 pods find no node" in done.stdout and "Next: add nodes" in done.stdout, done.stdout
    kube.kubectl("delete", "m1d", "why")
    done = explain("why")
    assert done.returncode == 1 and "not found" in done.stderr, done


def test_it_is_a_plugin_of_kubectl(tmp_path):
    os.symlink(M1CTL, tmp_path / "kubectl-m1")
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = kube.run("env", f"PATH={path}", "kubectl", "m1", "explain", NAME, "-n", kube.NAMESPACE)
    assert "groups serve" in done
    assert "Usage: kubectl m1 explain" in kube.run("env", f"PATH={path}", "kubectl", "m1", "explain", "--help")
    # As people of kubectl write it.
    told = json.loads(kube.run("env", f"PATH={path}", "kubectl", "m1", "-n", kube.NAMESPACE, "explain", f"m1d/{NAME}", "-o", "json"))
    assert (told["name"], told["ready"]) == (NAME, True), told
    os.symlink(M1CTL, tmp_path / "kubectl_complete-m1")
    offered = kube.run("env", f"PATH={path}", "kubectl", "__complete", "m1", "-n", kube.NAMESPACE, "explain", "")
    assert NAME in offered.splitlines(), offered


def test_plan_diff_says_what_an_edit_would_do(tmp_path):
    same = m1ctl("plan", "--diff", "-n", kube.NAMESPACE, "-f", write(tmp_path, demo()))
    assert same == f"{NAME}: nothing would change\n"
    edit = demo(**{"experts.loss": {"waitSeconds": 12}, "router.replicas": 2})
    text = m1ctl("plan", "--diff", "-n", kube.NAMESPACE, "-f", write(tmp_path, edit))
    assert "experts.loss.waitSeconds: 30 -> 12  (replaces groups)" in text
    assert "router.replicas: 1 -> 2  (restarts nothing)" in text
    assert "The rollout would stop (NoHandoverTarget)" in text


def test_a_restart_that_cannot_be_says_so():
    before = {pod["metadata"]["uid"] for pod in kube.workers(NAME)}
    done = m1ctl("restart", NAME, "-n", kube.NAMESPACE, check=False)
    assert done.returncode == 1 and "nothing restarts" in done.stderr and "maxSurge: 1" in done.stderr, done
    assert {pod["metadata"]["uid"] for pod in kube.workers(NAME)} == before


def test_restart_and_resume_are_annotations():
    kube.apply(demo(**{"rollout": {"maxSurge": 1}}))
    kube.ready(NAME)
    before = {pod["metadata"]["uid"] for pod in kube.workers(NAME)}
    assert "restarts, as its rollout allows" in m1ctl("restart", NAME, "-n", kube.NAMESPACE)
    kube.eventually(lambda: not {pod["metadata"]["uid"] for pod in kube.workers(NAME)} & before, "other pods", timeout=120)
    kube.ready(NAME)
    assert "new restart budget" in m1ctl("resume", NAME, "-n", kube.NAMESPACE)
    assert "serving.minimax-m1.dev/resumedAt" in kube.get("m1d", NAME)["metadata"]["annotations"]


def test_crds_are_printed_and_applied():
    assert m1ctl("crd", "print").count("kind: CustomResourceDefinition") == 2
    assert m1ctl("crd", "apply").count("applied") == 2


def test_completions_and_manual_pages(tmp_path):
    assert "complete -F _m1ctl" in m1ctl("completions", "bash")
    m1ctl("man", str(tmp_path))
    assert {"m1ctl.1", "m1ctl-explain.1"} <= set(os.listdir(tmp_path))
