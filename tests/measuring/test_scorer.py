"""`GateauScorer` in every place it is used: map, workers, streams, alone; on bad rows; after a crash."""

import json
import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from datasets import Dataset, load_from_disk
from datasets.fingerprint import Hasher

from hf_gateau import GateauScorer, gateau_score
from hf_gateau.rows.batches import COLUMNS
from hf_gateau.rows.conversations import SampleError
from hf_gateau.store.sqlite import MeasureError, MeasurementStore
from tests.measured import SETTINGS, assert_same


@pytest.fixture(scope="module")
def measured(scorer, rows) -> list[dict]:
    """Every row measured by itself: what all other ways are compared with."""
    return [scorer(row) for row in rows]


def test_columns_of_one_row(measured, rows):
    first = measured[0]
    assert first.keys() == COLUMNS.keys() and first["gateau_error"] is None and first["gateau_truncated"] is True
    assert len(first["gateau_segment_ppl"]) == len(first["gateau_segment_attention"]) == 11
    assert first["gateau_num_context_tokens"] == 700 - 1 - 1 - len(rows[0]["messages"][1]["content"].split()) - 1 - (
        len(rows[0]["messages"][0]["content"].split("\n\n")[1].split()) + 1
    )


def test_map_batched_or_not_keeps_the_other_columns(scorer, rows, measured):
    ds = Dataset.from_list(rows)
    for options in ({"batched": True}, {"batched": True, "batch_size": 5}, {}):
        scored = ds.map(scorer, load_from_cache_file=False, **options)
        assert_same(scored, measured)
        assert scored.remove_columns(list(COLUMNS)).to_list() == rows


def test_batch_tokens_and_order_change_nothing(tiny_model, rows, measured):
    for batch_tokens in (1, 300, 10_000):
        other = GateauScorer(long_model=tiny_model, store=False, batch_tokens=batch_tokens, **SETTINGS)
        columns = other({"messages": [row["messages"] for row in rows[::-1]]})
        assert_same(
            [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)], measured[::-1]
        )


def test_processes_change_nothing(scorer, rows, measured):
    """The parent has used torch's threads before it forks, which would hang a worker that used them too."""
    torch.set_num_threads(2)
    torch.ones(500, 500) @ torch.ones(500, 500)
    scored = Dataset.from_list(rows).map(scorer, batched=True, num_proc=2, with_rank=True, load_from_cache_file=False)
    torch.set_num_threads(1)
    assert_same(scored, measured)


def test_iterable_dataset(scorer, rows, measured):
    stream = Dataset.from_list(rows).to_iterable_dataset(num_shards=2)
    assert_same(list(stream.map(scorer, batched=True, batch_size=5)), measured)
    assert_same(list(stream.map(scorer)), measured)


def test_formatted_dataset_and_numpy_batches(scorer, rows, measured):
    assert_same(Dataset.from_list(rows).with_format("numpy").map(scorer, batched=True).with_format(None), measured)
    batch = {"messages": np.array([row["messages"] for row in rows[:3]] + [None], dtype=object)[:3]}
    assert scorer(batch)["gateau_key"] == [row["gateau_key"] for row in measured[:3]]
    for i in range(3):  # arrays in an array, as Ray Data hands lists over
        batch["messages"][i] = np.array(batch["messages"][i], dtype=object)
    assert scorer(batch)["gateau_key"] == [row["gateau_key"] for row in measured[:3]]


def test_arrow_table_keeps_its_own_columns(scorer, rows, measured):
    import pyarrow as pa

    table = scorer(pa.Table.from_pylist(rows))
    assert_same(table.to_pylist(), measured)
    assert table.drop_columns(list(COLUMNS)).to_pylist() == rows
    assert scorer(table.select(["length"]))["gateau_error"].null_count == 0


def test_explicit_columns(scorer, rows, measured):
    split = []
    for row in rows:
        context, instruction = row["messages"][0]["content"].split("\n\n")
        split.append({"context": context, "instruction": instruction, "response": row["messages"][1]["content"]})
    assert_same([scorer(row) for row in split], measured)


def test_first_batches_without_an_error_do_not_fix_the_type(scorer, rows):
    """A column that is null throughout the first batch keeps its type for the first bad row, or good one, after it."""
    bad = {**rows[0], "messages": None}
    for order in ([*rows[:4], bad], [bad, *rows[:4]]):
        scored = Dataset.from_list(order).map(scorer, batched=True, batch_size=2, writer_batch_size=2)
        assert [row["gateau_error"] for row in scored].count("messages is null") == 1
        assert scored.features["gateau_segment_ppl"].feature.dtype == "float64"
        assert scored.features["gateau_error"].dtype == "string"


