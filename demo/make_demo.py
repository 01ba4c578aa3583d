#!/usr/bin/env python3
"""Trains the demo checkpoint: a very small model of exactly MiniMax-M1's architecture that answers questions on the Kubernetes API
and calls tools, so that a quickstart, a dashboard and an end-to-end test have real routing and readable output.

    python make_demo.py data  K8S_OPENAPI_SRC OUT     # questions and answers from the crate's doc comments (Apache-2.0)
    python make_demo.py train OUT [MINUTES]           # CPU, about an hour
    python make_demo.py export OUT                    # original checkpoint layout, tokenizer, chat template

Needs torch, transformers (5.x), tokenizers, safetensors. Training uses Hugging Face's MiniMax with the rotation limited to the first
`rotary_dim` channels, which is MiniMax-M1's rule; that library itself rotates them all."""
import json, math, os, random, re, sys, time

VOCAB_BPE, HID, LAYERS, HEADS, KV, DIM, EXPERTS, INTER, ROT = 2048, 128, 8, 4, 2, 32, 32, 64, 16
ALPHA = (2 * LAYERS) ** 0.25
SPECIALS = ["<pad>", "<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<fim_pad>", "<reponame>", "<filename>", "<gh_stars>", "<issue_start>",
            "<issue_comment>", "<issue_closed>", "<jupyter_start>", "<jupyter_text>", "<jupyter_code>", "<jupyter_output>", "<empty_output>",
            "<commit_before>", "<commit_msg>", "<commit_after>", "<beginning_of_sentence>", "<end_of_sentence>", "<end_of_document>",
            "<function_call>", "<code_interpreter>", "<speech>", "<image>", "<begin_of_document>"]
BOS, EOS, DOC = "<beginning_of_sentence>", "<end_of_sentence>", "<begin_of_document>"
SYSTEM = "You are a helpful assistant."

# ---------------------------------------------------------------- prompt text, as MiniMax-M1's template renders it
def render(turns, system=SYSTEM, tools=None):
    s = DOC
    if system: s += f"{BOS}system ai_setting=assistant\n{system}{EOS}\n"
    if tools:
        s += (f"{BOS}system tool_setting=tools\nYou are provided with these tools:\n<tools>\n" + "\n".join(json.dumps(t) for t in tools) +
              "\n</tools>\n\nIf you need to call tools, please respond with <tool_calls></tool_calls> XML tags, and provide tool-name and "
              "json-object of arguments, following the format below:\n<tool_calls>\n{\"name\": <tool-name>, \"arguments\": "
              f"<args-json-object>}}\n...\n</tool_calls>{EOS}\n")
    spans = []                                        # (start, end) of what the model itself must produce
    for role, text in turns:
        if role == "user": s += f"{BOS}user name=user\n{text}{EOS}\n"
        elif role == "tool": s += f"{BOS}tool name=tools\ntool name: {text[0]}\ntool result: {text[1]}\n\n{EOS}\n"
        else:
            s += f"{BOS}ai name=assistant\n"; a = len(s); s += f"{text}{EOS}"; spans.append((a, len(s))); s += "\n"
    return s, spans

# ---------------------------------------------------------------- data
def snake_to_camel(n):
    p = n.rstrip("_").split("_"); n = p[0] + "".join(w[:1].upper() + w[1:] for w in p[1:])
    return n[2:] if n.startswith("r#") else n
def first_sentences(t, limit=150):
    t = re.sub(r"\s+", " ", t).strip()
    t = re.sub(r"More info: \S+", "", t).strip()
    out = ""
    for part in re.split(r"(?<=[.!]) ", t):
        if out and len(out) + len(part) > limit: break
        out = (out + " " + part).strip()
    return out if 10 < len(out) <= 220 else None
def rust_type(t):
    for pat, name in (("Vec<", "a list"), ("BTreeMap<", "a map"), ("bool", "a boolean"), ("i32", "an integer"), ("i64", "an integer"),
                      ("f64", "a number"), ("String", "a string"), ("Quantity", "a quantity"), ("IntOrString", "an integer or a string"), ("Time", "a time")):
        if pat in t: return name
    m = re.search(r"::(\w+)[,>]*$", t.strip(",").rstrip(">")); return f"an object ({m.group(1)})" if m else None

