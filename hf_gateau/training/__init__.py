"""Ranked rows come in; a fine-tuned checkpoint goes out, with its selection and its card.

Read `config`, `arguments` (`GateauSFTConfig`), `layout` (rows as the trainer's tokens, and those that it would drop),
`model_card`, `selector` (`GateauSelector`, the callback), then what the trainer is made of: `fused_head` (of TRL), `loss`,
`sorting`, `packing`; and `trainer` (`GateauSFTTrainer`, LongAlign's training).
"""
