#!/usr/bin/env python3
"""Checks goldens.json against the fp32 reference: every greedy answer must come out id by id. Needs torch and safetensors.

    python demo/check_goldens.py"""
import json, os, sys

import torch

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "model", "testdata"))
import ref_m1

KNOWN = 2075  # ids that the tokenizer names; the head has more rows, which are never sampled


@torch.no_grad()
def greedy(model, prompt, count):
    state, out = model.new_state(), []
    last = model.forward(prompt, state)[-1]
    for _ in range(count):
        out.append(int(last[:KNOWN].argmax()))
        last = model.forward(out[-1:], state)[0]
    return out


if __name__ == "__main__":
    torch.set_num_threads(1)
    model = ref_m1.Ref(*ref_m1.load(os.path.join(HERE, "m1-demo")))
    goldens = json.load(open(os.path.join(HERE, "goldens.json")))
    wrong = [g["text"] for g in goldens if greedy(model, g["prompt_ids"], len(g["output_ids"])) != g["output_ids"]]
    print(f"{len(goldens) - len(wrong)} of {len(goldens)} answers are those of goldens.json", *wrong, sep="\n")
    sys.exit(bool(wrong))
