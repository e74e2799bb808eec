"""The training script and what launches it: `trl sft --recipe`, `hf-gateau sft`, `accelerate launch -m hf_gateau.scripts.sft`.

A recipe comes in, a fine-tuned checkpoint goes out. Read `arguments` (a recipe, and flags over it), `sft` (the script), `launch`.
"""
