"""Fixtures that several rooms' tests share; what they share beside these is in `tiny_models`, `measured`, `chats`, `browser`,
`processes`, `paths` and `servers/`."""

import os


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of commands too: tests run side by side
os.environ["HF_GATEAU_STORE"] = "off"  # no test touches the user's own store; those that want one name it

import pytest  # noqa: E402
import torch  # noqa: E402

from tests.measured import SETTINGS  # noqa: E402
from tests.tiny_models import make_model  # noqa: E402


torch.set_num_threads(1)  # the models are tiny: threads cost more than they bring


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
    return make_model("llama", tmp_path_factory.mktemp("llama"), tokenizer)


@pytest.fixture(scope="module")
def scorer(tiny_model):
    """Measures with `tiny_model`, by `SETTINGS`, and keeps nothing."""
    from hf_gateau import GateauScorer

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
