"""What the selected rows teach: the tiny long model, fine-tuned on the top 10% and on a random 10%, with equal steps.

The long model knows all answers, so it first forgets how to look far back: `forgetful`, on packs of short documents, does
to it what tuning on short data alone does to long-context models. Then a tenth of the scored rows, with short instruction
data beside them, is to bring it back.
"""

import tempfile
from collections import defaultdict
from collections.abc import Callable

from . import LONG_MODEL


NUM_SHORT_ROWS, NUM_HELD_OUT = 100, 100
FRACTION = 0.1
NUM_STEPS, BATCH_SIZE, LEARNING_RATE = 50, 4, 3e-4
STEPS_TO_FORGET = 100
SEEDS = (1, 2, 3)
HELD_OUT_SEED = 12
ARMS = {"top 10%": {}, "random 10%": {"method": "random"}}
ASKED = ("far", "local", "context_free")  # what noise answers is not to be learned
OTHERS = ("local", "context_free")


def num_steps(seeds: tuple[int, ...] = SEEDS) -> int:
    """Training steps of `compare`."""
    return STEPS_TO_FORGET + len(seeds) * len(ARMS) * NUM_STEPS


def compare(
    scored, seeds: tuple[int, ...] = SEEDS, advance: Callable[[], object] | None = None
) -> dict[str, list[dict[str, float]]]:
    """Forget, select, fine-tune and ask, for each arm.

    Args:
        scored (`Dataset`): measured planted rows.
        seeds: of the random tenth, the short data and the order of rows; one run each.
        advance: is called after each of `num_steps` training steps.

    Returns:
        `{arm: [{kind: share of questions answered exactly}, one a seed]}`, with the arm "before" for no fine-tuning, and
        the kind "others" for all that is not asked about far text.
    """
    from datasets import Dataset

    from .world import planted_rows, short_rows

    held_out = [row for row in planted_rows(NUM_HELD_OUT, HELD_OUT_SEED) if row["kind"] in ASKED]
    forgot = forgetful(advance)
    found = defaultdict(list, {"before": [_exact_match(forgot, held_out)]})
    for seed in seeds:
        short = Dataset.from_list(short_rows(NUM_SHORT_ROWS, seed))
        for arm, settings in ARMS.items():
            found[arm].append(_exact_match(_fine_tuned(forgot, scored, short, settings, seed, advance), held_out))
    return dict(found)


def forgetful(advance: Callable[[], object] | None = None):
    """The long model after some steps on packs of documents of up to 128 tokens; `advance` is called after each."""
    import torch
    from transformers import AutoModelForCausalLM

    from .make_pair import Stage, train
    from .world import DocumentStyle

    model = AutoModelForCausalLM.from_pretrained(LONG_MODEL, dtype=torch.float32)
    style = DocumentStyle(p_fact=0.4, p_opposite=0.35)
    stages = (Stage(STEPS_TO_FORGET, 1024, 2, style, packed=True),)
    train(model.train(), stages, learning_rate=1e-3, seed=5, advance=advance)
    return model.eval()


def _fine_tuned(model, scored, short, settings: dict, seed: int, advance: Callable[[], object] | None):
    """A copy of the model after `NUM_STEPS` steps on the selected rows and the short ones."""
    from copy import deepcopy

    from transformers import AutoTokenizer, TrainerCallback

    from ..training.arguments import GateauSFTConfig
    from ..training.selector import GateauSelector
    from ..training.trainer import GateauSFTTrainer

    class Steps(TrainerCallback):
        def on_step_end(self, *_, **__):
            if advance is not None:
                advance()

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
        trainer = GateauSFTTrainer(
            deepcopy(model), args, train_dataset=rows, processing_class=tokenizer, callbacks=[selector, Steps()]
        )
        trainer.train()
    return trainer.model


def _exact_match(model, rows: list[dict]) -> dict[str, float]:
    """Share of rows, by kind, whose whole answer the model gives."""
    from .world import build_tokenizer

    tokenizer, right = build_tokenizer(), defaultdict(list)
    for row in rows:
        right[row["kind"]].append(answers_exactly(model, tokenizer, row))
    right["others"] = [one for kind in OTHERS for one in right[kind]]
    return {kind: sum(right[kind]) / len(right[kind]) for kind in (*ASKED, "others")}


def answers_exactly(model, tokenizer, row: dict) -> bool:
    """Whether each token of the row's answer is the model's first choice after the ones before."""
    from ..rows.labels import tokenize_for_training

    return gives_targets(model, tokenize_for_training(row, tokenizer))


def gives_targets(model, tokens: dict[str, list[int]]) -> bool:
    """The same of a row whose `input_ids` and `labels` are known."""
    import torch

    from ..rows.labels import IGNORED

    model.eval()
    tokens = {name: torch.tensor(values) for name, values in tokens.items()}
    targets = tokens["labels"][1:] != IGNORED
    with torch.inference_mode():
        choices = model(tokens["input_ids"][None].to(model.device), use_cache=False).logits[0, :-1].argmax(-1).cpu()
    return bool((choices == tokens["input_ids"][1:])[targets].all())


def table(found: dict[str, list[dict[str, float]]]) -> str:
    """The means over the seeds, and each seed's, as text."""
    kinds = (*ASKED, "others")
    lines = [f"{'fine-tuned on':20}" + "".join(f"{kind:>14}" for kind in kinds)]
    for arm, runs in found.items():
        cells = "".join(f"{sum(run[kind] for run in runs) / len(runs):14.2f}" for kind in kinds)
        lines.append(f"{'nothing' if arm == 'before' else arm + ' + short':20}{cells}")
    best, chance = (found[arm] for arm in ARMS)
    gains = [f"{100 * (a['far'] - b['far']):+.0f}" for a, b in zip(best, chance, strict=True)]
    lines += ["", f"Far questions, top against random, points at each of {len(gains)} seeds: {', '.join(gains)}."]
    return "\n".join(lines)


def introduction() -> str:
    """What the table is about."""
    return (
        f"\nFine-tuning: the long model is first made to forget how to look far back, on packs of short documents. Then\n"
        f"{NUM_STEPS} steps of {BATCH_SIZE} rows on a tenth of the rows above and {NUM_SHORT_ROWS} short ones, mean of "
        f"{len(SEEDS)} seeds. Share of\nquestions of fresh rows that it answers exactly ('others': local and context_free):\n"
    )
