"""Texts with a needle: their length, what is around it, where it is; the grid's figures and picture against hand counts."""

import json
import random
from collections import Counter

import numpy as np
import pytest
from matplotlib.figure import Figure as Canvas
from matplotlib.image import imread

from hf_gateau.evaluation.needle import (
    NEEDLE,
    SENTENCE_END,
    Haystack,
    NeedleConfig,
    Question,
    default_lengths,
    grid_metrics,
    read_haystack,
    run,
    spread_evenly,
)
from hf_gateau.evaluation.needle_map import needle_figure, needle_grid, write_maps
from hf_gateau.evaluation.planted_needle import PlantedNeedleConfig, planted_text
from hf_gateau.evaluation.planted_needle import run as run_planted
from hf_gateau.evaluation.results import TaskResult
from hf_gateau.evaluation.tasks import Work
from hf_gateau.quickstart.world import draw_people
from tests.chats import train_bpe
from tests.paths import LONG_ROWS


pytestmark = pytest.mark.quick


ROWS = LONG_ROWS.read_text(encoding="utf-8").splitlines()
TEXT = "\n\n".join(json.loads(row)["messages"][0]["content"] for row in ROWS[:4])
DEPTHS = (0.0, 25.0, 50.0, 75.0, 100.0)


@pytest.fixture(scope="module")
def haystack():
    return Haystack(TEXT, train_bpe(byte_level=True, bos=False), 700)


