"""Mutual TLS between members: switched on under load, wanted by every worker, exchanged under load, switched off again."""

import base64
import os
import socket
import ssl
import time

import client
import kube
import pytest
from conftest import MODEL, NAME, demo
from test_07_cli import m1ctl

SURGE = {"rollout": {"maxUnavailable": 0, "maxSurge": 1}}
MANAGED = {**SURGE, "tls": {"mode": "Managed"}}
PORT = 9000
CHART = os.path.join(kube.REPOSITORY, "charts/minimax-m1-operator")
direct = pytest.mark.skipif(not os.environ.get("M1_E2E_DIRECT"), reason="pods have no address that this machine reaches")


def revisions():
    return {pod["metadata"]["labels"]["serving.minimax-m1.dev/template-revision-hash"] for pod in kube.workers(NAME)}


def lives():
    """Every container of the deployment, in its present life."""
    pods = kube.workers(NAME) + kube.routers(NAME)
    return {(pod["metadata"]["uid"], pod["status"]["containerStatuses"][0]["restartCount"]) for pod in pods}


def files(folder):
    """The members' certificate, as files."""
    data = kube.get("secret", f"{NAME}-members-tls")["data"]
    for key, text in data.items():
        (folder / key).write_bytes(base64.b64decode(text))
    return folder


def context(folder, shown=True):
    made = ssl.create_default_context(cafile=folder / "ca.crt")
    made.set_alpn_protocols(["h2"])
    if shown:
        made.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    return made


def greet(pod, made):
    """The certificate that a worker shows; an error where it does not want to talk."""
    with socket.create_connection((pod["status"]["podIP"], PORT), timeout=5) as plain:
        with made.wrap_socket(plain, server_hostname=f"{NAME}.{kube.NAMESPACE}.svc") as stream:
            # A refusal comes with the first read: in TLS 1.3 a client has finished before the server judges it.
            stream.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
            if not stream.recv(9):
                raise ssl.SSLError("closed")
            return stream.getpeercert(binary_form=True)


def test_without_the_right_to_secrets_the_condition_says_so_and_what_runs_serves(url):
    kube.apply(demo(**SURGE))
    kube.ready(NAME)
    kube.apply(demo(**MANAGED))
    message = kube.wait_condition(NAME, "Ready", "False", "CertificatesUnavailable")
    assert "tls.namespaces" in message and "cannot get resource" in message, message
    assert kube.condition(NAME, "Available")[0] == "True"
    assert client.chat(url, "What is 1 plus 1?", MODEL).choices[0].finish_reason in ("stop", "length")


def test_members_speak_encrypted_after_a_rollout_without_a_failure(url):
    before = revisions()
    with client.Load(url, MODEL) as load:
        kube.eventually(lambda: load.answers > 2, "answers before")
        kube.run("helm", "upgrade", "minimax-m1-operator", CHART, "-n", kube.SYSTEM, "--wait", "--reuse-values",
                 "--set", f"tls.namespaces={{{kube.NAMESPACE}}}")
        # While groups of both kinds are there, the plain one waits for the encrypted one.
        kube.eventually(lambda: len(now := revisions()) == 1 and now != before, "the encrypted group alone", timeout=180)
        kube.ready(NAME)
        answered = load.answers
        kube.eventually(lambda: load.answers > answered + 2, "answers after")
    assert not load.failures, load.failures[:5]
    assert all(placement["spec"]["encrypted"] for placement in kube.items("m1ep", f"serving.minimax-m1.dev/name={NAME}"))


@direct
def test_a_worker_talks_to_members_only(tmp_path):
    folder = files(tmp_path)
    for pod in kube.workers(NAME):
        assert greet(pod, context(folder))
        with pytest.raises((ssl.SSLError, OSError)):
            greet(pod, context(folder, shown=False))
        with socket.create_connection((pod["status"]["podIP"], PORT), timeout=5) as plain:
            plain.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            plain.settimeout(10)
            try:
                assert b"\x00\x00" not in plain.recv(64)[:2], "plain HTTP/2 was answered"
            except OSError:
                pass


@direct
def test_certificates_are_exchanged_under_load_and_nothing_restarts(url, tmp_path):
    (tmp_path / "old").mkdir(), (tmp_path / "new").mkdir()
    old = context(files(tmp_path / "old"))
    shown = {pod["metadata"]["name"]: greet(pod, old) for pod in kube.workers(NAME)}
    before = lives()
    with client.Load(url, MODEL) as load:
        kube.eventually(lambda: load.answers > 2, "answers before")
        assert "gets a new certificate" in m1ctl("renew-certificates", NAME, "-n", kube.NAMESPACE)
        began = time.monotonic()

        def exchanged():
            new = context(files(tmp_path / "new"))
            return all(greet(pod, new) != shown[pod["metadata"]["name"]] for pod in kube.workers(NAME))

        kube.eventually(exchanged, "the new certificate in every worker", timeout=240, pause=2)
        print(f"{time.monotonic() - began:.0f} s until every worker showed it")
        answered = load.answers
        kube.eventually(lambda: load.answers > answered + 2, "answers after")
    assert not load.failures, load.failures[:5]
    assert lives() == before
    assert kube.condition(NAME, "Ready")[0] == "True"


def test_switching_it_off_is_a_rollout_too(url):
    with client.Load(url, MODEL) as load:
        kube.eventually(lambda: load.answers > 2, "answers before")
        before = revisions()
        kube.apply(demo(**SURGE))
        kube.eventually(lambda: not revisions() & before, "the plain group alone", timeout=180)
        kube.ready(NAME)
        answered = load.answers
        kube.eventually(lambda: load.answers > answered + 2, "answers after")
    assert not load.failures, load.failures[:5]
    secrets = [f"secret/{NAME}-members-tls", f"secret/{NAME}-members-ca"]
    left = lambda: kube.kubectl("get", *secrets, "-o", "name", "--ignore-not-found").strip()
    kube.eventually(lambda: not left(), "no Secret left that nobody needs", timeout=60)


def test_one_maker_of_certificates_is_not_changed_for_the_other():
    kube.apply(demo(**MANAGED))
    other = demo(**SURGE, **{"tls": {"mode": "CertManager", "issuerRef": {"name": "ours"}}})
    assert "between Managed and CertManager set Off first" in kube.refused(other)
    kube.apply(demo(**SURGE))
    kube.ready(NAME)
    # cert-manager is not here: said by name, and nothing is changed.
    kube.apply(other)
    assert "the cluster has no Certificate (cert-manager.io/v1)" in kube.wait_condition(NAME, "Accepted", "False", "InvalidSpec")
    kube.apply(demo())
    kube.ready(NAME)
