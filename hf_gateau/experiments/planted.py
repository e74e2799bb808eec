"""What `recipes/reproduce-tiny.yaml` trains on and asks: made here, on a CPU, from the quickstart's pair and the planted world.

A grid names these functions: `measured_rows` and `short_data` give rows, `base_model` the model that every cell begins from,
`evaluate` asks what was trained. CaR needs a reward model and sentence embeddings; both are made of the tiny long model.
"""

from __future__ import annotations

import random
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..quickstart import LONG_MODEL, SEGMENT_LENGTH, SHORT_MODEL, harder
from ..quickstart.world import LAST_NAMES, PLAIN_WORDS, build_tokenizer, pick, short_rows


if TYPE_CHECKING:
    from datasets import Dataset

    from ..evaluation.results import TaskResult
    from ..evaluation.tasks import Work

NUM_ROWS, ROWS_SEED = 400, 21
NUM_SHORT_ROWS, SHORT_SEED = 100, 22
NUM_QUESTIONS, QUESTIONS_SEED = 200, 23
NUM_PREFERENCES, PREFERENCES_SEED = 320, 24
STRANGER_SEED = 100
PAPER_ROPE_SCALE = 200.0
WINDOW = 128
# name -> settings of the short sibling; the long model is the same in all
SIBLINGS: dict[str, dict[str, Any]] = {
    "homologous": {"short_model": SHORT_MODEL},
    "rope_extended": {"short_model": SHORT_MODEL, "short_rope_scale": PAPER_ROPE_SCALE},
    "non_homologous": {},
    "windowed": {"short_model": None, "short_window": WINDOW},
}


def measured_rows(sibling: str = "homologous", num_rows: int = NUM_ROWS) -> Dataset:
    """Rows of the harder planted world, measured; with `homologous` also what IFD and CaR need.

    Args:
        sibling: one of `SIBLINGS`; `non_homologous` is a short-window model from another pre-training, made first.

    Raises:
        ValueError: there is no such sibling.
        RuntimeError: sentence-transformers is not installed.
    """
    from datasets import Dataset

    from ..measuring.scorer import GateauScorer

    if sibling not in SIBLINGS:
        raise ValueError(f"sibling={sibling!r} is not known; use one of {', '.join(map(repr, SIBLINGS))}.")
    ds = Dataset.from_list(harder.planted_rows(num_rows, ROWS_SEED))
    with tempfile.TemporaryDirectory() as folder:
        settings = SIBLINGS[sibling]
        if sibling == "non_homologous":
            settings = {"short_model": _make_stranger(Path(folder) / "stranger")}
        scorers: list[Any] = [
            GateauScorer(long_model=LONG_MODEL, segment_length=SEGMENT_LENGTH, device="cpu", store=False, **settings)
        ]
        if sibling == "homologous":
            scorers += _method_scorers(Path(folder))
        for scorer in scorers:
            ds = ds.map(scorer, batched=True, load_from_cache_file=False, desc=type(scorer).__name__)
    return ds


def _method_scorers(folder: Path) -> list[Any]:
    """What IFD and CaR need: PPL(y), rewards, embeddings."""
    from ..measuring.embeddings import EmbeddingScorer
    from ..measuring.responses import ResponseScorer
    from ..measuring.rewards import RewardScorer

    common = {"device": "cpu", "store": False}
    return [
        ResponseScorer(LONG_MODEL, **common),
        RewardScorer(_make_reward_model(folder / "reward"), **common),
        EmbeddingScorer(_make_embedder(folder / "embedder"), **common),
    ]


def short_data(num_rows: int = NUM_SHORT_ROWS) -> list[dict]:
    """Short instruction data to mix in."""
    return short_rows(num_rows, SHORT_SEED)


def base_model(folder: str) -> None:
    """Save the long model, made to forget how to look far back (as in `finetune.py`): what every cell begins from."""
    from ..quickstart.finetune import forgetful

    _save(forgetful(), Path(folder))


def _save(model, path: Path) -> str:
    model.save_pretrained(path)
    build_tokenizer().save_pretrained(path)
    return str(path)


def _make_stranger(path: Path) -> str:
    """The short sibling's length and training with another width, another start and other documents."""
    import torch
    from transformers import LlamaForCausalLM

    from ..quickstart.make_pair import SHORT_STAGES, plant_induction_circuit, short_config, train

    config = short_config()
    config.intermediate_size = 192
    torch.manual_seed(STRANGER_SEED)
    model = LlamaForCausalLM(config)
    plant_induction_circuit(model, seed=STRANGER_SEED)
    train(model, SHORT_STAGES, learning_rate=2e-3, seed=STRANGER_SEED)
    return _save(model, path)


def _make_reward_model(path: Path) -> str:
    """TRL's `RewardTrainer` on pairs of a right answer and noise to one question."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification
    from trl import RewardConfig, RewardTrainer

    tokenizer = build_tokenizer()
    torch.manual_seed(PREFERENCES_SEED)  # of the head, which no checkpoint has
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
    return _save(trainer.model, path)


def preferences(num_pairs: int, seed: int) -> list[dict[str, Any]]:
    """Conversations with a right answer, `chosen`, and with noise instead, `rejected`, half of it fluent."""
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


def _make_embedder(path: Path) -> str:
    """The long model's mean hidden state as a sentence embedding."""
    from sentence_transformers import SentenceTransformer, models

    words = models.Transformer(LONG_MODEL)
    SentenceTransformer(modules=[words, models.Pooling(words.get_word_embedding_dimension())]).save(str(path))
    return str(path)


@cache
def _asked(num_questions: int) -> list[tuple[dict[str, Any], dict[str, list[int]]]]:
    """The questions and their tokens: the same for every cell."""
    from ..rows.labels import tokenize_for_training

    tokenizer = build_tokenizer()
    return [(row, tokenize_for_training(row, tokenizer)) for row in harder.questions(num_questions, QUESTIONS_SEED)]


def evaluate(model: Any, work: Work | None = None, num_questions: int = NUM_QUESTIONS) -> TaskResult:
    """Exact match on fresh questions, by kind; `far` is the share over the questions of both far kinds, `others` over the rest.

    Args:
        model: a trained model, or its folder.
        work: what tasks are given; its options may have `num_questions`.
    """
    from transformers import AutoModelForCausalLM, PreTrainedModel

    from ..evaluation.results import TaskResult
    from ..quickstart.finetune import gives_targets

    if not isinstance(model, PreTrainedModel):
        model = AutoModelForCausalLM.from_pretrained(model, dtype="float32")
    num_questions = work.options.get("num_questions", num_questions) if work is not None else num_questions
    rows = [
        {"id": row["id"], "group": row["kind"], "score": float(gives_targets(model, tokens))}
        for row, tokens in _asked(num_questions)
    ]

    def mean(*kinds: str) -> float:
        scores = [row["score"] for row in rows if row["group"] in kinds]
        return sum(scores) / len(scores)

    metrics = {"far": mean(*harder.FAR), "others": mean(*(x for x in harder.ASKED if x not in harder.FAR))}
    metrics |= {kind: mean(kind) for kind in harder.ASKED}
    return TaskResult("planted", metrics, rows, {"num_questions": num_questions, "seed": QUESTIONS_SEED})
