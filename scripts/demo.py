#!/usr/bin/env python3
"""Talks to a served demo model: a streamed answer with its reasoning, a tool call, one answer with its routing log, and metrics.

    python3 scripts/demo.py [--url http://127.0.0.1:8000] [--svg FILE]

Needs nothing but Python. --svg draws the routing log: one cell for every expert of every layer."""
import argparse, json, signal, sys, urllib.error, urllib.request

TOOL = {"type": "function", "function": {
    "name": "scale", "description": "Set the number of replicas of a workload.",
    "parameters": {"type": "object", "required": ["kind", "name", "replicas"], "properties": {
        "kind": {"type": "string"}, "name": {"type": "string"}, "replicas": {"type": "integer"}}}}}


def call(url, path, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"content-type": "application/json"})
    try:
        return urllib.request.urlopen(request, timeout=120)
    except urllib.error.HTTPError as error:
        sys.exit(f"{path}: HTTP {error.code}: {error.read().decode(errors='replace')}")
    except OSError as error:
        sys.exit(f"{url} does not answer ({error}). Is `make quickstart` running?")


def title(text):
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n== {text}", flush=True)


def streamed(url, model):
    title("POST /v1/chat/completions, streamed: reasoning, then the answer")
    body = {"model": model, "stream": True, "temperature": 0,
            "messages": [{"role": "user", "content": "What does replicas do in DeploymentSpec?"}]}
    shown = None
    for line in call(url, "/v1/chat/completions", body):
        if not line.startswith(b"data: {"):
            continue
        for choice in json.loads(line[6:])["choices"]:
            for part in ("reasoning_content", "content"):
                text = choice["delta"].get(part)
                if text:
                    if part != shown:
                        print(f"\n  {part}: ", end="")
                        shown = part
                    print(text.replace("\n", "\n    "), end="", flush=True)
    print()


def tool_call(url, model):
    title("POST /v1/chat/completions: a tool call")
    body = {"model": model, "temperature": 0, "tools": [TOOL],
            "messages": [{"role": "user", "content": "Scale deployment web to 5 replicas."}]}
    choice = json.load(call(url, "/v1/chat/completions", body))["choices"][0]
    for made in choice["message"].get("tool_calls") or []:
        print(f"  {made['function']['name']}({made['function']['arguments']})   finish_reason: {choice['finish_reason']}")


def routed(url, svg):
    title("POST /v1/minimax-m1/generate: what every expert did")
    body = {"input": "Is selector required in DeploymentSpec?", "temperature": 0, "max_output_tokens": 200}
    answer = json.load(call(url, "/v1/minimax-m1/generate", body))
    routing = answer.pop("routing")
    layers = routing.pop("by_layer")
    print(json.dumps(answer, indent=2, ensure_ascii=False))
    print("routing:", json.dumps(routing))
    for layer in layers:
        busiest = max(range(len(layer["tokens"])), key=lambda expert: layer["tokens"][expert])
        load = "".join(shade(tokens / max(layer["tokens"])) for tokens in layer["tokens"])
        print(f"  layer {layer['layer']:>2} |{load}| busiest: expert {busiest} with {layer['tokens'][busiest]} tokens")
    if svg:
        with open(svg, "w") as out:
            out.write(picture(layers, routing))
        print(f"drawn: {svg}")


def shade(share):
    return " ░▒▓█"[min(4, int(share * 4.999))]


def picture(layers, routing):
    """The routing log as SVG: rows are layers, columns experts, darker is more tokens."""
    cell, left, top = 18, 64, 40
    experts = len(layers[0]["tokens"])
    most = max(max(layer["tokens"]) for layer in layers)
    width, height = left + experts * cell + 12, top + len(layers) * cell + 28
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="11">',
           f'<rect width="{width}" height="{height}" fill="white"/>',
           f'<text x="{left}" y="16" font-size="13">Tokens per expert: {routing["tokens"]} tokens, top-{routing["top_k"]} of {experts} experts, {len(layers)} layers</text>']
    for expert in range(0, experts, 4):
        out.append(f'<text x="{left + expert * cell + cell / 2}" y="{top - 6}" text-anchor="middle" fill="#555">{expert}</text>')
    for row, layer in enumerate(layers):
        y = top + row * cell
        out.append(f'<text x="{left - 8}" y="{y + 13}" text-anchor="end" fill="#555">layer {layer["layer"]}</text>')
        for expert, tokens in enumerate(layer["tokens"]):
            depth = int(255 - 215 * tokens / most)
            out.append(f'<rect x="{left + expert * cell}" y="{y}" width="{cell - 1}" height="{cell - 1}" fill="rgb({depth},{min(255, depth + 25)},255)">'
                       f'<title>layer {layer["layer"]}, expert {expert}: {tokens} tokens</title></rect>')
    out.append(f'<text x="{left}" y="{height - 10}" fill="#555">darkest: {most} tokens</text></svg>\n')
    return "\n".join(out)


def metrics(url):
    title("GET /metrics, in part")
    text = call(url, "/metrics").read().decode()
    samples = [line for line in text.splitlines() if not line.startswith("#")]
    wanted = ("m1_router_expert_tokens_total", "m1_router_expert_balancedness", "vllm:num_requests_running", "vllm:generation_tokens_total")
    for name in wanted:
        print("\n".join("  " + line for line in [line for line in samples if line.startswith(name)][:3]))
    booked = sum(float(line.rsplit(" ", 1)[1]) for line in samples if line.startswith(wanted[0]))
    print(f"  sum over all experts: {booked:.0f} = tokens x layers x top-k")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--svg", metavar="FILE")
    options = parser.parse_args()
    model = json.load(call(options.url, "/v1/models"))["data"][0]["id"]
    print(f"{options.url} serves {model}")
    streamed(options.url, model)
    tool_call(options.url, model)
    routed(options.url, options.svg)
    metrics(options.url)


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` is no error
    main()