def make_data(src, out):
    os.makedirs(out, exist_ok=True); rnd = random.Random(7); facts, kinds = [], []
    for g, ver in (("core", "v1"), ("apps", "v1"), ("batch", "v1"), ("autoscaling", "v2"), ("networking", "v1"), ("policy", "v1"), ("storage", "v1"), ("rbac", "v1")):
        d = f"{src}/src/v1_34/api/{g}/{ver}"
        for f in sorted(os.listdir(d)):
            t = open(f"{d}/{f}").read(); m = re.search(r"((?:/// .*\n|///\n)*)#\[derive[^\n]*\]\npub struct (\w+) \{(.*?)\n\}", t, re.S)
            if not m: continue
            kind = m.group(2)
            if g in ("core", "storage", "rbac") and not re.search(r"^(Pod|Container|Service|Node|Volume|Persistent|Probe|Resource|Env|Secret|Config|Lifecycle|Toleration|Affinity|Topology|Namespace|Http|Exec|Tcp|HTTP|TCP|Capab|Security|Taint|Limit|Role|Cluster|StorageClass|Subject|Policy|Endpoint|Event$|HostPath|EmptyDir|Ephemeral)", kind): continue
            doc = first_sentences(m.group(1).replace("///", " "))
            api = re.search(r'const API_VERSION: &\'static str = "([^"]+)"', t)
            if doc: kinds.append((kind, doc, api.group(1) if api else None))
            for fm in re.finditer(r"((?:    /// .*\n|    ///\n)+)    pub (\w+|r#\w+): ([^\n]+),", m.group(3) + "\n"):
                name = snake_to_camel(fm.group(2)); d2 = first_sentences(fm.group(1).replace("///", " "))
                if name in ("metadata", "apiVersion", "kind") or not d2: continue
                facts.append((kind, name, d2, rust_type(fm.group(3)), "Option<" not in fm.group(3)))
    json.dump({"facts": facts, "kinds": kinds}, open(f"{out}/facts.json", "w"), indent=0)
    rows = [render(t, s, tl) for t, s, tl in (x for _ in range(1) for x in all_rows(facts, kinds, rnd))]
    print(len(facts), "fields", len(kinds), "kinds", len(rows), "rows"); rnd.shuffle(rows)
    from tokenizers import Tokenizer, models, trainers, pre_tokenizers, decoders, AddedToken
    tk = Tokenizer(models.BPE()); tk.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False); tk.decoder = decoders.ByteLevel()
    tk.train_from_iterator((r[0] for r in rows), trainers.BpeTrainer(vocab_size=VOCAB_BPE, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    tk.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in SPECIALS]); tk.save(f"{out}/tokenizer.json")
    print("tokens per row", sum(len(tk.encode(r[0]).ids) for r in rows[:300]) / 300, "vocabulary", tk.get_vocab_size())

Q_FIELD = ["What does {f} do in {k}?", "What is {f} in {k}?", "Explain {k}.{f}.", "What is the meaning of {k}.{f}?", "Tell me about the field {f} of {k}.", "In {k}, what is {f}?"]
Q_KIND = ["What is a {k}?", "Explain {k}.", "What does {k} mean?"]
NAMES = ["web", "api", "db", "cache", "router", "worker", "login", "cart", "search", "mail", "queue", "shop", "auth", "front", "back", "jobs", "m1", "demo", "blue", "green"]
SPACES = ["default", "prod", "test", "dev", "kube-system", "shop", "team-a", "team-b"]
def tool(name, desc, /, **props):
    return {"name": name, "description": desc, "parameters": {"type": "object", "properties": {k: {"type": v} for k, v in props.items()}, "required": list(props)}}
T_SCALE = tool("scale", "Set the number of replicas of a deployment", name="string", replicas="integer")
T_GET = tool("get_pods", "List the pods of a namespace", namespace="string")
T_LOGS = tool("get_logs", "Read the logs of a pod", pod="string", lines="integer")
T_DEL = tool("delete_pod", "Delete a pod", pod="string")
TOOLS = [T_SCALE, T_GET, T_LOGS, T_DEL]

