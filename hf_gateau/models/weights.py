"""The weights of one model: loaded, and found to be such that can be measured.

What this imports takes seconds, so it is imported when a row needs a model: where the store has all rows, none does.
"""

from transformers import AutoModelForCausalLM

from ..settings import a_type
from .abilities import is_known
from .attention import ATTENTION_NAME, attention_layers, decoder_of, eager_attention_forward
from .loading import load_location, load_options
from .trial import check_by_trial


def load_weights(name: str, revision: str | None, trust_remote_code: bool, options: dict):
    """A causal language model, whose attention can be handed in.

    Args:
        name, revision: of a folder, a file or a Hub id.
        trust_remote_code: whether code of its repository may run.
        options: others that `from_pretrained` takes, `config` among them.

    Raises:
        ValueError: the model takes its attention from elsewhere.
    """
    where = load_options(name, revision, trust_remote_code)
    try:
        return AutoModelForCausalLM.from_pretrained(
            *load_location(name), **where, attn_implementation=ATTENTION_NAME, **options
        )
    except KeyError as error:
        if error.args != (ATTENTION_NAME,):
            raise
        raise ValueError(
            f"{name!r} is a {options['config'].model_type} model, which takes its attention from a list of its own, where no "
            "other can be put; use another model."
        ) from error


def check_measurable(name: str, model) -> None:
    """Refuse a model whose attention cannot be seen or whose head cannot be told from its decoder, before any row.

    Raises:
        ValueError: what is missing.
    """
    decoder = decoder_of(model)
    if decoder is model:
        raise ValueError(f"{name!r} is {a_type(model)} without a language-model head; use a causal LM.")
    attention = attention_layers(decoder)
    if not attention:
        raise ValueError(f"{name!r} has no attention layer on transformers' attention interface; use another model.")
    eager_attention_forward(attention[0])
    if not any(module.is_causal for module in attention):
        raise ValueError(f"{name!r} looks at tokens that come later, so it gives no likelihoods; use a causal model.")
    if not is_known(model.config):
        check_by_trial(name, model)
