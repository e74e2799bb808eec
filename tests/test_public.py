"""What one sees of the package in an interpreter."""

import pytest

import hf_gateau
from hf_gateau import (
    EmbeddingScorer,
    GateauScorer,
    GateauSelector,
    MeasureConfig,
    MixConfig,
    ModelPairConfig,
    RankConfig,
    ResponseScorer,
    RewardScorer,
    ScoredConfig,
    SelectConfig,
    TrainConfig,
)


pytestmark = pytest.mark.quick

SHOWN = [
    (lambda: GateauScorer(), "GateauScorer()"),
    (
        lambda: GateauScorer(long_model="a", short_window=256, max_length=65_536),
        "GateauScorer(long_model='a', short_window=256)",
    ),
    (lambda: GateauScorer(long_model="a").configure(store=False), "GateauScorer(long_model='a', store=False)"),
    (lambda: GateauSelector(fraction=0.2, alpha=0.5), "GateauSelector(fraction=0.2, alpha=0.5)"),
    (lambda: ResponseScorer("a"), "ResponseScorer(model='a')"),
    (lambda: RewardScorer("a", batch_tokens=64), "RewardScorer(model='a', batch_tokens=64)"),
    (lambda: EmbeddingScorer("a"), "EmbeddingScorer(model='a')"),
    (lambda: RankConfig(), "RankConfig()"),
    (lambda: RankConfig(method="car", alpha=0.7), "RankConfig(method='car', alpha=0.7)"),
    (lambda: SelectConfig(strata="length", strata_edges=[1.0]), "SelectConfig(strata='length', strata_edges=[1.0])"),
    (lambda: MeasureConfig(segment_length=64), "MeasureConfig(segment_length=64)"),
    (lambda: ModelPairConfig(long_model="a"), "ModelPairConfig(long_model='a', short_window=4096)"),
    (lambda: MixConfig(short_data="a"), "MixConfig(short_data='a')"),
    (lambda: ScoredConfig("a/b"), "ScoredConfig(scored_dataset='a/b')"),
    (lambda: TrainConfig(batching="sorted"), "TrainConfig(batching='sorted')"),
]


@pytest.mark.parametrize("make, text", SHOWN, ids=[text for _, text in SHOWN])
def test_objects_are_shown_as_one_writes_them(make, text):
    made = make()
    assert repr(made) == text
    assert repr(eval(text, vars(hf_gateau) | {name: getattr(hf_gateau, name) for name in hf_gateau.__all__})) == text


def test_functions_are_shown_by_their_names():
    def my_context(text):
        return 0, 1

    assert repr(GateauScorer(find_context=my_context)) == "GateauScorer(find_context=my_context)"


def test_dir_has_the_public_names_alone():
    assert dir(hf_gateau) == sorted([*hf_gateau.__all__, "__version__"])
    assert isinstance(hf_gateau.__version__, str)
