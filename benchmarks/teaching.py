"""Does choosing by a measure teach more? A real model, real book text with facts put in, equal steps on what each way keeps.

    python -m benchmarks.teaching --books alice29.txt lcet10.txt --output teaching.md

Rows are those of `benchmarks.real_rows`, most of which need no far text. They are measured once; each way of ranking keeps its best
share, and a copy of the model is trained on it for as many steps as on every other. Then it is asked fresh far questions, and one
counts as answered where every token of the response is the model's first choice after the ones before (teacher forcing). Means over
seeds, with 95% intervals by a bootstrap over seeds and questions; differences to `robust` are paired.

Made for one GPU, where the defaults take SmolLM2-135M some minutes a seed. On a CPU it is a matter of days: there, give fewer rows,
steps and seeds to see it run.
"""

import argparse
import tempfile
from collections.abc import Iterator
from copy import deepcopy

from benchmarks.common import add_output_argument, default_model, hardware, load_for_training, tell
from benchmarks.real_rows import make_rows, read_prose, read_short_instructions
from hf_gateau.experiments.statistics import difference, estimate
from hf_gateau.markdown import table


# Of 35 rows, so many of each kind: 7 need far text
MIX = {
    **dict.fromkeys(("one fact", "two facts", "three facts", "six facts", "quoted passage"), 1),
    **{"fact in a long answer": 1, "fact just outside the window": 1, "fact just inside the window": 3},
    **{
        "fact near the end": 6,
        "short instruction": 6,
        "continuation": 5,
        "long answer": 3,
        "short row": 2,
        "mismatched answer": 3,
    },
}
ASKED = ("one fact", "two facts", "three facts", "six facts", "quoted passage", "fact in a long answer")
NEAR = ("fact near the end", "short instruction")  # asked beside them: what must not be forgotten
# name -> settings of `GateauSelector`; the first is what the others are held against
WAYS: dict[str, dict] = {
    "robust": {},
    "robust without CAM": {"method": "without_cam"},
    "robust without HMG": {"method": "without_hmg"},
    "mean": {"mode": "mean"},
    "mean without CAM": {"mode": "mean", "method": "without_cam"},
    "need in nats": {"hmp": "need", "cas": "far_need"},
    "key tokens": {"method": "key_tokens"},
    "LongFilter": {"method": "longfilter"},
    "LADM": {"method": "ladm"},
    "paper": {"mode": "paper"},
    "Perplexity Guidance": {"method": "perplexity"},
    "random": {"method": "random"},
}
ALL_ROWS, NOTHING = "all rows", "nothing"


def drawn(args: argparse.Namespace, tokenizer, seed: int, counts: dict[str, int]) -> list[dict]:
    """Rows in LongAlign's form, so many of each kind."""
    books, shorts = [read_prose(path) for path in args.books], read_short_instructions(args.short_instructions)
    found = []
    for row in make_rows(books, tokenizer, args.num_tokens, args.short_window, counts, shorts, seed):
        asked = {"role": "user", "content": f"{row['context']}\n\n{row['instruction']}"}
        messages = [asked, {"role": "assistant", "content": row["response"]}]
        found.append({"id": row["id"], "kind": row["kind"], "messages": messages})
    return found


