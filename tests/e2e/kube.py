"""kubectl as a user has it: every helper reads what a user would see. Knows the cluster through KUBECONFIG only."""

import json
import os
import subprocess
import time

REPOSITORY = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SYSTEM = "minimax-m1-system"
NAMESPACE = "m1-e2e"


class KubectlError(Exception):
    """kubectl ended with an error; the text is what it said."""


def run(*command, input=None, check=True, timeout=300):
    """Runs a command; returns its standard output, or raises with its standard error."""
    done = subprocess.run(command, input=input, capture_output=True, text=True, timeout=timeout)
    if check and done.returncode:
        raise KubectlError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout if check else done


def kubectl(*args, namespace=NAMESPACE, **options):
    return run("kubectl", "-n", namespace, *args, **options)


def apply(manifest, **options):
    text = manifest if isinstance(manifest, str) else json.dumps(manifest)
    return kubectl("apply", "-f", "-", input=text, **options)


def refused(manifest):
    """Applies what the API server must refuse; returns its words."""
    done = kubectl("apply", "-f", "-", input=json.dumps(manifest), check=False)
    assert done.returncode, f"the API server took it: {done.stdout}"
    return done.stderr


def get(kind, name, **options):
    return json.loads(kubectl("get", kind, name, "-o", "json", **options))


def items(kind, selector=None, **options):
    selected = ["-l", selector] if selector else []
    return json.loads(kubectl("get", kind, *selected, "-o", "json", **options))["items"]


def eventually(look, what, timeout=120, pause=0.3):
    """Looks until the look returns something true; returns that."""
    end = time.monotonic() + timeout
    last = None
    while True:
        try:
            last = look()
            if last:
                return last
        except (KubectlError, KeyError, IndexError, AssertionError, OSError) as error:
            last = error
        if time.monotonic() > end:
            raise AssertionError(f"not within {timeout} s: {what}; last: {last}")
        time.sleep(pause)


def condition(name, kind):
    """A condition of a deployment: (status, reason, message); None where it is not there."""
    status = get("m1d", name).get("status", {})
    for found in status.get("conditions", []):
        if found["type"] == kind:
            return found["status"], found["reason"], found["message"]
    return None


def wait_condition(name, kind, status, reason=None, timeout=120):
    """Waits until a condition has a status, and a reason where one is given; returns its message."""

    def look():
        found = condition(name, kind)
        return found and found[0] == status and (reason is None or found[1] == reason) and (found[2] or " ")

    try:
        return eventually(look, f"{name}: {kind}={status} ({reason or 'any reason'})", timeout)
    except AssertionError as error:
        found = get("m1d", name).get("status", {}).get("conditions", [])
        lines = [f"  {c['type']}={c['status']} {c['reason']}: {c['message']}" for c in found]
        raise AssertionError("\n".join([str(error), *lines])) from None


def ready(name, timeout=180):
    """What people do: kubectl wait."""
    kubectl("wait", "--for=condition=Ready", f"m1d/{name}", f"--timeout={timeout}s", timeout=timeout + 30)


def workers(name):
    selector = f"serving.minimax-m1.dev/name={name},app.kubernetes.io/component=worker"
    return [pod for pod in items("pods", selector) if "deletionTimestamp" not in pod["metadata"]]


def routers(name):
    selector = f"serving.minimax-m1.dev/name={name},app.kubernetes.io/component=router"
    return [pod for pod in items("pods", selector) if "deletionTimestamp" not in pod["metadata"]]


def is_ready(pod):
    return any(c["type"] == "Ready" and c["status"] == "True" for c in pod.get("status", {}).get("conditions", []))
