#!/usr/bin/env python3
"""A checkpoint with MiniMax-M1's true geometry and tiny matrices, and the tokens that greedy decoding of it must give.

    python make_geometry.py OUTDIR                 writes config.json, shards, index, prompts.json, expected.json
    python make_geometry.py --check CHECKPOINT GOLDEN   compares the reference in this file with golden logits

80 layers (7 lightning, then 1 softmax), 32 experts, top-2, all 8243 tensors under their original names, bf16 with an fp32 router,
shards numbered from 00000: what a loader, a placement and a router of experts meet in the real model, in about 11 MB. Needs numpy only.

The reference computes in fp32 and takes lightning attention token by token. A greedy answer is a fair test only if no decision of the
reference is close: between the second and the third router logit, and between the two best tokens, there must be MARGIN, for every token
of every prompt and answer. Routers are drawn again, layer by layer, until that holds for the prompts; the whole model is drawn again from
the next seed until it holds for the answers too, and until a second computation, in fp64 and in one pass, agrees.
"""
import argparse
import json
import os
import struct
import sys

import numpy as np

MARGIN = 1e-3
# The fp64 computation may differ by this much: two logits that both move by a quarter of the margin keep their order, with half of it to
# spare for other orders of summation.
DRIFT = MARGIN / 4
# Scale of what a layer adds to its residual. At 1.5 and more, 80 layers amplify a rounding of 1e-7 to whole units; here to 1e-4.
BRANCH = 0.4
ANSWER = 12
PROMPTS = {"short": 5, "middle": 17, "long": 40}
SHARDS = 7
ALPHA = 160 ** 0.25
LIGHTNING_EPS = 1e-6
# Router logits of this spread: the second expert matters, and one decision in about 1000 is too close.
ROUTER_SPREAD = 4.0
REDRAWS = 60
SEEDS = 400

CONFIG = {
    "architectures": ["MiniMaxM1ForCausalLM"],
    "model_type": "minimax_m1",
    "attention_dropout": 0.0,
    "attn_type_list": [1 if i % 8 == 7 else 0 for i in range(80)],
    "bos_token_id": None,
    "eos_token_id": None,
    "head_dim": 16,
    "hidden_act": "silu",
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 16,
    "layernorm_full_attention_alpha": ALPHA,
    "layernorm_full_attention_beta": 1.0,
    "layernorm_linear_attention_alpha": ALPHA,
    "layernorm_linear_attention_beta": 1.0,
    "layernorm_mlp_alpha": ALPHA,
    "layernorm_mlp_beta": 1.0,
    "max_position_embeddings": 10240000,
    "num_attention_heads": 4,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 80,
    "num_key_value_heads": 2,
    "num_local_experts": 32,
    "output_router_logits": False,
    "postnorm": True,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000000,
    "rotary_dim": 8,
    "router_aux_loss_coef": 0.001,
    "router_jitter_noise": 0.0,
    "shared_intermediate_size": 0,
    "shared_moe_mode": "sigmoid",
    "sliding_window": None,
    "tie_word_embeddings": False,
    "use_cache": True,
    "vocab_size": 256,
}


# --- the model -------------------------------------------------------------------------------------------------------------------


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def silu(x):
    return x * sigmoid(x)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def rms_norm(x, weight, eps):
    return weight * (x / np.sqrt((x * x).mean(-1, keepdims=True) + x.dtype.type(eps)))


def head_slopes(heads):
    """2^(-8(h+1)/heads); for a count that is no power of two, the rest are every other slope of the next power."""
    power = 2 ** (heads.bit_length() - 1)
    slopes = [2.0 ** (-8.0 * (h + 1) / power) for h in range(power)]
    return slopes + [2.0 ** (-8.0 * (h + 1) / (2 * power)) for h in range(0, 2 * power, 2)][: heads - power]


def rotate(x, positions, dim, theta):
    """x [n, heads, head_dim]: the first `dim` channels of each head turn, pair (c, c + dim/2) by position * theta^(-2c/dim)."""
    half = dim // 2
    inverse = (1.0 / np.float64(theta) ** (np.arange(half) * 2.0 / dim)).astype(np.float32)
    angle = positions.astype(np.float32)[:, None] * inverse[None]
    cos, sin = np.cos(angle)[:, None].astype(x.dtype), np.sin(angle)[:, None].astype(x.dtype)
    first, second, rest = x[..., :half], x[..., half:dim], x[..., dim:]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin, rest], -1)


