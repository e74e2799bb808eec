"""`hf-gateau build`."""

from __future__ import annotations

import logging
import sys
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..endpoint.chat_client import EndpointConfig
from ..endpoint.questions import Endpoint
from ..files.apart import check_apart
from ..files.writing import check_output, save_rows
from ..records import attach_record, commonest
from .config import BuildConfig, DocumentConfig
from .contexts import Context, ContextCutter, token_counter
from .documents import Documents, load_documents
from .prompts import PROMPT_VERSION
from .rows import NO_REPLY, Builder, BuiltRow, RowWriter, check_enough, choose_contexts, write_rows
from .summary import histogram, lengths_by_range, table_lines, table_of


if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

RECORD = "building"


@dataclass
class BuildArguments:
    """Which documents, and where the rows go."""

    RARELY_GIVEN = ("max_shard_size", "name", "revision")

    output: str | None = field(
        default=None,
        metadata={
            "help": "Where the rows go: a .jsonl or .parquet file, or a folder, for Parquet files that `load_dataset` "
            "reads. Not needed with --dry_run.",
            "aliases": ["-o"],
        },
    )
    max_shard_size: str = field(
        default="500MB", metadata={"help": "Where the output is a folder: about how large a Parquet file gets."}
    )
    split: str | None = field(default=None, metadata={"help": "Split to take. Default: train, or the only one."})
    name: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset."})
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a Hub dataset."})
    limit: int | None = field(default=None, metadata={"help": "Take the first documents only, this many."})

    def __post_init__(self):
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"--limit is a number of documents, got {self.limit}; give 1 or more.")


def command(
    documents: str, build: BuildArguments, what: DocumentConfig, config: BuildConfig, endpoint: EndpointConfig
) -> None:
    """Make long instruction samples of documents. As LongAlign did: contexts are cut from them, and a model behind an
    OpenAI-compatible endpoint proposes questions about each and answers one. Replies are kept as they arrive, so a build that was
    stopped goes on where it was when the same command is given again. --dry_run says what it will take.

    Example:
        hf-gateau build books/ -o long.jsonl --endpoint_model gpt-4.1 \\
            --num_rows 1000 --tokenizer Qwen/Qwen3-0.6B
    """
    check_apart(build.output, documents)
    _check(build, config)
    count_tokens = token_counter(config.tokenizer)
    asked = None if config.dry_run else Endpoint(endpoint)  # refuses before anything is read
    places = {"split": build.split, "name": build.name, "revision": build.revision, "limit": build.limit}
    found = load_documents(documents, what, **places)
    cutter = ContextCutter(found, config, count_tokens)
    contexts = choose_contexts(cutter, config)
    _say_contexts(found, cutter, contexts, config)
    check_enough(contexts, config)
    if asked is None:
        return _say_cost(found, contexts, config, endpoint)
    builder = Builder(found, config, asked)
    print(builder.estimate(contexts).line(asked.model, endpoint.concurrency), flush=True)
    rows = builder.build(contexts)
    if not rows:
        raise RuntimeError(
            f"No row could be made: {commonest(builder.dropped)}. The replies are in {asked.store.path}."
        )
    dropped = {"documents": found.dropped + cutter.dropped, "rows": builder.dropped}
    record = _record(documents, what, config, asked, rows, dropped)
    write_rows(rows, RowWriter(found, count_tokens, asked.model), lambda ds: _save(ds, build, record))
    _say_rows(rows, builder, build.output, config)
    return None


def _check(build: BuildArguments, config: BuildConfig) -> None:
    from ..files.shards import num_bytes_of

    num_bytes_of(build.max_shard_size)
    if build.output is not None:
        check_output(build.output)
    elif not config.dry_run:
        raise ValueError("There is no place for the rows; name one with --output, or look at the cost with --dry_run.")


def _say_contexts(found: Documents, cutter: ContextCutter, contexts: list[Context], config: BuildConfig) -> None:
    sources = len(set(found.sources))
    languages = ", ".join(f"{n:,} {name}" for name, n in Counter(context.language for context in contexts).items())
    print(f"{len(found):,} documents of {sources:,} source{'s' * (sources != 1)}; contexts ({languages}), by tokens:")
    print("\n".join(histogram(lengths_by_range(contexts, config.min_tokens, config.max_tokens))))
    for reason, number in commonest(found.dropped + cutter.dropped).items():
        print(f"  {number:,} left out: {reason}")


def _say_cost(found: Documents, contexts: list[Context], config: BuildConfig, endpoint: EndpointConfig) -> None:
    if not endpoint.endpoint_model:
        print("Name a model with --endpoint_model to see what asking it will take.")
        return
    builder = Builder(found, config, Endpoint(replace(endpoint, replay=True)))  # which needs no key
    print(builder.estimate(contexts).line(endpoint.endpoint_model, endpoint.concurrency))


def _record(
    documents: str,
    what: DocumentConfig,
    config: BuildConfig,
    endpoint: Endpoint,
    rows: list[BuiltRow],
    dropped: dict[str, Counter],
) -> dict[str, Any]:
    """What stays with the rows."""
    settings = asdict(what) | asdict(config) | {"tokenizer": _public_name(config.tokenizer)}
    return {
        "documents": _public_name(documents),
        "model": endpoint.model,
        "prompt_version": PROMPT_VERSION,
        "settings": {name: value for name, value in settings.items() if name != "dry_run"},
        "num_rows": len(rows),
        "rows": table_of(rows, config.min_tokens, config.max_tokens),
        "dropped": {name: commonest(counts) for name, counts in dropped.items()},
    }


def _public_name(name: str) -> str:
    """A name without the folders that it is in on this machine; a Hub id as it is."""
    path = Path(name).expanduser()
    return path.absolute().name if path.exists() or path.is_absolute() or name.startswith((".", "~")) else name


def _save(ds: Dataset, build: BuildArguments, record: dict[str, Any]) -> None:
    attach_record(ds, RECORD, record)
    save_rows(ds, build.output, {RECORD: record}, build.max_shard_size)


def _say_rows(rows: list[BuiltRow], builder: Builder, output: str, config: BuildConfig) -> None:
    print("\n".join(table_lines(table_of(rows, config.min_tokens, config.max_tokens))))
    for reason, number in commonest(builder.dropped).items():
        print(f"  {number:,} dropped: {reason}")
    if builder.passed_over:
        print(f"  Questions passed over as duplicates: {builder.passed_over:,}")
    print(f"{len(rows):,} rows: {output}")
    if any(reason.startswith(NO_REPLY) for reason in builder.dropped):
        print("Give the same command again to ask once more what got no reply.", file=sys.stderr)
    if config.num_rows and len(rows) < config.num_rows:
        print(
            f"That is {config.num_rows - len(rows):,} fewer than num_rows={config.num_rows:,}: contexts are at their end. Give "
            "more documents or more --rows_per_context; replies are kept.",
            file=sys.stderr,
        )


TAKES = ("documents", BuildArguments, DocumentConfig, BuildConfig, EndpointConfig)
