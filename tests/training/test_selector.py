"""`GateauSelector`: selects before training, writes what it did, and refuses to go on with other rows."""

import json

import pytest
from datasets import Dataset, DatasetDict
from trl import SFTConfig, SFTTrainer

from hf_gateau import GateauScorer, GateauSelector, GateauSFTTrainer, SelectionRecord, rank
from hf_gateau.training.selector import SELECTION_FILE
from tests.training import gradients


@pytest.fixture(scope="module")
def measured(tiny_model, rows):
    scorer = GateauScorer(long_model=tiny_model, short_window=200, segment_length=64, device="cpu")
    return Dataset.from_list(rows).map(scorer, batched=True)


@pytest.fixture(scope="module")
def ranked(measured):
    return rank(measured)


def trainer_of(kind, model, folder, ds, selector, **options):
    fixed = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "max_length": 1100}
    args = gradients.settings(str(folder), **(fixed | options))
    if kind is SFTTrainer:
        names = {*SFTConfig.__dataclass_fields__} & {"max_length", *fixed, *options}
        names |= {"use_cpu", "bf16", "report_to", "gradient_checkpointing", "disable_tqdm", "logging_strategy"}
        args = SFTConfig(str(folder), **{name: getattr(args, name) for name in names})
    return kind(gradients.load(model), args=args, train_dataset=ds, callbacks=[selector] if selector else None)


def read(folder) -> SelectionRecord:
    return SelectionRecord.from_json((folder / SELECTION_FILE).read_text())


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("kind", [SFTTrainer, GateauSFTTrainer])
def test_trains_on_the_selected_rows_and_says_so_everywhere(kind, packing, ranked, tiny_model, tmp_path):
    selector = GateauSelector(top_k=3)
    kept = selector.select(ranked)
    assert sorted(kept["gateau_rank"]) == [1, 2, 3]
    trainer = trainer_of(kind, tiny_model, tmp_path, kept, selector, packing=packing)
    assert len(trainer.train_dataset) == 3  # of 975 tokens each, so none shares a pack
    trainer.train()
    for folder in (tmp_path, tmp_path / "checkpoint-2", tmp_path / "checkpoint-4"):
        assert read(folder) == selector.record
    assert trainer.state.log_history[0]["gateau/num_kept"] == 3


def test_gateau_trainer_logs_through_the_trainer(ranked, tiny_model, tmp_path):
    """What a tracker such as trackio or wandb is handed: a callback that listens as theirs do."""
    from transformers import TrainerCallback

    class Listener(TrainerCallback):
        heard = []

        def on_log(self, args, state, control, logs=None, **kwargs):
            self.heard.append(logs)

    selector = GateauSelector(top_k=2)
    options = {"logging_strategy": "steps", "logging_steps": 1}
    trainer = trainer_of(GateauSFTTrainer, tiny_model, tmp_path, selector.select(ranked), selector, **options)
    trainer.add_callback(Listener())
    trainer.train()
    first = Listener.heard[0]
    assert first["gateau/num_kept"] == 2 and first["gateau/num_rows"] == 12 and "loss" in first
    assert first["gateau/num_rows_without_response"] == 0
    assert not any(name.startswith("gateau/") for name in Listener.heard[1])


def test_ranks_and_measures_what_is_missing(measured, rows, tiny_model, tmp_path):
    assert GateauSelector(top_k=3).select(measured)["id"] == GateauSelector(top_k=3).select(rank(measured))["id"]
    pair = {"long_model": tiny_model, "short_window": 200, "segment_length": 64, "device": "cpu"}
    selector = GateauSelector(top_k=3, alpha=0.6, store=str(tmp_path / "store.sqlite"), **pair)
    assert selector.select(Dataset.from_list(rows))["id"] == GateauSelector(top_k=3, alpha=0.6).select(measured)["id"]
    assert selector.record.measuring["long"]["model"] == tiny_model and selector.record.ranking["alpha"] == 0.6


def test_settings_of_the_order_are_obeyed_on_ranked_rows(ranked):
    by_length = GateauSelector(top_k=1, method="longest")
    assert by_length.select(ranked)["gateau_num_context_tokens"] == [max(ranked["gateau_num_context_tokens"])]
    assert by_length.record.ranking["method"] == "longest"


@pytest.mark.parametrize("kind", [SFTTrainer, GateauSFTTrainer])
def test_alone_it_refuses_to_train_on_everything(kind, ranked, tiny_model, tmp_path):
    with pytest.raises(ValueError, match="selected nothing"):
        trainer_of(kind, tiny_model, tmp_path, ranked, GateauSelector()).train()


def test_attach_selects_in_a_built_trainer(ranked, tiny_model, tmp_path):
    trainer = trainer_of(SFTTrainer, tiny_model, tmp_path, ranked, None)
    selector = GateauSelector(top_k=2).attach(trainer)
    assert len(trainer.train_dataset) == 2
    trainer.train()
    assert read(tmp_path / "checkpoint-4") == selector.record


def test_attach_refuses_packs_and_rows_without_scores(ranked, rows, tiny_model, tmp_path):
    with pytest.raises(ValueError, match="packed its rows"):
        GateauSelector().attach(trainer_of(SFTTrainer, tiny_model, tmp_path, ranked, None, packing=True))
    with pytest.raises(ValueError, match="have no scores"):
        GateauSelector().attach(trainer_of(SFTTrainer, tiny_model, tmp_path, Dataset.from_list(rows), None))