class Reference:
    """MiniMax-M1 in numpy; `dtype` is that of every value. A sequence's state: per layer the lightning state, or keys and values."""

    def __init__(self, config, weights, dtype=np.float32):
        self.config, self.dtype = config, dtype
        self.weights = {name: tensor.astype(dtype) for name, tensor in weights.items()}
        self.heads, self.kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        self.head_dim, self.top_k, self.eps = config["head_dim"], config["num_experts_per_tok"], config["rms_norm_eps"]
        self.kinds = config["attn_type_list"]

    def new_state(self):
        lightning = lambda: np.zeros((self.heads, self.head_dim, self.head_dim), self.dtype)
        softmax_cache = lambda: (np.zeros((0, self.kv_heads, self.head_dim), self.dtype),) * 2
        return {"position": 0, "layers": [softmax_cache() if kind else lightning() for kind in self.kinds]}

    def embed(self, ids):
        return self.weights["model.embed_tokens.weight"][np.asarray(ids)]

    def attend(self, i, x, state):
        """The first half of a layer: attention and the second norm. x [n, hidden] -> [n, hidden]; moves the layer's state."""
        name = f"model.layers.{i}."
        h = rms_norm(x, self.weights[name + "input_layernorm.weight"], self.eps)
        attention, kind = (self.softmax_attention, "full") if self.kinds[i] else (self.lightning_attention, "linear")
        out = attention(i, h, state)
        x = self.residual(h, x, out, f"{kind}_attention")
        return x, rms_norm(x, self.weights[name + "post_attention_layernorm.weight"], self.eps)

    def residual(self, normed, raw, out, part):
        kept = normed if self.config["postnorm"] else raw
        alpha, beta = self.config[f"layernorm_{part}_alpha"], self.config[f"layernorm_{part}_beta"]
        return kept * self.dtype(alpha) + out * self.dtype(beta)

    def lightning_attention(self, i, h, state):
        name, n, layers = f"model.layers.{i}.self_attn.", len(h), len(self.kinds)
        u = silu(h @ self.weights[name + "qkv_proj.weight"].T).reshape(n, self.heads, 3, self.head_dim)
        slopes = np.array(head_slopes(self.heads), np.float32) * np.float32(1 - i / max(layers - 1, 1) + 1e-5)
        decay = np.exp(-slopes).astype(self.dtype)[:, None, None]
        memory, out = state["layers"][i], np.empty((n, self.heads, self.head_dim), self.dtype)
        for t in range(n):
            q, k, v = u[t, :, 0], u[t, :, 1], u[t, :, 2]
            memory = decay * memory + k[:, :, None] * v[:, None, :]
            out[t] = (q[:, None, :] @ memory)[:, 0]
        state["layers"][i] = memory
        o = rms_norm(out.reshape(n, -1), self.weights[name + "norm.weight"], LIGHTNING_EPS)
        return (sigmoid(h @ self.weights[name + "output_gate.weight"].T) * o) @ self.weights[name + "out_proj.weight"].T

    def softmax_attention(self, i, h, state):
        name, n = f"model.layers.{i}.self_attn.", len(h)
        positions = np.arange(state["position"], state["position"] + n)
        q, k, v = ((h @ self.weights[f"{name}{part}_proj.weight"].T).reshape(n, -1, self.head_dim) for part in "qkv")
        dim, theta = self.config["rotary_dim"], self.config["rope_theta"]
        q, k = rotate(q, positions, dim, theta), rotate(k, positions, dim, theta)
        keys, values = (np.concatenate([old, new]) for old, new in zip(state["layers"][i], (k, v)))
        state["layers"][i] = keys, values
        group = self.heads // self.kv_heads
        keys, values = np.repeat(keys, group, 1), np.repeat(values, group, 1)
        scores = np.einsum("nhd,mhd->hnm", q, keys) / self.dtype(np.sqrt(self.head_dim))
        future = np.arange(len(keys))[None, None] > positions[None, :, None]
        out = np.einsum("hnm,mhd->nhd", softmax(np.where(future, self.dtype(-np.inf), scores)), values)
        return out.reshape(n, -1) @ self.weights[name + "o_proj.weight"].T

    def route(self, i, h):
        """Router logits [n, experts]."""
        return h @ self.weights[f"model.layers.{i}.block_sparse_moe.gate.weight"].T

    def mix(self, i, x, h, logits):
        """The second half of a layer: the chosen experts and the residual. -> [n, hidden]"""
        probabilities = softmax(logits)
        chosen = np.argsort(-probabilities, -1, kind="stable")[:, : self.top_k]
        shares = np.take_along_axis(probabilities, chosen, -1)
        shares = shares / shares.sum(-1, keepdims=True)
        out = np.zeros_like(h)
        for expert in np.unique(chosen):
            rows, places = np.nonzero(chosen == expert)
            w1, w2, w3 = (self.weights[f"model.layers.{i}.block_sparse_moe.experts.{expert}.w{part}.weight"] for part in (1, 2, 3))
            out[rows] += shares[rows, places, None] * ((silu(h[rows] @ w1.T) * (h[rows] @ w3.T)) @ w2.T)
        return self.residual(h, x, out, "mlp")

    def head(self, x):
        """Logits [n, vocabulary]."""
        return rms_norm(x, self.weights["model.norm.weight"], self.eps) @ self.weights["lm_head.weight"].T

    def forward(self, ids, state):
        """Feeds `ids`; -> logits [n, vocabulary], router logits per layer [layers][n, experts]."""
        x, routed = self.embed(ids), []
        for i in range(len(self.kinds)):
            x, h = self.attend(i, x, state)
            routed.append(self.route(i, h))
            x = self.mix(i, x, h, routed[-1])
        state["position"] += len(x)
        return self.head(x), routed


