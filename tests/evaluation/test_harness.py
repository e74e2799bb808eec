"""LongBench and RULER through lm-evaluation-harness, with data files of the same form: prompts, scores, means and ranges."""

import json
from pathlib import Path

import pytest

from hf_gateau.evaluation.answering import GeneratorConfig
from hf_gateau.evaluation.generation import load_generator
from hf_gateau.evaluation.harness import (
    LONGBENCH,
    NIAH,
    PREFIX,
    RULER,
    HarnessConfig,
    bucket_of,
    cut_at,
    run_harness,
    run_longbench,
    run_ruler,
)
from hf_gateau.evaluation.metrics import longbench_metrics
from hf_gateau.evaluation.tasks import Work


lm_eval = pytest.importorskip("lm_eval")
SHIPPED = Path(lm_eval.__file__).parent / "tasks" / "longbench"
# Of LongBench's own configuration (config/dataset2maxlen.json) and eval.py
ANSWER_TOKENS = {
    **dict.fromkeys(("narrativeqa", "qasper", "dureader"), 128),
    **dict.fromkeys(("multifieldqa_en", "multifieldqa_zh"), 64),
    **dict.fromkeys(("hotpotqa", "2wikimqa", "musique"), 32),
    **dict.fromkeys(LONGBENCH["summarization"], 512),
}
METRIC = {
    **dict.fromkeys(("narrativeqa", "qasper", "multifieldqa_en", "hotpotqa", "2wikimqa", "musique"), "qa_f1_score"),
    **dict.fromkeys(("gov_report", "qmsum", "multi_news"), "rouge_score"),
    **dict.fromkeys(("dureader", "vcsum"), "rouge_zh_score"),
    "multifieldqa_zh": "qa_f1_zh_score",
}


@pytest.fixture(autouse=True)
def no_survey_of_the_machine(monkeypatch):
    """Which the harness makes for its own report, in seconds."""
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)


def write_task(folder: Path, name: str, docs: list[dict], **settings) -> None:
    """A data set of LongBench on a file of one's own: all else is the shipped task's."""
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(doc, ensure_ascii=False) + "\n" for doc in docs), encoding="utf-8")
    task = {
        "include": str(SHIPPED / f"{name}.yaml"),
        "task": PREFIX + name,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        **settings,
    }
    task = {key: value for key, value in task.items() if value is not None or key == "dataset_name"}
    (folder / f"{name}.yaml").write_text(json.dumps(task), encoding="utf-8")  # JSON is YAML


def doc(number: int, context: str, question: str, answers: list[str], length: int) -> dict:
    return {"_id": f"q{number}", "context": context, "question": question, "answers": answers, "length": length}


class Canned:
    """Answers from a table, by a word of the question; notes what it was asked."""

    model, max_length, tokenizer = "them/canned", 4_096, None

    def __init__(self, answers: dict[str, str]):
        self.answers, self.asked = answers, []

    def generate(self, prompts, max_new_tokens):
        self.asked += [(prompt, max_new_tokens) for prompt in prompts]
        return [next(x for word, x in self.answers.items() if word in prompt[-1]["content"]) for prompt in prompts]


def work_of(generator, folder, limit=None, **settings) -> Work:
    options = {"HarnessConfig": HarnessConfig(**settings)}
    return Work(generator.model, folder, lambda: generator, None, options, limit)


