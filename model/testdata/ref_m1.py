#!/usr/bin/env python3
"""From-scratch reference forward of MiniMax-M1 / MiniMax-Text-01 (own code, plain torch ops).  Reads the ORIGINAL
checkpoint layout (block_sparse_moe.experts.E.w1/w2/w3) and the ORIGINAL config.json.

  lightning modes: "block" (any block size), "recurrent" (token by token), "dense" (n x n decay matrix) - must agree
  precision:  act   dtype of activations/weights used in matmuls (fp32 / bf16)
              lin32 keep q,k,v of lightning attention in fp32 after SiLU and its state in fp32 (what vLLM does)
              head32 fp32 lm_head (what vLLM >= 0.9.2 and MiniMax's RL stack do);  router32 fp32 router matmul
"""
import glob, json, math, os
import torch
from safetensors import safe_open

F = torch.nn.functional


def load(path):
    """-> (config dict, {name: tensor}) from a directory with config.json + *.safetensors (+ index)."""
    cfg = json.load(open(os.path.join(path, "config.json")))
    w = {}
    for f in sorted(glob.glob(os.path.join(path, "*.safetensors"))):
        with safe_open(f, "pt") as s:
            w.update({k: s.get_tensor(k) for k in s.keys()})
    return cfg, w


def head_slopes(n):
    """ALiBi slopes of n heads: 2^(-8/n), 2^(-16/n), ... ; non powers of two take the odd entries of the next power."""
    p = 2 ** math.floor(math.log2(n))
    s = [2.0 ** (-8.0 * (i + 1) / p) for i in range(p)]
    return s + [2.0 ** (-8.0 * (i + 1) / (2 * p)) for i in range(0, 2 * p, 2)][: n - p] if p != n else s


def layer_slopes(cfg, i, variant="orig"):
    L = cfg["num_hidden_layers"]
    f = (1 - i / (L - 1) + 1e-5) if variant == "orig" else (1 - i / (L - 1 + 1e-5) + 1e-5)  # 2nd: HF transformers
    return torch.tensor(head_slopes(cfg["num_attention_heads"]), dtype=torch.float32) * f


def rms(x, w, eps):
    y = x.float()
    y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + eps)
    return w * y.to(x.dtype)