def trained(base, tokenizer, args: argparse.Namespace, rows, seed: int, selector=None):
    """A copy of the model after the steps."""
    import torch

    from hf_gateau.training.arguments import GateauSFTConfig
    from hf_gateau.training.trainer import GateauSFTTrainer

    on_gpu = torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as folder:
        config = GateauSFTConfig(
            output_dir=folder,
            max_steps=args.steps,
            per_device_train_batch_size=args.batch_size,
            gradient_accumulation_steps=args.accumulation,
            learning_rate=args.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=max(1, args.steps // 20),
            seed=seed,
            max_length=2 * args.num_tokens,
            loss_weighting="sequence",
            response_only_loss=True,
            use_cpu=not on_gpu,
            bf16=on_gpu,
            gradient_checkpointing=False,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        callbacks = [selector] if selector is not None else []
        trainer = GateauSFTTrainer(
            deepcopy(base), config, train_dataset=rows, processing_class=tokenizer, callbacks=callbacks
        )
        trainer.train()
    return trainer.model


def asked(model, tokenizer, rows: list[dict]) -> dict[str, tuple[str, float]]:
    """Each question's kind, and whether it was answered."""
    from hf_gateau.quickstart.finetune import answers_exactly

    return {row["id"]: (row["kind"], float(answers_exactly(model, tokenizer, row))) for row in rows}


def run(args: argparse.Namespace) -> Iterator[tuple[str, int, dict]]:
    """(way, seed, what was answered) of every training."""
    import torch
    from datasets import Dataset

    from hf_gateau import GateauScorer, GateauSelector

    base, tokenizer = load_for_training(args.model or default_model())
    base = base.to("cuda" if torch.cuda.is_available() else "cpu")
    pool = drawn(args, tokenizer, seed=1, counts={kind: count * args.rows_per_kind for kind, count in MIX.items()})
    questions = drawn(args, tokenizer, seed=2, counts=dict.fromkeys((*ASKED, *NEAR), args.questions_per_kind))
    settings = {"long_model": args.model or default_model(), "short_window": args.short_window, "store": args.store}
    ds = Dataset.from_list(pool).map(GateauScorer(**settings), batched=True)
    ways = {name: WAYS[name] for name in args.ways} if args.ways else WAYS
    yield NOTHING, 0, asked(base, tokenizer, questions)
    for seed in args.seeds:
        for name, chosen in ways.items():
            selector = GateauSelector(fraction=args.fraction, rank_seed=seed, **chosen)
            rows = selector.select(ds)
            yield name, seed, asked(trained(base, tokenizer, args, rows, seed, selector), tokenizer, questions)
        yield ALL_ROWS, seed, asked(trained(base, tokenizer, args, ds, seed), tokenizer, questions)


def report(args: argparse.Namespace, found: dict[str, dict[int, dict]]) -> str:
    """Markdown of what is there so far."""

    def of(kinds: tuple[str, ...], scores: dict[int, dict]) -> dict[int, dict]:
        return {
            seed: {x: ("", value) for x, (kind, value) in rows.items() if kind in kinds}
            for seed, rows in scores.items()
        }

    def cell(x) -> str:
        return "" if x is None else f"{x.mean:.3f}" if x.low is None else f"{x.mean:.3f} [{x.low:.3f}, {x.high:.3f}]"

    first = next((name for name in found if name != NOTHING), None)
    lines = []
    for name, scores in found.items():
        paired = difference(of(ASKED, scores), of(ASKED, found[first])) if name not in (first, NOTHING) else None
        kinds = (cell(estimate(of((kind,), scores))) for kind in ASKED)
        lines.append([name, cell(estimate(of(ASKED, scores))), cell(paired), cell(estimate(of(NEAR, scores))), *kinds])
    header = ["trained on the best by", "far questions", f"difference to {first}", "near and free", *ASKED]
    rows = args.rows_per_kind * sum(MIX.values())
    return "\n".join(
        [
            "# What selecting teaches a real model",
            "",
            f"{hardware()}; {args.model or 'SmolLM2-135M-Instruct'}; {rows:,} rows of {args.num_tokens:,} tokens, best "
            f"{args.fraction:.0%}, {args.steps} steps of {args.batch_size * args.accumulation} rows, seeds "
            f"{', '.join(map(str, args.seeds))}; {args.questions_per_kind} questions of each kind; short sibling: the last "
            f"{args.short_window} tokens.",
            "",
            table(header, lines),
        ]
    )


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--books", nargs="+", required=True, help="UTF-8 text files of prose")
    parser.add_argument("--model", help="folder, .gguf file or Hub id; default: SmolLM2-135M, see smollm2.py")
    parser.add_argument(
        "--short_instructions", help="self-instruct seed tasks (JSON lines) instead of the script's own"
    )
    numbers = {"num_tokens": 2048, "short_window": 512, "rows_per_kind": 45, "questions_per_kind": 36, "steps": 60}
    numbers |= {"batch_size": 8, "accumulation": 1}
    for name, value in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=value, help="default: %(default)s")
    parser.add_argument("--learning_rate", type=float, default=1e-4, help="default: %(default)s")
    parser.add_argument("--fraction", type=float, default=0.1, help="share that is kept (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="default: 1 2 3")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), help="only these (default: all)")
    parser.add_argument("--store", help="database of measured rows; default: that of GateauScorer")
    add_output_argument(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    found: dict[str, dict[int, dict]] = {}
    for name, seed, answered in run(args):
        found.setdefault(name, {})[seed] = answered
        print(
            f"{name}, seed {seed}: {sum(x for _, x in answered.values()):.0f} of {len(answered)} answered", flush=True
        )
    tell(report(args, found), args.output)


if __name__ == "__main__":
    main()
