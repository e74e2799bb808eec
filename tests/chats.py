"""What tests of conversations share: one with a document, chat templates, and tokenizers that know their marks."""

import string
from importlib.resources import files


CONTEXT = (
    "The harbour of Aveiro smells of salt.\n\nIts boats — painted — return at 06:15, 🙂 and not earlier.  \n\tEnd."
)
QUESTION = "When do the boats return?"
ANSWER = "They return at 06:15."
LLAMA_2 = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ '<<SYS>>' + m.content + '<</SYS>>\n' }}"
    "{% elif m.role == 'user' %}{{ bos_token + '[INST] ' + m.content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def trl_template(name: str) -> str:
    return (files("trl") / "chat_templates" / f"{name}.jinja").read_text()


def turns(*contents, system=None) -> dict:
    roles = ["user", "assistant"] * len(contents)
    messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
    return {"messages": ([{"role": "system", "content": system}] if system else []) + messages}


def train_bpe(byte_level: bool, bos: bool):
    """A BPE tokenizer trained on a few lines: byte-level as GPT-2's, or with SentencePiece's ▁, as Llama-2's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token=None if byte_level else "<unk>", byte_fallback=not byte_level))
    if byte_level:
        tokenizer.pre_tokenizer, tokenizer.decoder = (
            pre_tokenizers.ByteLevel(add_prefix_space=False),
            decoders.ByteLevel(),
        )
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        alphabet = list(string.printable)
    specials = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    texts = [CONTEXT, QUESTION, ANSWER, LLAMA_2, "### Input:\n\n### Instruction:\n### Response:\n user assistant"] * 5
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
