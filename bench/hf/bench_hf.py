#!/usr/bin/env python3
"""Speed of Hugging Face transformers' MiniMaxForCausalLM on a CPU, on a random model of 355 M parameters.
   python bench_hf.py <threads> <fp32|bf16> [experts impl]   -> one JSON line per measurement"""
import json, sys, time, os
T = int(sys.argv[1]); DT = sys.argv[2]; EX = sys.argv[3] if len(sys.argv) > 3 else "eager"
os.environ["OMP_NUM_THREADS"] = str(T)
import torch, transformers
from transformers import MiniMaxConfig, MiniMaxForCausalLM
transformers.logging.set_verbosity_error(); torch.set_num_threads(T); torch.manual_seed(0); torch.set_grad_enabled(False)
L = 16; AL = 3.5565588200778455
c = MiniMaxConfig(vocab_size=32000, hidden_size=512, intermediate_size=384, num_hidden_layers=L, num_attention_heads=8,
    num_key_value_heads=2, head_dim=64, num_local_experts=32, num_experts_per_tok=2, rms_norm_eps=1e-5, max_position_embeddings=1 << 20,
    rope_parameters={"rope_type": "default", "rope_theta": 1e7}, bos_token_id=None, eos_token_id=None,
    layer_types=["full_attention" if i % 8 == 7 else "linear_attention" for i in range(L)],
    full_attn_alpha_factor=AL, linear_attn_alpha_factor=AL, mlp_alpha_factor=AL)
torch.set_default_dtype({"fp32": torch.float32, "bf16": torch.bfloat16}[DT])
m = MiniMaxForCausalLM(c).eval(); m.set_attn_implementation("sdpa"); m.set_experts_implementation(EX)
P = sum(p.numel() for p in m.parameters())
act = P - L * (32 - 2) * 3 * 512 * 384 - 32000 * 512
base = dict(threads=T, dtype=DT, experts=EX, params_M=round(P / 1e6, 1), active_M=round(act / 1e6, 1), torch=torch.__version__)
def out(**k): print(json.dumps(base | k), flush=True)
def prefill(n, b=1):
    ids = torch.randint(0, 32000, (b, n)); m(ids[:, :64], use_cache=True); ts = []
    for _ in range(3 if n < 1000 else 2):
        t = time.perf_counter(); o = m(ids, use_cache=True, logits_to_keep=1); ts.append(time.perf_counter() - t)
    return min(ts), o
def decode(b, n0=512, steps=32):
    _, o = prefill(n0, b); kv = o.past_key_values; x = o.logits[:, -1:].argmax(-1); ts = []
    for i in range(steps):
        t = time.perf_counter()
        o = m(x, past_key_values=kv, use_cache=True, position_ids=torch.full((b, 1), n0 + i)); x = o.logits[:, -1:].argmax(-1)
        ts.append(time.perf_counter() - t)
    ts = sorted(ts[4:]); return ts[len(ts) // 2]
for n in (512, 4096):
    s, _ = prefill(n); out(kind="prefill", tokens=n, sec=round(s, 3), tok_s=round(n / s, 1))
for b in (1, 8):
    s = decode(b); out(kind="decode", batch=b, ms_per_step=round(s * 1e3, 2), tok_s=round(b / s, 2))
