"""`hf-gateau check` on data as people bring them: each fault is told for what it is, and the exit status says so."""

import json

import pytest

from hf_gateau.cli import main
from hf_gateau.files.reading import load_rows
from hf_gateau.planning.check import script_of
from hf_gateau.planning.check_text import preview
from hf_gateau.planning.token_counts import about_tokens
from tests.files.test_finding import csv_text


SENTENCE = "The harbour of Aveiro smells of salt, and its boats return at six. "


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    from datasets import config

    before, config.HF_DATASETS_CACHE = config.HF_DATASETS_CACHE, str(tmp_path_factory.mktemp("cache"))
    yield
    config.HF_DATASETS_CACHE = before


def document(i: int, num: int = 400) -> str:
    return f"Page {i}. " + SENTENCE * num


def turn(user: str, answer: str = "At six.", roles=("user", "assistant"), keys=("role", "content")) -> list[dict]:
    return [{keys[0]: roles[0], keys[1]: user}, {keys[0]: roles[1], keys[1]: answer}]


def row(i: int, num: int = 400) -> dict:
    return {
        "messages": turn(f"{document(i, num)}\n\nWhen do the boats of page {i} return?", f"At six, says page {i}.")
    }


def parts(i: int) -> dict:
    return {"context": document(i), "instruction": f"When, by page {i}?", "response": f"At six ({i})."}


def write(path, rows):
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


def check(capsys, data, *arguments) -> dict:
    """What the command finds; its exit status is that of the object."""
    status = main(["check", str(data), "--json", *map(str, arguments)])
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found["status"] == status, captured.err
    assert main(["check", str(data), *map(str, arguments)]) == status
    found["text"] = capsys.readouterr().out
    return found


def test_sound_rows_are_nothing_to_look_at(tmp_path, capsys):
    found = check(capsys, write(tmp_path / "a.jsonl", map(row, range(5))))
    assert found["status"] == 0 and found["findings"] == []
    assert found["forms"] == {"messages": 5} and found["roles"] == {"user": 5, "assistant": 5}
    assert found["rules"] == {"last paragraph": {"rows": 5, "meaning": "before the last paragraph"}}
    assert "Nothing to mend was found." in found["text"] and "GUESSED from characters" in found["text"]
    one = found["samples"][0]
    assert (one["context"], one["instruction"]) == (document(0), "When do the boats of page 0 return?")
    assert "| When do the boats of page 0 return?" in found["text"] and "| At six, says page 0." in found["text"]


def test_the_question_first(tmp_path, capsys):
    rows = [{"messages": turn(f"Summarize the following text.\n\n{document(i)}", f"Salt {i}.")} for i in range(3)]
    found = check(capsys, write(tmp_path / "a.jsonl", [*rows, row(9)]))
    assert found["status"] == 0 and {name: x["rows"] for name, x in found["rules"].items()} == {
        "question first": 3,
        "last paragraph": 1,
    }
    assert "instruction | Summarize the following text. [context]" in found["text"]
    assert found["samples"][2]["row"] == 3  # one of each rule, though the first three rows have one


def test_misspelt_columns(tmp_path, capsys):
    names = {"context": "contxt", "instruction": "question", "response": "response"}
    rows = [{names[name]: value for name, value in parts(i).items()} for i in range(3)]
    found = check(capsys, write(tmp_path / "a.jsonl", rows))
    assert found["status"] == 2 and found["forms"] == {"none": 3}
    assert "did you mean context, instruction by contxt, question?" in " ".join(found["text"].split())
    assert found["not_measurable"][0]["rows"] == 3
    fixed = check(capsys, tmp_path / "a.jsonl", "--columns", "context=contxt,instruction=question")
    assert fixed["status"] == 0 and fixed["rules"]["columns"]["rows"] == 3


def test_nulls_and_lines_that_are_no_rows(tmp_path, capsys):
    write(
        tmp_path / "a.jsonl", [{**parts(0), "response": None}, {**parts(1), "context": "  "}, *map(parts, range(2, 5))]
    )
    with (tmp_path / "a.jsonl").open("a") as stream:
        stream.write("oops\n[1]\n")
    found = check(capsys, tmp_path / "a.jsonl")
    reasons = {one["reason"]: (one["rows"], one["example"]) for one in found["not_measurable"]}
    assert found["status"] == 1 and reasons["response is null"] == (1, 0) and reasons["context is empty"] == (1, 1)
    assert reasons["unreadable: it is no JSON (Expecting value) (line 6 of a.jsonl, column 1)"] == (1, 5)
    assert found["nulls"]["response"] == 3 and "4 of 7 rows cannot be measured" in found["text"]
    assert "row 0 cannot be measured: response is null" in found["text"]


