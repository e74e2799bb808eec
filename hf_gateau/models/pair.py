"""The homologous pair: loading both siblings, and the checks that a comparison of their perplexities rests on."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy

import torch
from transformers import CONFIG_MAPPING

from ..rows.conversations import SampleError
from ..rows.samples import Sample
from .abilities import abilities_of
from .config import ModelPairConfig
from .device import resolve_device, resolve_dtype
from .fingerprints import loaded_commit, pair_fingerprints, tokenizer_source
from .loading import (
    check_installed,
    check_local,
    load_adapter_config,
    load_config,
    load_tokenizer,
    place_of,
)
from .notices import announced
from .rope import context_window, exchanged_rope, scale_rope, unsettled_after


logger = logging.getLogger(__name__)

DEVICE_MAP_STRATEGIES = (None, "auto", "balanced", "balanced_low_0", "sequential")
PROBE = "The quick brown fox, 12 + 34 = 46;\n\tnaïve café — 東京 🙂 <|im_start|> [INST]"


class ModelPair:
    """Both siblings and their tokenizer. The tokenizer and the configurations load at once, the weights when needed.

    Args:
        config (`ModelPairConfig`): which models, and how.
        rank (`int`): process number; with `device="auto"` it chooses among several GPUs.

    Raises:
        ValueError: the two models do not share one vocabulary, or a model cannot be measured.
        OSError: a model is not found.
    """

    def __init__(self, config: ModelPairConfig, rank: int = 0):
        for name in filter(None, (config.long_model, config.short_model, config.long_adapter, config.short_adapter)):
            check_local(name)
        self.config, self.rank = config, rank
        self.long_config = load_config(config.long_model, config.long_revision, config.trust_remote_code)
        self.short_config = self._short_config()
        check_not_refused(config.long_model, self.long_config)
        check_not_refused(config.short_model or config.long_model, self.short_config)
        if config.short_pass == "reuse" and not abilities_of(self.long_config).keeps_past:
            raise ValueError(
                f"short_pass='reuse' needs a model whose past is keys and values alone, and {config.long_model!r} keeps more; "
                "take short_pass='own'."
            )
        if config.short_pass == "reuse" and unsettled_after(self.long_config):
            raise ValueError(
                f"short_pass='reuse' needs keys that do not depend on the length of the sequence, and {config.long_model!r} has "
                f"a RoPE of type {next(iter(unsettled_after(self.long_config)))!r}; take short_pass='own'."
            )
        if config.use_fused_attention:
            from .fused import check_fused_attention

            check_fused_attention(self.device, self.dtype)
        if config.use_liger_kernel:
            from .fused import check_liger

            check_liger(config.long_model, self.long_config, self.device)
            check_liger(config.short_model or config.long_model, self.short_config, self.device)
        with announced(f"Loading the tokenizer of {config.tokenizer or config.long_model}", after=1.0):
            self.tokenizer = self._checked_tokenizer()
        self.commits = {which: self._commit(which) for which in ("long", "short", "long_adapter", "short_adapter")}
        self.fingerprints = pair_fingerprints(config)
        self._long = self._short = None
        self._is_loaded = False

    def _commit(self, which: str) -> str | None:
        """The commit of a Hub id's configuration, which its weights are taken from too; None for a folder or file."""
        is_adapter = which.endswith("adapter")
        name = getattr(self.config, which if is_adapter else f"{which}_model")
        revision = getattr(self.config, f"{which}_revision")
        if is_adapter and name is not None:
            load_adapter_config(name, revision)
        return name and loaded_commit(name, revision)

    def _short_config(self):
        config = self.config
        if self._has_one_checkpoint:
            native = deepcopy(self.long_config)
        else:
            native = load_config(config.short_model, config.short_revision, config.trust_remote_code)
        return native if config.short_rope_scale is None else scale_rope(native, config.short_rope_scale)

    def _checked_tokenizer(self):
        """The tokenizer, once those of both models were found to be like it; one that several name is read once."""
        config = self.config
        sources = [(config.long_model, config.long_revision)]
        if config.short_model is not None:
            sources.append((config.short_model, config.short_revision))
        if config.tokenizer is not None:
            sources.insert(0, tokenizer_source(config))
        distinct = {place_of(*source): source for source in sources}
        loaded = [(name, load_tokenizer(name, revision, config)) for name, revision in distinct.values()]
        loaded_commit(*sources[0])
        for other in loaded[1:]:
            check_same_vocabulary(*loaded[0], *other)
        check_embedded(*loaded[0], self.num_embeddings)
        return loaded[0][1]

    @property
    def num_embeddings(self) -> int:
        """Tokens that both siblings have an embedding for: ids below this number."""
        return min(config.vocab_size for config in (self.long_config, self.short_config))

    def check_tokens(self, input_ids: Sequence[int]) -> None:
        """`check_tokens` of a row against both siblings."""
        check_tokens(input_ids, self.tokenizer, self.num_embeddings)

    @property
    def _has_one_checkpoint(self) -> bool:
        config = self.config
        long, short = (config.long_model, config.long_revision), (config.short_model, config.short_revision)
        return config.short_model is None or place_of(*short) == place_of(*long)

    @property
    def shares_weights(self) -> bool:
        """Whether one model in memory serves as both siblings."""
        config = self.config
        adapters = (
            (config.long_adapter, config.long_adapter_revision),
            (config.short_adapter, config.short_adapter_revision),
        )
        long, short = (name and place_of(name, revision) for name, revision in adapters)
        return config.short_model is None or (self._has_one_checkpoint and short == long)

    @property
    def long(self):
        """The long-window model, loaded on first use."""
        if self._long is None:
            self._long = self._load("long", self.long_config)
        return self._long

    def load(self) -> None:
        """Load what is not loaded yet. What is wrong with a model is told here, and ends the run; it is no fault of a row."""
        if not self._is_loaded:
            with self.short():
                self.long  # noqa: B018
            self._is_loaded = True

    @contextmanager
    def long_with_attention(self) -> Iterator:
        """The long model for the time of the block with the attention that a `ResponseAttention` can be handed to."""
        from .attention import ATTENTION_NAME

        own = self.long.config._attn_implementation
        if own != ATTENTION_NAME:
            self.long.set_attn_implementation(ATTENTION_NAME)
        try:
            yield self.long
        finally:
            if own != ATTENTION_NAME:
                self.long.set_attn_implementation(own)

    @contextmanager
    def short(self) -> Iterator:
        """The short-window sibling for the time of the block; where it shares weights, at most its RoPE is exchanged."""
        config = self.config
        if not self.shares_weights:
            if self._short is None:
                self._short = self._load("short", self.short_config)
            yield self._short
        elif config.short_rope_scale is not None:
            with exchanged_rope(self.long, self.short_config):
                yield self.long
        else:
            yield self.long

    def short_context(self, sample: Sample) -> list[int]:
        """The context as the short sibling sees it: all of it, or its end that fits `short_window` together with the
        instruction. Prefix, instruction and response stay whole."""
        if self.config.short_window is None:
            return sample.context
        return sample.context[len(sample.context) - self.num_near(sample) :]

    def num_near(self, sample: Sample) -> int:
        """`near_tokens` of a sample."""
        return self.near_tokens(len(sample.context), len(sample.instruction), sample.response_end)

    def near_tokens(self, num_context: int, num_instruction: int, num_tokens: int) -> int:
        """How many of the context's last tokens are near: what `short_window` lets the short sibling see; without one, what its
        own window holds beside all that is not context."""
        if self.config.short_window is not None:
            return min(num_context, max(0, self.config.short_window - num_instruction))
        return min(num_context, max(0, context_window(self.short_config) - (num_tokens - num_context)))

    @property
    def is_self_paired(self) -> bool:
        """Whether both siblings are one and the same model that differs by what it sees alone."""
        return self.config.short_model is None and self.config.short_rope_scale is None

    @property
    def max_length(self) -> int:
        """The long model's own window in tokens."""
        return context_window(self.long_config)

    @property
    def device(self) -> torch.device:
        """Where the models are, or with a `device_map` where they begin."""
        device_map = self.config.device_map
        if isinstance(device_map, dict):
            return torch.device(next((place for place in device_map.values() if place not in ("cpu", "disk")), "cpu"))
        named = None if device_map in DEVICE_MAP_STRATEGIES else device_map
        return resolve_device(named or self.config.device, self.rank)

    @property
    def dtype(self) -> str:
        """The name of the weights' dtype after resolving 'auto'."""
        return resolve_dtype(self.config.dtype, self.device, self.long_config)

    def describe(self) -> dict:
        """Everything about the pair that changes a number, as plain JSON: the store's key and the cards' provenance."""
        config = self.config
        long = self._describe("long", self.long_config)
        short = {"window": config.short_window, "rope_scale": config.short_rope_scale}
        if config.short_pass != "own":
            short["pass"] = config.short_pass
        if config.short_model is not None:
            short |= self._describe("short", self.short_config)
        bits = 8 if config.load_in_8bit else 4 if config.load_in_4bit else None
        return {"long": long, "short": short, "dtype": self.dtype, "bits": bits}

    def _describe(self, which: str, model_config) -> dict:
        """One sibling: names, which change no key, and what tells its weights, adapter and code from others."""
        name, adapter = getattr(self.config, f"{which}_model"), getattr(self.config, f"{which}_adapter")
        found = {
            "model": name,
            "fingerprint": self.fingerprints[which],
            "adapter": self.fingerprints[f"{which}_adapter"],
        }
        has_two = getattr(model_config, "auto_map", None) and model_config.model_type in CONFIG_MAPPING
        found |= {"adapter_name": adapter} if adapter is not None else {}
        return found | ({"remote_code": True} if has_two and self.config.trust_remote_code else {})

    @property
    def own_tokenizer(self) -> str | None:
        """What tells the tokenizer from others, where the long model's fingerprint does not."""
        found = self.fingerprints["tokenizer"]
        return None if found == self.fingerprints["long"] else found

    def _load(self, which: str, model_config):
        """A sibling's weights, which must still be those that the key was made for.

        Raises:
            ValueError: its files have changed, or a `device_map` cannot serve.
        """
        from .weights import check_measurable, load_weights

        name, adapter = getattr(self.config, f"{which}_model"), getattr(self.config, f"{which}_adapter")
        revision, adapter_revision = self.commits[which], self.commits[f"{which}_adapter"]
        if self.config.device_map is not None and self.rank > 0:
            raise ValueError(
                f"device_map={self.config.device_map!r} spreads one model over the devices, and this is process "
                f"{self.rank + 1} of several that would do so; run one process (no num_proc, or one process a machine)."
            )
        options = {"config": model_config, "dtype": getattr(torch, self.dtype)}
        if self.config.load_in_8bit or self.config.load_in_4bit:
            from transformers import BitsAndBytesConfig

            check_installed("bitsandbytes", "quant", "Loading in 4 or 8 bit")

            options["quantization_config"] = BitsAndBytesConfig(
                load_in_8bit=self.config.load_in_8bit,
                load_in_4bit=self.config.load_in_4bit,
                bnb_4bit_compute_dtype=options["dtype"],
            )
            options["device_map"] = {"": self.device}
        elif self.device.type == "cuda" and not name.endswith(".gguf"):
            options["device_map"] = {
                "": self.device
            }  # from the files straight to the GPU, with no copy in the host's memory
        if self.config.device_map is not None:
            options["device_map"] = self.config.device_map
        with announced(f"Loading {name}"):
            model = load_weights(name, revision, self.config.trust_remote_code, options)
        if adapter is not None:
            from peft import PeftModel

            if any(parameter.is_meta for parameter in model.parameters()):
                raise ValueError(
                    f"device_map={self.config.device_map!r} leaves parts of {name!r} off the device, where the adapter "
                    f"{adapter!r} cannot be put on them; merge it into the model first, or take devices with more memory."
                )
            model = PeftModel.from_pretrained(model, adapter, revision=adapter_revision).get_base_model()
        found = pair_fingerprints(self.config)
        local = [x for x in (which, f"{which}_adapter") if self.commits[x] is None]
        if any(found[x] != self.fingerprints[x] for x in local):
            raise ValueError(
                f"The files of {name!r} or its adapter have changed since this run began; start it again."
            )
        if model.device.type == "meta":
            raise ValueError(
                f"device_map={self.config.device_map!r} leaves the first weights of {name!r} without a device; put its "
                "input embeddings on a GPU, or on 'cpu' where there is none, or take a device with more memory."
            )
        model = model.eval() if "device_map" in options else model.to(self.device).eval()
        check_measurable(name, model)
        if self.config.use_fused_attention:
            from .fused import use_fused_attention

            with announced(f"Compiling attention kernels for {name}", after=1.0):
                use_fused_attention(name, model)
        if self.config.use_liger_kernel:
            from .fused import use_liger

            use_liger(name, model)
        if self.config.attn_implementation is not None:
            model.set_attn_implementation(self.config.attn_implementation)
        return model