@pytest.mark.parametrize("restore", [pytest.param(False, marks=pytest.mark.slow), True])
def test_resumes_its_own_selection_and_no_other(restore, ranked, tiny_model, tmp_path):
    def trainer(top_k, folder=tmp_path):
        selector = GateauSelector(top_k=top_k)
        options = {"restore_callback_states_from_checkpoint": restore}
        return trainer_of(SFTTrainer, tiny_model, folder, selector.select(ranked), selector, **options)

    first = trainer(4)
    first.train()
    checkpoint = tmp_path / "checkpoint-2"
    again = trainer(4)
    again.train(resume_from_checkpoint=str(checkpoint))
    assert again.state.global_step == 4
    with pytest.raises(ValueError, match="trained on another selection"):
        trainer(5).train(resume_from_checkpoint=str(checkpoint))


def test_checkpoint_is_checked_without_a_model(ranked, rows, tiny_model, tmp_path):
    selector = GateauSelector(top_k=4)
    trainer_of(SFTTrainer, tiny_model, tmp_path, selector.select(ranked), selector).train()
    selector.check_checkpoint(tmp_path / "checkpoint-2")
    other = GateauSelector(top_k=5)
    other.select(ranked)
    with pytest.raises(ValueError, match="another selection"):
        other.check_checkpoint(tmp_path / "checkpoint-2")
    mixed = GateauSelector(top_k=4)
    mixed.mix(mixed.select(ranked), Dataset.from_list(rows[:2]))
    with pytest.raises(ValueError, match="another selection"):  # the same rows, with short ones beside them
        mixed.check_checkpoint(tmp_path / "checkpoint-2")


def decided(ranked, folder, settings=None, **decisions):
    """A file of decisions on rows, by their ids; `settings` in place of those that they were measured with."""
    keys = dict(zip(ranked["id"], ranked["gateau_key"], strict=True))
    keys = {x: f"{settings}:{key.split(':')[1]}" if settings else key for x, key in keys.items()}
    lines = [f"{keys[x]},{decision},because" for decision, rows in decisions.items() for x in rows]
    path = folder / "decisions.csv"
    path.write_text("\n".join(["gateau_key,decision,note", *lines]) + "\n")
    return path


def test_a_person_decides(ranked, rows, tiny_model, tmp_path):
    order = ranked.sort("gateau_rank")["id"]
    path = decided(ranked, tmp_path, keep=order[-1:], drop=order[:1])
    selector = GateauSelector(top_k=3, decisions=path)
    assert {*selector.select(ranked)["id"]} == {order[-1], *order[1:3]}
    told = {"num_kept": 1, "num_kept_unranked": 0, "num_dropped": 1, "num_unknown": 0}
    assert selector.record.decisions.items() >= told.items()
    assert json.loads(json.dumps(selector.state()))["args"] == {"top_k": 3, "decisions": str(path)}
    selector._write(str(tmp_path))
    assert read(tmp_path) == selector.record and str(tmp_path) not in (tmp_path / SELECTION_FILE).read_text()
    (tmp_path / "trainer_state.json").write_text(
        json.dumps({"stateful_callbacks": {"GateauSelector": selector.state()}})
    )
    selector.check_checkpoint(tmp_path)
    other = GateauSelector(top_k=3)
    other.select(ranked)
    with pytest.raises(ValueError, match="another selection of rows .* 3 of 12 rows kept"):
        other.check_checkpoint(tmp_path)
    # Rows that are measured only now, in another way than those that the person saw
    pair = {"long_model": tiny_model, "short_window": 150, "segment_length": 64, "device": "cpu"}
    anew = GateauSelector(top_k=3, decisions=path, store=str(tmp_path / "store.sqlite"), **pair)
    found = anew.select(Dataset.from_list(rows))["id"]
    assert order[-1] in found and order[0] not in found and anew.record.decisions.items() >= told.items()


def test_wrong_decisions_are_told_before_anything_is_measured(rows, tmp_path):
    (tmp_path / "decisions.csv").write_text("gateau_key,decision\na:1,kepe\n")
    selector = GateauSelector(long_model="no/model", short_window=200, decisions=str(tmp_path / "decisions.csv"))
    with pytest.raises(ValueError, match="line 2: the decision 'kepe' is not known"):
        selector.select(Dataset.from_list(rows))


def test_state_is_json(ranked):
    selector = GateauSelector(fraction=0.5, alpha=0.7)
    selector.select(ranked)
    state = json.loads(json.dumps(selector.state()))
    assert state == {"args": {"fraction": 0.5, "alpha": 0.7}, "attributes": {"trained_on": selector.fingerprint}}


@pytest.mark.parametrize(
    "settings, error, message",
    [
        ({"fractoin": 0.1}, TypeError, "did you mean 'fraction'"),
        ({"alpha": 1.5}, ValueError, "alpha=1.5 is not between 0 and 1"),
        ({"fraction": 0.0}, ValueError, "fraction=0.0 is not above 0"),
        ({"fraction": 0.1, "top_k": 3}, ValueError, "choose one"),
        ({"long_model": "x", "short_window": 0}, ValueError, "short_window"),
    ],
)
def test_wrong_settings_are_told_at_once(settings, error, message):
    with pytest.raises(error, match=message):
        GateauSelector(**settings)


def test_wrong_data_are_told(rows, ranked):
    with pytest.raises(ValueError, match="no pair of models is named"):
        GateauSelector().select(Dataset.from_list(rows))
    with pytest.raises(ValueError, match="Give one split"):
        GateauSelector().select(DatasetDict(train=ranked))
    with pytest.raises(ValueError, match="keeps none of 12"):
        GateauSelector(fraction=0.01).select(ranked)
    changed = ranked.map(lambda row: {"messages": [row["messages"][0], {"role": "assistant", "content": "no ."}]})
    with pytest.raises(ValueError, match="2 of the 2 kept rows have changed"):
        GateauSelector(top_k=2).select(changed)