def test_longbench_scores_means_and_ranges(tmp_path):
    write_task(
        tmp_path,
        "hotpotqa",
        [
            doc(1, "Text.", "Which alpha?", ["Dolores Park", "the park"], 3_999),
            doc(2, "Text.", "Which beta?", ["yes"], 4_000),
            doc(3, "Text.", "Which gamma?", ["no"], 8_000),
        ],
    )
    write_task(tmp_path, "musique", [doc(1, "Text.", "Which delta?", ["one two three four"], 100)])
    write_task(tmp_path, "vcsum", [doc(1, "会议内容", "", ["会议讨论了预算"], 9_000)])
    answers = {
        "alpha": "Dolores Park",
        "beta": "yes yes no",
        "gamma": "yes",
        "delta": " one two\n",
        "会议": "会议讨论了预算",
    }
    canned = Canned(answers)
    work = work_of(canned, tmp_path, longbench_sets=["hotpotqa", "musique", "vcsum"], include_path=str(tmp_path))
    result = run_longbench(work)
    scores = {row["id"]: row["score"] for row in result.rows}
    assert scores == pytest.approx(
        {
            "longbench_hotpotqa/q1": 100,
            "longbench_hotpotqa/q2": 50,
            "longbench_hotpotqa/q3": 0,
            "longbench_musique/q1": 100 * 2 / 3,
            "longbench_vcsum/q1": 100,
        },
        abs=1e-4,
    )
    assert result.metrics == pytest.approx(
        {
            "mean": (50 + 200 / 3 + 100) / 3,
            "multi_doc_qa": (50 + 200 / 3) / 2,
            "summarization": 100,
            "hotpotqa": 50,
            "musique": 200 / 3,
            "vcsum": 100,
            "0-4k": (100 + 200 / 3) / 2,
            "4k-8k": 50,
            "8k+": 50,
        },
        abs=1e-4,
    )
    assert list(result.metrics)[0] == "mean"
    row = result.rows[0]
    assert (row["group"], row["metric"], row["bucket"], row["length"]) == ("hotpotqa", "qa_f1_score", "0-4k", 3_999)
    assert (row["answer"], row["target"]) == ("Dolores Park", ["Dolores Park", "the park"])
    assert row["question"] == "Which alpha?"
    # The published prompt, as a user's message of a conversation, and the published length of the answer
    prompt = (
        "Answer the question based on the given passages. Only give me the answer and do not output any other words."
    )
    prompt = f"{prompt}\n\nThe following are given passages.\nText.\n\n{prompt}\n\nQuestion: Which alpha?\nAnswer:"
    assert ([{"role": "user", "content": prompt}], 32) in canned.asked
    assert {tokens for _, tokens in canned.asked} == {32, 512}


def test_limit_is_of_each_data_set(tmp_path):
    for name in ("hotpotqa", "musique"):
        write_task(tmp_path, name, [doc(i, "Text.", "Which?", ["yes"], 10) for i in range(4)])
    work = work_of(
        Canned({"Which": "yes"}), tmp_path, 2, longbench_sets=["hotpotqa", "musique"], include_path=str(tmp_path)
    )
    assert [row["group"] for row in run_longbench(work).rows] == ["hotpotqa"] * 2 + ["musique"] * 2


