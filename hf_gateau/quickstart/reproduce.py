"""What `recipes/reproduce-tiny.yaml` needs beside the shipped pair: rows, models, and questions to ask of what was trained.

`prepare` makes, in two to three minutes on a CPU:

    rows.jsonl, short.jsonl   rows of the harder planted world, and short instruction data to mix in
    base                      the long model, made to forget how to look far back (as in `finetune.py`): what is trained
    stranger                  a short-window model from another pre-training: the ablation "non-homologous"
    reward                    a reward model that tells right answers from noise, for CaR
    embedder                  the long model's mean hidden state as a sentence embedding, for CaR

`evaluate` asks a trained model fresh questions: which share of each kind it answers exactly.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import LONG_MODEL


if TYPE_CHECKING:
    from ..evaluation.results import TaskResult

NUM_ROWS, ROWS_SEED = 400, 21
NUM_SHORT_ROWS, SHORT_SEED = 100, 22
NUM_QUESTIONS, QUESTIONS_SEED = 200, 23
NUM_PREFERENCES, PREFERENCES_SEED = 320, 24
STRANGER_SEED = 100


def prepare(folder: str) -> None:
    """Make everything that the recipe names and that is not there yet.

    Raises:
        ImportError: sentence-transformers is not installed.
    """
    from . import harder
    from .world import short_rows

    place = Path(folder)
    makers = {
        "rows.jsonl": lambda path: _write_rows(path, harder.planted_rows(NUM_ROWS, ROWS_SEED)),
        "short.jsonl": lambda path: _write_rows(path, short_rows(NUM_SHORT_ROWS, SHORT_SEED)),
        "embedder": _make_embedder,
        "base": _make_base,
        "reward": _make_reward_model,
        "stranger": _make_stranger,
    }
    place.mkdir(parents=True, exist_ok=True)
    for name, make in makers.items():
        if not (place / name).exists():
            partial = place / f".{name}"
            make(partial)
            partial.rename(place / name)


def _write_rows(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _save(model, path: Path) -> None:
    from .world import build_tokenizer

    model.save_pretrained(path)
    build_tokenizer().save_pretrained(path)


def _make_base(path: Path) -> None:
    from .finetune import forgetful

    _save(forgetful(), path)


def _make_stranger(path: Path) -> None:
    """The short sibling's shape and training with another width, another start and other documents."""
    import torch
    from transformers import LlamaForCausalLM

    from .make_pair import SHORT_STAGES, plant_induction_circuit, short_config, train

    config = short_config()
    config.intermediate_size = 192
    torch.manual_seed(STRANGER_SEED)
    model = LlamaForCausalLM(config)
    plant_induction_circuit(model, seed=STRANGER_SEED)
    train(model, SHORT_STAGES, learning_rate=2e-3, seed=STRANGER_SEED)
    _save(model, path)


def _make_reward_model(path: Path) -> None:
    """TRL's `RewardTrainer` on pairs of a right answer and noise to one question."""
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification
    from trl import RewardConfig, RewardTrainer

    from .world import build_tokenizer

    tokenizer = build_tokenizer()
    model = AutoModelForSequenceClassification.from_pretrained(LONG_MODEL, num_labels=1, dtype="float32")
    model.config.pad_token_id = tokenizer.pad_token_id
    args = RewardConfig(
        output_dir=str(path),
        num_train_epochs=1,
        per_device_train_batch_size=8,
        learning_rate=1e-3,
        max_length=2_048,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=PREFERENCES_SEED,
    )
    pairs = Dataset.from_list(preferences(NUM_PREFERENCES, PREFERENCES_SEED))
    trainer = RewardTrainer(model, args, train_dataset=pairs, processing_class=tokenizer)
    trainer.train()
    _save(trainer.model, path)


def preferences(num_pairs: int, seed: int) -> list[dict[str, Any]]:
    """Conversations with a right answer, `chosen`, and with noise instead, `rejected`, half of it fluent."""
    import random

    from . import harder
    from .world import LAST_NAMES, PLAIN_WORDS, pick

    rng, pairs = random.Random(seed), []
    for place, row in enumerate(harder.questions(num_pairs, seed)):
        user, assistant = row["messages"]
        words = assistant["content"].split()
        if place % 2:
            noise = [pick(rng, LAST_NAMES) if word in LAST_NAMES else word for word in words]
            noise = [pick(rng, PLAIN_WORDS) if noise == words and word not in ("and", ".") else word for word in noise]
        else:
            noise = [*(pick(rng, PLAIN_WORDS) for _ in range(5)), "."]
        rejected = {"role": "assistant", "content": " ".join(noise)}
        pairs.append({"chosen": [user, assistant], "rejected": [user, rejected]})
    return pairs


def _make_embedder(path: Path) -> None:
    from sentence_transformers import SentenceTransformer, models

    words = models.Transformer(LONG_MODEL)
    SentenceTransformer(modules=[words, models.Pooling(words.get_word_embedding_dimension())]).save(str(path))


def evaluate(model, num_questions: int = NUM_QUESTIONS) -> TaskResult:
    """Exact match on fresh questions, by kind; `far` is the mean over questions of both far kinds.

    Args:
        model: a trained model, or its folder.
    """
    from transformers import AutoModelForCausalLM, PreTrainedModel

    from ..evaluation.results import TaskResult
    from . import harder
    from .finetune import answers_exactly

    if not isinstance(model, PreTrainedModel):
        model = AutoModelForCausalLM.from_pretrained(model, dtype="float32")
    asked = harder.questions(num_questions, QUESTIONS_SEED)
    right = answers_exactly(model, asked)
    rows = [
        {"id": row["id"], "group": row["kind"], "score": float(is_right)}
        for row, is_right in zip(asked, right, strict=True)
    ]

    def mean(*kinds: str) -> float:
        scores = [row["score"] for row in rows if row["group"] in kinds]
        return sum(scores) / len(scores)

    metrics = {"far": mean(*harder.FAR), "others": mean(*set(harder.ASKED) - set(harder.FAR))}
    metrics |= {kind: mean(kind) for kind in harder.ASKED}
    return TaskResult("planted", metrics, rows, {"num_questions": num_questions, "seed": QUESTIONS_SEED})
