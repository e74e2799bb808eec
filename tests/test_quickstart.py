"""The quickstart finds the planted samples, on a fresh seed, and shows it."""

import pytest
import torch

from hf_gateau.cli import main
from hf_gateau.quickstart import demo


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("quickstart")


@pytest.fixture(scope="module")
def figures(folder):
    return demo.run(str(folder / "out"), seed=4242)


@pytest.mark.parametrize("sibling", demo.SIBLINGS)
def test_robust_meets_its_bar_on_a_fresh_seed(figures, sibling):
    auroc, precision = figures[sibling]["robust (default)"]
    assert auroc >= 0.97 and precision >= 0.95


@pytest.mark.parametrize("sibling", demo.SIBLINGS)
def test_other_rankings_stand_where_the_planted_noise_puts_them(figures, sibling):
    """Eq. 2's softmax is one-hot on a noise row; Perplexity Guidance and IFD look for difficulty, not for distance."""
    for ranking in ("paper", "Perplexity Guidance", "IFD (Cherry)"):
        assert figures[sibling][ranking][0] < 0.7


def test_it_leaves_scored_rows_and_a_figure(figures, folder):
    from datasets import load_dataset

    ds = load_dataset("json", data_files=str(folder / "out" / "scored.jsonl"), split="train")
    assert len(ds) == 200 and sorted(ds["gateau_rank"]) == list(range(1, 201))
    assert (folder / "out" / "scores.png").read_bytes().startswith(b"\x89PNG")


def test_command_with_few_rows(tmp_path, capsys):
    threads = torch.get_num_threads()
    assert main(["quickstart", "--seed", "1", "--num_rows", "20", "-o", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "20 planted samples" in shown and "robust (default)" in shown and "rank 20 of 20" in shown
    assert main(["quickstart", "--seed", "1", "--num_rows", "3", "-o", str(tmp_path)]) == 2
    assert "give 10 or more" in capsys.readouterr().err
    assert torch.get_num_threads() == threads
