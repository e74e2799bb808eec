"""What is said of models, heads and segments, from the records as they are written."""

import numpy as np
import pytest

from hf_gateau.measuring.heads import HeadCalibration
from hf_gateau.ranking.bounds import Bound
from hf_gateau.report.provenance import certain, how_measured


pytestmark = pytest.mark.quick


def test_heads_their_habits_and_how_well_they_do():
    found = HeadCalibration(
        heads=((14, 3), (0, 7)),
        bins=(14, 15, 30),
        habits=((-9.25, -10.0, -12.5), (-8.0, -8.5, -9.0)),
        agreement=0.975,
        auroc=0.9991,
        num_rows=100,
        num_tested=40,
    )
    [(name, text)] = how_measured({"calibration": found.to_json()})
    assert name == "segments told by" and text == (
        "2 retrieval heads, chosen by 100 rows: layer 14 head 3 (habit -9.2 nats at 128 tokens, -12.5 at 32,768), layer 0 head 7 "
        "(habit -8.0 nats at 128 tokens, -9.0 at 32,768); of 40 rows not used for choosing they find the telling segment in 98%, "
        "AUROC 0.999"
    )


def test_what_is_certain_without_some_segments():
    bound = Bound(num_without=600, num_sampled=50, num_safe=190, highest_score=0.6, error=0.01)
    words = "the best 190 rows, as if all segments were measured; 600 rows have none"
    assert certain(bound.to_record()) == words
    scores, kept = np.array([0.9, 0.81, 0.8, 0.79, 0.1]), np.array([True, True, True, False, False])
    told = certain(bound.to_record() | {"num_uncertain": bound.num_uncertain(scores, kept)})
    assert told == f"{words}; of the selected rows at most 1 could be others, 95 times in 100"
