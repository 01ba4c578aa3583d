#!/usr/bin/env python3
"""Minutes of random arrivals, lengths, cancellations and priorities on two pods: every answer is what it is on an idle machine, nothing is leaked,
nobody starves, and the throughput stays.

    python3 tests/soak/soak.py [--minutes 10] [--clients 24] [--seed 1] [--bin target/debug]

Needs nothing but Python and the built programs."""
import argparse, http.client, json, os, random, re, signal, subprocess, sys, threading, time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
QUESTIONS = ["What does replicas do in DeploymentSpec?", "What is a Pod?", "Tell me about ConfigMap.", "What is spec.selector?", "x",
             "What does template do in StatefulSetSpec? " * 12, "Name the fields of a Service. " * 40]
# Seconds that a request may take before it counts as starved, whatever its priority.
STARVED = 120


class Up:
    """`m1ctl up` with the demo's deployment: two pods that share the experts."""

    def __init__(self, programs):
        command = [os.path.join(programs, "m1ctl"), "up", "-f", os.path.join(ROOT, "manifests/examples/demo.yaml"), "--listen", "127.0.0.1:0"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.address = None
        until = time.monotonic() + 120
        while self.address is None and time.monotonic() < until:
            line = self.process.stdout.readline()
            if not line:
                sys.exit("soak: m1ctl up has ended")
            match = re.match(r"ready http://(\S+)", line)
            self.address = match and match.group(1)
        if self.address is None:
            sys.exit("soak: not ready after 120 s")

    def memory(self):
        """Resident megabytes of all processes of the deployment, by name."""
        sizes = {}
        pids, seen = [self.process.pid], set()
        while pids:
            pid = pids.pop()
            if pid in seen:
                continue
            seen.add(pid)
            try:
                for task in os.listdir(f"/proc/{pid}/task"):
                    pids += map(int, open(f"/proc/{pid}/task/{task}/children").read().split())
                name = open(f"/proc/{pid}/comm").read().strip()
                anonymous = re.search(r"RssAnon:\s+(\d+)", open(f"/proc/{pid}/status").read())
            except OSError:
                continue
            sizes[name] = sizes.get(name, 0) + int(anonymous.group(1)) / 1024
        return sizes

    def metrics(self):
        connection = http.client.HTTPConnection(self.address, timeout=20)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        return {name: float(value) for name, value in re.findall(r"^(\S+) ([0-9.e+]+)$", text, re.M)}

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)


def ask(address, order, stop_after=None):
    """The text and reasoning of an answer, and its tokens; None where it was given up on the way."""
    question, tokens, sampling, tier = order
    body = {"model": "MiniMax-M1-demo", "messages": [{"role": "user", "content": QUESTIONS[question]}], "max_tokens": tokens, "stream": True,
            "service_tier": tier, "stream_options": {"include_usage": True}, **sampling}
    connection = http.client.HTTPConnection(address, timeout=STARVED)
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise RuntimeError(f"HTTP {answer.status}: {answer.read()[:200]}")
        said, events, usage = "", 0, None
        for line in answer:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                raise RuntimeError(f"event: {event}")
            usage = event.get("usage") or usage
            for choice in event["choices"]:
                said += (choice["delta"].get("reasoning_content") or "") + (choice["delta"].get("content") or "")
            events += 1
            if stop_after is not None and events >= stop_after:
                return None
        return said, usage["completion_tokens"]
    finally:
        connection.close()


def orders():
    samplings = [{"temperature": 0}, {"temperature": 1.0, "top_p": 0.95, "seed": 7}]
    return [(question, tokens, sampling) for question in range(len(QUESTIONS)) for tokens in (8, 60, 240) for sampling in samplings]


class Clients:
    def __init__(self, address, reference, seed):
        self.address, self.reference, self.random = address, reference, random.Random(seed)
        self.lock, self.end = threading.Lock(), threading.Event()
        self.tokens, self.answers, self.given_up, self.wrong, self.longest = 0, 0, 0, [], {"default": 0.0, "flex": 0.0}

    def run(self):
        while not self.end.is_set():
            with self.lock:
                place = self.random.randrange(len(self.reference))
                tier = "flex" if self.random.random() < 0.25 else "default"
                stop_after = self.random.randrange(1, 40) if self.random.random() < 0.25 else None
                pause = self.random.expovariate(4)
            (order, wanted), began = self.reference[place], time.monotonic()
            try:
                got = ask(self.address, (*order, tier), stop_after)
            except Exception as error:
                with self.lock:
                    self.wrong.append(f"{order}: {error!r}")
                continue
            with self.lock:
                if got is None:
                    self.given_up += 1
                elif got != wanted:
                    self.wrong.append(f"{order}: {got} where an idle machine says {wanted}")
                else:
                    self.answers += 1
                    self.tokens += got[1]
                self.longest[tier] = max(self.longest[tier], time.monotonic() - began)
            self.end.wait(pause)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--bin", default=os.path.join(ROOT, "target/debug"))
    given = parser.parse_args()
    up, faults = Up(given.bin), []
    try:
        reference = [(order, ask(up.address, (*order, "default"))) for order in orders()]
        print(f"{len(reference)} answers of an idle machine, {sum(wanted[1] for _, wanted in reference)} tokens", flush=True)
        clients = Clients(up.address, reference, given.seed)
        threads = [threading.Thread(target=clients.run, daemon=True) for _ in range(given.clients)]
        for thread in threads:
            thread.start()
        rates, sizes, parts = [], [], max(4, int(given.minutes * 2))
        for part in range(parts):
            before, began = clients.tokens, time.monotonic()
            time.sleep(given.minutes * 60 / parts)
            rates.append((clients.tokens - before) / (time.monotonic() - began))
            sizes.append(up.memory())
            shown = ", ".join(f"{name} {size:.0f} MB" for name, size in sorted(sizes[-1].items()))
            print(f"{(part + 1) * given.minutes / parts:5.1f} min  {rates[-1]:6.1f} tok/s  {clients.answers} answers, {clients.given_up} given up, "
                  f"{len(clients.wrong)} wrong  {shown}", flush=True)
        clients.end.set()
        for thread in threads:
            thread.join(STARVED)
        time.sleep(2)
        metrics = up.metrics()
        left = {name: metrics.get(name) for name in metrics if "state_slots" in name and "used" in name or name.startswith(("vllm:num_requests", "vllm:kv_cache"))}
        faults += clients.wrong[:10]
        faults += [f"left over: {name} is {value}" for name, value in left.items() if value]
        faults += [f"a request of tier {tier} took {longest:.0f} s" for tier, longest in clients.longest.items() if longest >= STARVED]
        quarter = max(1, parts // 4)
        first, last = sum(rates[:quarter]) / quarter, sum(rates[-quarter:]) / quarter
        if last < 0.7 * first:
            faults.append(f"throughput fell from {first:.0f} to {last:.0f} tok/s")
        for name, size in sizes[-1].items():
            early = sizes[quarter - 1].get(name, 0)
            if size > early * 1.25 + 20:
                faults.append(f"{name} grew from {early:.0f} to {size:.0f} MB")
        print(f"longest: default {clients.longest['default']:.1f} s, flex {clients.longest['flex']:.1f} s; left: {left}")
    finally:
        up.stop()
    for fault in faults:
        print("FAULT", fault)
    print("soak:", "faults" if faults else "ok")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
