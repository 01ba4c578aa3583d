"""apply -> Ready -> answers through the Service, the experts on two pods, the status true on the way."""

import re
import time

import client
import kube
from conftest import MODEL, NAME, demo


def test_pods_are_made_at_once_and_the_deployment_becomes_ready():
    began = time.monotonic()
    kube.apply(demo())
    kube.eventually(lambda: len(kube.workers(NAME)) == 2, "two worker pods", pause=0.05)
    print(f"apply to two pods, with kubectl's own time: {time.monotonic() - began:.2f} s")
    kube.ready(NAME)


def test_the_status_tells_what_is():
    status = kube.eventually(lambda: kube.get("m1d", NAME)["status"], "a status")
    assert (status["replicas"], status["readyReplicas"], status["updatedReplicas"], status["availableReplicas"]) == (1, 1, 1, 1)
    conditions = {c["type"]: (c["status"], c["reason"]) for c in status["conditions"]}
    assert conditions["Accepted"] == ("True", "SpecAccepted")
    assert conditions["WeightsReady"] == ("True", "WeightsLoaded")
    assert conditions["Available"] == ("True", "Serving")
    assert conditions["Progressing"] == ("False", "Serving")
    assert conditions["Ready"] == ("True", "Serving")
    assert conditions["Degraded"] == ("False", "AllThere")
    assert status["observedGeneration"] == kube.get("m1d", NAME)["metadata"]["generation"]
    assert status["weights"]["bytesLoaded"] == status["weights"]["bytesTotal"] > 0
    assert status["endpoint"] == f"http://{NAME}-router.{kube.NAMESPACE}.svc"


def test_kubectl_get_answers_the_questions_people_have():
    header, line = kube.kubectl("get", "m1d").strip().splitlines()
    assert re.split(r"\s{2,}", header)[:4] == ["NAME", "READY", "DESIRED", "UP-TO-DATE"], header
    assert re.split(r"\s+", line)[:4] == [NAME, "1", "1", "1"], line
    assert "Serving" in line and "http://" in line, line


def test_each_pod_holds_half_of_the_experts():
    (placement,) = kube.items("m1ep")
    applied = placement["status"]
    assert applied["appliedEpoch"] == placement["spec"]["epoch"] == 1 and len(applied["pods"]) == 2, applied
    assert len({pod["digest"] for pod in applied["pods"]}) == 1 and applied["pods"][0]["digest"], applied
    holds = [pod["holds"] for pod in placement["spec"]["pods"]]
    assert holds == ["ffff0000" * 8, "0000ffff" * 8]
    nodes = {pod["spec"]["nodeName"] for pod in kube.workers(NAME)}
    if len(kube.items("nodes", "!node-role.kubernetes.io/control-plane,!kwok.x-k8s.io/node")) > 1:
        assert len(nodes) == 2, f"both pods on {nodes}"


def test_the_official_client_gets_the_golden_answer(url):
    golden = client.golden()[0]
    question = golden["messages"][-1]["content"]
    answer = client.chat(url, question, MODEL, max_tokens=200).choices[0].message
    assert answer.content.strip() and golden["text"].endswith(answer.content.strip()), answer


def test_metrics_count_the_experts(url):
    status, text, _ = client.get(f"{url}/metrics")
    assert status == 200
    series = re.findall(r'^m1_router_expert_tokens_total\{.*outcome="executed".*\} (\d+)', text, re.M)
    assert len(series) == 8 * 32 and sum(map(int, series)) > 0


def test_workers_are_scraped_and_probed():
    pod = kube.workers(NAME)[0]
    path = f"/api/v1/namespaces/{kube.NAMESPACE}/pods/{pod['metadata']['name']}:9090/proxy/metrics"
    assert "m1_worker_" in kube.run("kubectl", "get", "--raw", path)


def test_pods_run_without_privileges():
    for pod in kube.workers(NAME) + kube.routers(NAME):
        spec, container = pod["spec"], pod["spec"]["containers"][0]["securityContext"]
        assert spec["securityContext"]["runAsNonRoot"] and container["readOnlyRootFilesystem"]
        assert not container["allowPrivilegeEscalation"] and container["capabilities"]["drop"] == ["ALL"]
    assert all(pod["spec"].get("automountServiceAccountToken") is False for pod in kube.workers(NAME))


def test_nothing_is_written_when_nothing_changes():
    kinds = "m1d,m1ep,statefulsets,deployments,services,poddisruptionbudgets,networkpolicies,roles,rolebindings,serviceaccounts"
    look = lambda: kube.kubectl("get", kinds, "-o", "jsonpath={range .items[*]}{.kind} {.metadata.name} {.metadata.resourceVersion}{'\\n'}{end}")
    kube.eventually(lambda: (lambda first: time.sleep(3) or first == look())(look()), "three seconds without a write")
    before = look()
    kube.kubectl("annotate", "m1d", NAME, f"example.test/touched={int(time.time())}", "--overwrite")
    time.sleep(3)
    changed = set(before.splitlines()) ^ set(look().splitlines())
    assert {line.split()[0] for line in changed} == {"MiniMaxM1Deployment"} and len(changed) == 2, changed


def test_an_operator_that_starts_writes_nothing_that_is_there():
    kube.kubectl("rollout", "restart", "deployment/minimax-m1-operator", namespace=kube.SYSTEM)
    kube.kubectl("rollout", "status", "deployment/minimax-m1-operator", "--timeout=120s", namespace=kube.SYSTEM)

    def page():
        """Of the one that leads, once it has looked at the deployment."""
        for pod in kube.items("pods", "app.kubernetes.io/name=minimax-m1-operator", namespace=kube.SYSTEM):
            path = f"/api/v1/namespaces/{kube.SYSTEM}/pods/{pod['metadata']['name']}:8080/proxy/metrics"
            text = kube.run("kubectl", "get", "--raw", path, check=False).stdout
            if "m1_operator_leader 1" in text and 'm1_operator_reconciles_total{result="ok"} 0' not in text:
                return text
        return None

    kube.eventually(page, "a look of the operator that leads now", timeout=60)
    # Time for the echo of whatever it wrote, and for its workers' words.
    time.sleep(5)
    wrote = [line for line in kube.eventually(page, "metrics").splitlines() if line.startswith("m1_operator_writes_total")]
    assert not wrote, wrote
