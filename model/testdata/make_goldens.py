#!/usr/bin/env python3
"""Makes the tiny MiniMax-M1 checkpoints and the golden logits from Hugging Face transformers' MiniMaxForCausalLM.

    OMP_NUM_THREADS=1 python make_goldens.py [OUT]      # OUT: this script's folder; torch 2.13.0, transformers 5.23.0, CPU

Weights: seeded, rounded to bf16, saved as bf16 in the ORIGINAL checkpoint layout, in 2 shards + index.json.
Goldens: fp32, with rotation of only the first rotary_dim channels, which is M1's rule; transformers 5.23 ignores rotary_dim
(it rotates all head_dim channels), so its rotary embedding is patched here. The from-scratch forward in
ref_m1.py must agree with it before a golden file is written."""
import json, os, shutil, sys, tempfile
import torch
from safetensors.torch import save_file
import transformers
from transformers import MiniMaxConfig, MiniMaxForCausalLM
from transformers.models.minimax import modeling_minimax as mm

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import ref_m1
torch.set_num_threads(1); torch.manual_seed(0); transformers.logging.set_verbosity_error()
OUT = sys.argv[1] if len(sys.argv) > 1 else os.path.dirname(os.path.abspath(__file__))
AL = 3.5565588200778455
LENS, NDEC = [1, 7, 255, 256, 257, 700], 16

def orig_cfg(pattern, hidden, heads, kv, D, inter, experts, vocab, rotary):
    return dict(architectures=["MiniMaxM1ForCausalLM"], model_type="minimax_m1", attention_dropout=0.0, attn_type_list=pattern,
        bos_token_id=None, eos_token_id=None, head_dim=D, hidden_act="silu", hidden_size=hidden, initializer_range=0.02,
        intermediate_size=inter, layernorm_full_attention_alpha=AL, layernorm_full_attention_beta=1.0,
        layernorm_linear_attention_alpha=AL, layernorm_linear_attention_beta=1.0, layernorm_mlp_alpha=AL, layernorm_mlp_beta=1.0,
        max_position_embeddings=10240000, num_attention_heads=heads, num_experts_per_tok=2, num_hidden_layers=len(pattern),
        num_key_value_heads=kv, num_local_experts=experts, output_router_logits=False, postnorm=True, rms_norm_eps=1e-05,
        rope_theta=10000000, rotary_dim=rotary, router_aux_loss_coef=0.001, router_jitter_noise=0.0, shared_intermediate_size=0,
        shared_moe_mode="sigmoid", sliding_window=None, tie_word_embeddings=False, use_cache=True, vocab_size=vocab)

CFG = {  # A: hidden == heads*head_dim; B: hidden != heads*head_dim (as in M1: 6144 vs 64*128) and 32 experts
    "A": orig_cfg([0, 0, 0, 1, 0, 0, 0, 1], 128, 4, 2, 32, 32, 8, 320, 16),
    "B": orig_cfg([0, 0, 0, 1], 96, 4, 2, 32, 24, 32, 320, 16),
}

def make_weights(c, seed):
    g = torch.Generator().manual_seed(seed)
    H, I, V, N = c["hidden_size"], c["intermediate_size"], c["vocab_size"], c["num_attention_heads"] * c["head_dim"]
    KV = c["num_key_value_heads"] * c["head_dim"]
    R = lambda o, i, s=1.0: (torch.randn(o, i, generator=g) * (s / i ** 0.5)).bfloat16()
    nrm = lambda n: (1 + 0.3 * torch.randn(n, generator=g)).bfloat16()
    w = {"model.embed_tokens.weight": torch.randn(V, H, generator=g).bfloat16()}
    for i, t in enumerate(c["attn_type_list"]):
        p = f"model.layers.{i}."
        w[p + "input_layernorm.weight"], w[p + "post_attention_layernorm.weight"] = nrm(H), nrm(H)
        a = p + "self_attn."
        if t == 0:
            # layers 1, 5, ..: small q,k,v, so that the 1e-6 (not rms_norm_eps = 1e-5) of the norm after it shows up
            w[a + "qkv_proj.weight"] = R(3 * N, H, 1.5 if i % 4 != 1 else 0.2); w[a + "output_gate.weight"] = R(N, H, 1.5)
            w[a + "out_proj.weight"] = R(H, N, 2.0); w[a + "norm.weight"] = nrm(N)
        else:
            w[a + "q_proj.weight"], w[a + "k_proj.weight"] = R(N, H, 1.5), R(KV, H, 1.5)
            w[a + "v_proj.weight"], w[a + "o_proj.weight"] = R(KV, H, 2.0), R(H, N, 2.0)
        m = p + "block_sparse_moe."
        w[m + "gate.weight"] = R(c["num_local_experts"], H, 2.0)
        for e in range(c["num_local_experts"]):
            w[f"{m}experts.{e}.w1.weight"], w[f"{m}experts.{e}.w2.weight"], w[f"{m}experts.{e}.w3.weight"] = \
                R(I, H, 1.2), R(H, I, 1.5), R(I, H, 1.2)
    w["model.norm.weight"] = nrm(H); w["lm_head.weight"] = R(V, H, 3.0)
    return w