@pytest.mark.parametrize("name", [name for names in LONGBENCH.values() for name in names])
def test_the_installed_sets_are_the_published_ones(name, tmp_path):
    """Answer lengths and metrics; a later version of the harness that changes them would change the figures."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))
    task = yaml.load((SHIPPED / f"{name}.yaml").read_text(encoding="utf-8"), Loader)
    assert task["generation_kwargs"]["max_gen_toks"] == ANSWER_TOKENS[name]
    assert task["generation_kwargs"]["do_sample"] is False and task["generation_kwargs"]["until"] == []
    function = getattr(longbench_metrics(), task["process_results"].partition(".")[2])
    assert set(function({"answers": ["x"]}, ["x"])) == {"score", METRIC[name]}
    assert task["dataset_name"] == name and task["test_split"] == "test"


def test_groups_of_the_harness_hold_the_same_sets():
    from lm_eval.tasks import TaskManager

    tasks = SHIPPED.parent
    manager = TaskManager(include_path=[tasks / "longbench", tasks / "ruler"], include_defaults=False)
    groups = {"single": "single_doc_qa", "multi": "multi_doc_qa", "summarization": "summarization"}
    for kind, names in ((kind, LONGBENCH[ours]) for kind, ours in groups.items()):
        assert set(manager.task_index) >= {PREFIX + name for name in names}
        assert manager.task_index[f"longbench_{kind}"].cfg["task"] == [PREFIX + name for name in names]
    assert manager.task_index["ruler"].cfg["task"] == list(RULER)
    assert set(NIAH) == {name for name in RULER if name.startswith("niah")}


@pytest.mark.slow  # the harness draws from seven million words
def test_ruler_makes_texts_by_the_models_tokenizer(tmp_path, monkeypatch, tokenizer):
    """The one needle task that needs no data from elsewhere. The needle's number is said where the text is short."""
    monkeypatch.setattr("hf_gateau.evaluation.harness.RULER", ("niah_single_1",))
    monkeypatch.setattr("nltk.download", lambda *names, **settings: False)
    from lm_eval.tasks.ruler import prepare_niah

    made = prepare_niah.generate_samples
    monkeypatch.setattr(prepare_niah, "generate_samples", lambda *x, **y: made(*x, **(y | {"num_samples": 20})))

    class Reader(Canned):
        def generate(self, prompts, max_new_tokens):
            self.asked += [(prompt, max_new_tokens) for prompt in prompts]
            texts = [prompt[0]["content"] for prompt in prompts]
            return [text.split(" is: ")[1][:7] if len(text.split()) < 400 else "0" for text in texts]

    reader = Reader({})
    reader.tokenizer = tokenizer
    result = run_ruler(work_of(reader, tmp_path, ruler_lengths=[512, 1_024], limit=8))
    assert result.metrics == {"mean": 50.0, "512 tokens": 100.0, "1024 tokens": 0.0, "niah_single_1": 50.0}
    assert len({row["id"] for row in result.rows}) == len(result.rows) == 2 * 8
    assert {row["length"] for row in result.rows} == {512, 1_024} and {row["bucket"] for row in result.rows} == {None}
    prompt, max_new_tokens = reader.asked[0]
    assert [message["role"] for message in prompt] == ["user", "assistant"] and max_new_tokens == 128
    assert prompt[1]["content"].startswith("The special magic number for ")
    assert 300 < len(prompt[0]["content"].split()) <= 512 - 128


@pytest.mark.parametrize(
    ("length", "bucket"), [(0, "0-4k"), (3_999, "0-4k"), (4_000, "4k-8k"), (8_000, "8k+"), (None, None)]
)
def test_ranges_of_length(length, bucket):
    assert bucket_of(length) == bucket


def test_answers_end_at_stops():
    assert cut_at("one\ntwo. three", ["\n", "."]) == "one" and cut_at("one", ["", "x"]) == "one"


def test_names_come_with_commas_too():
    config = HarnessConfig(longbench_sets=["hotpotqa,musique", "musique"], harness_tasks=["a,b"])
    assert (config.longbench_sets, config.harness_tasks) == (["hotpotqa", "musique"], ["a", "b"])


SOLVED = {"solved": "It is 7. #### 7\nQuestion: next?", "unsolved": "I say 8"}


def write_sums(folder, **settings):
    """A task in the form of gsm8k: two ways to find the number in what was said; `until` and the answer's length in other words."""
    write_task(
        folder,
        "sums",
        [doc(1, "", "solved", ["7"], None), doc(2, "", "unsolved", ["8"], None)],
        include=None,
        test_split="test",
        output_type="generate_until",
        doc_to_text="{{question}}",
        doc_to_target="{{answers[0]}}",
        **{"metric_list": [{"metric": "exact_match"}], **settings},
    )


def regex(name: str, pattern: str) -> dict:
    return {
        "name": name,
        "filter": [{"function": "regex", "regex_pattern": pattern}, {"function": "take_first"}],
    }


@pytest.mark.slow
def test_each_way_to_find_the_answer_is_a_figure_of_its_own(tmp_path):
    write_sums(
        tmp_path,
        generation_kwargs={"until": "Question:", "max_new_tokens": 40, "do_sample": False},
        filter_list=[regex("strict", "#### ([0-9]+)"), regex("flexible", "([0-9]+)")],
    )
    canned = Canned({"unsolved": SOLVED["unsolved"], "solved": SOLVED["solved"]})
    result = run_harness(work_of(canned, tmp_path, harness_tasks=["longbench_sums"], include_path=str(tmp_path)))
    assert result.metrics == {"mean": 75.0, "sums (strict)": 50.0, "sums (flexible)": 100.0}
    assert len({row["id"] for row in result.rows}) == len(result.rows) == 4
    assert result.rows[0]["answer"] == "It is 7. #### 7\n" and {tokens for _, tokens in canned.asked} == {40}