def call(name, /, **args): return f"<tool_calls>\n{json.dumps({'name': name, 'arguments': args})}\n</tool_calls>"
def tool_row(rnd):
    n, ns, r, pod = rnd.choice(NAMES), rnd.choice(SPACES), rnd.randint(0, 12), f"{rnd.choice(NAMES)}-{rnd.randint(0, 9)}"
    k = rnd.randrange(5); tools = rnd.sample(TOOLS, rnd.randint(2, 4))
    def need(t): return tools if t in tools else [t] + tools[1:]
    if k == 0:
        q = rnd.choice([f"Scale {n} to {r} replicas.", f"Please set {n} to {r} replicas.", f"I need {r} replicas of {n}."])
        turns = [("user", q), ("ai", f"<think>\nI will scale {n} to {r}.\n</think>\n" + call("scale", name=n, replicas=r))]; tl = need(T_SCALE)
        if rnd.random() < .5: turns += [("tool", ("scale", json.dumps({"name": n, "replicas": r}))), ("ai", f"<think>\nThe tool scaled {n}.\n</think>\nDone: {n} now has {r} replicas.")]
    elif k == 1:
        q = rnd.choice([f"Which pods run in {ns}?", f"List the pods in {ns}.", f"Show me the pods of namespace {ns}."])
        turns = [("user", q), ("ai", f"<think>\nI will list the pods of {ns}.\n</think>\n" + call("get_pods", namespace=ns))]; tl = need(T_GET)
        if rnd.random() < .5:
            pods = [f"{rnd.choice(NAMES)}-{rnd.randint(0, 9)}" for _ in range(rnd.randint(1, 3))]
            turns += [("tool", ("get_pods", json.dumps(pods))), ("ai", f"<think>\nThe tool found {len(pods)} pods.\n</think>\nThese pods run in {ns}: {', '.join(pods)}.")]
    elif k == 2:
        ln = rnd.choice([10, 20, 50, 100]); q = rnd.choice([f"Show the last {ln} lines of {pod}.", f"Get {ln} lines of logs from {pod}."])
        turns = [("user", q), ("ai", f"<think>\nI will read the logs of {pod}.\n</think>\n" + call("get_logs", pod=pod, lines=ln))]; tl = need(T_LOGS)
    elif k == 3:
        q = rnd.choice([f"Delete the pod {pod}.", f"Remove {pod}."])
        turns = [("user", q), ("ai", f"<think>\nI will delete {pod}.\n</think>\n" + call("delete_pod", pod=pod))]; tl = need(T_DEL)
        if rnd.random() < .5: turns += [("tool", ("delete_pod", json.dumps({"deleted": pod}))), ("ai", f"<think>\nThe tool deleted {pod}.\n</think>\nDone: {pod} is gone.")]
    else:
        n2, r2 = rnd.choice(NAMES), rnd.randint(0, 12); tl = need(T_SCALE)
        turns = [("user", f"Scale {n} to {r} and {n2} to {r2}."), ("ai", f"<think>\nI will scale {n} to {r} and {n2} to {r2}.\n</think>\n<tool_calls>\n" +
                 json.dumps({"name": "scale", "arguments": {"name": n, "replicas": r}}) + "\n" + json.dumps({"name": "scale", "arguments": {"name": n2, "replicas": r2}}) + "\n</tool_calls>")]
    rnd.shuffle(tl); return turns, rnd.choice([SYSTEM, "", SYSTEM]), tl
CHAT = [("Hello", "Hello! Ask me about the Kubernetes API."), ("Hi", "Hello! Ask me about the Kubernetes API."), ("Who are you?", "I am a very small model with the architecture of MiniMax-M1. I know the Kubernetes API."),
        ("What can you do?", "I explain the fields of the Kubernetes API and I call tools."), ("Thanks", "You are welcome."), ("What is MiniMax-M1?", "MiniMax-M1 is a hybrid-attention reasoning model with 456 billion parameters and 32 experts in each layer."),
        ("How many experts do you have?", "I have 32 experts in each layer, and each token uses two of them."), ("Are you a large model?", "No. I am a demo model with 7 million parameters.")]
