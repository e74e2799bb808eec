"""Which questions have been asked before, word for word or nearly so.

Nearly means a ROUGE-L of the words of 0.7 or more, as in Self-Instruct (arXiv 2212.10560, section 2.2). The search is exact:
the words that two questions share bound their ROUGE-L, and it is reckoned for those alone that may reach the threshold.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict


WORD = re.compile(r"[\u3400-\u9fff]|[^\W\u3400-\u9fff]+")  # a Chinese character is a word


def words_of(text: str) -> list[str]:
    """The words of a text, in lower case; punctuation is none."""
    return WORD.findall(text.lower())


def rouge_l(words: list[str], others: list[str]) -> float:
    """F1 of the longest common subsequence of two lists of words, from 0 to 1."""
    if not words or not others:
        return 0.0
    return 2 * _longest_common_subsequence(words, others) / (len(words) + len(others))


def _longest_common_subsequence(words: list[str], others: list[str]) -> int:
    """Its length, one bit a word of `words` (the bit-vector algorithm of Hyyrö, 2004)."""
    places = defaultdict(int)
    for i, word in enumerate(words):
        places[word] |= 1 << i
    mask = (1 << len(words)) - 1
    unmatched = mask
    for word in others:
        matched = unmatched & places.get(word, 0)
        unmatched = ((unmatched + matched) | (unmatched - matched)) & mask
    return len(words) - unmatched.bit_count()


class Questions:
    """Questions that were taken.

    Args:
        threshold (`float`): the ROUGE-L from which on two are duplicates; 1: where their words are the same.
    """

    def __init__(self, threshold: float):
        self.threshold = threshold
        self._taken: list[list[str]] = []
        self._having: dict[tuple[str, int], list[int]] = defaultdict(list)  # (word, which time) -> places in _taken

    def take(self, question: str) -> bool:
        """Whether no such question was taken before; it is taken then."""
        words = words_of(question)
        if self._is_known(words):
            return False
        for key in _counted(words):
            self._having[key].append(len(self._taken))
        self._taken.append(words)
        return True

    def _is_known(self, words: list[str]) -> bool:
        shared = Counter(place for key in _counted(words) for place in self._having.get(key, ()))
        for place, number in shared.items():
            other = self._taken[place]
            may_reach = 2 * number >= self.threshold * (len(words) + len(other)) - 1e-9
            if may_reach and rouge_l(words, other) >= self.threshold - 1e-9:
                return True
        return False


def _counted(words: list[str]) -> list[tuple[str, int]]:
    """Each word with the number of times it stood before, so that sets of them share what the lists share."""
    seen: Counter = Counter()
    counted = []
    for word in words:
        counted.append((word, seen[word]))
        seen[word] += 1
    return counted
