"""LongBench's metrics, as installed, against straight implementations and counts by hand, in English and in Chinese."""

import re
import string
from collections import Counter

import pytest

from hf_gateau.evaluation.metrics import distinctive_words, longbench_metrics, needle_score
from hf_gateau.evaluation.needle import NEEDLE, QUESTION


pytestmark = pytest.mark.quick


def f1(got: list[str], want: list[str]) -> float:
    shared = sum((Counter(got) & Counter(want)).values())
    return 2 * shared / (len(got) + len(want))


def english(text: str) -> list[str]:
    kept = "".join(character for character in text.lower() if character not in string.punctuation)
    return [word for word in kept.split() if word not in ("a", "an", "the")]


def rouge_l(got: list[str], want: list[str]) -> float:
    """F1 of the longest common subsequence, of one sentence without a word twice."""
    table = [[0] * (len(want) + 1) for _ in range(len(got) + 1)]
    for i, a in enumerate(got):
        for j, b in enumerate(want):
            table[i + 1][j + 1] = table[i][j] + 1 if a == b else max(table[i][j + 1], table[i + 1][j])
    return 2 * table[-1][-1] / (len(got) + len(want))


@pytest.fixture(scope="module")
def metrics():
    pytest.importorskip("lm_eval")
    return longbench_metrics()


@pytest.mark.parametrize(
    ("got", "want", "by_hand"),
    [
        ("The Dolores Park!", "dolores park", 1.0),
        ("Dolores Park, in San Francisco", "the Dolores Park", 2 * 2 / 7),
        ("a sandwich", "an apple", 0.0),
        ("yes yes no", "yes", 0.5),
        ("It's 3.5 miles", "its 35 miles", 1.0),
    ],
)
def test_qa_f1(got, want, by_hand, metrics):
    assert metrics.qa_f1_score(got, want) == pytest.approx(by_hand) == pytest.approx(f1(english(got), english(want)))


@pytest.mark.parametrize(
    ("got", "want", "words"),
    [
        ("北京大学。", "北京大学", (["北京大学"], ["北京大学"])),
        ("他在北京，工作", "北京", (["他", "在", "北京", "工作"], ["北京"])),
        ("上海", "北京", (["上海"], ["北京"])),
    ],
)
def test_qa_f1_in_chinese(got, want, words, metrics):
    assert metrics.qa_f1_zh_score(got, want) == pytest.approx(f1(*words))


@pytest.mark.parametrize(
    ("got", "want"),
    [
        ("the cat sat on a mat", "the cat lay on my mat today"),
        ("one two three", "three two one"),
        ("all of it alike", "all of it alike"),
        ("nothing here", "something else"),
    ],
)
def test_rouge(got, want, metrics):
    assert metrics.rouge_score(got, want) == pytest.approx(rouge_l(got.split(), want.split()), abs=1e-6)


def test_rouge_in_chinese(metrics):
    import jieba

    got, want = "会议讨论了明年的预算", "会议决定了今年的预算"
    words = [list(jieba.cut(text)) for text in (got, want)]
    assert words[0][0] == "会议" and words[0][-1] == "预算"
    assert metrics.rouge_zh_score(got, want) == pytest.approx(rouge_l(*words), abs=1e-6)
    assert metrics.rouge_zh_score(got, got) == pytest.approx(1, abs=1e-6)


def test_an_empty_answer_is_worth_nothing(metrics):
    for name in ("qa_f1_score", "qa_f1_zh_score", "rouge_score", "rouge_zh_score"):
        assert getattr(metrics, name)("", "北京 park") == 0


def test_the_best_of_several_right_answers_counts(metrics):
    doc = {"answers": ["no", "Dolores Park"]}
    assert metrics.get_qa_f1_with_score(doc, [" dolores park\n"])["score"] == 1


def test_words_of_the_needle():
    words = distinctive_words(NEEDLE, QUESTION)
    assert words == ["eat", "sandwich", "sit", "dolores", "park", "sunny", "day"]
    assert needle_score("Eat a SANDWICH in Dolores Park.", words) == pytest.approx(100 * 4 / 7)
    assert needle_score(NEEDLE, words) == 100 and needle_score("", words) == 0
    assert needle_score("parking sandwiches", words) == 0  # whole words
    assert needle_score("It was Adam Baxter.", ["adam baxter"]) == 100  # both words of one that is two
    assert not set(re.findall(r"\w+", QUESTION.lower())) & set(words)


def test_words_of_a_chinese_needle():
    needle, question = "在旧金山最好的事情是坐在公园里吃三明治。", "在旧金山最好的事情是什么？"
    words = distinctive_words(needle, question)
    assert words == list("坐公园里吃三明治")
    assert needle_score("应该吃三明治。", words) == 100 * 4 / 8 and needle_score("坐在公园里吃三明治", words) == 100
    assert needle_score("我不知道", words) == 0
    assert needle_score("他住在 Aveiro，很好", ["Aveiro"]) == 100  # no space around a foreign word
    assert (
        needle_score("公园和咖啡", ["公园", "海边"]) == 50 and needle_score("公司的花园", ["公园"]) == 0
    )  # whole words


@pytest.mark.parametrize("answer", ["eat a sandwich", "Sit in Dolores Park!", "It is sunny.", "I cannot say."])
def test_the_needles_score_is_the_recall_in_the_published_f1(answer, metrics):
    """Of the needle's words: F1 = 2 P R / (P + R), and its words are no articles, which F1 leaves out."""
    words = distinctive_words(NEEDLE, QUESTION)
    recall, got = needle_score(answer, words) / 100, english(answer)
    precision = recall * len(words) / len(got)
    f1_by_recall = 2 * precision * recall / (precision + recall) if recall else 0
    assert metrics.qa_f1_score(answer, " ".join(words)) == pytest.approx(f1_by_recall)