def plain(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("length", [90, 101, 333, 700])
@pytest.mark.parametrize("depth", DEPTHS)
def test_pieces_are_of_the_exact_length_and_else_the_text_as_it_is(haystack, length, depth):
    for seed in range(3):
        end = haystack.draw_end(length, random.Random(seed) if seed else None)
        found, num_tokens = haystack.with_needle(NEEDLE, length, depth, end)
        assert num_tokens == length == haystack.count(found)
        before, after = found.split(NEEDLE)  # it is there once
        assert plain(before + after) in plain(haystack.text)
        assert not before or before.endswith("\n") and SENTENCE_END.search(before.strip()[-3:] + "\n\n")
        body = haystack.count(before) + haystack.count(after)
        place = 100 * haystack.count(before) / body
        sentence = haystack.count(SENTENCE_END.split(after.strip() + "\n")[0])  # the one that the wanted place is in
        assert depth - 100 * (sentence + 6) / body <= place <= depth + 400 / body


def test_the_needle_is_first_and_last(haystack):
    end = haystack.draw_end(200, None)
    assert haystack.with_needle(NEEDLE, 200, 0, end)[0].startswith(NEEDLE)
    assert haystack.with_needle(NEEDLE, 200, 100, end)[0].endswith(NEEDLE)


def test_a_short_text_is_repeated(tokenizer):
    text = "the old river stood . the quiet bridge waited near the tower ."
    haystack = Haystack(text, tokenizer, 100)
    found, num_tokens = haystack.with_needle("adam baxter slept .", 100, 50, haystack.draw_end(100, None))
    assert num_tokens == 100 == len(found.split()) and found.count("river stood") >= 6


def test_chinese_sentences_end_without_a_space(tokenizer):
    haystack = Haystack("河边有一座桥。" * 50, train_bpe(byte_level=True, bos=False), 100)
    before, after = haystack.with_needle("针在这里。", 100, 50, haystack.draw_end(100, None))[0].split("针在这里。")
    assert before.endswith("桥。\n") and after.startswith("\n河")


def test_no_room_for_the_needle(haystack):
    with pytest.raises(ValueError, match="The needle has .* more than a text of 5"):
        haystack.with_needle(NEEDLE, 5, 50, haystack.draw_end(5, None))


def test_reads_files_and_folders(tmp_path):
    for name, text in (("b.txt", "Second."), ("a.md", "First."), ("c.json", "Not read.")):
        (tmp_path / name).write_text(text)
    assert read_haystack(str(tmp_path)) == "First.\n\nSecond." and read_haystack(str(tmp_path / "b.txt")) == "Second."
    with pytest.raises(FileNotFoundError, match="There is no haystack"):
        NeedleConfig(haystack=str(tmp_path / "d.txt"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no sentence in 0 files"):
        read_haystack(str(tmp_path / "empty"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"needle_depths": [101]}, "needle_depths are percent"),
        ({"needle_lengths": [0]}, "needle_lengths are numbers"),
        ({"needle_repeats": 0}, "needle_repeats"),
        ({"needle_prompt": "{context}"}, "has no {question}"),
        ({"needle_prompt": "{context} {question} as {json}"}, "has braces besides"),
        ({"needle_prompt": "{context} {question} {"}, "has braces besides"),
        ({"needle_words": ["Park", "!"]}, "no letter or digit in"),
        ({"needle": "What is it?", "needle_question": "What is it?"}, "name some as needle_words"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        NeedleConfig(**settings)


class Finder:
    """Says the needle where it stands in the last 400 tokens of the prompt."""

    model, max_length = "them/finder", 1_000

    def __init__(self, tokenizer, needle: str):
        self.tokenizer, self.needle, self.asked = tokenizer, needle, []

    def num_tokens(self, prompt):
        return len(self.tokenizer(prompt[0]["content"])["input_ids"])

    def generate(self, prompts, max_new_tokens):
        self.asked += prompts
        texts = [prompt[0]["content"] for prompt in prompts]
        return [f"I think {self.needle}" if self.near(text) else "Nothing." for text in texts]

    def near(self, text: str) -> bool:
        return len(self.tokenizer(text[text.index(self.needle) :])["input_ids"]) <= 400


def work_of(generator, folder, *settings, limit=None) -> Work:
    options = {type(part).__name__: part for part in settings}
    return Work(generator.model, folder, lambda: generator, None, options, limit)


def test_the_task_asks_the_whole_grid_and_scores_it(tmp_path, haystack):
    (tmp_path / "hay.txt").write_text(TEXT)
    config = NeedleConfig(
        needle_lengths=[700, 100], needle_depths=list(DEPTHS), needle_repeats=2, haystack=str(tmp_path / "hay.txt")
    )
    finder = Finder(haystack.tokenizer, NEEDLE)
    result = run(work_of(finder, tmp_path, config))
    assert len(result.rows) == 20 and len({row["id"] for row in result.rows}) == 20
    assert [row["num_tokens"] for row in result.rows] == [row["length"] for row in result.rows]
    found = {(row["length"], row["depth"]): row["score"] for row in result.rows}
    assert found == {
        (length, depth): 100.0 if length == 100 or depth >= 75 else 0.0 for length in (100, 700) for depth in DEPTHS
    }
    assert result.metrics == {"mean": 70.0, "100 tokens": 100.0, "700 tokens": 40.0}
    assert finder.asked[0][0]["content"].endswith(
        "\n\nRead the document and answer: What is the best thing to do in San Francisco?"
    )
    first = {prompt[0]["content"] for prompt in finder.asked if prompt[0]["content"].startswith(NEEDLE)}
    assert len(first) == 4  # both texts of each length are other ones
    assert (tmp_path / "needle" / "needle.png").exists()
    lines = (tmp_path / "needle" / "needle.csv").read_text().splitlines()
    assert lines[0] == 'model,tokens,"depth, %",points' and "them/finder,700,75.0,100.0" in lines and len(lines) == 11


def test_the_same_seed_asks_the_same(tmp_path, haystack):
    asked = []
    for seed in (0, 0, 1):
        finder = Finder(haystack.tokenizer, NEEDLE)
        run(work_of(finder, tmp_path, NeedleConfig(needle_lengths=[200], needle_repeats=3, needle_seed=seed)))
        asked.append(finder.asked)
    assert asked[0] == asked[1] != asked[2]


def test_lengths_beyond_the_window_are_refused_before_anything_is_asked(tmp_path, haystack):
    finder = Finder(haystack.tokenizer, NEEDLE)
    with pytest.raises(ValueError, match="A text of 990 tokens makes .* and 'them/finder' reads 1,000; give shorter"):
        run(work_of(finder, tmp_path, NeedleConfig(needle_lengths=[100, 990])))
    assert not finder.asked


def test_default_lengths_fill_the_window(haystack):
    finder, config = Finder(haystack.tokenizer, NEEDLE), NeedleConfig()
    lengths = default_lengths(finder, config)
    rest = finder.num_tokens(
        [{"content": config.needle_prompt.format(context=NEEDLE, question=config.needle_question)}]
    )
    assert len(lengths) == 10 and lengths[-1] == 1_000 - rest - 48 and lengths == sorted(lengths)
    finder.max_length = 1 << 20
    assert default_lengths(finder, config) == [round(1_000 + i * 7_000) for i in range(10)]


def test_planted_texts_say_the_answer_once(tmp_path, tokenizer):
    class Reader(Finder):
        def generate(self, prompts, max_new_tokens):
            self.asked += prompts
            return [self.answer(prompt[0]["content"]) for prompt in prompts]

        def answer(self, text: str) -> str:
            words = text.split()
            first = words[-2]
            assert words[-4:] == ["who", "is", first, "?"] and words.count(first) == 2
            last = words[words.index(first) + 1]
            assert words.count(last) == 1
            return f"{first} {last} ."

    reader = Reader(tokenizer, "")
    grid, planted = NeedleConfig([64, 400], needle_depths=[0, 50, 100]), PlantedNeedleConfig(3)
    result = run_planted(work_of(reader, tmp_path, grid, planted))
    assert result.metrics == {"mean": 100.0, "64 tokens": 100.0, "400 tokens": 100.0}
    assert len(reader.asked) == 18 and {row["num_tokens"] - row["length"] for row in result.rows} == {0}


@pytest.mark.parametrize(
    ("num_lengths", "num_depths", "repeats"), [(9, 11, 8), (2, 5, 1), (10, 11, 1), (4, 1, 2), (1, 6, 2)]
)
def test_a_limit_is_spread_over_lengths_and_depths(num_lengths, num_depths, repeats):
    grid = [
        Question(100 * (i + 1), float(depth), repeat, 100 * (i + 1), "", ())
        for i in range(num_lengths)
        for repeat in range(repeats)
        for depth in range(num_depths)
    ]
    for limit in {*range(1, 40), len(grid) // 2, len(grid) - 1, len(grid), len(grid) + 1}:
        chosen = spread_evenly(grid, limit)
        places = [grid.index(question) for question in chosen]
        assert len(places) == min(limit, len(grid)) and places == sorted(set(places))
        lengths = Counter(question.length for question in chosen)
        assert 100 * num_lengths in lengths and len(lengths) == min(limit, num_lengths)
        assert max(lengths.values()) - min(lengths.values()) <= 1
        depths = {question.depth for question in chosen}
        if limit >= num_lengths * num_depths:
            assert len(depths) == num_depths
        elif 2 <= limit <= min(num_lengths, num_depths):
            assert len(depths) == limit, "another depth at every length"
    assert spread_evenly(grid, None) == grid


def test_a_limit_shows_that_a_short_window_is_short(tmp_path, haystack):
    """Asked of the shortest alone, a model that reads 400 tokens would find every needle."""
    (tmp_path / "hay.txt").write_text(TEXT)
    lengths = [100, 200, 300, 700]
    config = NeedleConfig(needle_lengths=lengths, needle_depths=list(DEPTHS), haystack=str(tmp_path / "hay.txt"))
    result = run(work_of(Finder(haystack.tokenizer, NEEDLE), tmp_path, config, limit=8))
    assert Counter(row["length"] for row in result.rows) == dict.fromkeys(lengths, 2)
    assert result.metrics["100 tokens"] == 100 and result.metrics["700 tokens"] < 100


def test_planted_text_mentions_everybody_once():
    rng = random.Random(3)
    people = draw_people(rng, 10)
    words = planted_text(rng, people, 300).split()
    assert 300 <= len(words) < 312 and all(words.count(first) == words.count(last) == 1 for first, last in people)


# Figures and pictures


def result_of(scores: dict) -> TaskResult:
    rows = [{"length": x, "depth": y, "score": score} for (x, y), found in scores.items() for score in found]
    return TaskResult("needle", grid_metrics(rows), rows)


GRID = {(100, 0.0): [100, 0], (100, 50.0): [100], (200, 0.0): [0], (200, 50.0): [25]}


def test_cells_are_means():
    lengths, depths, grid = needle_grid(result_of(GRID | {(300, 50.0): [75.0]}))
    assert (lengths, depths) == ([100, 200, 300], [0.0, 50.0])
    np.testing.assert_array_equal(grid, [[50, 0, np.nan], [100, 25, 75]])
    assert grid_metrics(result_of(GRID).rows) == {
        "mean": (200 / 3 + 12.5) / 2,
        "100 tokens": 200 / 3,
        "200 tokens": 12.5,
    }


def test_two_models_stand_side_by_side_with_a_gap():
    figure = needle_figure({"them/long": result_of(GRID), "/folders/short": result_of({(100, 50.0): [100]})})
    ax = Canvas().add_subplot()
    figure.draw(ax)
    drawn = ax.images[0].get_array()
    np.testing.assert_array_equal(drawn.filled(-1), [[50, 0, -1, -1], [100, 25, -1, 100]])
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["100", "200", "100"]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["0%", "50%"]
    assert {"them/long", "short"} <= {text.get_text() for text in ax.texts}
    assert ("short", 100, 50.0, "100.0") in figure.table[1] and len(figure.table[1]) == 5


def test_models_of_one_name_and_long_names():
    name = "them/" + "a-rather-long-name-" * 3
    figure = needle_figure({"/a/model": result_of(GRID), "/b/model": result_of(GRID), name: result_of(GRID)})
    ax = Canvas().add_subplot()
    figure.draw(ax)
    names = [text.get_text() for text in ax.texts[:3]]
    assert (
        names[:2] == ["model", "model (2)"]
        and names[2].replace("\n", "") == name
        and max(map(len, names[2].split("\n"))) < 20
    )
    assert {row[0] for row in figure.table[1]} == {"model", "model (2)", name}


def test_red_is_lost_and_green_is_found(tmp_path):
    for score, strongest in ((0, 0), (100, 1)):
        path = write_maps({"m": result_of({(1, 0.0): [score], (2, 0.0): [score]})}, tmp_path)[0]
        picture = imread(path)[:, :, :3]
        colour = picture[picture.shape[0] // 2, picture.shape[1] // 3]
        assert colour.argmax() == strongest and colour.max() > 1.5 * np.delete(colour, strongest).max()


def test_no_map_without_rows():
    with pytest.raises(ValueError, match="run the task first"):
        needle_figure({})
