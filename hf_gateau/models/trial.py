"""Is this model measured as it would be by itself? A few tokens tell, before any row: for models that nobody has tried."""

import torch

from ..rows.samples import Sample
from ..settings import a_type
from .attention import ATTENTION_NAME, ResponseAttention
from .packing import Cut
from .perplexity import batch_nlls


NUM_TOKENS, NUM_RESPONSE = 24, 8
# Nats a token that the two may differ by: in half precision experts are chosen anew by the last bit
TOLERANCE = {torch.float32: 1e-3}
HALF_TOLERANCE = 0.1


def check_by_trial(name: str, model) -> None:
    """Measure a few tokens with our attention and with the model's own.

    Raises:
        ValueError: the two give different numbers, or the model does not work with an attention that is handed in.
    """
    ids = torch.randint(
        model.config.get_text_config().vocab_size, (NUM_TOKENS,), generator=torch.Generator().manual_seed(0)
    )
    response_start = NUM_TOKENS - NUM_RESPONSE
    sample = Sample(ids.tolist(), 1, response_start - 1, response_start, NUM_TOKENS)
    own, attention = own_attention_nll(model, ids), ResponseAttention([sample])
    try:
        found = (
            batch_nlls(model, [sample.prompt], [sample.response], full=True, response_attention=attention)[0]
            .mean()
            .item()
        )
        attention.segment_means(Cut(NUM_TOKENS))
    except Exception as error:  # whatever the model's own code raises
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{name!r} is {a_type(model)}, which fails with an attention that is handed in ({reason}); use another model."
        ) from error
    if not abs(found - own) <= TOLERANCE.get(model.dtype, HALF_TOLERANCE):  # NaN too
        raise ValueError(
            f"{name!r} is {a_type(model)}, whose numbers are others with an attention that is handed in: {found:.4f} "
            f"nats a token on a trial of {NUM_TOKENS} tokens, by itself {own:.4f}; use another model."
        )


@torch.inference_mode()
def own_attention_nll(model, ids: torch.Tensor) -> float:
    """Mean negative log-likelihood of the last tokens from the model's own full pass, in nats a token."""
    model.set_attn_implementation("eager")
    try:
        logits = model(ids[None].to(model.device), use_cache=False).logits[0, -NUM_RESPONSE - 1 : -1].float().cpu()
    finally:
        model.set_attn_implementation(ATTENTION_NAME)
    return torch.nn.functional.cross_entropy(logits, ids[-NUM_RESPONSE:]).item()