def test_foreign_roles(tmp_path, capsys):
    rows = [{"messages": turn(document(i), roles=("human", "bot"))} for i in range(2)]
    found = check(capsys, write(tmp_path / "a.jsonl", [*rows, row(2)]))
    assert found["status"] == 1 and found["roles"] == {"human": 2, "bot": 2, "user": 1, "assistant": 1}
    assert "turn 0 has the role 'human'" in found["text"] and "did you mean 'user'?" in found["text"]


def test_sharegpt_has_its_own_names_of_roles(tmp_path, capsys):
    rows = [
        {"conversations": turn(f"{document(i)}\n\nWhen ({i})?", f"Six {i}.", ("human", "gpt"), ("from", "value"))}
        for i in range(3)
    ]
    found = check(capsys, write(tmp_path / "a.jsonl", rows))
    assert found["status"] == 0 and found["forms"] == {"conversations": 3} and found["roles"] == {"human": 3, "gpt": 3}


def test_csv_with_a_column_that_never_changes(tmp_path, capsys):
    (tmp_path / "a.csv").write_text(csv_text([{**parts(i), "instruction": "When?"} for i in range(3)]))
    found = check(capsys, tmp_path / "a.csv")
    assert found["forms"] == {"context, instruction, response": 3} and found["constant"] == ["instruction"]
    assert found["status"] == 1 and found["findings"] == ["All rows have the same instruction."]


def test_prompt_and_completion(tmp_path, capsys):
    rows = [{"prompt": f"{document(i)}\n\nWhen ({i})?", "completion": f"At six ({i})."} for i in range(3)]
    found = check(capsys, write(tmp_path / "a.jsonl", rows))
    assert found["status"] == 0 and found["forms"] == {"prompt, completion": 3}


def test_duplicates_and_shared_contexts(tmp_path, capsys):
    rows = [parts(0), parts(1), {**parts(0), "instruction": "Where?"}, parts(1), parts(1)]
    found = check(capsys, write(tmp_path / "a.jsonl", [{"id": i, **one} for i, one in enumerate(rows)]))
    assert found["duplicates"] == {"rows": 2, "examples": [[3, 1], [4, 1]], "rows_of_shared_contexts": 2}
    assert found["status"] == 1 and "2 rows repeat another word for word" in found["text"]
    assert "such as row 3 row 1" in found["text"] and "2 share their context with another" in found["text"]


def test_chinese(tmp_path, capsys):
    text = "阿威罗的港口有盐的味道，船在六点钟回来。" * 600
    rows = [{"messages": turn(f"{text}{i}\n\n船什么时候回来{i}？", f"六点{i}。")} for i in range(3)]
    found = check(capsys, write(tmp_path / "a.jsonl", rows))
    assert found["status"] == 0 and found["scripts"] == {"CJK": 3}
    assert 7_000 < found["lengths"]["context"]["median"] < 9_000  # not the 3,000 of four characters a token


def test_scripts_and_guesses():
    assert [script_of(x) for x in ("Sé é", "море", "한국어", "שלום", "123", "")] == [
        *("Latin", "Cyrillic", "Hangul", "Hebrew", "no letters", "no letters")
    ]
    assert about_tokens("abcd" * 10) == 10 and about_tokens("漢字漢") == 2 and about_tokens("") == 0


@pytest.mark.parametrize("how", [[], ["--tokenizer", "{model}"]])
def test_all_rows_longer_than_max_length(how, tmp_path, tiny_model, capsys):
    data = write(tmp_path / "a.jsonl", [row(i, 20) for i in range(3)])
    how = [x.format(model=tiny_model) for x in how]
    found = check(capsys, data, "--max_length", 150, "--segment_length", 16, *how)
    lengths = found["lengths"]
    assert found["status"] == 1 and lengths["cut"]["rows"] == 3 and lengths["exact"] == bool(how)
    lost = 3 * (lengths["total"]["median"] - 150) / (3 * lengths["context"]["median"])
    assert lengths["cut"]["share"] == pytest.approx(lost, abs=0.02)
    assert "3 rows are longer than max_length=150 and lose the left of their context" in " ".join(
        found["text"].split()
    )
    assert "3 rows are longer than train_max_length=150, and training cuts them (keep_start)" in found["text"]
    if how:  # keep_start leaves nothing of the response, and keep_end all
        assert found["not_trainable"] == [
            {"reason": "its whole response lies beyond max_length", "rows": 3, "example": 0}
        ]
        kept = check(capsys, data, "--max_length", 150, "--truncation_mode", "keep_end", *how)
        assert kept["not_trainable"] == []


