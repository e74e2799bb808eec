"""Scores of answers, in points from 0 to 100: the needle's own, and LongBench's as lm-evaluation-harness computes them."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from types import ModuleType


POINTS = 100.0
STOP_WORDS = frozenset("a an and as at by for from in is it of on or that the this to was were with".split())
STOP_WORDS |= frozenset("的 了 是 在 和 与 及 有 这 那 也 就 都 而 并 着 一 个 地 得 之".split())
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
# A character of a script that writes no spaces between words, Chinese above all, or a word of another script
WORD = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+")


def words_of(text: str) -> list[str]:
    """The words of a text, in lower case; where a script has no spaces between them, such as the Chinese, its characters."""
    return WORD.findall(text.lower())


def distinctive_words(needle: str, question: str) -> list[str]:
    """The words by which a needle is recognised in an answer: those that neither the question has nor every text."""
    known = STOP_WORDS | set(words_of(question))
    return [word for word in dict.fromkeys(words_of(needle)) if word not in known]


def needle_score(answer: str, words: Sequence[str]) -> float:
    """Share of the words that the answer has, in points."""
    answer = answer.lower()
    found = set(words_of(answer))
    # Characters of an unspaced word must stand together
    num_found = sum(
        set(words_of(word)) <= found and (not re.search(f"[{UNSPACED}]", word) or word.lower() in answer)
        for word in words
    )
    return POINTS * num_found / len(words)


def longbench_metrics() -> ModuleType:
    """LongBench's published metrics, `qa_f1_score`, `qa_f1_zh_score`, `rouge_score` and `rouge_zh_score` among them, each of
    (prediction, ground truth), from 0 to 1. Its tasks in lm-evaluation-harness use them.

    Raises:
        ImportError: what they stand on is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message="Using slow pure-python SequenceMatcher"
            )  # no metric of ours needs it
            from lm_eval.tasks.longbench import metrics
    except ImportError as error:
        raise ImportError(
            f"LongBench needs lm-evaluation-harness with its extras ({error}); install them with "
            '`pip install "hf-gateau[eval]"`.'
        ) from error
    return metrics
