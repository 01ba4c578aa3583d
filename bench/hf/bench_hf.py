#!/usr/bin/env python3
"""Speed of Hugging Face transformers' MiniMaxForCausalLM on a CPU, in fp32, with the weights of a checkpoint of make_m355.py.

    python bench_hf.py DIR THREADS        -> one JSON line per measurement

Needs torch and transformers. That implementation rotates all channels of a head where MiniMax-M1 rotates the first half: its numbers
differ, its work does not."""
import json, os, sys, time

folder, threads = sys.argv[1], int(sys.argv[2])
os.environ["OMP_NUM_THREADS"] = str(threads)
import torch, transformers
from transformers import MiniMaxConfig, MiniMaxForCausalLM

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
torch.set_num_threads(threads)
torch.set_grad_enabled(False)
PROMPT, STEPS, WARM = 64, 32, 4  # as worker/cpu/examples/speed.rs

c = json.load(open(f"{folder}/config.json"))
config = MiniMaxConfig(
    vocab_size=c["vocab_size"], hidden_size=c["hidden_size"], intermediate_size=c["intermediate_size"], num_hidden_layers=c["num_hidden_layers"],
    num_attention_heads=c["num_attention_heads"], num_key_value_heads=c["num_key_value_heads"], head_dim=c["head_dim"],
    num_local_experts=c["num_local_experts"], num_experts_per_tok=c["num_experts_per_tok"], rms_norm_eps=c["rms_norm_eps"],
    max_position_embeddings=c["max_position_embeddings"], rope_parameters={"rope_type": "default", "rope_theta": float(c["rope_theta"])},
    bos_token_id=None, eos_token_id=None, layer_types=["full_attention" if kind else "linear_attention" for kind in c["attn_type_list"]],
    full_attn_alpha_factor=c["layernorm_full_attention_alpha"], linear_attn_alpha_factor=c["layernorm_linear_attention_alpha"],
    mlp_alpha_factor=c["layernorm_mlp_alpha"])
model, report = MiniMaxForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32, output_loading_info=True)
# The checkpoint lacks what that implementation derives from the configuration and keeps in buffers; a fresh model has it.
fresh = dict(MiniMaxForCausalLM(config).named_buffers())
assert not set(report["missing_keys"]) - set(fresh) and not report["unexpected_keys"], report
for name, buffer in model.named_buffers():
    buffer.copy_(fresh[name])
del fresh
model = model.eval()
model.set_attn_implementation("sdpa")


def out(**figures):
    print(json.dumps(figures), flush=True)


def ids(batch, tokens):
    return torch.randint(0, config.vocab_size - 1000, (batch, tokens))


def prefill(tokens):
    best = 1e9
    for _ in range(2):
        start = time.perf_counter()
        model(ids(1, tokens), use_cache=True, logits_to_keep=1)
        best = min(best, time.perf_counter() - start)
    out(what=f"prefill {tokens}", tokens_per_second=tokens / best)


def decode(batch):
    answer = model(ids(batch, PROMPT), use_cache=True, logits_to_keep=1)
    for step in range(STEPS + WARM):
        if step == WARM:
            start = time.perf_counter()
        answer = model(ids(batch, 1), past_key_values=answer.past_key_values, use_cache=True,
                       position_ids=torch.full((batch, 1), PROMPT + step))
        answer.logits[:, -1].argmax(-1)
    out(what=f"decode batch {batch}", tokens_per_second=batch * STEPS / (time.perf_counter() - start))


for batch in (1, 8):
    decode(batch)
for tokens in (512, 4096):
    prefill(tokens)