def test_a_row_without_room_for_its_context(tmp_path, tiny_model, capsys):
    rows = [row(0, 20), {"messages": turn(f"{document(1, 5)}\n\nWhen?", SENTENCE * 40)}]
    found = check(capsys, write(tmp_path / "a.jsonl", rows), "--max_length", 300, "--long_model", tiny_model)
    assert (
        found["not_measurable"][0]["example"] == 1
        and "leave no room for context" in found["not_measurable"][0]["reason"]
    )


def test_tokens_are_those_of_the_scorer(tmp_path, tiny_model, capsys):
    """And a sample of the rows stands for all of them."""
    from transformers import AutoTokenizer

    from hf_gateau.rows.samples import build_sample

    rows = [row(i, 4 + i) for i in range(12)]
    data, tokenizer = write(tmp_path / "a.jsonl", rows), AutoTokenizer.from_pretrained(tiny_model)
    samples = [build_sample(one, tokenizer) for one in rows]
    found = check(capsys, data, "--long_model", tiny_model, "--max_length", 100_000)["lengths"]
    assert found["limits"]["max_length"] < 100_000  # the model's own window
    assert found["context"]["min"] == min(len(x.context) for x in samples)
    assert found["total"]["max"] == max(x.response_end for x in samples) and found["rows"] == found["laid_out"] == 12
    some = check(capsys, data, "--long_model", tiny_model, "--sample_rows", 4)
    assert some["lengths"]["laid_out"] == 4 and some["lengths"]["rows"] == 12 and not some["lengths"]["exact"]
    assert some["lengths"]["total"]["max"] == found["total"]["max"] and "estimated from 4 rows" in some["text"]


def test_rows_shorter_than_the_window_and_the_segments(tmp_path, tiny_model, capsys):
    data = write(tmp_path / "a.jsonl", [row(i, 2) for i in range(3)])
    how = ("--long_model", tiny_model, "--short_window", 200, "--segment_length", 100)
    found = check(capsys, data, *how)
    assert found["status"] == 1 and found["lengths"]["in_window"] == 3 and found["lengths"]["few_segments"] == 3
    text = " ".join(found["text"].split())
    assert "3 rows fit into short_window=200 whole" in text and "fewer than 2 segments of segment_length=100" in text
    fine = check(capsys, data, "--long_model", tiny_model, "--short_window", 8, "--segment_length", 8)
    assert fine["status"] == 0 and fine["lengths"]["in_window"] == fine["lengths"]["few_segments"] == 0
    scaled = check(capsys, data, "--long_model", tiny_model, "--short_rope_scale", 200, "--segment_length", 8)
    assert scaled["lengths"]["in_window"] is None and "short_window" not in scaled["text"]


def test_a_mixed_folder(tmp_path, capsys):
    write(tmp_path / "a.jsonl", [row(0)])
    (tmp_path / "b.csv").write_text(csv_text([parts(1)]))
    assert main(["check", str(tmp_path)]) == 2
    assert "holds 1 .jsonl, 1 .csv: one kind of files is read at a time" in capsys.readouterr().err


def test_our_own_measured_output(tmp_path, capsys):
    write(tmp_path / "a.jsonl", [row(0), row(1)])
    measured = write(tmp_path / "m.jsonl", [{**row(i), "gateau_ppl_long": 1.0} for i in range(2)])
    found = check(capsys, measured)
    assert found["status"] == 1 and "The rows have been through hf-gateau" in found["findings"][0]
    assert check(capsys, tmp_path)["status"] == 0


def test_rows_under_a_key_that_is_not_known(tmp_path, capsys):
    (tmp_path / "a.json").write_text(json.dumps({"train": [parts(0), parts(1)]}))
    found = check(capsys, tmp_path / "a.json")
    assert found["status"] == 2 and "column 'train' holds a list of 2 objects" in found["findings"][0]


def test_nothing_to_read(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text("\n")
    assert main(["check", str(tmp_path / "a.jsonl")]) == 2 and "has no rows" in capsys.readouterr().err


def test_a_preview_has_three_lines_a_row_of_a_dataset_and_of_a_stream(tmp_path):
    data = str(write(tmp_path / "a.jsonl", [row(0), {"messages": None}, row(2), row(3)]))
    lines = preview(load_rows(data))
    assert len(lines) == 3 + 1 + 3 and lines == preview(load_rows(data, streaming=True))
    assert lines[0].startswith("row 0 ") and "context     | Page 0. The harbour" in lines[0]
    assert lines[1].startswith("(last paragraph) ") and lines[2].endswith("response    | At six, says page 0.")
    assert lines[3] == "row 1 cannot be measured: messages is null" and max(map(len, lines)) <= 110
    assert preview(load_rows(data), find_context=lambda text: (0, 7), num_rows=1)[0].endswith("| Page 0.")
