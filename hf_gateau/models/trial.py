"""Is this model measured as it would be by itself? A few tokens tell, before any row: for models that nobody has tried."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..rows.samples import Sample
from ..settings import a_type
from .attention import ATTENTION_NAME
from .collected import ResponseAttention
from .packing import Cut
from .perplexity import batch_nlls
from .prefill import Prefill


NUM_TOKENS, NUM_RESPONSE, NUM_SEGMENTS = 24, 8, 6
# Nats a token that the two may differ by: in half precision experts are chosen anew by the last bit
TOLERANCE = {torch.float32: 1e-3}
HALF_TOLERANCE = 0.1


def check_by_trial(name: str, model) -> None:
    """Measure a few tokens with our attention and with the model's own.

    Raises:
        ValueError: the two give different numbers, or the model does not work with an attention that is handed in.
    """
    own = own_attention_nll(model)
    with told_in_a_line(
        f"{name!r} is {a_type(model)}, which fails with an attention that is handed in", "use another model"
    ):
        found = trial_nll(model)
    if not are_alike(found, own, model.dtype):
        raise ValueError(
            f"{name!r} is {a_type(model)}, whose numbers are others with an attention that is handed in: {found:.4f} "
            f"nats a token on a trial of {NUM_TOKENS} tokens, by itself {own:.4f}; use another model."
        )


@contextmanager
def told_in_a_line(what: str, advice: str) -> Iterator[None]:
    """Whatever other people's code raises in the block, as a `ValueError` that says what failed, why, and what to do."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{what} ({reason}); {advice}.") from error


def trial_nll(model) -> float:
    """Mean negative log-likelihood of the trial's response as rows are measured, in nats a token."""
    return trial_numbers(model)[0]


def trial_numbers(
    model, num_tokens: int = NUM_TOKENS, batch: int = 1, past: bool = False
) -> tuple[float, list[float]]:
    """The same of the last of some sequences in a batch, and its response's attention to each of its segments; `past`: after a pass
    over what stands before the response."""
    start = num_tokens - NUM_RESPONSE
    samples = [Sample(_trial_ids(model, num_tokens).tolist(), 1, start - 1, start, num_tokens)] * batch
    attention = ResponseAttention(samples)
    collected = {"full": True, "response_attention": attention}
    if past:
        prefill = Prefill(model, [x.prefix + x.context for x in samples])
        nlls = prefill.nlls(samples[0].instruction, samples[0].response, **collected)
    else:
        nlls = batch_nlls(model, [x.prompt for x in samples], [x.response for x in samples], **collected)
    means = attention.segment_means(Cut(num_tokens // NUM_SEGMENTS))
    return nlls[-1].mean().item(), means[-1]


@torch.inference_mode()
def own_attention_nll(model) -> float:
    """Mean negative log-likelihood of the trial's response from the model's own full pass, in nats a token."""
    ids = _trial_ids(model)
    model.set_attn_implementation("eager")
    try:
        logits = model(ids[None].to(model.device), use_cache=False).logits[0, -NUM_RESPONSE - 1 : -1].float().cpu()
    finally:
        model.set_attn_implementation(ATTENTION_NAME)
    return torch.nn.functional.cross_entropy(logits, ids[-NUM_RESPONSE:]).item()


def are_alike(found: float, other: float, dtype: torch.dtype) -> bool:
    """Whether two such numbers differ by no more than rounding does; NaN is like nothing."""
    return abs(found - other) <= TOLERANCE.get(dtype, HALF_TOLERANCE)


def _trial_ids(model, num_tokens: int = NUM_TOKENS) -> torch.Tensor:
    config = model.config.get_text_config()
    embedded = len(model.get_input_embeddings().weight)  # of a decoder's own vocabulary, such as Marian's
    most = min(config.vocab_size, getattr(config, "vocab_size_per_layer_input", config.vocab_size), embedded)
    return torch.randint(most, (num_tokens,), generator=torch.Generator().manual_seed(0))
