"""The quickstart finds the planted samples, on a fresh seed, and shows it."""

import numpy as np
import pytest
import torch

from hf_gateau.cli import main
from hf_gateau.models.packing import Cut
from hf_gateau.quickstart import SHORT_WINDOW, demo, finetune
from hf_gateau.report.marking import stretches
from hf_gateau.report.reach import reach_of_segments
from hf_gateau.report.tokens import response_tokens
from hf_gateau.rows.parts import context_text


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("quickstart")


@pytest.fixture(scope="module", params=[100, pytest.param(200, marks=pytest.mark.slow)])
def num_rows(request) -> int:
    return request.param


@pytest.fixture(scope="module")
def figures(folder, num_rows):
    return demo.run(str(folder / "out"), seed=4242, num_rows=num_rows, fine_tune=False)


@pytest.mark.slow
@pytest.mark.parametrize("sibling", demo.SIBLINGS)
def test_robust_meets_its_bar_on_a_fresh_seed(figures, sibling):
    auroc, precision = figures[sibling]["robust (default)"]
    assert auroc >= 0.97 and precision >= 0.95


@pytest.mark.parametrize("sibling", demo.SIBLINGS)
def test_other_rankings_stand_where_the_planted_noise_puts_them(figures, sibling):
    """Eq. 2's softmax is one-hot on a noise row; Perplexity Guidance and the context's IFD look for difficulty, not for distance."""
    for ranking in ("paper", "Perplexity Guidance", "IFD of context"):
        assert figures[sibling][ranking][0] < 0.7


def test_it_leaves_scored_rows_and_a_figure(figures, folder, num_rows):
    from datasets import load_dataset

    ds = load_dataset("json", data_files=str(folder / "out" / "scored.jsonl"), split="train")
    assert len(ds) == num_rows and sorted(ds["gateau_rank"]) == list(range(1, num_rows + 1))
    assert (folder / "out" / "scores.png").read_bytes().startswith(b"\x89PNG")


def test_command_with_few_rows(tmp_path, capsys):
    threads = torch.get_num_threads()
    assert main(["quickstart", "--seed", "1", "--num_rows", "20", "--fine_tune", "false", "-o", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "20 planted samples" in shown and "robust (default)" in shown and "rank 20 of 20" in shown
    assert main(["quickstart", "--seed", "1", "--num_rows", "3", "-o", str(tmp_path)]) == 2
    assert "give 10 or more" in capsys.readouterr().err
    assert torch.get_num_threads() == threads


@pytest.fixture(scope="module")
def scored():
    return demo._score(demo.planted_dataset(), demo.SIBLINGS[f"window of {SHORT_WINDOW}"])


def test_planted_facts_are_what_far_rows_reach_for(scored):
    """They stand in the first 60% of some 960 tokens: 384 tokens and more before the end, give or take a segment."""
    cut, far = Cut(demo.SEGMENT_LENGTH), scored.filter(lambda row: row["kind"] == demo.NEEDED)
    found = reach_of_segments(scored, [128, 256, 512, 960], 0.5, cut)
    is_far = np.array(scored["kind"]) == demo.NEEDED
    near, beyond, farther, nowhere = found[is_far].mean(axis=0)
    assert near == pytest.approx(beyond, rel=0.02) and 0 < farther < 0.9 * beyond and nowhere == 0
    assert beyond > 2 and (found[is_far, 1] > 0.5).mean() >= 0.95 and np.median(found[~is_far, 1]) == 0
    right = wrong = 0
    for row in far:
        tokens = response_tokens(row, None, cut)
        assert tokens.text.rstrip() == row["messages"][-1]["content"]
        for stretch in (x for x in stretches(tokens, 9) if x.segment is not None and x.need > 1):
            segment = row["gateau_segment_starts"][stretch.segment - 1 :][:2]
            text = context_text(row)[segment[0] : segment[1] if len(segment) > 1 else None]
            right, wrong = right + (stretch.text in text), wrong + (stretch.text not in text)
    assert right >= 0.95 * (right + wrong) and right >= len(far), "the segment that a name needs says it"


@pytest.mark.slow
def test_forgetting_leaves_something_to_learn(scored, monkeypatch):
    """One seed and two steps: the arms and kinds are there, and what is to be learned back was forgotten."""
    monkeypatch.setattr(finetune, "NUM_STEPS", 2)
    monkeypatch.setattr(finetune, "NUM_HELD_OUT", 40)
    found = finetune.compare(scored, seeds=(1,))
    assert found.keys() == {"before", *finetune.ARMS} and all(len(runs) == 1 for runs in found.values())
    assert found["before"][0]["far"] <= 0.2 and found["before"][0]["others"] >= 0.9
    assert "top 10% + short" in finetune.table(found)


@pytest.mark.slow
def test_best_tenth_teaches_more_than_a_random_one(scored):
    """The bar: 10 points on far questions in the mean of three seeds, and at most 5 lost on the others."""
    found = finetune.compare(scored)
    best, chance = (
        {kind: sum(run[kind] for run in found[arm]) / 3 for kind in ("far", "others")} for arm in finetune.ARMS
    )
    assert best["far"] >= chance["far"] + 0.10
    assert best["others"] >= chance["others"] - 0.05
