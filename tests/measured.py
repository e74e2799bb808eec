"""Rows, samples and measurements that several tests make, and when two of them are the same.

Light to import: processes that tests start import it too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hf_gateau.rows.samples import Sample
from hf_gateau.store.sqlite import Measurement


if TYPE_CHECKING:
    from datasets import Dataset


SETTINGS = {"short_window": 200, "segment_length": 64, "max_length": 700, "device": "cpu"}


def assert_same(columns, expected) -> None:
    """The columns of rows measured in two ways, in float32: mean negative log-likelihoods and attention to 1e-6, relative; all
    else alike. Rows share batches with others, and matrix products of other shapes round otherwise."""
    from hf_gateau.rows.batches import COLUMNS

    assert len(columns) == len(expected)
    for got, want in zip(columns, expected, strict=True):
        for name in COLUMNS:
            if "_ppl" in name and want[name] is not None:
                np.testing.assert_allclose(np.log(got[name]), np.log(want[name]), rtol=1e-6, atol=1e-6, err_msg=name)
            elif COLUMNS[name] == "list" and want[name] is not None:
                np.testing.assert_allclose(got[name], want[name], rtol=1e-6, atol=0, err_msg=name)
            elif COLUMNS[name] == "nlls" and want[name] is not None:
                np.testing.assert_allclose(got[name], want[name], rtol=1e-5, atol=1e-5, err_msg=name)
            elif name not in AS_WRITTEN:
                assert got[name] == want[name], name


# Of the row as it is written, not of what is measured; or one of several that are equal but for rounding
AS_WRITTEN = ("gateau_content_hash", "gateau_context_rule", "gateau_token_far_segment")
SOURCES = ("books", "law", "code")


def measured(num_rows: int, seed: int = 0, **columns) -> Dataset:
    """Rows whose perplexities, lengths and keys are drawn at random; a few of them tied. All tokens of a response are as likely."""
    from datasets import Dataset

    rng = np.random.default_rng(seed)
    long = rng.lognormal(1, 0.3, num_rows).round(2)
    columns = {
        "id": [f"row-{i}" for i in range(num_rows)],
        "source": [SOURCES[i % 3] for i in range(num_rows)],
        "gateau_ppl_short": long * rng.lognormal(0.3, 0.3, num_rows).round(1),
        "gateau_ppl_long": long,
        "gateau_ppl_no_context": long * 2,
        "gateau_segment_ppl": rng.lognormal(1, 0.3, (num_rows, 8)).round(1).tolist(),
        "gateau_segment_attention": rng.random((num_rows, 8)).tolist(),
        "gateau_num_context_tokens": rng.integers(200, 9000, num_rows),
        "gateau_num_response_tokens": rng.integers(5, 50, num_rows),
        "gateau_error": [None] * num_rows,
        "gateau_key": [f"c:{key:04}" for key in rng.permutation(num_rows)],
    } | columns
    tokens = _tokens_like(columns) if num_rows <= 5_000 else {}
    return Dataset.from_dict(tokens | columns)


def _tokens_like(columns: dict) -> dict:
    """Evidence of tokens that agrees with perplexities, four tokens a response; the last quarter of the segments is near."""
    names = ("long", "short", "no_context", "far", "near")
    found = {f"gateau_token_nll_{name}": [] for name in names} | {"gateau_token_far_segment": []}
    ppl = [columns[f"gateau_ppl_{name}"] for name in names[:3]]
    for *whole, segments in zip(*ppl, columns["gateau_segment_ppl"], strict=True):
        num_far = len(segments or ()) * 3 // 4
        far, near = list(segments or ())[:num_far], list(segments or ())[num_far:]
        values = [*whole, min(far, default=None), min(near, default=None)]
        for name, value in zip(names, values, strict=True):
            tokens = [] if name in ("far", "near") else None
            found[f"gateau_token_nll_{name}"].append(tokens if value is None else [float(np.log(value))] * 4)
        found["gateau_token_far_segment"].append([far.index(min(far))] * 4 if far else [])
    return found


def make_sample(context: int, instruction: int, response: int, seed: int = 0, of: Sample | None = None) -> Sample:
    """A prefix of three tokens and random ones after it; with `of`, another question on that sample's context."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    draw = torch.randint(7, 100, (context + instruction + response,), generator=generator).tolist()
    ids = [1, 2, 3] + draw if of is None else of.input_ids[: of.context_end] + draw[-instruction - response :]
    end = 3 + context
    return Sample(ids, 3, end, end + instruction, end + instruction + response)


def measurement(seed: int) -> Measurement:
    return Measurement(1.5 + seed, 1 / 3, 2.0**-40, [0.1 * seed, 1e300], [1e-9, 5e-324])
