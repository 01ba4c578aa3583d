"""Serves the demo model with routers and workers of two commits and holds the answers against each other.

    test_adjacent.py BEFORE NOW      folders with m1ctl, m1-router and m1-worker; the m1ctl of BEFORE starts them all

The flags that m1ctl passes are not what is tried here, so it is the earlier one: later binaries know its flags."""
import json, os, re, shutil, signal, subprocess, sys, tempfile, time, urllib.request

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
CHAT = {"model": "MiniMax-M1-demo", "temperature": 0, "max_tokens": 60,
        "messages": [{"role": "user", "content": "What does replicas do in DeploymentSpec?"}]}
GENERATE = {"input": "Is selector required in DeploymentSpec?", "temperature": 0, "max_output_tokens": 60}


def post(url, path, body):
    request = urllib.request.Request(url + path, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read().decode()


class Up:
    """`m1ctl up` of the folder `before`, with the router and the workers (one for each pod) of the folders given."""

    def __init__(self, before, router, workers):
        self.scratch = tempfile.TemporaryDirectory()
        place = self.scratch.name
        # A copy: through a link it would find the others beside what that leads to.
        shutil.copy(os.path.join(before, "m1ctl"), place)
        os.symlink(os.path.abspath(os.path.join(router, "m1-router")), os.path.join(place, "m1-router"))
        # Each start takes the next folder of the list, whichever pod it is for.
        cases = "\n".join(f'{n}) exec {os.path.abspath(folder)}/m1-worker "$@";;' for n, folder in enumerate(workers))
        script = f'#!/bin/bash\nfor n in {" ".join(map(str, range(len(workers))))}; do mkdir {place}/taken-$n 2>/dev/null && break; done\ncase $n in\n{cases}\nesac\n'
        with open(os.path.join(place, "m1-worker"), "w") as out:
            out.write(script)
        os.chmod(os.path.join(place, "m1-worker"), 0o755)
        with open(os.path.join(ROOT, "manifests/examples/demo.yaml")) as manifest:
            text = re.sub(r"path: .*demo/m1-demo", f"path: {ROOT}/demo/m1-demo", manifest.read())
        with open(os.path.join(place, "cr.yaml"), "w") as out:
            out.write(re.sub(r"expert: \d+", f"expert: {len(workers)}", text))
        self.log, self.out = open(os.path.join(place, "log"), "w+"), open(os.path.join(place, "out"), "w+")
        self.process = subprocess.Popen([os.path.join(place, "m1ctl"), "up", "-f", os.path.join(place, "cr.yaml"), "--listen", "127.0.0.1:0"],
                                        stdout=self.out, stderr=self.log,
                                        env={**os.environ, "PATH": place + os.pathsep + os.environ["PATH"]})

    def __enter__(self):
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline and self.process.poll() is None:
            with open(self.out.name) as out:
                seen = out.read()
            found = re.search(r"^ready (\S+)$", seen, re.M)
            if found:
                return found.group(1)
            time.sleep(0.05)
        self.stop()
        self.log.seek(0)
        raise SystemExit(f"adjacent: m1ctl up did not become ready:\n{seen}\n{self.log.read()[-4000:]}")

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()

    def __exit__(self, *_):
        self.stop()
        self.scratch.cleanup()


def tried(url):
    """What this deployment answers, with what must be true of every one checked."""
    whole = json.loads(post(url, "/v1/chat/completions", CHAT))
    message = whole["choices"][0]["message"]
    parts = {"content": "", "reasoning_content": ""}
    events = [line[6:] for line in post(url, "/v1/chat/completions", {**CHAT, "stream": True}).splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]", events[-3:]
    for event in events[:-1]:
        delta = json.loads(event)["choices"][0]["delta"]
        for name in parts:
            parts[name] += delta.get(name) or ""
    assert parts == {name: message[name] or "" for name in parts}, (parts, message)
    answer = json.loads(post(url, "/v1/minimax-m1/generate", GENERATE))
    routing, usage = answer["routing"], answer["usage"]
    assert routing["tokens"] == usage["input_tokens"] + usage["output_tokens"] - 1, (routing["tokens"], usage)
    assert routing["executed"] + routing["skipped"] + routing["lost"] == routing["tokens"] * 8 * 2, routing
    tokens = 2 * (whole["usage"]["total_tokens"] - 1) + routing["tokens"]
    deadline = time.monotonic() + 10
    while True:
        with urllib.request.urlopen(url + "/metrics", timeout=10) as page:
            booked = sum(int(float(n)) for n in re.findall(r"^m1_router_expert_tokens_total\{.*\} (\S+)$", page.read().decode(), re.M))
        if booked == tokens * 8 * 2 or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    assert booked == tokens * 8 * 2, f"{booked} uses of experts are counted, {tokens * 8 * 2} were made"
    return message, answer["text"], answer["reasoning"]


def main():
    before, now = sys.argv[1:3]
    expected = None
    for name, router, workers in (
        ("all of the commit before", before, [before, before]),
        ("the router of before, workers of now", before, [now, now]),
        ("the router of now, workers of before", now, [before, before]),
        ("the router of now, a worker of each", now, [before, now]),
        ("the router of before, a worker of each", before, [now, before]),
    ):
        with Up(before, router, workers) as url:
            answers = tried(url)
        expected = expected or answers
        assert answers == expected, f"{name}: {answers}, not {expected}"
        print(f"adjacent: {name}: ok", flush=True)


main()
