"""The ways to rank of the paper's tables, each against plain loops written from its paper, on 50 rows."""

import hashlib
import json
import math
import os
import random
import subprocess
import sys

import numpy as np
import pytest
from datasets import Dataset, List, Value

from hf_gateau import rank, ranking_record, select, selection_record
from hf_gateau.ranking.clustering import clusters, default_num_clusters
from hf_gateau.ranking.config import RankConfig, SelectConfig
from hf_gateau.ranking.formulas import METHODS, MODES
from hf_gateau.ranking.order import DegenerateRankingWarning
from tests.ranking.references import dataset, derived, measurements, ref_cosine, ref_scores, ref_softmax


pytestmark = pytest.mark.filterwarnings(f"ignore::{DegenerateRankingWarning.__module__}.DegenerateRankingWarning")


def fifty(**changes) -> Dataset:
    return Dataset.from_dict(measurements(50, seed=1) | changes)


def ref_cas(row: dict) -> float:
    """Eq. 5 of one row."""
    return ref_cosine(ref_softmax(row["gateau_segment_ppl"]), ref_softmax(row["gateau_segment_attention"]))


# All


def ref_random(seed: int, key: str) -> float:
    """The first 53 bits of a hash, little-endian."""
    digest = hashlib.blake2b(f"{seed}:{key.split(':')[1]}".encode(), digest_size=8).digest()
    return (sum(byte << 8 * i for i, byte in enumerate(digest)) >> 11) / 2**53


@pytest.mark.parametrize("method", [*MODES, "perplexity", "longest", "random", "full"])
def test_scores_of_fifty_rows_are_those_of_plain_loops(method):
    """The ablations, IFD and CaR: below."""
    rows, columns = fifty().to_list(), measurements(50, seed=1)
    expected = {
        "perplexity": lambda: [row["gateau_ppl_long"] for row in rows],
        "longest": lambda: [
            row["gateau_num_context_tokens"] + row["gateau_num_response_tokens"] / 2**24 for row in rows
        ],
        "random": lambda: [ref_random(7, row["gateau_key"]) for row in rows],
        "full": lambda: [50 - i for i in range(50)],
    }.get(method, lambda: ref_scores(columns, *MODES[method], 0.7)[2])()
    settings = {"mode": method, "alpha": 0.7} if method in MODES else {"method": method, "seed": 7}
    found = derived(rank(fifty(), **settings))
    np.testing.assert_allclose(found["gateau_score"], expected, rtol=1e-11)
    order = sorted(range(50), key=lambda i: (-found["gateau_score"][i], rows[i]["gateau_key"]))
    assert [found["gateau_rank"][i] for i in order] == list(range(1, 51))


# Ablations


def test_ablations_of_the_paper_are_its_equations_without_a_part():
    ds = fifty()
    rows = ds.to_list()
    short, long = ([row[f"gateau_ppl_{which}"] for row in rows] for which in ("short", "long"))
    hmp = [a - b for a, b in zip(ref_softmax(short), ref_softmax(long), strict=True)]
    cas = ref_softmax([ref_cas(row) for row in rows])
    no_norm = ref_softmax([a - b for a, b in zip(short, long, strict=True)])
    expected = {
        "without_hmg": cas,
        "without_cam": ref_softmax(hmp),
        "without_norm": [0.7 * a + 0.3 * b for a, b in zip(no_norm, cas, strict=True)],
    }
    for method, scores in expected.items():
        found = derived(rank(ds, method=method, mode="paper", alpha=0.7))
        np.testing.assert_allclose(found["gateau_score"], scores, rtol=1e-12)
        assert found["gateau_rank"] == [1 + sum(other > score for other in scores) for score in scores]


@pytest.mark.parametrize("mode", MODES)
def test_an_ablation_is_of_the_mode_asked_for_and_the_record_says_what_it_is(mode):
    parts = {"without_hmg": {"hmp": "none"}, "without_cam": {"cas": "none"}, "without_norm": {"hmp": "difference"}}
    for method, part in parts.items():
        ablated, asked = rank(dataset(), method=method, mode=mode), rank(dataset(), mode=mode, **part)
        assert derived(ablated) == derived(asked)
        record = ranking_record(ablated)
        assert record["method"] == method and record["mode"] == mode and "GATEAU without" in record["what"]
        names = ("hmp", "cas", "combine", "alpha")
        assert {name: record[name] for name in names} == {name: ranking_record(asked)[name] for name in names}


