"""What LongAlign's training costs and saves: loss weighting against TRL's own loss, sorted against random batches.

    python -m benchmarks.training --output training.md

**Loss weighting**: one trainer with `loss_weighting="sequence"` and one with TRL's token mean, on the same model and rows,
forward and backward of one batch, taken in turns; medians, and the peak of resident memory above what was resident before.

**Sorted batching**: lengths drawn as LongAlign-10k's are spread (8k to 64k tokens, log-uniform), scaled down. Share of
padding in all batches of an epoch of many rows; and seconds of an epoch of few rows on a small random model, likewise in
turns. A batch of several ranks takes as long as its longest row: that counts as padding too.
"""

import argparse
import tempfile
import time

import numpy as np
import torch

from . import common


LOG_LENGTHS = (np.log(8192), np.log(65_536))
SMALL = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4}


def rows_of(lengths: list[int], vocabulary: int, response: int) -> list[dict]:
    """Random rows of these lengths, whose last `response` tokens have labels."""
    generator = np.random.default_rng(0)
    rows = []
    for length in lengths:
        ids = generator.integers(4, vocabulary, length).tolist()
        rows.append({"input_ids": ids, "labels": [-100] * (length - response) + ids[-response:]})
    return rows


def trainer_of(model, tokenizer, rows: list[dict], folder: str, **options):
    from datasets import Dataset

    from hf_gateau import GateauSFTConfig, GateauSFTTrainer

    fixed = {
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "gradient_checkpointing": False,
        "disable_tqdm": True,
    }
    args = GateauSFTConfig(folder, save_strategy="no", logging_strategy="no", **fixed, **options)
    return GateauSFTTrainer(model, args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)


def one_step(trainer, batch: dict) -> tuple[float, float]:
    """Seconds, and MiB of the peak above what was resident, of a forward and a backward."""
    trainer.model.zero_grad()
    common.reset_peak_rss()
    before, started = common.rss_mib(), time.perf_counter()
    trainer.compute_loss(trainer.model, dict(batch)).backward()
    return time.perf_counter() - started, common.peak_rss_mib() - before


def weighting(args: argparse.Namespace, folder: str) -> list[str]:
    """Rows of the table of loss weighting."""
    model, tokenizer = common.load_for_training(args.model or common.default_model())
    rows = rows_of([args.tokens, args.tokens // 2], model.config.vocab_size, args.tokens // 4)
    options = {"per_device_train_batch_size": 2, "max_length": args.tokens}
    trainers = {
        way: trainer_of(model, tokenizer, rows, folder, loss_weighting=way, **options) for way in ("token", "sequence")
    }
    batch = next(iter(trainers["token"].get_train_dataloader()))
    found = {way: [] for way in trainers}
    for repeat in range(args.repeats + 1):
        for way, trainer in trainers.items():
            measured = one_step(trainer, batch)
            if repeat:  # the first warms up
                found[way].append(measured)
    medians = {way: np.median(values, 0) for way, values in found.items()}
    ratio = medians["sequence"] / medians["token"]
    lines = ["| loss_weighting | step s | peak above, MiB |", "| --- | ---: | ---: |"]
    lines += [f"| {way} | {seconds:.2f} | {mib:,.0f} |" for way, (seconds, mib) in medians.items()]
    return [*lines, f"| sequence / token | {ratio[0]:.3f} | {ratio[1]:.3f} |"]


def batches_of(order: list[int], lengths: np.ndarray, group: int) -> tuple[int, int]:
    """(tokens, tokens with padding) of all groups of rows that are taken at once."""
    padded = sum(group * lengths[order[i : i + group]].max() for i in range(0, len(order), group))
    return int(lengths[order].sum()), int(padded)


def sorting(args: argparse.Namespace, folder: str) -> list[str]:
    """Rows of the table of sorted batching."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from hf_gateau.quickstart.world import build_tokenizer
    from hf_gateau.training.sorting import SortedSampler

    generator = np.random.default_rng(1)
    many = np.exp(generator.uniform(*LOG_LENGTHS, args.many_rows)).astype(int)
    padding = {}
    for name, order in {
        "random": generator.permutation(len(many)).tolist(),
        "sorted": list(SortedSampler(many.tolist(), args.group, 0)),
    }.items():
        tokens, padded = batches_of(order, many, args.group)
        padding[name] = 1 - tokens / padded
    few = (np.exp(generator.uniform(*LOG_LENGTHS, args.few_rows)) / args.scale).astype(int)
    tokenizer = build_tokenizer()
    rows = rows_of(few.tolist(), len(tokenizer), 16)
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=2048, **SMALL)
    options = {"per_device_train_batch_size": 4, "max_length": 2048}
    trainers = {
        name: trainer_of(LlamaForCausalLM(config), tokenizer, rows, folder, batching=name, **options)
        for name in padding
    }
    seconds = {name: [] for name in trainers}
    for repeat in range(args.repeats + 1):
        for name, trainer in trainers.items():
            started = time.perf_counter()
            for batch in trainer.get_train_dataloader():
                trainer.model.zero_grad()
                trainer.compute_loss(trainer.model, batch).backward()
            if repeat:
                seconds[name].append(time.perf_counter() - started)
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    lines = [
        f"| batching | padding, {args.many_rows:,} rows in groups of {args.group} | epoch of {len(few)} rows, s |"
    ]
    lines += ["| --- | ---: | ---: |", *(f"| {x} | {padding[x]:.1%} | {medians[x]:.2f} |" for x in padding)]
    return [*lines, f"| sorted / random | | {medians['sorted'] / medians['random']:.3f} |"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder, .gguf file or Hub id; default: SmolLM2-135M, see smollm2.py")
    parser.add_argument("--tokens", type=int, default=512, help="tokens of the longer row of the batch")
    parser.add_argument("--repeats", type=int, default=3, help="of which the medians are printed")
    parser.add_argument("--many-rows", type=int, default=10_000, help="rows whose padding is counted")
    parser.add_argument("--group", type=int, default=8, help="rows that all ranks take at once")
    parser.add_argument("--few-rows", type=int, default=32, help="rows of the epoch that is timed")
    parser.add_argument("--scale", type=int, default=64, help="how much shorter the timed rows are than LongAlign's")
    common.add_output_argument(parser)
    args = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        header = common.torch_header("float32", args.model or common.default_model())
        report = "\n".join([header, *weighting(args, folder), "", *sorting(args, folder)])
    print()
    common.tell(report, args.output)


if __name__ == "__main__":
    main()
