"""The card of a scored dataset: from its record to Markdown and metadata. The template only prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..markdown import inline, is_repo_id, link, one_line, public_name, table
from ..ranking.formulas import METHOD_SETTINGS
from ..ranking.selection import SelectionRecord
from ..report.provenance import certain, how_measured, sibling
from ..rows.batches import VALUE_COLUMNS
from ..rows.cuts import Cuts
from ..shipped import render
from .readme import CITATIONS, TAGS
from .scored import ScoredRecord


DEFAULT = "default"  # the configuration with every row
SIZES = (("n<1K", 10**3), ("1K<n<10K", 10**4), ("10K<n<100K", 10**5), ("100K<n<1M", 10**6), ("n>1M", float("inf")))
COLUMN_TEXTS = {
    "gateau_ppl_short": "perplexity of the response under the short sibling (Eq. 1)",
    "gateau_ppl_long": "the same under the long model",
    "gateau_ppl_no_context": "the same under the long model, with the instruction alone",
    "gateau_segment_ppl": "from each segment of the context alone (Eq. 3 before its softmax)",
    "gateau_segment_attention": "mean attention that a token of each segment gets from the response (Eq. 4, likewise)",
    "gateau_segment_heads": "how much more retrieval heads look at each segment than is their habit at its distance, in nats",
    "gateau_num_far_segments": "how many of the first segments end before what the short sibling sees",
    "gateau_token_nll_long": "negative log-likelihood of each token of the response under the long model, in nats",
    "gateau_token_nll_short": "the same under the short sibling",
    "gateau_token_nll_no_context": "the same under the long model, with the instruction alone",
    "gateau_token_nll_far": "the lowest from one far segment alone; empty without a far segment",
    "gateau_token_nll_near": "the lowest from one near segment alone; empty without one",
    "gateau_token_far_segment": "the far segment that it is lowest for, counted from 0",
    "gateau_token_text": "the response as the models read it, without end-of-turn tokens and the like",
    "gateau_token_starts": "the character of it at which each token of the response begins",
    "gateau_num_context_tokens": "tokens of the context",
    "gateau_num_response_tokens": "tokens of the response",
    "gateau_truncated": "whether context was dropped to fit",
    "gateau_screened": "whether HMP was too low for segments to be worth measuring; of a sample of these rows they are",
    "gateau_num_cut_tokens": "how many of its tokens were dropped, from the left",
    "gateau_context_rule": "what told where in the row the context stands",
    "gateau_context_span": "where it stands: first turn, first character in it, last turn, end character in it",
    "gateau_segment_starts": "the character of the context at which each measured segment begins",
    "gateau_ppl_response": "perplexity of the response alone",
    "gateau_windows": "lengths in tokens of nested windows that end where the context does",
    "gateau_window_nll": "for each of them in turn, negative log-likelihood of each token of the response under the long model",
    "gateau_reward": "what a reward model gives the conversation",
    "gateau_embedding": "sentence embedding of instruction and response",
    **{x: f"null, or why there is no {x.removesuffix('_error')}" for x in VALUE_COLUMNS if x.endswith("_error")},
    "gateau_error": "null, or why the row could not be measured",
    "gateau_key": "settings and content by which the measurement is known",
    "gateau_content_hash": "of what the row says: tells whether it has changed since",
    "gateau_hmp": "how much harder the response is for the short sibling (Eq. 2)",
    "gateau_cas": "contextual awareness (Eq. 5)",
    "gateau_score": "both together (Eq. 6); high is worth training on",
    "gateau_rank": "1 is the best; null where the row has no rank",
    "gateau_percentile": "share of ranked rows that the row is at least as good as, in percent",
    "gateau_note": "null, or why the row has no rank, or none of its CAS",
}


def dataset_card(
    record: ScoredRecord,
    repo_id: str,
    licence: dict[str, str],
    columns: Sequence[str],
    figures: Sequence[dict[str, str]],
    explorer: str | None = None,
) -> tuple[str, dict[str, Any]]:
    """The card's Markdown, and its metadata.

    Args:
        licence: of the source, see `license_of`; empty where it names none.
        columns: names of the dataset's columns.
        figures: {"path" in the repository, "alt"} of each.
        explorer: the Hub's name of the Space with the explorer of these rows.
    """
    split, entry = next(iter(record.splits.items()))
    example = next(iter(record.selections), DEFAULT)
    chosen = record.selections.get(example, {}).get(split)
    ranking = entry["ranking"] or {}
    source = entry.get("source")
    block = render(
        "dataset.md",
        autoescape=False,
        summary=_summary(record),
        explorer=link(explorer, "space") if explorer else "",
        repo_id=repo_id,
        example_config=example,
        example_rows=one_line(SelectionRecord.from_dict(chosen["record"]).summary()) if chosen else "every row",
        split=split,
        configs_table=_configs_table(record),
        source_table=table(["", ""], source_rows(source)),
        license_text=license_text(licence, "the source", source.get("repo_id") if source else None, "dataset"),
        measuring_table=table(["", ""], measuring_rows(entry.get("measuring")) + cut_rows(entry.get("cut"))),
        unmeasured=_reasons("could not be measured", entry["errors"]),
        ranking_table=table(["", ""], ranking_rows(ranking)),
        ranking_warnings="\n".join(f"- Warning: {inline(message)}" for message in ranking.get("warnings", [])),
        figures=figures,
        columns_table=table(
            ["column", ""], [[f"`{name}`", COLUMN_TEXTS[name]] for name in columns if name in COLUMN_TEXTS]
        ),
        citations=CITATIONS,
    )
    return block, _metadata(record, licence)


def _summary(record: ScoredRecord) -> str:
    rows = sum(entry["num_rows"] for entry in record.splits.values())
    measured = sum(entry["num_measured"] for entry in record.splits.values())
    return (
        f"{rows:,} long instruction samples, {measured:,} of them scored by how much their response needs the long context, "
        "with `hf_gateau`, an implementation of [GATEAU](https://arxiv.org/abs/2410.15633). The best of them are "
        "configurations of their own, ready to train on."
    )


def _configs_table(record: ScoredRecord) -> str:
    rows = [
        [f"`{DEFAULT}`", f"`{split}`", f"{entry['num_rows']:,}", "", "every row, with all measurements"]
        for split, entry in record.splits.items()
    ]
    for name, splits in record.selections.items():
        for split, chosen in splits.items():
            found = SelectionRecord.from_dict(chosen["record"])
            tokens = f"{found.num_tokens_kept:,}" if found.num_tokens_kept is not None else ""
            settings = ", ".join(f"{key} {value}" for key, value in found.settings.items())
            what = f"the best: {inline(settings)}" + (f"; {told}" if (told := found.decided()) else "")
            rows.append([f"`{name}`", f"`{split}`", f"{found.num_kept:,}", tokens, what])
    return table(["configuration", "split", "rows", "tokens", "what it holds"], rows)


def source_rows(source: dict[str, Any] | None) -> list[list[str]]:
    """Where rows are from, as rows of a table; see `records.origin_of`."""
    if not source:
        return [["source", "not recorded"]]
    rows = []
    if source.get("repo_id"):
        rows.append(["source", link(source["repo_id"], "dataset", source.get("revision"))])
    elif source.get("name"):
        rows.append(["source", inline(public_name(source["name"]))])
    if source.get("config") and source["config"] != DEFAULT:
        rows.append(["configuration", inline(source["config"])])
    return rows or [["source", "not recorded"]]


def license_text(licence: dict[str, str], of: str, repo_id: str | None, repo_type: str) -> str:
    """What the card says of the licence: what the source says, or that it says nothing."""
    if not licence:
        asked = link(repo_id, repo_type) if is_repo_id(repo_id) else of
        return f"No licence is named here, since none was found for {asked}: look there before you use it."
    name = licence.get("license_name") or licence.get("license")
    return f"Licence, as {of} states it: {inline(name)}."


def measuring_rows(measuring: dict[str, Any] | None) -> list[list[str]]:
    """The models and settings that measured, as rows of a table; see `GateauScorer.describe`."""
    if not measuring:
        return [["models", "not recorded"]]
    rows = [["long model", _model(measuring.get("long") or {})], ["short sibling", sibling(measuring, _model)]]
    return rows + how_measured(measuring, inline)


def cut_rows(cut: dict[str, Any] | None) -> list[list[str]]:
    """What of the rows was dropped to fit, as rows of a table; see `rows.cuts.Cuts`."""
    found = Cuts.of_record(cut)
    return [["context dropped", f"{found.told()}, from the left"]] if found else []


def _model(described: dict[str, Any]) -> str:
    name = described.get("model")
    adapter = f", adapter {_adapter(described)}" if described.get("adapter") else ""
    if is_repo_id(name):
        return link(name, "model", described.get("fingerprint")) + adapter
    weights = f", weights {inline(described['fingerprint'])}" if described.get("fingerprint") else ""
    return inline(public_name(name)) + weights + adapter


def _adapter(described: dict[str, Any]) -> str:
    name, fingerprint = described.get("adapter_name"), described["adapter"]
    if is_repo_id(name):
        return link(name, "model", fingerprint)
    named = f"{inline(public_name(name))}, weights " if name else ""
    return named + inline(public_name(fingerprint))


def ranking_rows(ranking: dict[str, Any]) -> list[list[str]]:
    """How an order was made, as rows of a table; see `ranking_record`."""
    if not ranking:
        return [["ranking", "not recorded"]]
    rows = [["method", inline(ranking.get("method"))]]
    names = ("what", "mode", "alpha", "hmp", "cas", "combine", "tau", *METHOD_SETTINGS)
    rows += [[name, inline(ranking[name])] for name in names if ranking.get(name) is not None]
    rows += [["certain", certain(ranking["screening"])]] if ranking.get("screening") else []
    unranked = sum((ranking.get("num_unranked") or {}).values())
    rows.append(["rows ranked", f"{ranking.get('num_ranked', 0):,}" + (f", {unranked:,} not" if unranked else "")])
    rows += [[f"{count:,} not", inline(reason)] for reason, count in (ranking.get("num_unranked") or {}).items()]
    return rows


def _reasons(what: str, reasons: dict[str, int]) -> str:
    return "\n".join(f"- {count:,} rows {what}: {inline(reason)}" for reason, count in reasons.items())


def _metadata(record: ScoredRecord, licence: dict[str, str]) -> dict[str, Any]:
    rows = sum(entry["num_rows"] for entry in record.splits.values())
    sources = [(entry.get("source") or {}).get("repo_id") for entry in record.splits.values()]
    sources = [f"extended|{name}" for name in dict.fromkeys(sources) if is_repo_id(name)]
    return {
        **licence,
        "task_categories": ["text-generation"],
        "size_categories": [next(name for name, limit in SIZES if rows < limit)],
        **({"source_datasets": sources} if sources else {}),
        "tags": TAGS,
        "configs": card_configs(record),
    }


def card_configs(record: ScoredRecord) -> list[dict[str, Any]]:
    """The `configs` of the metadata: which files make up which configuration."""
    configs = {DEFAULT: list(record.splits)} | {name: list(splits) for name, splits in record.selections.items()}
    return [
        {
            "config_name": name,
            "data_files": [{"split": split, "path": f"{folder_of(name)}/{split}-*"} for split in splits],
            **({"default": True} if name == DEFAULT else {}),
        }
        for name, splits in configs.items()
    ]


def folder_of(config: str) -> str:
    """Where a configuration's files are, as `Dataset.push_to_hub` lays them out."""
    return "data" if config == DEFAULT else config