@pytest.mark.parametrize(
    "setting, message",
    [
        ({"method": "without_hmg", "hmp": "softmax"}, "hmp='none', and hmp='softmax' is given too; leave it out"),
        ({"method": "without_cam", "cas": "gain"}, "cas='none', and cas='gain' is given"),
        ({"method": "without_norm", "hmp": "rank"}, "hmp='difference', and hmp='rank' is given"),
        ({"method": "without_hmg", "cas": "none"}, "leaves nothing to rank by"),
        ({"method": "without_cam", "hmp": "none"}, "leaves nothing to rank by"),
        ({"car_clusters": 0}, "car_clusters=0 is not a whole number of 1 or more"),
        ({"car_per_cluster": 0.5}, "car_per_cluster=0.5"),
        ({"car_best": -1}, "car_best=-1 is not a whole number of 0 or more"),
    ],
    ids=str,
)
def test_settings_that_contradict_a_method_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        RankConfig(**setting)


# IFD


def test_ifd_is_a_ratio_of_perplexities_highest_first():
    columns = measurements(50, seed=1)
    for method, below in (("ifd", "gateau_ppl_response"), ("ifd_context", "gateau_ppl_no_context")):
        ifd = [a / b for a, b in zip(columns["gateau_ppl_long"], columns[below], strict=True)]
        found = derived(rank(fifty(), method=method))
        assert found["gateau_score"] == ifd
        assert found["gateau_rank"] == [1 + sum(other > score for other in ifd) for score in ifd]
        helped = derived(rank(fifty(), method=method, ifd_below_one=True))
        assert 5 < sum(score >= 1 for score in ifd) < 45
        for score, place, note in zip(ifd, helped["gateau_rank"], helped["gateau_note"], strict=True):
            assert (place, note) == (
                (None, "IFD is 1 or more: the prompt does not help")
                if score >= 1
                else (1 + sum(score < other < 1 for other in ifd), None)
            )


def test_ifd_of_exactly_one_is_dropped_as_the_original_does():
    ds = Dataset.from_dict({"gateau_ppl_long": [2.0, 1.9], "gateau_ppl_response": [2.0, 2.0]})
    assert rank(ds, method="ifd", ifd_below_one=True)["gateau_rank"] == [None, 1]


def test_missing_columns_say_how_to_measure_them():
    with pytest.raises(
        ValueError, match="gateau_ppl_response; .*--response_model .*method='ifd_context' does without"
    ):
        rank(dataset(gateau_ppl_response=None), method="ifd")
    with pytest.raises(ValueError, match="RewardScorer.*--reward_model.*reward_column names any.*EmbeddingScorer"):
        rank(dataset(gateau_reward=None, gateau_embedding=None), method="car")
    assert ranking_record(rank(dataset(gateau_ppl_response=None), method="ifd_context"))["num_ranked"] == 60


# CaR


def blobs(num_rows: int, num_blobs: int, seed: int = 0) -> tuple[list[list[float]], list[int]]:
    """Embeddings around far-away points, and which point each is near."""
    rng = random.Random(seed)
    centres = [[rng.gauss(0, 100) for _ in range(6)] for _ in range(num_blobs)]
    labels = [i % num_blobs for i in range(num_rows)]
    rng.shuffle(labels)
    return [[x + rng.gauss(0, 0.1) for x in centres[label]] for label in labels], labels


def ref_car(rewards: list[float], labels: list[int], best: int, per_cluster: int) -> set[int]:
    """CaR's choice: the n1 best rows of all, and the n2 best of each cluster."""
    by_reward = sorted(range(len(rewards)), key=lambda i: -rewards[i])
    chosen = set(by_reward[:best])
    for cluster in set(labels):
        chosen |= set([i for i in by_reward if labels[i] == cluster][:per_cluster])
    return chosen


