"""The API server as the measurements need it: calls without kubectl's own start, and a watch that notes when pods appear."""

import base64
import http.client
import json
import os
import ssl
import sys
import tempfile
import threading
import time
import urllib.parse
from concurrent.futures import ThreadPoolExecutor

import kube

# What one namespace holds. Kubernetes' own controllers look through a namespace for each pod; nobody puts a thousand models in one.
EACH = 20
# Rows of a few cells instead of whole objects: with ten thousand pods the watch must not cost what is measured.
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io"


def namespace(name):
    """Where a deployment lies, by the number at the end of its name."""
    return f"scale-{int(name.rpartition('-')[2]) // EACH}"


class Api:
    """Calls as the cluster's administrator; each thread has a connection of its own."""

    def __init__(self):
        config = json.loads(kube.run("kubectl", "config", "view", "--raw", "-o", "json"))
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        self.server, self.authority = cluster["server"], base64.b64decode(cluster["certificate-authority-data"]).decode()
        self.host = urllib.parse.urlparse(self.server).netloc
        self.context = ssl.create_default_context(cadata=self.authority)
        with tempfile.NamedTemporaryFile("wb") as file:
            file.write(base64.b64decode(user["client-certificate-data"]) + base64.b64decode(user["client-key-data"]))
            file.flush()
            self.context.load_cert_chain(file.name)
        self.own = threading.local()

    def connect(self):
        return http.client.HTTPSConnection(self.host, context=self.context, timeout=7200)

    def call(self, method, path, body=None, kind="application/json"):
        # The API server closes a connection that was idle for long, or that it has had enough of.
        for last in (False, True):
            if last or not hasattr(self.own, "connection"):
                self.own.connection = self.connect()
            try:
                self.own.connection.request(method, path, body and json.dumps(body), {"Content-Type": kind})
                answer = self.own.connection.getresponse()
                text = answer.read().decode()
                break
            except (OSError, http.client.HTTPException):
                if last:
                    raise
        if answer.status >= 300:
            raise SystemExit(f"scale: {method} {path}: {answer.status} {text[:500]}")
        return text

    def each(self, calls):
        """Many calls, eight at a time, as fast as the API server takes them. Returns the seconds that they took."""
        began = time.monotonic()
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda call: self.call(*call), calls))
        return time.monotonic() - began

    def kubeconfig(self):
        """A kubeconfig with a service account's token. An administrator's calls pass every queue of the API server; a controller's do not."""
        kube.run("kubectl", "-n", "default", "create", "serviceaccount", "scale", check=False)
        kube.run("kubectl", "create", "clusterrolebinding", "scale", "--clusterrole=cluster-admin", "--serviceaccount=default:scale", check=False)
        token = kube.run("kubectl", "-n", "default", "create", "token", "scale", "--duration=12h").strip()
        authority = base64.b64encode(self.authority.encode()).decode()
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "scale",
            "clusters": [{"name": "scale", "cluster": {"server": self.server, "certificate-authority-data": authority}}],
            "users": [{"name": "scale", "user": {"token": token}}],
            "contexts": [{"name": "scale", "context": {"cluster": "scale", "user": "scale"}}],
        }
        path = os.path.join(os.environ["M1_CLUSTER_DIR"], "scale.kubeconfig")
        with open(path, "w", encoding="utf-8") as file:
            json.dump(config, file)
        return path, token


class Watch:
    """When objects with a label were first seen, and when they were Ready; what is deleted is forgotten."""

    def __init__(self, api, path, selector):
        self.api, self.made, self.ready = api, {}, {}
        query = urllib.parse.urlencode({"watch": 1, "labelSelector": selector, "includeObject": "None", "timeoutSeconds": 7200})
        self.path = f"{path}?{query}"
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self):
        """A watch that breaks begins anew, with all there is; only a deletion in between would be missed."""
        while True:
            try:
                connection = self.api.connect()
                connection.request("GET", self.path, headers={"Accept": TABLE})
                for line in connection.getresponse():
                    self._take(json.loads(line), time.monotonic())
                print("scale: a watch ended; it begins anew", file=sys.stderr, flush=True)
            except (OSError, ValueError, http.client.HTTPException) as error:
                print(f"scale: a watch broke: {error!r}; it begins anew", file=sys.stderr, flush=True)
            time.sleep(0.5)

    def _take(self, event, now):
        for row in event["object"].get("rows", []):
            name, ready = row["cells"][0], row["cells"][1]
            if event["type"] == "DELETED":
                self.made.pop(name, None), self.ready.pop(name, None)
                continue
            self.made.setdefault(name, now)
            have, wanted = ready.split("/")
            if have == wanted:
                self.ready.setdefault(name, now)


def until(look, what, timeout, pause=0.02):
    end = time.monotonic() + timeout
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > end:
            raise SystemExit(f"scale: {what}: not within {timeout} s")
        time.sleep(pause)
