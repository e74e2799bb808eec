"""What the selected rows teach: the tiny long model, fine-tuned on the top 10% and on a random 10%, with equal steps.

The rows are twice as long as anything the model was trained on. It answers about half of the questions on what stands far
back in them; the rest is what there is to learn.
"""

import tempfile
from collections import defaultdict

from . import LONG_MODEL, SEGMENT_LENGTH, SHORT_WINDOW


CONTEXT_TOKENS = 1_900  # the long model was trained on 1,024, and has positions for 2,048
NUM_ROWS, NUM_SHORT_ROWS, NUM_HELD_OUT = 200, 60, 100
FRACTION = 0.1
NUM_STEPS, BATCH_SIZE, LEARNING_RATE = 30, 4, 1e-3
SEEDS = (1, 2, 3)
ARMS = {"top 10%": {}, "random 10%": {"method": "random"}}
ASKED = ("far", "local", "context_free")  # what noise answers is not to be learned


def compare(seeds: tuple[int, ...] = SEEDS, pool_seed: int = 11) -> dict[str, list[dict[str, float]]]:
    """Score, select, fine-tune and ask, for each arm.

    Args:
        seeds: of the random tenth, the short data and the order of rows; one run each.
        pool_seed: of the rows to select from.

    Returns:
        `{arm: [{kind: share of questions answered exactly}, one a seed]}`, with the arm "before" for no training.
    """
    from datasets import Dataset

    from .world import planted_rows, short_rows

    held_out = [row for row in planted_rows(NUM_HELD_OUT, pool_seed + 1, CONTEXT_TOKENS) if row["kind"] in ASKED]
    scored = _scored(pool_seed)
    found = defaultdict(list, {"before": [_exact_match(_load(), held_out)]})
    for seed in seeds:
        short = Dataset.from_list(short_rows(NUM_SHORT_ROWS, seed))
        for arm, settings in ARMS.items():
            found[arm].append(_exact_match(_fine_tuned(scored, short, settings, seed), held_out))
    return dict(found)


def _scored(pool_seed: int):
    from datasets import Dataset

    from ..measure import GateauScorer
    from .world import planted_rows

    settings = {"short_window": SHORT_WINDOW, "segment_length": SEGMENT_LENGTH, "device": "cpu", "store": False}
    rows = Dataset.from_list(planted_rows(NUM_ROWS, pool_seed, CONTEXT_TOKENS))
    return rows.map(GateauScorer(long_model=LONG_MODEL, **settings), batched=True, desc="Longer rows")


def _load():
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(LONG_MODEL, dtype=torch.float32)


def _fine_tuned(scored, short, settings: dict, seed: int):
    """The long model after `NUM_STEPS` steps on the selected rows and the short ones."""
    from transformers import AutoTokenizer

    from ..callbacks import GateauSelector
    from ..training import GateauSFTConfig, GateauSFTTrainer

    selector = GateauSelector(fraction=FRACTION, **settings, **({"rank_seed": seed} if settings else {}))
    rows = selector.mix(selector.select(scored), short)
    with tempfile.TemporaryDirectory() as folder:
        args = GateauSFTConfig(
            output_dir=folder,
            max_steps=NUM_STEPS,
            per_device_train_batch_size=BATCH_SIZE,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="cosine",
            warmup_steps=1,
            seed=seed,
            max_length=2_048,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(LONG_MODEL)
        trainer = GateauSFTTrainer(_load(), args, train_dataset=rows, processing_class=tokenizer, callbacks=[selector])
        trainer.train()
    return trainer.model


def _exact_match(model, rows: list[dict]) -> dict[str, float]:
    """Share of rows, by kind, whose whole answer the model gives: each token is its first choice after the ones before."""
    import torch

    from ..samples import IGNORED, tokenize_for_training
    from .world import build_tokenizer

    tokenizer, right = build_tokenizer(), defaultdict(list)
    model.eval()
    with torch.inference_mode():
        for row in rows:
            tokens = {name: torch.tensor(values) for name, values in tokenize_for_training(row, tokenizer).items()}
            targets = tokens["labels"][1:] != IGNORED
            choices = model(tokens["input_ids"][None], use_cache=False).logits[0, :-1].argmax(-1)
            right[row["kind"]].append(bool((choices == tokens["input_ids"][1:])[targets].all()))
    return {kind: sum(right[kind]) / len(right[kind]) for kind in ASKED}


def table(found: dict[str, list[dict[str, float]]]) -> str:
    """The means over the seeds, and each seed's, as text."""
    lines = [f"{'fine-tuned on':20}" + "".join(f"{kind:>16}" for kind in ASKED)]
    for arm, runs in found.items():
        cells = "".join(f"{sum(run[kind] for run in runs) / len(runs):16.2f}" for kind in ASKED)
        lines.append(f"{'nothing' if arm == 'before' else arm + ' + short':20}{cells}")
    best, chance = (found[arm] for arm in ARMS)
    gains = [f"{100 * (a['far'] - b['far']):+.0f}" for a, b in zip(best, chance, strict=True)]
    lines += ["", f"Far questions, top against random, points at each of {len(gains)} seeds: {', '.join(gains)}."]
    return "\n".join(lines)


def introduction() -> str:
    return (
        f"Now fine-tuning the tiny long model: {NUM_STEPS} steps of {BATCH_SIZE} rows, on a tenth of {NUM_ROWS} rows of "
        f"{CONTEXT_TOKENS:,} tokens\n(it was trained on 1,024) and {NUM_SHORT_ROWS} short rows. Share of questions of "
        "other such rows that it answers exactly:\n"
    )