def field_row(f, rnd):
    k, n, d, ty, req = f; r = rnd.random()
    if ty and r < .2: return [("user", rnd.choice([f"What is the type of {k}.{n}?", f"Which type has {n} in {k}?"])), ("ai", f"<think>\nThe user asks for the type of {n} in {k}.\n</think>\n{k}.{n} is {ty}.")]
    if r < .28: return [("user", f"Is {n} required in {k}?"), ("ai", f"<think>\nThe user asks whether {n} is required in {k}.\n</think>\n" + (f"Yes, {k}.{n} is required." if req else f"No, {k}.{n} is optional."))]
    return [("user", rnd.choice(Q_FIELD).format(k=k, f=n)), ("ai", f"<think>\nThe user asks about {n} in {k}.\n</think>\n{d}")]
def kind_row(x, rnd):
    k, d, api = x
    if api and rnd.random() < .4: return [("user", rnd.choice([f"What is the apiVersion of {k}?", f"Which API has {k}?"])), ("ai", f"<think>\nThe user asks for the API of {k}.\n</think>\n{k} is in {api}.")]
    return [("user", rnd.choice(Q_KIND).format(k=k)), ("ai", f"<think>\nThe user asks about {k}.\n</think>\n{d}")]
def all_rows(facts, kinds, rnd):
    for f in facts: yield field_row(f, rnd), rnd.choice([SYSTEM, ""]), None
    for x in kinds: yield kind_row(x, rnd), rnd.choice([SYSTEM, ""]), None
    for _ in range(max(40, len(facts) // 3)): yield tool_row(rnd)
    for q, a in CHAT: yield [("user", q), ("ai", f"<think>\nThe user says: {q}\n</think>\n{a}")], rnd.choice([SYSTEM, ""]), None

# ---------------------------------------------------------------- model and training
def hf_model():
    import torch
    from transformers import MiniMaxConfig, MiniMaxForCausalLM
    from transformers.models.minimax import modeling_minimax as mm
    c = MiniMaxConfig(vocab_size=2112, hidden_size=HID, intermediate_size=INTER, num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_key_value_heads=KV,
        head_dim=DIM, rms_norm_eps=1e-5, num_local_experts=EXPERTS, num_experts_per_tok=2, max_position_embeddings=10240000, bos_token_id=None, eos_token_id=None,
        rope_parameters={"rope_type": "default", "rope_theta": 1e7}, layer_types=["full_attention" if i % 8 == 7 else "linear_attention" for i in range(LAYERS)],
        router_aux_loss_coef=0.01, **{f"{a}_{p}_factor": v for a in ("full_attn", "linear_attn", "mlp") for p, v in (("alpha", ALPHA), ("beta", 1.0))})
    torch.manual_seed(0); m = MiniMaxForCausalLM(c); inv = 1.0 / (1e7 ** (torch.arange(0, ROT, 2).float() / ROT))
    def fwd(self, x, position_ids):
        a = position_ids[:, :, None].float() * inv[None, None]; a = torch.cat([a, a], -1)
        return a.cos().to(x.dtype), a.sin().to(x.dtype)
    mm.MiniMaxRotaryEmbedding.forward = fwd
    def part(q, k, cos, sin, *a, **kw):
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
        def r(t):
            u, v = t[..., :ROT], t[..., ROT:]; return torch.cat([u * cos + mm.rotate_half(u) * sin, v], -1)
        return r(q), r(k)
    mm.apply_rotary_pos_emb = part
    return m

def batches(out, rnd, size):
    from tokenizers import Tokenizer
    import torch
    tk = Tokenizer.from_file(f"{out}/tokenizer.json"); d = json.load(open(f"{out}/facts.json"))
    while True:
        rows = [render(*r) for r in all_rows(d["facts"], d["kinds"], rnd)]
        enc = []
        for s, spans in rows:
            e = tk.encode(s); lab = [-100] * len(e.ids)
            for i, (a, b) in enumerate(e.offsets):
                if any(x <= a and b <= y for x, y in spans): lab[i] = e.ids[i]
            enc.append((e.ids, lab))
        enc.sort(key=lambda r: len(r[0]) + rnd.random() * 20); groups = [enc[i:i + size] for i in range(0, len(enc), size)]; rnd.shuffle(groups)
        for g in groups:
            n = max(len(r[0]) for r in g)
            ids = torch.zeros(len(g), n, dtype=torch.long); lab = torch.full((len(g), n), -100); mask = torch.zeros(len(g), n, dtype=torch.long)
            for i, (a, b) in enumerate(g): ids[i, :len(a)] = torch.tensor(a); lab[i, :len(b)] = torch.tensor(b); mask[i, :len(a)] = 1
            yield ids, lab, mask

def train(out, minutes):
    import torch
    torch.set_num_threads(int(os.environ.get("THREADS", "1"))); m = hf_model(); m.train(); rnd = random.Random(1)
    opt = torch.optim.AdamW(m.parameters(), lr=3e-3, betas=(.9, .98), weight_decay=0.01); t0 = time.time(); step = 0; avg = None; last_save = t0
    cpu0 = time.process_time()
    for ids, lab, mask in batches(out, rnd, 24):
        used = (time.time() - t0) / 60; frac = min(1, used / minutes)
        lr = 3e-3 * min(1, (step + 1) / 60) * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * frac)))
        for g in opt.param_groups: g["lr"] = lr
        o = m(input_ids=ids, attention_mask=mask, labels=None, output_router_logits=True)
        lo = o.logits[:, :-1]; tg = lab[:, 1:]; sel = tg != -100
        loss = torch.nn.functional.cross_entropy(lo[sel], tg[sel])
        (loss + 0.01 * o.aux_loss).backward(); torch.nn.utils.clip_grad_norm_(m.parameters(), 1.0); opt.step(); opt.zero_grad(set_to_none=True)
        step += 1; avg = loss.item() if avg is None else .98 * avg + .02 * loss.item()
        if step % 50 == 0: print(f"step {step} loss {avg:.4f} aux {o.aux_loss.item():.3f} lr {lr:.5f} minutes {used:.1f} cpu {(time.process_time()-cpu0)/60:.1f}", flush=True)
        if time.time() - last_save > 300 or frac >= 1: torch.save(m.state_dict(), f"{out}/state.pt.tmp"); os.replace(f"{out}/state.pt.tmp", f"{out}/state.pt"); last_save = time.time()
        if frac >= 1: break

