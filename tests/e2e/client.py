"""The endpoint as its users have it: the official OpenAI client through the Service, alone or as a steady load."""

import contextlib
import json
import os
import socket
import subprocess
import threading
import time
import urllib.request

import openai

import kube


@contextlib.contextmanager
def endpoint(name, namespace=kube.NAMESPACE):
    """The URL of a deployment's Service: its own address where this machine reaches it, else through kubectl port-forward."""
    service = kube.get("service", f"{name}-router", namespace=namespace)
    address, port = service["spec"]["clusterIP"], service["spec"]["ports"][0]["port"]
    if os.environ.get("M1_E2E_DIRECT"):
        yield f"http://{address}:{port}"
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        local = free.getsockname()[1]
    command = ["kubectl", "-n", namespace, "port-forward", f"service/{name}-router", f"{local}:{port}"]
    forward = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        forward.stdout.readline()
        yield f"http://127.0.0.1:{local}"
    finally:
        forward.terminate()
        forward.wait()


def get(url):
    """Status, body and headers of a GET."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.read().decode(), answer.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(), error.headers


def chat(url, content, model, **options):
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)
    options.setdefault("max_tokens", 64)
    messages = [{"role": "user", "content": content}]
    return client.chat.completions.create(model=model, messages=messages, temperature=0, **options)


def golden():
    """A conversation of the demo model: (question, messages, the answer to the letter)."""
    with open(os.path.join(kube.REPOSITORY, "demo/goldens.json"), encoding="utf-8") as file:
        return json.load(file)


class Load:
    """Clients that ask one after the other until stopped; every failure is kept."""

    def __init__(self, url, model, clients=2, max_tokens=24):
        self.url, self.model, self.max_tokens = url, model, max_tokens
        self.answers, self.failures, self.slowest = 0, [], 0.0
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._threads = [threading.Thread(target=self._ask, args=(number,), daemon=True) for number in range(clients)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=90)

    def _ask(self, number):
        turn = 0
        while not self._stop.is_set():
            turn += 1
            began = time.monotonic()
            try:
                answer = chat(self.url, f"What is {number} plus {turn % 9}?", self.model, max_tokens=self.max_tokens)
                assert answer.choices[0].finish_reason in ("stop", "length")
                with self._lock:
                    self.answers += 1
                    self.slowest = max(self.slowest, time.monotonic() - began)
            except Exception as error:  # every kind of failure is one
                with self._lock:
                    self.failures.append(f"{time.strftime('%H:%M:%S')} {type(error).__name__}: {error}")