def save_orig(d, c, w):
    os.makedirs(d, exist_ok=True); json.dump(c, open(f"{d}/config.json", "w"), indent=1)
    names, half = sorted(w), len(w) // 2; wm = {}
    for k, part in enumerate([names[:half], names[half:]]):
        f = f"model-{k:05d}-of-00002.safetensors"          # the real repository numbers its shards from 00000
        save_file({n: w[n].contiguous() for n in part}, f"{d}/{f}", metadata={"format": "pt"}); wm.update({n: f for n in part})
    json.dump({"metadata": {"total_size": sum(t.numel() * t.element_size() for t in w.values())}, "weight_map": wm},
              open(f"{d}/model.safetensors.index.json", "w"), indent=0)

def hf_config(c):
    return MiniMaxConfig(vocab_size=c["vocab_size"], hidden_size=c["hidden_size"], intermediate_size=c["intermediate_size"],
        num_hidden_layers=c["num_hidden_layers"], num_attention_heads=c["num_attention_heads"],
        num_key_value_heads=c["num_key_value_heads"], head_dim=c["head_dim"], rms_norm_eps=c["rms_norm_eps"],
        max_position_embeddings=c["max_position_embeddings"], num_local_experts=c["num_local_experts"],
        num_experts_per_tok=c["num_experts_per_tok"], bos_token_id=None, eos_token_id=None,
        rope_parameters={"rope_type": "default", "rope_theta": float(c["rope_theta"])},
        layer_types=["full_attention" if t else "linear_attention" for t in c["attn_type_list"]],
        full_attn_alpha_factor=c["layernorm_full_attention_alpha"], full_attn_beta_factor=c["layernorm_full_attention_beta"],
        linear_attn_alpha_factor=c["layernorm_linear_attention_alpha"], linear_attn_beta_factor=c["layernorm_linear_attention_beta"],
        mlp_alpha_factor=c["layernorm_mlp_alpha"], mlp_beta_factor=c["layernorm_mlp_beta"])

_stock_rot = mm.apply_rotary_pos_emb
def set_rotary(dim):
    """Rotate only the first `dim` channels with a dim-wide frequency ladder (M1's rule)."""
    def params(config, **kw):
        return 1.0 / (config.rope_parameters["rope_theta"] ** (torch.arange(0, dim, 2, dtype=torch.float) / dim)), 1.0
    def rot(q, k, cos, sin, unsqueeze_dim=1):
        a, b = _stock_rot(q[..., :dim], k[..., :dim], cos, sin, unsqueeze_dim)
        return torch.cat([a, q[..., dim:]], -1), torch.cat([b, k[..., dim:]], -1)
    mm.apply_rotary_pos_emb, mm.MiniMaxRotaryEmbedding.compute_default_rope_parameters = rot, staticmethod(params)

def hf_load(src, c, dtype):
    """HF reads the original-layout shards itself (conversion mapping 'mixtral'), only config.json is swapped."""
    t = tempfile.mkdtemp()
    for f in os.listdir(src):
        if f.startswith("model"): os.symlink(os.path.abspath(f"{src}/{f}"), f"{t}/{f}")
    hc = hf_config(c); hc.architectures = ["MiniMaxForCausalLM"]; hc.save_pretrained(t)
    m, info = MiniMaxForCausalLM.from_pretrained(t, dtype=dtype, attn_implementation="eager", experts_implementation="eager",
                                                 output_loading_info=True)
    bad = [k for k in list(info["missing_keys"]) + list(info["unexpected_keys"]) if not any(b in k for b in ("slope_rate", "_decay"))]
    assert not bad, bad
    shutil.rmtree(t); return m.eval()