def test_fn_kwargs_and_configure(scorer, tiny_model, rows, measured):
    ready = GateauScorer(store=False)
    scored = Dataset.from_list(rows[:2]).map(
        ready, batched=True, fn_kwargs={"long_model": tiny_model, **SETTINGS, "store": False}
    )
    assert_same(scored, measured[:2])
    assert_same([GateauScorer(store=False).configure(long_model=tiny_model, **SETTINGS)(rows[0])], measured[:1])


def test_ready_scorer_reads_the_environment(monkeypatch, tiny_model, rows, measured):
    monkeypatch.setenv("HF_GATEAU_LONG_MODEL", tiny_model)
    for name, value in SETTINGS.items():
        monkeypatch.setenv(f"HF_GATEAU_{name.upper()}", str(value))
    gateau_score.configure()  # lets go of what an earlier call loaded
    assert_same([gateau_score(rows[0])], measured[:1])
    monkeypatch.setenv("HF_GATEAU_MAX_LENGTH", "many")
    with pytest.raises(ValueError, match="HF_GATEAU_MAX_LENGTH is 'many'; give it a value of type int"):
        gateau_score.configure()
    monkeypatch.undo()
    gateau_score.configure()
    assert gateau_score.pair_config.long_model == "THUDM/LongAlign-7B-64k-base"


def test_unknown_setting_names_the_nearest():
    with pytest.raises(TypeError, match="no setting 'segment_lenght'; did you mean 'segment_length'"):
        GateauScorer(segment_lenght=64)


def test_hash_is_the_same_in_every_process_and_after_use(scorer, rows, tiny_model):
    scorer(rows[0])
    code = (
        "import sys, json; from hf_gateau import GateauScorer; from datasets.fingerprint import Hasher\n"
        "print(Hasher.hash(GateauScorer(**json.loads(sys.argv[1]))), 'torch' in sys.modules)"
    )
    settings = json.dumps({**SETTINGS, "long_model": tiny_model, "store": False})
    result = subprocess.run([sys.executable, "-c", code, settings], capture_output=True, text=True, check=True)
    assert result.stdout.split() == [Hasher.hash(scorer), "False"]
    assert Hasher.hash(pickle.loads(pickle.dumps(scorer))) == Hasher.hash(scorer)
    assert Hasher.hash(GateauScorer(long_model=tiny_model, **{**SETTINGS, "segment_length": 65})) != Hasher.hash(
        scorer
    )
    assert len(pickle.dumps(scorer)) < 2_000


def test_second_map_in_a_new_process_is_a_cache_hit_without_a_model(tiny_model, rows, tmp_path):
    Dataset.from_list(rows).save_to_disk(tmp_path / "data")
    code = (
        "import sys, json; from datasets import load_from_disk; from hf_gateau import GateauScorer\n"
        "ds = load_from_disk(sys.argv[1]).map(GateauScorer(**json.loads(sys.argv[2])), batched=True)\n"
        "print(json.dumps(ds.to_list()), 'transformers' in sys.modules)"
    )
    settings = json.dumps({**SETTINGS, "long_model": tiny_model, "store": False})
    run = [sys.executable, "-c", code, str(tmp_path / "data"), settings]
    first, second = (
        subprocess.run(run, capture_output=True, text=True, check=True).stdout.rsplit(" ", 1) for _ in "ab"
    )
    assert first[0] == second[0]
    assert (first[1].strip(), second[1].strip()) == ("True", "False")


def test_store_changes_nothing_and_answers_without_weights(tiny_model, rows, measured, tmp_path, monkeypatch):
    path = tmp_path / "s.sqlite"
    settings = {**SETTINGS, "long_model": tiny_model, "store": str(path)}
    assert_same(Dataset.from_list(rows[:6]).map(GateauScorer(**settings), batched=True), measured[:6])
    monkeypatch.setattr(
        "hf_gateau.models.weights.AutoModelForCausalLM.from_pretrained", None
    )  # weights cannot load any more
    again = [GateauScorer(**settings)(row) for row in rows[:6]]
    assert_same(again, measured[:6])
    monkeypatch.undo()
    assert_same([GateauScorer(**settings)(row) for row in rows], measured)
    (configuration,) = MeasurementStore(path).configurations()
    assert configuration["num_rows"] == configuration["num_measured"] == len(rows)
    assert configuration["description"]["long"]["model"] == tiny_model