def margin(values, k):
    """The smallest distance, over all rows, between the k-th and the next of the row's largest values."""
    ordered = -np.sort(-values, -1)
    return float((ordered[:, k - 1] - ordered[:, k]).min())


# --- drawing one -----------------------------------------------------------------------------------------------------------------


def to_bf16(x):
    """fp32 -> bf16 bits, to nearest, ties to even."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def draw_weights(config, rng):
    """name -> fp32 array in the order of the layers, every value one that bf16 holds; routers are missing."""
    hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    width = config["num_attention_heads"] * config["head_dim"]
    kv_width = config["num_key_value_heads"] * config["head_dim"]
    normal = lambda *shape: rng.standard_normal(shape, dtype=np.float32)
    matrix = lambda rows, columns, scale: from_bf16(to_bf16(normal(rows, columns) * np.float32(scale / columns ** 0.5)))
    norm = lambda n: from_bf16(to_bf16(1 + np.float32(0.2) * normal(n)))
    weights = {"model.embed_tokens.weight": matrix(vocab, hidden, hidden ** 0.5)}
    for i, kind in enumerate(config["attn_type_list"]):
        name = f"model.layers.{i}."
        own = name + "self_attn."
        if kind == 0:
            weights[own + "qkv_proj.weight"] = matrix(3 * width, hidden, 1.2)
            weights[own + "output_gate.weight"] = matrix(width, hidden, 1.2)
            weights[own + "norm.weight"] = norm(width)
            weights[own + "out_proj.weight"] = matrix(hidden, width, BRANCH)
        else:
            for part, rows in (("q", width), ("k", kv_width), ("v", kv_width)):
                weights[f"{own}{part}_proj.weight"] = matrix(rows, hidden, 1.5)
            weights[own + "o_proj.weight"] = matrix(hidden, width, BRANCH)
        weights[name + "input_layernorm.weight"] = norm(hidden)
        weights[name + "post_attention_layernorm.weight"] = norm(hidden)
        for expert in range(config["num_local_experts"]):
            part = f"{name}block_sparse_moe.experts.{expert}."
            weights[part + "w1.weight"] = matrix(inner, hidden, 1.2)
            weights[part + "w2.weight"] = matrix(hidden, inner, BRANCH)
            weights[part + "w3.weight"] = matrix(inner, hidden, 1.2)
    weights["model.norm.weight"] = norm(hidden)
    weights["lm_head.weight"] = matrix(vocab, hidden, 4.0)
    return weights


def draw_routers(model, prompts, rng):
    """Gives each layer a router that decides every prompt token with the margin. -> name -> (state, last logits), or None."""
    experts, hidden = model.config["num_local_experts"], model.config["hidden_size"]
    states = {name: model.new_state() for name in prompts}
    xs = {name: model.embed(ids) for name, ids in prompts.items()}
    for i in range(len(model.kinds)):
        halves = {name: model.attend(i, xs[name], states[name]) for name in prompts}
        every = np.concatenate([h for _, h in halves.values()])
        for _ in range(REDRAWS):
            gate = rng.standard_normal((experts, hidden), dtype=np.float32) * np.float32(ROUTER_SPREAD / hidden ** 0.5)
            model.weights[f"model.layers.{i}.block_sparse_moe.gate.weight"] = gate
            # Twice the margin here: a product of one row and one of many rows may round differently.
            if margin(every @ gate.T, model.top_k) > 2 * MARGIN:
                break
        else:
            return None
        xs = {name: model.mix(i, x, h, model.route(i, h)) for name, (x, h) in halves.items()}
    for name, ids in prompts.items():
        states[name]["position"] = len(ids)
    return {name: (states[name], model.head(xs[name])[-1:]) for name in prompts}


def answer(model, state, logits):
    """Greedy tokens, or None as soon as a decision is too close."""
    tokens = []
    while margin(logits, 1) > MARGIN:
        tokens.append(int(logits[0].argmax()))
        if len(tokens) == ANSWER:
            return tokens
        logits, routed = model.forward(tokens[-1:], state)
        if min(margin(layer, model.top_k) for layer in routed) <= MARGIN:
            return None
    return None


def drift(model, prompts, answers):
    """Largest difference of any logit or router logit to a computation in fp64 and in one pass; infinite where a decision differs."""
    exact = Reference(model.config, model.weights, np.float64)
    worst = 0.0
    for name, ids in prompts.items():
        fed = ids + answers[name][:-1]
        state = model.new_state()
        logits, routed = zip(*(model.forward(part, state) for part in [ids] + [[token] for token in answers[name][:-1]]))
        true_logits, true_routed = exact.forward(fed, exact.new_state())
        if true_logits[len(ids) - 1 :].argmax(-1).tolist() != answers[name]:
            return float("inf")
        if min(margin(layer, model.top_k) for layer in true_routed) <= MARGIN:
            return float("inf")
        worst = max(worst, np.abs(np.concatenate(logits) - true_logits).max())
        for i, true_layer in enumerate(true_routed):
            worst = max(worst, np.abs(np.concatenate([step[i] for step in routed]) - true_layer).max())
    return float(worst)


def draw(seed):
    """One model; -> (weights, prompts, answers, drift), or the reason why it will not do."""
    rng = np.random.default_rng(seed)
    model = Reference(CONFIG, draw_weights(CONFIG, rng))
    prompts = {name: rng.integers(0, CONFIG["vocab_size"], n).tolist() for name, n in PROMPTS.items()}
    ready = draw_routers(model, prompts, rng)
    if ready is None:
        return "no router decides the prompts"
    answers = {}
    for name, (state, logits) in ready.items():
        answers[name] = answer(model, state, logits)
        if answers[name] is None:
            return f"a close decision in the answer to {name}"
        if len(set(answers[name])) < ANSWER // 2:
            return f"the answer to {name} repeats itself"
    worst = drift(model, prompts, answers)
    return (model.weights, prompts, answers, worst) if worst < DRIFT else f"drift {worst:.1e}"


# --- files -----------------------------------------------------------------------------------------------------------------------


def stored(name, tensor):
    """A tensor as a file holds it: routers in fp32, all else in bf16."""
    if name.endswith("block_sparse_moe.gate.weight"):
        return "F32", np.ascontiguousarray(tensor, np.float32).tobytes()
    return "BF16", to_bf16(tensor).tobytes()


def write_shard(path, tensors):
    header, offset = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    # The data begins at a multiple of 8 bytes.
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.writelines(data for _, _, data in tensors.values())


def write_checkpoint(out, config, weights):
    tensors = {name: (*stored(name, tensor), tensor.shape) for name, tensor in weights.items()}
    tensors = {name: (dtype, shape, data) for name, (dtype, data, shape) in tensors.items()}
    total = sum(len(data) for _, _, data in tensors.values())
    shards, at = [{} for _ in range(SHARDS)], 0
    for name, tensor in tensors.items():
        # By bytes, not by layers: as in the real files, a layer may lie in two shards.
        shards[at * SHARDS // total][name] = tensor
        at += len(tensor[2])
    weight_map = {}
    for number, shard in enumerate(shards):
        file = f"model-{number:05}-of-{SHARDS:05}.safetensors"
        write_shard(os.path.join(out, file), shard)
        weight_map.update(dict.fromkeys(shard, file))
    write_json(os.path.join(out, "model.safetensors.index.json"), {"metadata": {"total_size": total}, "weight_map": weight_map})
    write_json(os.path.join(out, "config.json"), config)
    return len(tensors), total


def write_json(path, value):
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)


def read_json(*path):
    with open(os.path.join(*path), encoding="utf-8") as file:
        return json.load(file)


DTYPES = {"F32": np.float32, "BF16": np.uint16, "F16": np.float16, "I64": np.int64, "I32": np.int32}


def read_safetensors(path):
    """name -> array; bf16 becomes fp32."""
    with open(path, "rb") as file:
        data = file.read()
    (length,) = struct.unpack_from("<Q", data)
    header, body, tensors = json.loads(data[8 : 8 + length]), 8 + length, {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        start, end = entry["data_offsets"]
        tensor = np.frombuffer(data[body + start : body + end], DTYPES[entry["dtype"]]).reshape(entry["shape"])
        tensors[name] = from_bf16(tensor) if entry["dtype"] == "BF16" else tensor
    return tensors


def read_checkpoint(path):
    weights = {}
    for file in sorted(set(read_json(path, "model.safetensors.index.json")["weight_map"].values())):
        weights.update(read_safetensors(os.path.join(path, file)))
    return read_json(path, "config.json"), weights


# --- commands --------------------------------------------------------------------------------------------------------------------


def check(checkpoint, golden):
    """Compares with golden logits: per prompt length n the tensors pn.positions, .logits, .argmax, .decode_tokens, .decode_logits."""
    model, golden, worst = Reference(*read_checkpoint(checkpoint)), read_safetensors(golden), 0.0
    for length, ids in read_json(checkpoint, "prompts.json").items():
        want = {part: golden[f"p{length}.{part}"] for part in ("positions", "logits", "argmax", "decode_tokens", "decode_logits")}
        state = model.new_state()
        logits, _ = model.forward(ids, state)
        assert (logits.argmax(-1) == want["argmax"]).all(), f"prompt {length}: another argmax"
        assert logits[-1].argmax() == want["decode_tokens"][0], f"prompt {length}: another first token"
        decoded = np.concatenate([model.forward([token], state)[0] for token in want["decode_tokens"].tolist()])
        assert (decoded[:-1].argmax(-1) == want["decode_tokens"][1:]).all(), f"prompt {length}: another answer"
        pairs = ((logits[want["positions"]], want["logits"]), (decoded, want["decode_logits"]))
        difference = max(float(np.abs(own - other).max()) for own, other in pairs)
        print(f"prompt {length}: largest difference {difference:.1e}")
        worst = max(worst, difference)
    assert worst <= 1e-4, f"largest difference {worst:.1e}; allowed: 1e-4"


def make(out):
    os.makedirs(out, exist_ok=True)
    for seed in range(SEEDS):
        drawn = draw(seed)
        if isinstance(drawn, str):
            print(f"seed {seed}: {drawn}", file=sys.stderr)
            continue
        weights, prompts, answers, worst = drawn
        count, total = write_checkpoint(out, CONFIG, weights)
        write_json(os.path.join(out, "prompts.json"), prompts)
        write_json(os.path.join(out, "expected.json"), answers)
        print(f"seed {seed}: {count} tensors, {total} bytes, every decision by more than {MARGIN}, drift {worst:.1e}")
        return
    sys.exit(f"none of {SEEDS} seeds will do")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", metavar="OUTDIR")
    parser.add_argument("--check", nargs=2, metavar=("CHECKPOINT", "GOLDEN"))
    arguments = parser.parse_args()
    if arguments.check:
        check(*arguments.check)
    elif arguments.out:
        make(arguments.out)
    else:
        parser.error("give OUTDIR or --check")


if __name__ == "__main__":
    main()
