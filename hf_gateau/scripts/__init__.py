"""The training script and what launches it: `trl sft --recipe`, `hf-gateau sft`, `accelerate launch -m hf_gateau.scripts.sft`."""