@pytest.mark.parametrize("change", [{"segment_length": 32}, {"short_window": 100}, {"dtype": "bfloat16"}])
def test_what_changes_a_number_changes_the_key(scorer, tiny_model, rows, change):
    other = GateauScorer(long_model=tiny_model, store=False, **{**SETTINGS, **change})
    config_key, content_key = scorer(rows[0])["gateau_key"].split(":")
    assert other.describe()["config_key"] != config_key == scorer.describe()["config_key"]
    assert other(rows[0])["gateau_key"].split(":")[1] == content_key


def test_same_weights_in_another_place_have_the_same_key(scorer, tiny_model, rows, tmp_path):
    import shutil

    shutil.copytree(tiny_model, tmp_path / "moved")
    moved = GateauScorer(long_model=str(tmp_path / "moved"), store=False, **SETTINGS)
    assert moved(rows[0])["gateau_key"] == scorer(rows[0])["gateau_key"]


def test_same_row_twice_is_measured_once(tiny_model, rows, tmp_path):
    scorer = GateauScorer(long_model=tiny_model, store=str(tmp_path / "s.sqlite"), **SETTINGS)
    columns = scorer({"messages": [rows[0]["messages"]] * 3})
    assert columns["gateau_ppl_long"] == [columns["gateau_ppl_long"][0]] * 3
    assert MeasurementStore(tmp_path / "s.sqlite").configurations()[0]["num_measured"] == 1


def test_max_length_is_never_more_than_the_model_window(tokenizer, tmp_path, rows):
    from tests.tiny_models import make_model

    folder = make_model("llama", tmp_path, tokenizer, max_position_embeddings=300)
    columns = GateauScorer(long_model=folder, short_window=100, store=False, device="cpu")(rows[0])
    assert columns["gateau_truncated"] and columns["gateau_num_context_tokens"] < 300


def test_approximations_have_keys_of_their_own(tiny_model, rows, measured):
    def column(name, **settings):
        return GateauScorer(long_model=tiny_model, store=False, **SETTINGS, **settings)(rows[0])[name]

    assert column("gateau_num_response_tokens", response_head=1) == 1
    assert len(column("gateau_segment_ppl", segment_stride=4)) == 3
    keys = [{}, {"segment_stride": 1}, {"segment_stride": 2}, {"segment_stride": 4}, {"response_head": 1}]
    keys = [column("gateau_key", **settings).partition(":")[0] for settings in keys]
    assert keys[0] == keys[1] == measured[0]["gateau_key"].partition(":")[0] and len(set(keys)) == 4


def test_where_tokens_begin_is_kept_with_what_they_tell(tiny_model, rows, measured):
    for row, found in zip(rows, measured, strict=True):
        assert found["gateau_token_text"].split() == row["messages"][-1]["content"].split()
        assert len(found["gateau_token_starts"]) == len(found["gateau_token_nll_long"])
    off = GateauScorer(long_model=tiny_model, store=False, token_nll=False, **SETTINGS)(rows[0])
    assert [name for name in COLUMNS if name.startswith("gateau_token_") and off[name] is not None] == []


def test_datasets_kept_before_there_was_a_column_are_not_taken(scorer, monkeypatch):
    before = Hasher.hash(scorer)
    monkeypatch.setitem(COLUMNS, "gateau_new", "string")
    assert Hasher.hash(scorer) != before


def test_on_error_raise_names_the_row(tiny_model, rows):
    scorer = GateauScorer(long_model=tiny_model, store=False, on_error="raise", **SETTINGS)
    with pytest.raises(SampleError, match="Row 'x7': messages is null; fix or drop it, or use on_error='skip'"):
        scorer({"id": "x7", "messages": None})


def test_not_finite_numbers_are_a_reason_and_are_not_stored(tokenizer, tmp_path, rows):
    from tests.tiny_models import make_model

    folder = make_model("llama", tmp_path / "m", tokenizer, scale=float("nan"))
    scorer = GateauScorer(long_model=folder, store=str(tmp_path / "s.sqlite"), **SETTINGS)
    columns = scorer(rows[0])
    assert "nan: the models give no finite numbers" in columns["gateau_error"]
    assert columns["gateau_ppl_long"] is None and columns["gateau_num_context_tokens"] > 0
    assert MeasurementStore(tmp_path / "s.sqlite").configurations() == []