def rope(x, pos, dim, theta):
    """x [h, n, D]; rotate-half on the FIRST `dim` of D channels, the rest pass through. cos/sin and products in fp32."""
    inv = 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    a = pos.float()[:, None] * inv[None]
    c, s = torch.cat([a, a], -1).cos(), torch.cat([a, a], -1).sin()
    r, p = x[..., :dim].float(), x[..., dim:]
    half = torch.cat([-r[..., dim // 2:], r[..., : dim // 2]], -1)
    return torch.cat([(r * c + half * s).to(x.dtype), p], -1)


def lightning(q, k, v, slope, S, mode="block", B=256):
    """q,k,v [h,n,d]; slope [h]; S [h,d,e] fp32 (axis 1 = key channel, axis 2 = value channel). No 1/sqrt(d), no softmax.
    o_t = q_t . S_t,   S_t = exp(-slope) S_{t-1} + k_t^T v_t      -> o [h,n,e] fp32, S [h,d,e] fp32"""
    s = slope[:, None, None]
    q, k, v = q.float(), k.float(), v.float()
    n = q.shape[1]
    if mode == "recurrent":
        out, r = [], torch.exp(-s)
        for t in range(n):
            S = r * S + k[:, t, :, None] * v[:, t, None, :]
            out.append((q[:, t, None, :] @ S)[:, 0])
        return torch.stack(out, 1), S
    if mode == "dense":
        B = n
    out = []
    for a in range(0, n, B):
        qb, kb, vb = q[:, a:a + B], k[:, a:a + B], v[:, a:a + B]
        m = qb.shape[1]
        j = torch.arange(1, m + 1, dtype=torch.float32)
        d = j[:, None] - j[None, :]
        D = torch.where(d >= 0, torch.exp(-s * d.clamp(min=0)), torch.zeros(()))          # [h,m,m]
        o = (qb * torch.exp(-s * j[:, None])) @ S + ((qb @ kb.transpose(1, 2)) * D) @ vb
        S = torch.exp(-s * m) * S + (kb * torch.exp(-s * (m - j[:, None]))).transpose(1, 2) @ vb
        out.append(o)
    return torch.cat(out, 1), S


class Ref:
    def __init__(self, cfg, w, act=torch.float32, mode="block", block=256, rotary_dim=None, slope_variant="orig",
                 lin_eps=1e-6, lin32=True, head32=False, router32=False):
        self.c, self.act, self.mode, self.block = cfg, act, mode, block
        self.w = {k: t.to(act) for k, t in w.items()}
        self.D = cfg["head_dim"]; self.H = cfg["num_attention_heads"]; self.G = cfg["num_key_value_heads"]
        self.rd = rotary_dim or cfg.get("rotary_dim", self.D)
        self.sv, self.lin_eps, self.lin32, self.head32, self.router32 = slope_variant, lin_eps, lin32, head32, router32
        self.trace = None

    def new_state(self):
        """per layer: lightning -> fp32 [H,D,D];  softmax -> (K,V) each [G,n,D]"""
        return dict(pos=0, layers=[torch.zeros(self.H, self.D, self.D) if t == 0 else
                                   (torch.zeros(self.G, 0, self.D, dtype=self.act),) * 2 for t in self.c["attn_type_list"]])

    def forward(self, ids, st):
        c, w = self.c, self.w
        x = w["model.embed_tokens.weight"][torch.as_tensor(ids)]
        pos = torch.arange(st["pos"], st["pos"] + len(x))
        for i, typ in enumerate(c["attn_type_list"]):
            p = f"model.layers.{i}."
            h = rms(x, w[p + "input_layernorm.weight"], c["rms_norm_eps"])
            a, st["layers"][i] = (self.lin if typ == 0 else self.full)(i, h, pos, st["layers"][i])
            kind = "linear" if typ == 0 else "full"
            res = h if c["postnorm"] else x                      # postnorm=True: the residual is the NORMED input
            x = res * c[f"layernorm_{kind}_attention_alpha"] + a * c[f"layernorm_{kind}_attention_beta"]
            h = rms(x, w[p + "post_attention_layernorm.weight"], c["rms_norm_eps"])
            res = h if c["postnorm"] else x
            x = res * c["layernorm_mlp_alpha"] + self.moe(i, h) * c["layernorm_mlp_beta"]
            if self.trace is not None:
                self.trace.append(x)
        st["pos"] += len(x)
        x = rms(x, w["model.norm.weight"], c["rms_norm_eps"])
        W = w["lm_head.weight"]
        return x.float() @ W.float().T if self.head32 else (x @ W.T).float()

    def lin(self, i, h, pos, S):
        w, p, n = self.w, f"model.layers.{i}.self_attn.", len(h)
        u = h @ w[p + "qkv_proj.weight"].T
        u = F.silu(u.float()) if self.lin32 else F.silu(u).float()
        u = u.view(n, self.H, 3 * self.D)                        # per HEAD: [q | k | v], i.e. rows head-major then q,k,v
        q, k, v = (t.transpose(0, 1) for t in u.split(self.D, -1))
        o, S = lightning(q, k, v, layer_slopes(self.c, i, self.sv), S, self.mode if n > 1 else "recurrent", self.block)
        o = o.transpose(0, 1).reshape(n, self.H * self.D).to(torch.float32 if self.lin32 else self.act)
        o = rms(o, w[p + "norm.weight"], self.lin_eps)           # ONE RMSNorm over all H*D channels (needs a TP reduction)
        o = (torch.sigmoid(h @ w[p + "output_gate.weight"].T) * o).to(self.act)
        return o @ w[p + "out_proj.weight"].T, S

    def full(self, i, h, pos, kv):
        w, p, n, D = self.w, f"model.layers.{i}.self_attn.", len(h), self.D
        q, k, v = ((h @ w[p + f"{t}_proj.weight"].T).view(n, -1, D).transpose(0, 1) for t in "qkv")
        q, k = (rope(t, pos, self.rd, float(self.c["rope_theta"])) for t in (q, k))
        K, V = torch.cat([kv[0], k], 1), torch.cat([kv[1], v], 1)
        g = self.H // self.G
        s = (q @ K.repeat_interleave(g, 0).transpose(1, 2)).float() / math.sqrt(D)
        s = s.masked_fill(torch.arange(K.shape[1])[None, None] > pos[None, :, None], float("-inf"))
        o = torch.softmax(s, -1).to(self.act) @ V.repeat_interleave(g, 0)
        return o.transpose(0, 1).reshape(n, self.H * D) @ w[p + "o_proj.weight"].T, (K, V)

    def moe(self, i, h):
        w, p, K = self.w, f"model.layers.{i}.block_sparse_moe.", self.c["num_experts_per_tok"]
        g = w[p + "gate.weight"]
        lo = h.float() @ g.float().T if self.router32 else (h @ g.T).float()
        pr = torch.softmax(lo, -1)                               # softmax over ALL experts, then top-k, then renormalise
        tv, ti = pr.topk(K, -1)
        tv = (tv / tv.sum(-1, keepdim=True)).to(h.dtype)
        if self.trace is not None:
            s = pr.sort(-1, descending=True).values
            self.trace.append((ti, (s[:, K - 1] - s[:, K])))
        y = torch.zeros_like(h)
        for e in ti.unique().tolist():
            t, k = torch.where(ti == e)
            u = h[t]
            u = F.silu(u @ w[f"{p}experts.{e}.w1.weight"].T) * (u @ w[f"{p}experts.{e}.w3.weight"].T)
            y.index_add_(0, t, (u @ w[f"{p}experts.{e}.w2.weight"].T) * tv[t, k, None])
        return y


def greedy(m, ids, n):
    """prefill ids, then n greedy steps -> (prefill logits [len,V], tokens [n], logits after each token [n,V])"""
    st = m.new_state(); lo = m.forward(ids, st); toks, rows = [], []
    cur = lo[-1]
    for _ in range(n):
        t = int(cur.argmax()); toks.append(t); cur = m.forward([t], st)[0]; rows.append(cur)
    return lo, toks, torch.stack(rows), st
