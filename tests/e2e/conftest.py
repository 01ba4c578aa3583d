"""The suite's ground: a namespace, the demo deployment as a manifest, and what is printed when a test fails.

The tests run in the order of their files and build on one another, as a user's day does: install, serve, edit, break, scale, drain,
upgrade, remove. They ask for a cluster in KUBECONFIG with the project's images loaded.
"""

import copy
import json
import os
import time

import pytest

import client
import kube

NAME = "m1-demo"
MODEL = "MiniMax-M1-demo"


def demo(name=NAME, **spec):
    """The demo model on two expert-parallel pods, small enough for a laptop."""
    with open(os.path.join(kube.REPOSITORY, "demo/m1-demo/config.json"), encoding="utf-8") as file:
        config = json.load(file)
    source = os.environ.get("M1_E2E_SOURCE")
    source = json.loads(source) if source else {"hostPath": {"path": os.path.join(kube.REPOSITORY, "demo/m1-demo")}}
    manifest = {
        "apiVersion": "serving.minimax-m1.dev/v1alpha1",
        "kind": "MiniMaxM1Deployment",
        "metadata": {"name": name, "namespace": kube.NAMESPACE},
        "spec": {
            "model": {"servedName": MODEL, "source": source, "config": config, "maxContextTokens": 2048},
            "parallelism": {"tensor": 1, "expert": 2},
            "worker": {"drainSeconds": 20, "unreachableSeconds": 15},
        },
    }
    return change(manifest, spec)


def change(manifest, spec):
    """The manifest with fields of its spec replaced: {"worker.drainSeconds": 5}; None removes one."""
    manifest = copy.deepcopy(manifest)
    for path, value in spec.items():
        place = manifest["spec"]
        *parents, last = path.split(".")
        for key in parents:
            place = place.setdefault(key, {})
        if value is None:
            place.pop(last, None)
        else:
            place[last] = value
    return manifest


M1CTL = os.environ.get("M1CTL", os.path.join(kube.REPOSITORY, "target/debug/m1ctl"))


@pytest.fixture(scope="session")
def url():
    """Where the demo deployment answers."""
    with client.endpoint(NAME) as found:
        yield found


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """After a failure: what a user would look at."""
    outcome = yield
    report = outcome.get_result()
    if report.when != "call" or not report.failed:
        return
    looks = [
        ("get", "m1d,statefulsets,pods,expertplacements", "-o", "wide"),
        ("describe", "m1d"),
        ("get", "events", "--sort-by=.lastTimestamp"),
    ]
    for look in looks:
        done = kube.kubectl(*look, check=False)
        report.sections.append((f"kubectl {' '.join(look)}", (done.stdout + done.stderr)[-6000:]))
    log = kube.kubectl("logs", "deployment/minimax-m1-operator", "--tail=60", namespace=kube.SYSTEM, check=False)
    report.sections.append(("the operator's log", log.stdout[-6000:]))


@pytest.fixture(autouse=True)
def clock(request):
    """Prints how long each test took: the suite's budget is minutes."""
    began = time.monotonic()
    yield
    print(f"\n{request.node.name}: {time.monotonic() - began:.1f} s")


def pytest_sessionstart(session):
    """The suite deletes the CRDs, and with them every deployment: it must not meet somebody's."""
    if os.environ.get("M1_E2E_DIRECT") or os.environ.get("M1_E2E_TAKE_OVER"):
        return
    done = kube.run("kubectl", "get", "crd", "minimaxm1deployments.serving.minimax-m1.dev", check=False)
    if done.returncode == 0:
        pytest.exit(
            "this cluster has the CRDs of minimax-m1 already, and the suite would delete them with all that is there; "
            "M1_E2E_TAKE_OVER=1 allows it",
            returncode=2,
        )


# What the project's own cluster cannot show.
ALLOWED_SKIPS = ("this cluster has Volcano", "no enforcer")


def pytest_sessionfinish(session, exitstatus):
    """With M1_E2E_STRICT a test that was left out is a failure: nothing passes that was not tried."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if not os.environ.get("M1_E2E_STRICT") or not reporter:
        return
    reasons = [str(report.longrepr[2]) for report in reporter.stats.get("skipped", [])]
    left_out = [reason for reason in reasons if not any(allowed in reason for allowed in ALLOWED_SKIPS)]
    if left_out:
        print("\nM1_E2E_STRICT: left out: " + "; ".join(left_out))
        session.exitstatus = 1
