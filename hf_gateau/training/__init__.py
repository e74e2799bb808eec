"""Ranked rows come in; a fine-tuned checkpoint goes out, with its selection and its card.

Read `config`, `model_card`, `selector` (`GateauSelector`, the callback), `trainer` (`GateauSFTTrainer`, LongAlign's training).
"""