def test_out_of_memory_halves_the_batch_then_gives_up_on_the_row(tiny_model, rows, measured, monkeypatch):
    from hf_gateau.models import perplexity

    real, calls = perplexity.batch_nlls, []
    scorer = GateauScorer(long_model=tiny_model, store=False, **SETTINGS)

    def fails_above(limit):
        def batch_nlls(model, prompts, responses, **kwargs):
            calls.append(sum(map(len, prompts)))
            if calls[-1] > limit:
                raise torch.OutOfMemoryError("no memory")
            return real(model, prompts, responses, **kwargs)

        return batch_nlls

    monkeypatch.setattr(perplexity, "batch_nlls", fails_above(600))
    assert_same([scorer(rows[0])], measured[:1])
    assert max(calls) > 600 and scorer.start().limits.batch_tokens < 600
    calls.clear()
    assert_same([scorer(rows[1])], measured[1:2])
    assert max(calls) <= 600  # it is remembered
    monkeypatch.setattr(perplexity, "batch_nlls", fails_above(0))
    assert "out of memory on 700 tokens; lower max_length" in scorer(rows[0])["gateau_error"]
    with pytest.raises(MeasureError):
        scorer.configure(on_error="raise")(rows[0])


def test_short_model_that_breaks_on_length_is_told(tokenizer, tmp_path, rows, caplog):
    """Rotating far too fast past its own window of 128, this model is lost on long input, whatever the answer needs."""
    from hf_gateau.quickstart import LONG_MODEL, SHORT_MODEL

    sound = GateauScorer(long_model=LONG_MODEL, short_model=SHORT_MODEL, store=False, device="cpu", segment_length=256)
    sound({"messages": [row["messages"] for row in rows]})
    assert "breaks on length" not in caplog.text
    broken = sound.configure(short_rope_scale=1e-3)
    broken({"messages": [row["messages"] for row in rows]})
    assert "it breaks on length, so every long sample will look long-range" in caplog.text


# Fuzz: 200 malformed rows


def malformed_rows(rows, seed: int = 0) -> list[dict]:
    """200 rows, each wrong in one way: types, nulls, empties, surrogates, huge words, control characters, keys."""
    rng = np.random.default_rng(seed)
    values = [
        None,
        5,
        2.5,
        True,
        "",
        "  \n ",
        [],
        {},
        [[]],
        [None],
        b"bytes",
        "\ud800",
        ["a"],
        {"role": "user"},
        float("nan"),
    ]
    kinds = ["value", "turn", "content", "role", "drop key", "drop turn", "huge word", "control", "columns"]
    bad = []
    for i in range(200):
        messages = json.loads(json.dumps(rows[i % len(rows)]["messages"]))
        value, turn = values[rng.integers(len(values))], int(rng.integers(2))
        match kinds[i % len(kinds)]:
            case "value":
                bad.append({"messages": value})
                continue
            case "turn":
                messages[turn] = value
            case "content":
                messages[turn]["content"] = value
            case "role":
                messages[turn]["role"] = value
            case "drop key":
                del messages[turn][["role", "content"][rng.integers(2)]]
            case "drop turn":
                del messages[turn]
            case "huge word":  # longer than the window: as a response, there is no room for it
                messages[1]["content"] = " ".join(["x" * (1_000_000 if i < 2 * len(kinds) else 9)] + ["word"] * 1000)
            case "control":
                messages[0]["content"] = "".join(map(chr, rng.integers(0, 32, 50)))
            case "columns":
                bad.append({"context": value, "instruction": "who ?", "response": "adam"} if turn else {"id": value})
                continue
        bad.append({"messages": messages})
    return bad


def test_malformed_rows_each_have_a_reason_and_leave_the_good_ones_alone(scorer, rows, measured):
    bad = malformed_rows(rows)
    for row in bad:
        columns = scorer({"context": None, "instruction": None, "response": None, **row})
        assert isinstance(columns["gateau_error"], str) and columns["gateau_error"], row
        assert columns["gateau_ppl_long"] is None and columns["gateau_segment_ppl"] is None
    mixed = [row for pair in zip(bad[: len(rows)], rows, strict=True) for row in pair] + bad[len(rows) :]
    columns = scorer({"messages": [row.get("messages") for row in mixed]})
    is_good = [i % 2 == 1 and i < 2 * len(rows) for i in range(len(mixed))]
    assert [error is None for error in columns["gateau_error"]] == is_good
    found = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    assert_same([row for row, good in zip(found, is_good, strict=True) if good], measured)