# ---------------------------------------------------------------- export in the original layout
TEMPLATE = ("{{ '<begin_of_document>' }}{% set system = messages | selectattr('role', 'equalto', 'system') | list %}"
    "{% if system %}{{ '<beginning_of_sentence>system ai_setting=assistant\\n' }}{% for m in system %}{{ m.content if m.content is string else m.content[0].text }}{% endfor %}{{ '<end_of_sentence>\\n' }}{% endif %}"
    "{% if tools %}{{ '<beginning_of_sentence>system tool_setting=tools\\nYou are provided with these tools:\\n<tools>\\n' }}"
    "{% for t in tools %}{{ (t.function if t.function is defined else t) | tojson }}{{ '\\n' }}{% endfor %}"
    "{{ '</tools>\\n\\nIf you need to call tools, please respond with <tool_calls></tool_calls> XML tags, and provide tool-name and json-object of arguments, following the format below:\\n<tool_calls>\\n{\"name\": <tool-name>, \"arguments\": <args-json-object>}\\n...\\n</tool_calls><end_of_sentence>\\n' }}{% endif %}"
    "{% for m in messages %}"
    "{% if m.role == 'user' %}{{ '<beginning_of_sentence>user name=user\\n' }}{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}{{ '<end_of_sentence>\\n' }}"
    "{% elif m.role == 'assistant' %}{{ '<beginning_of_sentence>ai name=assistant\\n' }}{% if m.content %}{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}{% endif %}"
    "{% if m.tool_calls %}{{ '<tool_calls>\\n' }}{% for c in m.tool_calls %}{{ '{\"name\": \"' ~ c.function.name ~ '\", \"arguments\": ' }}{{ c.function.arguments if c.function.arguments is string else c.function.arguments | tojson }}{{ '}\\n' }}{% endfor %}{{ '</tool_calls>' }}{% endif %}{{ '<end_of_sentence>\\n' }}"
    "{% elif m.role == 'tool' %}{{ '<beginning_of_sentence>tool name=tools\\n' }}{% if m.content is string %}{{ 'tool name: ' ~ (m.name or 'tool') ~ '\\ntool result: ' ~ m.content ~ '\\n\\n' }}{% else %}{% for p in m.content %}{{ 'tool name: ' ~ p.name ~ '\\ntool result: ' ~ p.text ~ '\\n\\n' }}{% endfor %}{% endif %}{{ '<end_of_sentence>\\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<beginning_of_sentence>ai name=assistant\\n' }}{% endif %}")