@pytest.mark.slow
def test_a_metric_of_all_answers_together_is_no_score_of_one(tmp_path):
    write_sums(tmp_path, generation_kwargs={"until": []}, metric_list=[{"metric": "bleu"}])
    canned = Canned({"unsolved": "8", "solved": "7"})
    with pytest.raises(ValueError, match="longbench_sums has no score of one question: bleu"):
        run_harness(work_of(canned, tmp_path, harness_tasks=["longbench_sums"], include_path=str(tmp_path)))


def test_wrong_input(tmp_path):
    for settings, message in (
        ({"longbench_sets": []}, "longbench_sets is empty"),
        ({"ruler_lengths": [10]}, "ruler_lengths"),
        ({"include_path": str(tmp_path / "no")}, "is no folder"),
    ):
        with pytest.raises(ValueError, match=message):
            HarnessConfig(**settings)
    with pytest.raises(ValueError, match="has no task longbench_hotpotq; did you mean 'longbench_hotpotqa'"):
        run_longbench(work_of(Canned({}), tmp_path, longbench_sets=["hotpotq"]))
    with pytest.raises(ValueError, match="ruler_lengths has 8,192, and 'them/canned' reads 4,096 tokens"):
        run_ruler(work_of(Canned({}), tmp_path, ruler_lengths=[512, 8_192]))
    with pytest.raises(ValueError, match="give harness_tasks"):
        run_harness(work_of(Canned({}), tmp_path))


def test_a_task_that_compares_probabilities_is_refused(tmp_path):
    write_task(
        tmp_path,
        "hotpotqa",
        [doc(1, "Text.", "Which?", ["yes"], 10)],
        include=None,
        test_split="test",
        output_type="multiple_choice",
        doc_to_text="{{question}}",
        doc_to_choice=["yes", "no"],
        doc_to_target="yes",
        process_results=None,
        metric_list=[{"metric": "acc"}],
    )
    with pytest.raises(ValueError, match="Only tasks whose answers are generated"):
        run_longbench(work_of(Canned({}), tmp_path, longbench_sets=["hotpotqa"], include_path=str(tmp_path)))


@pytest.mark.slow
def test_two_sets_with_a_real_model(smollm2, tmp_path):
    """SmolLM2-135M on passages that say the answer, in English and in Chinese; one passage is longer than it may read."""
    filler = "The harbour was quiet that morning, and the boats lay still. " * 120
    english = [
        doc(
            1,
            "The capital of Velmora is Tarsin. It lies by the sea.",
            "What is the capital of Velmora?",
            ["Tarsin"],
            12,
        ),
        doc(2, f"The ship was called Aurelia. {filler}", "What was the ship called?", ["Aurelia"], 1_300),
    ]
    write_task(tmp_path, "hotpotqa", english)
    write_task(tmp_path, "dureader", [doc(1, "韦尔莫拉的首都是塔尔辛。", "韦尔莫拉的首都是哪里？", ["塔尔辛"], 12)])
    generator = load_generator(smollm2, tmp_path, GeneratorConfig(max_length=700, device="cpu"))
    work = work_of(generator, tmp_path, longbench_sets=["hotpotqa", "dureader"], include_path=str(tmp_path))
    result = run_longbench(work)
    answers = {row["id"]: row["answer"] for row in result.rows}
    assert "Tarsin" in answers["longbench_hotpotqa/q1"] and "Aurelia" in answers["longbench_hotpotqa/q2"]
    assert len(result.rows) == 3 and result.metrics["hotpotqa"] > 20
    metrics = longbench_metrics()
    for row in result.rows:
        score = metrics.rouge_zh_score if row["group"] == "dureader" else metrics.qa_f1_score
        assert row["score"] == pytest.approx(100 * max(score(row["answer"].strip(), x) for x in row["target"]))
