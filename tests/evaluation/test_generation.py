"""Answers of batches against `model.generate` one prompt at a time; prompts that are too long; what a crash leaves."""

import json
import logging
import sys
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_gateau.evaluation.answering import ANSWERS, GeneratorConfig
from hf_gateau.evaluation.generation import TransformersGenerator, load_generator
from hf_gateau.quickstart.world import PLAIN_WORDS
from hf_gateau.rows.labels import IGNORED, tokenize_for_training
from tests.chats import CHATML, CONTEXT, QUESTION, train_bpe, trl_template
from tests.tiny_models import make_model


def words(count: int, start: int = 0) -> str:
    return " ".join(PLAIN_WORDS[(start + 7 * i) % len(PLAIN_WORDS)] for i in range(count))


def ask(content: str) -> list[dict]:
    return [{"role": "user", "content": content}]


PROMPTS = [ask(words(count, start)) for start, count in enumerate((5, 90, 31, 2, 60, 17, 44, 45))]


def one_by_one(name: str, prompts: list, max_new_tokens: int, eos: list[int]) -> list[str]:
    """The straight way: no batch, no padding."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(name), AutoTokenizer.from_pretrained(name)
    answers = []
    for prompt in prompts:
        ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        out = model.generate(**ids, max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=eos)
        answers.append(tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))
    return answers


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gpt_neox"])
@pytest.mark.parametrize("batch_tokens", [1, 250, 10_000])
def test_batches_answer_as_single_prompts_do(architecture, batch_tokens, tokenizer, tmp_path):
    name = make_model(architecture, tmp_path / "model", tokenizer)
    got = load_generator(name, tmp_path, GeneratorConfig(batch_tokens=batch_tokens)).generate(PROMPTS, 12)
    assert got == one_by_one(name, PROMPTS, 12, [tokenizer.eos_token_id])
    assert len(set(got)) > 4  # not all alike


def test_answers_end_at_each_end_of_the_generation_configuration(tokenizer, tmp_path):
    name = make_model("llama", tmp_path / "model", tokenizer)
    whole = one_by_one(name, PROMPTS[:1], 12, [tokenizer.eos_token_id])[0].split()
    end = tokenizer.convert_tokens_to_ids(whole[5])
    first = whole.index(whole[5])
    model = AutoModelForCausalLM.from_pretrained(name)
    model.generation_config.eos_token_id = [195, end]
    model.save_pretrained(name)
    answer = load_generator(name, tmp_path).generate(PROMPTS[:1], 12)[0]
    assert answer.split()[:first] == whole[:first] and len(answer.split()) == first + 1


def test_samples_nothing_where_the_generation_configuration_does(tokenizer, tmp_path):
    name = make_model("llama", tmp_path / "model", tokenizer)
    expected = one_by_one(name, PROMPTS, 12, [tokenizer.eos_token_id])
    model = AutoModelForCausalLM.from_pretrained(name)
    model.generation_config.update(do_sample=True, temperature=5.0, top_k=3, repetition_penalty=2.0)
    model.save_pretrained(name)
    assert load_generator(name, tmp_path).generate(PROMPTS, 12) == expected


@pytest.mark.parametrize(("max_length", "kept"), [(100, 82), (101, 82), (48, 30)])
def test_a_long_prompt_keeps_its_first_and_last_half(max_length, kept, tiny_model, tmp_path):
    generator = load_generator(tiny_model, tmp_path, GeneratorConfig(max_length=max_length))
    text = words(500).split()
    ids, shortened = generator.prompt_ids(ask(" ".join(text)), max_new_tokens=15)
    # three tokens of the template: <s> <|user|> ... <|assistant|>
    expected = ["<s>", "<|user|>", *text[: kept // 2], *text[-kept // 2 :], "<|assistant|>"]
    assert shortened and generator.tokenizer.convert_ids_to_tokens(ids) == expected
    assert len(ids) in (max_length - 15, max_length - 16)


def test_a_prompt_of_the_exact_length_is_left_alone(tiny_model, tmp_path, caplog):
    generator = load_generator(tiny_model, tmp_path, GeneratorConfig(max_length=100))
    ids, shortened = generator.prompt_ids(ask(words(82)), max_new_tokens=15)
    assert len(ids) == 85 and not shortened
    with caplog.at_level(logging.WARNING):
        generator.generate([ask(words(82)), ask(words(83))], 15)
    assert "1 of 2 prompts are longer than 85 tokens and lost their middle" in caplog.text


def test_halves_of_tokens_within_words(bpe, tmp_path):
    """Where text is cut within a word, other tokens may come out: the limit holds all the same, and both ends are there."""
    bpe.chat_template = CHATML
    name = make_model("llama", tmp_path / "model", bpe)
    text = "The boats — painted — return at 06:15, 🙂 and not earlier. " * 40 + "When do they return?"
    for max_length in range(80, 110):
        generator = load_generator(name, tmp_path, GeneratorConfig(max_length=max_length))
        ids, shortened = generator.prompt_ids(ask(text), max_new_tokens=10)
        assert shortened and max_length - 18 <= len(ids) <= max_length - 10
        read = bpe.decode(ids)
        assert "The boats" in read and read.rstrip().endswith("assistant") and "they return?" in read


def test_only_the_longest_message_loses_its_middle(tiny_model, tmp_path):
    generator = load_generator(tiny_model, tmp_path, GeneratorConfig(max_length=60))
    turns = [*ask(words(200)), {"role": "assistant", "content": words(5, 3)}, *ask(words(6, 9))]
    read = generator.tokenizer.decode(generator.prompt_ids(turns, 10)[0])
    assert words(5, 3) in read and words(6, 9) in read and read.split()[:3] == ["<s>", "<|user|>", PLAIN_WORDS[0]]


def test_no_room_for_a_prompt(tiny_model, tmp_path):
    generator = load_generator(tiny_model, tmp_path, GeneratorConfig(max_length=20))
    with pytest.raises(ValueError, match="no room for a prompt before an answer of 16"):
        generator.generate([ask(words(50))], 16)


def test_without_a_chat_template_prompts_are_text(tiny_model, tmp_path):
    generator = load_generator(tiny_model, tmp_path, GeneratorConfig(chat_template="off"))
    ids, _ = generator.prompt_ids([*ask("who is adam ?"), {"role": "assistant", "content": "adam"}])
    assert ids == generator.tokenizer("who is adam ? adam")["input_ids"]
    assert generator.num_tokens(ask("who is adam ?")) == 4


@pytest.mark.parametrize("content", [f"{CONTEXT}\n\n{QUESTION}", QUESTION, f"{CONTEXT}\n\n{QUESTION}\n"])
@pytest.mark.parametrize("begun", ["", "They return"])
def test_the_papers_form_is_the_one_that_training_makes(content, begun, bpe, tmp_path):
    bpe.chat_template = None
    name = make_model("llama", tmp_path / "model", bpe)
    generator = load_generator(name, tmp_path, GeneratorConfig(chat_template="paper"))
    row = tokenize_for_training({"messages": [*ask(content), {"role": "assistant", "content": "They return."}]}, bpe)
    trained = row["input_ids"][: next(i for i, label in enumerate(row["labels"]) if label != IGNORED)]
    ids, _ = generator.prompt_ids([*ask(content), *([{"role": "assistant", "content": begun}] if begun else [])])
    read = bpe.decode(ids)
    assert read.endswith(f"### Response:\n{begun}") and ("### Input:" in read) == (CONTEXT[:20] in content)
    assert begun or ids == trained


def test_a_prompt_does_not_end_with_the_end_of_a_text(tmp_path):
    from tokenizers.processors import TemplateProcessing

    bpe = train_bpe(byte_level=True, bos=False)
    marks = [("<s>", bpe.bos_token_id), ("</s>", bpe.eos_token_id)]
    bpe.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=marks)
    assert bpe(QUESTION)["input_ids"][-1] == bpe.eos_token_id
    ids, _ = load_generator(make_model("llama", tmp_path / "model", bpe), tmp_path).prompt_ids(ask(QUESTION))
    assert bpe.decode(ids) == f"<s>{QUESTION}"


def test_models_that_can_think_answer_at_once_unless_asked_to_think(bpe, tmp_path):
    bpe.chat_template = trl_template("qwen3")
    name = make_model("llama", tmp_path / "model", bpe)
    begun = [*ask(QUESTION), {"role": "assistant", "content": "They"}]
    for settings, empty in (({}, "<think>\n\n</think>\n\n"), ({"chat_template_kwargs": "{}"}, "")):
        generator = load_generator(name, tmp_path, GeneratorConfig(**settings))
        read = bpe.decode(generator.prompt_ids(ask(QUESTION))[0])
        assert read.endswith(f"assistant\n{empty}")
        assert bpe.decode(generator.prompt_ids(begun)[0]).endswith("</think>\n\nThey")


def test_goes_on_with_the_beginning_of_an_answer(tiny_model, tmp_path):
    generator = load_generator(tiny_model, tmp_path)
    ids, _ = generator.prompt_ids([*ask("who is adam ?"), {"role": "assistant", "content": "adam"}])
    assert generator.tokenizer.decode(ids) == "<s> <|user|> who is adam ? <|assistant|> adam"


class Counting(TransformersGenerator):
    """Notes the prompts that are run, and stops as a killed process does after so many batches."""

    def __init__(self, *arguments, batches: int = 1_000):
        super().__init__(*arguments)
        self.ran, self.batches = [], batches

    def _batch(self, prompts, max_new_tokens):
        if self.batches == 0:
            raise KeyboardInterrupt
        self.batches -= 1
        self.ran += map(tuple, prompts)
        return super()._batch(prompts, max_new_tokens)


def test_what_was_answered_is_not_run_again(tiny_model, tmp_path):
    settings = GeneratorConfig(batch_tokens=150)
    expected = load_generator(tiny_model, tmp_path / "other", settings).generate(PROMPTS, 12)
    stopped = Counting(tiny_model, tmp_path, settings, batches=2)
    with pytest.raises(KeyboardInterrupt):
        stopped.generate(PROMPTS, 12)
    assert 0 < len(stopped.ran) < len(PROMPTS)
    second = Counting(tiny_model, tmp_path, settings)
    assert second.generate(PROMPTS, 12) == expected
    assert not set(stopped.ran) & set(second.ran) and len(stopped.ran) + len(second.ran) == len(PROMPTS)
    third = Counting(tiny_model, tmp_path, GeneratorConfig(batch_tokens=9_000))
    assert third.generate([*PROMPTS, *PROMPTS[:2]], 12) == [*expected, *expected[:2]] and third.ran == []
    third.generate(PROMPTS, 11)  # another question
    assert len(third.ran) == len(PROMPTS)


def test_other_weights_answer_anew(tokenizer, tiny_model, tmp_path):
    name = make_model("llama", tmp_path / "model", tokenizer, scale=1.1)
    load_generator(tiny_model, tmp_path).generate(PROMPTS, 12)
    other = Counting(name, tmp_path, GeneratorConfig())
    other.generate(PROMPTS, 12)
    assert len(other.ran) == len(PROMPTS)


def test_another_chat_template_asks_anew(tokenizer, tmp_path):
    name = make_model("llama", tmp_path / "model", tokenizer)
    load_generator(name, tmp_path).generate(PROMPTS, 12)
    changed = AutoTokenizer.from_pretrained(name)
    changed.chat_template = changed.chat_template.replace("<|assistant|>", "<|assistant|> the")
    assert changed.chat_template != tokenizer.chat_template
    changed.save_pretrained(name)
    other = Counting(name, tmp_path, GeneratorConfig())
    other.generate(PROMPTS, 12)
    assert len(other.ran) == len(PROMPTS)


class Small(Counting):
    """Has memory for that many prompts at a time."""

    room = 3

    def _batch(self, prompts, max_new_tokens):
        if len(prompts) > self.room:
            raise torch.OutOfMemoryError("no more")
        return super()._batch(prompts, max_new_tokens)


def test_out_of_memory_halves_the_batch(tiny_model, tmp_path, caplog):
    expected = load_generator(tiny_model, tmp_path / "other").generate(PROMPTS, 12)
    small = Small(tiny_model, tmp_path, GeneratorConfig())
    assert small.generate(PROMPTS, 12) == expected and len(small.ran) == len(PROMPTS)
    assert "Out of memory with 8 prompts at a time" in caplog.text
    small.room = 0
    with pytest.raises(
        RuntimeError, match="A prompt of 93 tokens does not fit into the memory of cpu; lower max_length"
    ):
        small.generate(PROMPTS, 11)


def test_an_adapter_is_a_model_too(tiny_model, tmp_path):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), config)
    model.save_pretrained(tmp_path / "adapter")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.save_pretrained(tmp_path / "adapter")
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    tokenizer.save_pretrained(tmp_path / "merged")
    got = load_generator(str(tmp_path / "adapter"), tmp_path).generate(PROMPTS, 12)
    assert got == one_by_one(str(tmp_path / "merged"), PROMPTS, 12, [tokenizer.eos_token_id])
    assert got != load_generator(tiny_model, tmp_path).generate(PROMPTS, 12)


def test_wrong_input(tiny_model, tmp_path):
    for settings in (
        {"backend": "mlx"},
        {"dtype": "int8"},
        {"chat_template": "on"},
        {"max_length": 0},
        {"chat_template_kwargs": "[]"},
        {"vllm_parameters": "4", "backend": "vllm"},
        {"vllm_parameters": '{"tensor_parallel_size": 4}'},
        {"batch_tokens": 4, "backend": "vllm"},
        {"device": "cuda:1", "backend": "vllm"},
    ):
        with pytest.raises(ValueError, match=next(iter(settings))):
            GeneratorConfig(**settings)
    with pytest.raises(FileNotFoundError, match="There is no model at './nothing'"):
        load_generator("./nothing", tmp_path)
    (tmp_path / ANSWERS).write_text("no database, but long enough to be taken for one" * 30)
    with pytest.raises(RuntimeError, match="cannot be used"):
        load_generator(tiny_model, tmp_path)


def test_vllm_is_named_where_it_is_missing(tiny_model, tmp_path):
    try:
        import vllm  # noqa: F401
    except ImportError:
        with pytest.raises(ImportError, match="pip install vllm"):
            load_generator(tiny_model, tmp_path, GeneratorConfig(backend="vllm"))


@pytest.fixture()
def stand_in(monkeypatch):
    """For vLLM: takes what `vllm.LLM`, `vllm.SamplingParams` and `LLM.generate` of 0.33 take, and answers with a prompt's length."""
    told = SimpleNamespace(engines=[], asked=[])

    class LLM:
        def __init__(
            self, model, *, revision=None, tokenizer_revision=None, dtype="auto", trust_remote_code=False, **others
        ):
            told.engines.append(
                {
                    "model": model,
                    "revision": revision,
                    "tokenizer_revision": tokenizer_revision,
                    "dtype": dtype,
                    **others,
                }
            )

        def generate(self, prompts, sampling_params=None, *, use_tqdm=True):
            told.asked.append(([prompt["prompt_token_ids"] for prompt in prompts], sampling_params))
            return [SimpleNamespace(outputs=[SimpleNamespace(text=f"{len(x['prompt_token_ids'])}")]) for x in prompts]

    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=LLM, SamplingParams=SimpleNamespace))
    return told