@pytest.mark.parametrize("per_cluster", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_every_beginning_of_the_order_is_a_choice_of_car(per_cluster):
    embeddings, labels = blobs(50, 7)
    ds = fifty(gateau_embedding=embeddings)
    rewards, settings = ds["gateau_reward"][:], {"car_clusters": 7, "car_per_cluster": per_cluster}
    ranked = rank(ds, method="car", **settings)
    order = np.argsort(ranked["gateau_rank"][:])
    choices = [ref_car(rewards, labels, best, per_cluster) for best in range(51)]
    for num_rows in range(7 * per_cluster, 51):
        assert set(order[:num_rows].tolist()) in choices
    for best, choice in enumerate(choices):
        record = ranking_record(rank(ds, method="car", car_best=best, **settings))
        assert record["car_num_rows"] == len(choice) and record["car_num_first"] == 7 * per_cluster
        assert set(order[: record["car_num_rows"]].tolist()) == choice
    scores = np.array(ranked["gateau_score"])
    assert (np.diff(scores[order]) < 0).all() and record["car_num_clusters"] == 7


def test_select_takes_exactly_cars_choice():
    embeddings, labels = blobs(50, 5)
    ds = fifty(gateau_embedding=embeddings, judged=[float(i * 37 % 50) for i in range(50)]).remove_columns(
        "gateau_reward"
    )
    ranked = rank(ds, method="car", reward_column="judged", car_clusters=5, car_best=12)
    kept = select(ranked, top_k=ranking_record(ranked)["car_num_rows"])
    chosen = ref_car(ds["judged"][:], labels, 12, 1)
    assert kept["id"][:] == [f"row {i}" for i in sorted(chosen)]
    assert selection_record(kept).ranking["reward_column"] == "judged"


def test_clusters_are_a_fixed_point_of_k_means_behind_a_pca_of_95_percent():
    """Every row is nearer to the mean of its own cluster than to another's; PCA by numpy's SVD."""
    rng = np.random.default_rng(0)
    rows = (rng.normal(size=(400, 12)) * np.linspace(3, 0.05, 12)).astype(np.float32)
    labels = clusters(rows, default_num_clusters(400), seed=3)
    assert default_num_clusters(400) == 14 == len(set(labels)) and default_num_clusters(52_002) == 161
    centred = rows.astype(float) - rows.astype(float).mean(axis=0)
    _, singular, directions = np.linalg.svd(centred, full_matrices=False)
    num_kept = int(np.searchsorted(np.cumsum(singular**2) / (singular**2).sum(), 0.95)) + 1
    assert num_kept < 12
    reduced = centred @ directions[:num_kept].T
    means = np.array([reduced[labels == i].mean(axis=0) for i in range(14)])
    distances = np.linalg.norm(reduced[:, None] - means[None], axis=2)
    assert (distances[np.arange(400), labels] <= distances.min(axis=1) + 1e-9).all()


CLUSTERS_ELSEWHERE = """
import json, sys, numpy as np
from hf_gateau.ranking.clustering import clusters
rows = np.random.default_rng(5).normal(size=(300, 8)).astype(np.float32)
print(json.dumps(clusters(rows, 12, seed=int(sys.argv[1])).tolist()))
"""


def test_clusters_are_the_same_in_another_process_order_and_number_of_threads():
    rows = np.random.default_rng(5).normal(size=(300, 8)).astype(np.float32)
    expected = clusters(rows, 12, seed=7)
    environment = os.environ | {"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"}
    command = [sys.executable, "-c", CLUSTERS_ELSEWHERE, "7"]
    printed = subprocess.run(command, capture_output=True, check=True, text=True, env=environment).stdout
    assert json.loads(printed) == expected.tolist()
    order = np.random.default_rng(0).permutation(300)
    assert (clusters(rows[order], 12, seed=7) == expected[order]).all()
    assert (clusters(rows, 12, seed=8) != expected).any()


def test_without_scikit_learn_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(RuntimeError, match=r'pip install "hf-gateau\[embed\]"'):
        rank(fifty(), method="car")


def test_fewer_distinct_embeddings_than_clusters():
    rows = np.array([[1.0, 2.0], [3.0, 4.0]] * 10, dtype=np.float32)
    labels = clusters(rows, 5, seed=0)
    assert len(set(labels[::2])) == len(set(labels[1::2])) == 1 and labels[0] != labels[1]
    assert clusters(rows[:1], 1, 0).tolist() == [0] and clusters(rows[::2], 3, 0).tolist() == [0] * 10


def test_equal_rewards_go_by_key_within_and_between_clusters():
    keys = [f"cfg:{name}" for name in "dbca"]
    columns = {"gateau_key": keys, "gateau_reward": [1.0] * 4, "gateau_embedding": [[0.0], [0.1], [9.0], [9.1]]}
    ranked = rank(Dataset.from_dict(columns), method="car", car_clusters=2)
    assert ranked["gateau_rank"][:] == [4, 2, 3, 1]  # first a of c and a, b of d and b; then c and d


def test_rows_without_reward_or_embedding_are_unranked_and_say_why():
    embeddings, _ = blobs(50, 4)
    embeddings[1], embeddings[2], embeddings[3] = None, [1.0], [math.nan] * 6
    rewards = [None, *[float(i) for i in range(1, 50)]]
    rewards[4] = math.inf
    errors = ["the last turn is the user's", *[None] * 49]
    frame = fifty(gateau_embedding=embeddings, gateau_reward=rewards, gateau_reward_error=errors)
    for data in (frame, frame.to_pandas()):
        found = derived(rank(data, method="car", car_clusters=4))
        assert found["gateau_note"][0] == "gateau_reward: the last turn is the user's"
        wrong = "gateau_embedding is null, or not of the length of the others, or not finite"
        assert found["gateau_note"][1:4] == [wrong] * 3
        assert found["gateau_note"][4] == "gateau_reward is null, or not finite"
        assert found["gateau_rank"][:5] == [None] * 5 and sorted(found["gateau_rank"][5:]) == list(range(1, 46))


@pytest.mark.parametrize("reward_column", ["gateau_reward", "judged"])
@pytest.mark.parametrize("method", ["car", "ifd"])
def test_pushed_rows_have_the_columns_that_they_are_ranked_by(method, reward_column):
    """What is pushed is narrower, ranked by that again, and comes to the same order."""
    from hf_gateau.hub.push import _as_pushed

    settings = {"car": {"reward_column": reward_column, "car_clusters": 6, "seed": 5}, "ifd": {"ifd_below_one": True}}
    ds = fifty(judged=[float(i * 37 % 50) for i in range(50)]).cast_column("gateau_embedding", List(Value("float32")))
    ranked = rank(ds, method=method, **settings[method])
    pushed = _as_pushed(ranked)
    assert pushed["gateau_rank"][:] == ranked["gateau_rank"][:] and "judged" in pushed.column_names
    assert ranking_record(pushed) == ranking_record(ranked)
    assert pushed.features["gateau_embedding"].feature.dtype == "float32"
    again = rank(pushed, method=method, **settings[method])
    assert again["gateau_rank"][:] == ranked["gateau_rank"][:]


# All rows, and none


def test_full_keeps_every_row_in_its_order_unless_a_limit_is_given():
    ds = fifty(gateau_error=["broken", *[None] * 49])
    ranked = rank(ds, method="full")
    assert ranked["gateau_rank"][:] == list(range(1, 51)) and ranked["gateau_score"][:] == list(range(50, 0, -1))
    assert select(ranked)["id"][:] == ds["id"][:] and select(ranked, top_k=3)["id"][:] == ds["id"][:3]
    assert selection_record(select(ranked)).settings == {"fraction": 1.0}
    assert len(select(rank(ds, method="random"))) == 5
    assert rank(Dataset.from_dict({"text": ["a", "b"]}), method="full")["gateau_rank"][:] == [1, 2]
    assert SelectConfig().fraction is None and SelectConfig().resolved(None).fraction == 0.1


def test_no_long_ranks_no_row_and_selecting_says_what_it_is_for():
    ranked = rank(fifty(), method="no_long")
    assert set(ranked["gateau_rank"]) == {None}
    assert set(ranked["gateau_note"]) == {"method='no_long' keeps no long row"}
    assert ranking_record(ranked)["num_unranked"] == {"method='no_long' keeps no long row": 50}
    with pytest.raises(ValueError, match="keeps none.*GateauSelector"):
        select(ranked, top_k=3)


def test_every_method_says_what_it_is():
    for method in METHODS:
        record = ranking_record(rank(dataset(), method=method))
        assert record["method"] == method and record["what"] == METHODS[method].what
        assert json.loads(json.dumps(record)) == record