# Checks


def check_not_refused(name: str, model_config) -> None:
    """Refuse a model of a type that is known to give no numbers of its own, before its weights are loaded.

    Raises:
        ValueError: why it cannot be measured.
    """
    if (refusal := abilities_of(model_config).refusal) is not None:
        raise ValueError(
            f"{name!r} is a model of type {model_config.model_type!r}, which cannot be measured: {refusal}; use another model."
        )


def check_same_vocabulary(name: str, tokenizer, other_name: str, other) -> None:
    """Perplexities of different vocabularies cannot be compared.

    Raises:
        ValueError: the tokenizers' vocabularies differ, or they cut the same text differently.
    """
    vocab, other_vocab = tokenizer.get_vocab(), other.get_vocab()
    differing = {token for token in vocab.keys() | other_vocab.keys() if vocab.get(token) != other_vocab.get(token)}
    if differing:
        example = min(differing)
        raise ValueError(
            f"{name!r} ({len(vocab)} tokens) and {other_name!r} ({len(other_vocab)} tokens) do not share a vocabulary: "
            f"{len(differing)} tokens differ, e.g. {example!r} is {vocab.get(example)} and {other_vocab.get(example)}. "
            "Choose two models from the same pre-training, or short_window with the long model alone."
        )
    if tokenizer(PROBE)["input_ids"] != other(PROBE)["input_ids"]:
        raise ValueError(
            f"{name!r} and {other_name!r} have the same tokens but cut text differently; name the tokenizer that both "
            "were trained with as tokenizer=, or use short_window with the long model alone."
        )