def test_vllm_is_asked_for_the_same_prompts_greedily(tiny_model, tmp_path, stand_in, monkeypatch):
    monkeypatch.setattr("hf_gateau.evaluation.generation.VLLM_PROMPTS_AT_A_TIME", 3)
    parameters = json.dumps({"tensor_parallel_size": 2, "trust_remote_code": False})
    config = GeneratorConfig(backend="vllm", max_length=80, model_revision="main", vllm_parameters=parameters)
    generator = load_generator(tiny_model, tmp_path, config)
    answers = generator.generate(PROMPTS, 12)
    same = load_generator(tiny_model, tmp_path / "other", GeneratorConfig(max_length=80))
    expected = [same.prompt_ids(prompt, 12)[0] for prompt in PROMPTS]
    assert answers == [f"{len(ids)}" for ids in expected]
    assert [ids for batch, _ in stand_in.asked for ids in batch] == expected
    assert [len(batch) for batch, _ in stand_in.asked] == [3, 3, 2]
    settings = stand_in.asked[0][1]
    assert (settings.temperature, settings.max_tokens) == (0.0, 12)
    assert settings.stop_token_ids == [generator.tokenizer.eos_token_id]
    assert stand_in.engines == [
        {
            "model": tiny_model,
            "revision": "main",
            "tokenizer_revision": "main",
            "dtype": "float32",
            "max_model_len": 80,
            "tensor_parallel_size": 2,
        }
    ]
    assert generator.generate(PROMPTS, 12) == answers and len(stand_in.asked) == 3  # they are kept
    assert generator.describe() != same.describe()


def test_vllm_is_not_given_an_adapter(tiny_model, tmp_path, stand_in):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), LoraConfig(target_modules=["q_proj"]))
    model.save_pretrained(tmp_path / "adapter")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match="is a PEFT adapter, and backend='vllm' takes whole models"):
        load_generator(str(tmp_path / "adapter"), tmp_path, GeneratorConfig(backend="vllm"))
