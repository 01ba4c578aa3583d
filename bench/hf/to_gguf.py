#!/usr/bin/env python3
"""Converts a checkpoint of make_m355.py to GGUF, with llama.cpp's own converter.

    python to_gguf.py LLAMA_CPP_DIR DIR OUT.gguf f32|bf16

Needs torch and transformers. Two things that the converter asks of a tokenizer are answered here, as it knows no made-up one: which
pre-tokenizer it has, and which ids have embeddings of zeros."""
import runpy, sys

llama, folder, out, kind = sys.argv[1:5]
sys.path[:0] = [llama, f"{llama}/gguf-py"]
from conversion import base, minimax

base.TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
minimax.MiniMaxText01Model._get_suppress_tokens = lambda self: None
sys.argv = ["convert_hf_to_gguf.py", folder, "--outfile", out, "--outtype", kind]
runpy.run_path(f"{llama}/convert_hf_to_gguf.py", run_name="__main__")