def export(out):
    import torch
    from safetensors.torch import save_file
    sd = torch.load(f"{out}/state.pt"); w = {}
    for k, v in sd.items():
        if re.search(r"(slope_rate|query_decay|key_decay|diagonal_decay|inv_freq)$", k): continue
        n = k.replace(".mlp.gate.", ".block_sparse_moe.gate.")
        if k.endswith("mlp.experts.gate_up_proj"):
            p = k[:-len("mlp.experts.gate_up_proj")] + "block_sparse_moe.experts."
            for e in range(EXPERTS): w[f"{p}{e}.w1.weight"], w[f"{p}{e}.w3.weight"] = v[e, :INTER].bfloat16(), v[e, INTER:].bfloat16()
        elif k.endswith("mlp.experts.down_proj"):
            p = k[:-len("mlp.experts.down_proj")] + "block_sparse_moe.experts."
            for e in range(EXPERTS): w[f"{p}{e}.w2.weight"] = v[e].bfloat16()
        else: w[n] = v.float() if n.endswith("block_sparse_moe.gate.weight") else v.bfloat16()
    d = f"{out}/m1-demo"; os.makedirs(d, exist_ok=True); names = sorted(w); half = len(names) // 2; wm = {}
    for i, part in enumerate([names[:half], names[half:]]):
        f = f"model-{i:05d}-of-00002.safetensors"; save_file({n: w[n].contiguous().clone() for n in part}, f"{d}/{f}", metadata={"format": "pt"}); wm.update({n: f for n in part})
    json.dump({"metadata": {"total_size": sum(t.numel() * t.element_size() for t in w.values())}, "weight_map": wm}, open(f"{d}/model.safetensors.index.json", "w"), indent=0)
    cfg = dict(architectures=["MiniMaxM1ForCausalLM"], model_type="minimax_m1", attention_dropout=0.0, attn_type_list=[1 if i % 8 == 7 else 0 for i in range(LAYERS)],
        bos_token_id=None, eos_token_id=None, head_dim=DIM, hidden_act="silu", hidden_size=HID, initializer_range=0.02, intermediate_size=INTER,
        **{f"layernorm_{a}_{p}": v for a in ("full_attention", "linear_attention", "mlp") for p, v in (("alpha", ALPHA), ("beta", 1.0))},
        max_position_embeddings=10240000, num_attention_heads=HEADS, num_experts_per_tok=2, num_hidden_layers=LAYERS, num_key_value_heads=KV, num_local_experts=EXPERTS,
        output_router_logits=False, postnorm=True, rms_norm_eps=1e-05, rope_theta=10000000, rotary_dim=ROT, router_aux_loss_coef=0.001, router_jitter_noise=0.0,
        shared_intermediate_size=0, shared_moe_mode="sigmoid", sliding_window=None, tie_word_embeddings=False, use_cache=True, vocab_size=2112)
    json.dump(cfg, open(f"{d}/config.json", "w"), indent=1)
    import shutil; shutil.copy(f"{out}/tokenizer.json", d)
    json.dump(dict(add_prefix_space=False, bos_token=BOS, eos_token=EOS, unk_token="<end_of_document>", clean_up_tokenization_spaces=False, model_max_length=40960000,
                   tokenizer_class="GPT2Tokenizer", chat_template=TEMPLATE), open(f"{d}/tokenizer_config.json", "w"), indent=1)
    print(d, sum(os.path.getsize(f"{d}/{f}") for f in os.listdir(d)) / 1e6, "MB", sum(t.numel() for t in w.values()), "parameters")

if __name__ == "__main__":
    a = sys.argv
    if a[1] == "data": make_data(a[2], a[3])
    elif a[1] == "train": train(a[2], float(a[3]) if len(a) > 3 else 60)
    else: export(a[2])