def prompt(n, vocab):
    x, o = 12345 + n, []
    for _ in range(n):
        x = (1103515245 * x + 12345) % (1 << 31); o.append((x >> 8) % vocab)
    return o

def sel(n):
    return sorted({p for p in (0, 1, 2, 6, 63, 64, 254, 255, 256, 511, 512, n - 2, n - 1) if 0 <= p < n})

@torch.no_grad()
def hf_run(m, ids):
    o = m(torch.tensor([ids]), use_cache=True); pre, kv, cur = o.logits[0].float(), o.past_key_values, o.logits[0, -1]
    toks, rows = [], []
    for i in range(NDEC):
        t = int(cur.argmax()); toks.append(t)       # explicit position: HF 5.23's MiniMaxCache.get_seq_length() says 0 here
        o = m(torch.tensor([[t]]), past_key_values=kv, use_cache=True, position_ids=torch.tensor([[len(ids) + i]]))
        cur = o.logits[0, -1]; rows.append(cur.float())
    if m.dtype == torch.float32:                    # cached decode must equal one uncached pass over prompt + tokens
        full = m(torch.tensor([ids + toks]), use_cache=False).logits[0, len(ids):]
        assert (full - torch.stack(rows)).abs().max() < 1e-4, (full - torch.stack(rows)).abs().max()
    return pre, toks, torch.stack(rows)

@torch.no_grad()
def check_against_reference(c, w, ids, pre, toks, rows):
    """The forward of ref_m1.py, fed the same tokens, gives the same logits to 1e-4."""
    r = ref_m1.Ref(c, w); st = r.new_state(); lo = r.forward(ids, st)
    dec = torch.stack([r.forward([t], st)[0] for t in toks])
    worst = max((lo - pre).abs().max().item(), (dec - rows).abs().max().item())
    assert worst <= 1e-4, worst

@torch.no_grad()
def trace(m, c, ids):
    """Layer by layer, of the 7-token prompt: hidden states, router logits, lightning states, rotated keys."""
    h = m(torch.tensor([ids]), output_hidden_states=True, output_router_logits=True)
    t = {f"p7.hidden.{i}": x[0].float().contiguous() for i, x in enumerate(h.hidden_states)}
    t |= {f"p7.router_logits.{i}": x.float().reshape(len(ids), -1).contiguous() for i, x in enumerate(h.router_logits)}
    o = m(torch.tensor([ids]), use_cache=True)
    for i, ty in enumerate(c["attn_type_list"]):
        if ty == 0: t[f"p7.state.{i}"] = o.past_key_values.linear_cache[i][0].detach().float().contiguous()
        else: t[f"p7.k.{i}"] = o.past_key_values.layers[i].keys[0].detach().float().contiguous()
    return t

if __name__ == "__main__":
    for name, c in CFG.items():
        d = f"{OUT}/tiny-{name}"; w = make_weights(c, 7 + ord(name)); save_orig(d, c, w)
        prompts = {n: prompt(n, c["vocab_size"]) for n in LENS}
        json.dump({str(n): p for n, p in prompts.items()}, open(f"{d}/prompts.json", "w"))
        set_rotary(c["rotary_dim"]); m = hf_load(d, c, torch.float32); t = {}
        for n in LENS:
            pre, toks, rows = hf_run(m, prompts[n]); s = sel(n)
            check_against_reference(c, w, prompts[n], pre, toks, rows)
            t |= {f"p{n}.positions": torch.tensor(s), f"p{n}.logits": pre[s].contiguous(),
                  f"p{n}.argmax": pre.argmax(-1).to(torch.int32), f"p{n}.decode_tokens": torch.tensor(toks, dtype=torch.int32),
                  f"p{n}.decode_logits": rows}
            if n == 7: t |= trace(m, c, prompts[n])
        f = f"{OUT}/golden-{name}-partial-fp32.safetensors"; save_file(t, f, metadata={"set": f"{name}-partial-fp32"})
        os.chmod(f, 0o644)                              # safetensors writes 0600
        print(name, os.path.getsize(f), {n: t[f"p{n}.decode_tokens"].tolist()[:6] for n in LENS}, flush=True)