# kill -9


KILLED_RUN = """
import json, os, signal, sqlite3, sys, threading, time
from datasets import load_from_disk
from hf_gateau import GateauScorer
settings = json.loads(sys.argv[2])
if len(sys.argv) > 4:  # kill everything once so many more rows are in the store, a few milliseconds later
    goal, delay = int(sys.argv[4]), float(sys.argv[5])
    def kill():
        connection = sqlite3.connect(settings["store"])
        while connection.execute("SELECT COUNT(*) FROM measurements").fetchone()[0] < goal:
            time.sleep(0.002)
        time.sleep(delay)
        os.killpg(os.getpgrp(), signal.SIGKILL)
    threading.Thread(target=kill, daemon=True).start()
ds = load_from_disk(sys.argv[1])
ds = ds.map(GateauScorer(**settings), batched=True, batch_size=10, num_proc=2, with_rank=True)
ds.save_to_disk(sys.argv[3])
"""


@pytest.mark.slow
@pytest.mark.parametrize("num_kills", [1, 20])
def test_killed_again_and_again_the_run_ends_as_if_undisturbed(num_kills, scorer, tiny_model, tmp_path):
    """Bar: 20 kills of a run with 2 processes at random moments; nothing lost, nothing measured twice but in flight."""
    import random

    from hf_gateau.quickstart.world import planted_rows

    rows = planted_rows(40 + 2 * num_kills, seed=5)
    Dataset.from_list(rows).save_to_disk(tmp_path / "data")
    out, store = tmp_path / "out", MeasurementStore(tmp_path / "s.sqlite")
    settings = json.dumps({**SETTINGS, "long_model": tiny_model, "store": str(store.path)})
    run = [sys.executable, "-c", KILLED_RUN, str(tmp_path / "data"), settings, str(out)]
    rng, counts = random.Random(0), [0]
    for _ in range(num_kills):
        goal, delay = counts[-1] + rng.randint(0, 6), rng.uniform(0, 0.05)
        killed = subprocess.run([*run, str(goal), str(delay)], capture_output=True, start_new_session=True)
        assert killed.returncode == -9, killed.stderr[-2000:]
        configurations = store.configurations()
        counts.append(configurations[0]["num_rows"] if configurations else 0)
        assert counts[-1] >= goal  # what was committed is there
    assert (
        counts == sorted(counts) and len(set(counts)) > num_kills // 2 and counts[-1] < len(rows)
    )  # they did hit the work
    subprocess.run(run, check=True, capture_output=True, start_new_session=True)
    assert_same(load_from_disk(out), [scorer(row) for row in rows])
    (configuration,) = store.configurations()
    assert configuration["num_rows"] == configuration["num_measured"] == len(rows)


def test_a_pair_is_opened_once(rows, tiny_model, monkeypatch):
    """Describing, surveying and measuring share one pair, which takes the number of the process that measures."""
    from hf_gateau.models import pair as models

    opened, own = [], models.ModelPair.__init__
    monkeypatch.setattr(models.ModelPair, "__init__", lambda *args: opened.append(1) or own(*args))
    scorer = GateauScorer(long_model=tiny_model, short_window=60, device="cpu", store="off")
    scorer.describe()
    assert scorer.count(Dataset.from_list(rows[:2]))["pending"] == 2
    scorer.default_rank = 3
    assert scorer(rows[0])["gateau_error"] is None
    assert opened == [1] and scorer.start().pair.rank == 3


def test_rows_are_laid_out_beside_measuring_one_part_ahead():
    """In another thread, no more than one part ahead; an error comes where its part would."""
    from hf_gateau.measuring.runtime import ahead

    made, threads = [], set()

    def parts():
        for i in range(5):
            if i == 3:
                raise SampleError("bad")
            made.append(i)
            threads.add(threading.current_thread())
            yield i

    taken = ahead(parts())
    for i in range(3):
        assert next(taken) == i and len(made) <= i + 2
    with pytest.raises(SampleError, match="bad"):
        next(taken)
    assert threading.current_thread() not in threads and len(threads) == 1
    assert list(ahead(iter([]))) == []
