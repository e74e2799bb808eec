"""What was dropped to fit, counted from columns of this version and of earlier ones."""

import pyarrow as pa
import pytest
from datasets import Dataset

from hf_gateau.rows.cuts import Cuts


pytestmark = pytest.mark.quick

# Four rows, of which two were cut and one could not be measured.
COLUMNS = {
    "gateau_truncated": [True, False, None, True],
    "gateau_num_cut_tokens": [100, 0, None, 5],
    "gateau_num_context_tokens": [10, 20, None, 30],
}


def of(**columns) -> Dataset:
    return Dataset.from_dict({"id": [0, 1, 2, 3], **columns})


@pytest.mark.parametrize("form", ["dataset", "shuffled", "frame", "table", "numpy"])
def test_counts(form):
    ds = of(**COLUMNS)
    forms = {"shuffled": ds.shuffle(seed=1), "frame": ds.to_pandas(), "table": ds.with_format("arrow")[:]}
    found = Cuts.of_data(forms.get(form, ds.with_format("numpy") if form == "numpy" else ds))
    assert found == Cuts(rows=2, of=3, tokens=105, before=145) and found
    assert found.line() == (
        "2 of 3 rows were cut to fit max_length, and lost 105 of the 145 tokens of their context, from the left: raise "
        "max_length, or take a long model with a longer window"
    )
    assert Cuts.of_record(found.to_record()) == found


def test_data_of_earlier_versions_say_how_many_and_not_how_much():
    earlier = {name: values for name, values in COLUMNS.items() if name != "gateau_num_cut_tokens"}
    found = Cuts.of_data(of(**earlier))
    assert found == Cuts(2, 3, None, None) and "lost part of their context" in found.line()
    mixed = COLUMNS | {"gateau_num_cut_tokens": [100, 0, None, None]}  # an earlier part and a later one, put together
    assert Cuts.of_data(of(**mixed)) == Cuts(2, 3, None, None)


def test_nothing_cut():
    none = COLUMNS | {"gateau_truncated": [False] * 4, "gateau_num_cut_tokens": [0] * 4}
    assert Cuts.of_data(of(**none)) == Cuts(0, 4) and not Cuts.of_data(of(**none))
    assert Cuts.of_data(of()) == Cuts() == Cuts.of_record(None) == Cuts.of_record({"unknown": 3, "rows": "many"})
    assert Cuts.of_data(pa.table({"gateau_truncated": pa.array([], pa.bool_())})) == Cuts()


def test_parts_add_up():
    assert Cuts(1, 2, 3, 4) + Cuts(5, 6, 7, 8) == Cuts(6, 8, 10, 12)
    assert Cuts(1, 2, 3, 4) + Cuts(5, 6, None, None) == Cuts(6, 8, None, None)