def check_embedded(name: str, tokenizer, num_embeddings: int) -> None:
    """Refuse a tokenizer whose own tokens go beyond a model's embeddings, and warn where tokens that were added to it do.

    Raises:
        ValueError: it is another model's.
    """
    beyond = {token: i for token, i in tokenizer.get_vocab().items() if i >= num_embeddings}
    if own := beyond.keys() - tokenizer.get_added_vocab().keys():
        raise ValueError(
            f"The tokenizer of {name!r} makes {len(own)} tokens that the model has no embedding for ({num_embeddings} "
            f"embeddings; e.g. {min(own)!r} is {beyond[min(own)]}); name the tokenizer that the model was trained with as "
            "tokenizer=."
        )
    if beyond:
        logger.warning(
            "Tokens that were added to the tokenizer of %r have no embedding in the model, and rows with one of them are not "
            "measured: %s.", name, ", ".join(sorted(beyond, key=beyond.get)[:10]),
        )  # fmt: skip


def check_tokens(input_ids: Sequence[int], tokenizer, num_embeddings: int) -> None:
    """Refuse a row with a token that a model has no embedding for; on a GPU it would end the process.

    Raises:
        SampleError: which token.
    """
    if (largest := max(input_ids, default=0)) >= num_embeddings:
        token = tokenizer.convert_ids_to_tokens(largest)
        raise SampleError(f"token {token!r} (id {largest}) has no embedding: the model knows {num_embeddings} tokens")
