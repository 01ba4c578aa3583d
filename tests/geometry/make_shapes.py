#!/usr/bin/env python3
"""Small checkpoints of MiniMax-M1's architecture in unusual shapes, with the logits and greedy tokens of the numpy reference.

    python make_shapes.py OUTDIR        writes OUTDIR/SHAPE/ (checkpoint, prompts.json) and OUTDIR/SHAPE.expected (safetensors)

Head counts that are no power of two, several KV groups, rotation of every channel, top-1 and top-3, betas other than 1, no post norm,
one layer only: what the engine must not have hard-coded. Needs numpy only."""
import os
import sys

import numpy as np

from make_geometry import CONFIG, Reference, draw_weights, write_checkpoint, write_json, write_shard

LENGTHS = (1, 2, 65, 130)
DECODE = 5


def shape(kinds, hidden, heads, kv_heads, head_dim, rotary, inner, experts, top_k, vocab, alpha=2.0, beta=1.0, postnorm=True):
    parts = ("full_attention", "linear_attention", "mlp")
    return CONFIG | {
        "attn_type_list": kinds, "num_hidden_layers": len(kinds), "hidden_size": hidden, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "head_dim": head_dim, "rotary_dim": rotary, "intermediate_size": inner,
        "num_local_experts": experts, "num_experts_per_tok": top_k, "vocab_size": vocab, "postnorm": postnorm,
    } | {f"layernorm_{part}_alpha": alpha for part in parts} | {f"layernorm_{part}_beta": beta for part in parts}


SHAPES = {
    "odd-heads": shape([0, 1, 0, 0, 1], 48, 6, 3, 16, 8, 24, 5, 2, 130),
    "softmax-only": shape([1, 1, 1], 32, 12, 1, 8, 8, 20, 16, 1, 64, alpha=1.3, beta=0.7),
    "no-postnorm": shape([0, 0], 40, 4, 4, 12, 2, 16, 7, 3, 99, postnorm=False),
    "one-layer": shape([0], 16, 2, 1, 8, 4, 8, 4, 2, 50),
}


def make(out, config, seed):
    rng = np.random.default_rng(seed)
    weights = draw_weights(config, rng)
    for i in range(config["num_hidden_layers"]):
        gate = rng.standard_normal((config["num_local_experts"], config["hidden_size"]), dtype=np.float32)
        weights[f"model.layers.{i}.block_sparse_moe.gate.weight"] = gate * np.float32(3 / config["hidden_size"] ** 0.5)
    model, prompts, expected = Reference(config, weights), {}, {}
    for length in LENGTHS:
        ids = rng.integers(0, config["vocab_size"], length).tolist()
        state = model.new_state()
        logits, _ = model.forward(ids, state)
        tokens, last, rows = [], logits[-1:], []
        for _ in range(DECODE):
            tokens.append(int(last[0].argmax()))
            last, _ = model.forward(tokens[-1:], state)
            rows.append(last)
        name, rows = f"n{length}", np.concatenate(rows)
        prompts[name] = ids
        expected[f"{name}.logits"] = ("F32", logits.shape, logits.astype(np.float32).tobytes())
        expected[f"{name}.decode_tokens"] = ("I64", (DECODE,), np.array(tokens, np.int64).tobytes())
        expected[f"{name}.decode_logits"] = ("F32", rows.shape, rows.astype(np.float32).tobytes())
    os.makedirs(out, exist_ok=True)
    write_checkpoint(out, config, weights)
    write_json(os.path.join(out, "prompts.json"), prompts)
    # Not beside the shards: a folder of weights holds nothing else that ends so.
    write_shard(out + ".expected", expected)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    for seed, (name, config) in enumerate(SHAPES.items()):
        make(os.path.join(sys.argv[1], name), config, seed)
