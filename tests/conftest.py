"""Fixtures that several rooms' tests share; what they share beside these is in `tiny_models`, `measured`, `chats`, `browser`,
`processes`, `paths` and `servers/`."""

import logging
import os
import sys
from pathlib import Path


TESTS = Path(__file__).parent

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of commands too: tests run side by side
os.environ["HF_GATEAU_STORE"] = "off"  # no test touches the user's own store; those that want one name it

import pytest  # noqa: E402


# A process takes whole files: those that take longest are begun first, so that none is left to one process at the end.
LONG_FILES = (
    "experiments/test_experiments.py",
    "scripts/test_sft.py",
    "measuring/test_together.py",
    "hub/test_push.py",
    "measuring/test_scorer.py",
    "cli/test_score.py",
    "training/test_trainer.py",
    "hub/test_push_faults.py",
    "cli/test_entry.py",
    "quickstart/test_demo.py",
    "measuring/test_value_scorers.py",
    "training/test_selector.py",
    "report/test_explorer.py",
    "report/test_explorer_state.py",
    "models/test_device.py",
    "report/test_page.py",
    "models/test_architectures.py",
)


def pytest_collection_modifyitems(items):
    place = {name: i for i, name in enumerate(LONG_FILES)}
    items.sort(
        key=lambda item: place.get(item.path.relative_to(TESTS).as_posix(), len(place))
    )  # keeps all other order


QUICK, GPU = "quick and not slow", "gpu"


def pytest_configure(config):
    if config.option.markexpr == "quick":  # in place of `not slow and not gpu`, which is the default
        config.option.markexpr = QUICK
    if config.option.markexpr != GPU:  # two CPU ranks of a test would share the machine's GPU
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_ignore_collect(collection_path, config):
    """`-m quick` imports no file without a quick test: importing is half of its time."""
    if config.option.markexpr == QUICK and collection_path.match("test_*.py"):
        return True if "mark.quick" not in collection_path.read_text(encoding="utf-8") else None


BARS = {"datasets.utils": "_bars", "huggingface_hub.utils": "_bars", "transformers.utils.logging": "_bar"}


@pytest.fixture(autouse=True)
def bars_and_warnings_as_before():
    """Commands and benchmarks have their process to themselves and switch bars and warnings off in it; tests share theirs."""
    loggers = [logging.getLogger(name) for name in ("hf_gateau", "datasets", "transformers", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
    for name, plural in BARS.items():
        if name in sys.modules:
            getattr(sys.modules[name], f"enable_progress{plural}")()


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """The models are tiny: threads cost more than they bring."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer():
    from hf_gateau.quickstart.world import build_tokenizer

    return build_tokenizer()


@pytest.fixture(scope="module", params=["byte-level", "sentencepiece"])
def bpe(request):
    """Tokenizers that cut text within words; a test gives one its chat template."""
    from tests.chats import train_bpe

    return train_bpe(request.param == "byte-level", bos=request.param == "sentencepiece")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory, tokenizer) -> str:
    """A random Llama with the planted world's tokenizer."""
    from tests.tiny_models import make_model

    return make_model("llama", tmp_path_factory.mktemp("llama"), tokenizer)


@pytest.fixture(scope="module")
def scorer(tiny_model):
    """Measures with `tiny_model`, by `SETTINGS`, and keeps nothing."""
    from hf_gateau import GateauScorer
    from tests.measured import SETTINGS

    return GateauScorer(long_model=tiny_model, store=False, **SETTINGS)


@pytest.fixture(scope="session")
def rows() -> list[dict]:
    """Twelve planted rows in LongAlign's form."""
    from hf_gateau.quickstart.world import planted_rows

    return planted_rows(12, seed=3)


@pytest.fixture(scope="session")
def smollm2() -> str:
    """SmolLM2-135M-Instruct, a .gguf file; tests that need it are skipped where it cannot be downloaded."""
    from benchmarks.smollm2 import ModelMissing, smollm2

    try:
        return smollm2()
    except ModelMissing as error:
        pytest.skip(str(error))
