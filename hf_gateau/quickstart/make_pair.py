"""Train the quickstart's pair of homologous models: `python -m hf_gateau.quickstart.make_pair --output_dir DIR`.

A Llama of two layers learns the planted language (`world.py`) from documents of 128 tokens: the short-window sibling.
With a larger RoPE base and documents of up to 1,024 tokens it is trained on: the long-window sibling. That is the
paper's pair (LLaMA-2 4k and LongAlign's 64k) at 1/70,000 of the size. `DIR` receives `short`, `long` and
`planted.jsonl.gz`.

What this is not: a pair that learned to look back by itself. Recall needs an induction circuit (one head that marks
each token with the token before it, one that finds the mark), and plain training did not form it in 15 tries on a CPU.
So the circuit is planted in the initial weights, and training starts from there. It teaches everything else: the
words, the opposites, the questions, and how far to look.

Takes two to three minutes on an idle core. Two runs on one machine give bit-identical files; another CPU or another
release of torch may round differently.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from . import world
from .world import DocumentStyle


if TYPE_CHECKING:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

SHORT_WINDOW = 128
LONG_WINDOW = 1024
LONG_POSITIONS = 2048  # twice what it is trained on: it still recalls most of 2,000 tokens
SHORT_ROPE_BASE = 500.0
ROPE_SCALE = 200.0
LOOK_UP_WEIGHT = 3.0
RECALL_DISTANCES = (16, 32, 64, 100, 200, 400, 600, 900)
NUM_PLANTED_ROWS = 200


class Stage(NamedTuple):
    """Some optimiser steps on rows of one length; `packed` rows hold several documents of up to `SHORT_WINDOW`."""

    num_steps: int
    num_tokens: int
    batch_size: int
    style: DocumentStyle
    packed: bool = False


# The first stage asks for opposites so often because the second of two is only learned after some 300 steps of it.
SHORT_STAGES = (
    Stage(400, SHORT_WINDOW, 32, DocumentStyle(p_fact=0.4, p_question=0.15, p_opposite=0.35)),
    Stage(300, LONG_WINDOW, 4, DocumentStyle(p_fact=0.4), packed=True),
)
LONG_STAGES = (
    Stage(60, 256, 16, DocumentStyle((8, 20), p_fact=0.45, p_question=0.15)),
    Stage(60, 512, 8, DocumentStyle((8, 30), p_fact=0.45, p_question=0.15)),
    Stage(120, LONG_WINDOW, 4, DocumentStyle((16, 38), p_fact=0.25, p_question=0.15)),
)


def short_config() -> LlamaConfig:
    """Two layers of two heads, 64 dimensions: about 95,000 parameters."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=len(world.VOCABULARY),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=SHORT_WINDOW,
        rope_parameters={"rope_type": "default", "rope_theta": SHORT_ROPE_BASE},
        initializer_range=0.1,
        tie_word_embeddings=True,
        pad_token_id=world.VOCABULARY[world.PAD],
        bos_token_id=world.VOCABULARY[world.BOS],
        eos_token_id=world.VOCABULARY[world.EOS],
    )


def plant_induction_circuit(model: LlamaForCausalLM, seed: int = 0) -> None:
    """Write an induction circuit into head 0 of both layers; every other weight keeps its random initial value.

    The hidden state (D = 64) gets three parts: dimension 0 is a constant, dimensions 1..31 hold the token itself,
    33..63 the token before it. Layer 0 copies the second part of the previous position into the third; layer 1 looks
    for positions whose third part matches the second part of its own, that is, positions just after an earlier mention
    of this token, and copies what stands there to the output, which the tied embedding reads as the next token.
    """
    import torch

    with torch.no_grad():
        generator = torch.Generator().manual_seed(seed)
        constant = _plant_embedding(model.model.embed_tokens.weight, generator)
        half = model.config.hidden_size // 2
        code, _ = torch.linalg.qr(torch.randn(half - 1, half - 1, generator=generator))
        first, second = (layer.self_attn for layer in model.model.layers)
        head_dim = first.head_dim
        this_token = torch.zeros(head_dim, 2 * half)
        this_token[: half - 1, 1:half] = code.T
        token_before = this_token.roll(half, dims=1)
        for attention in (first, second):
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
                projection.weight[:head_dim] = 0
            attention.o_proj.weight[:, :head_dim] = 0
            attention.v_proj.weight[:head_dim] = this_token
        first.o_proj.weight[:, :head_dim] = 0.15 * token_before.T
        second.o_proj.weight[:, :head_dim] = this_token.T
        _look_one_back(first, constant, model.config.rope_parameters["rope_theta"])
        _look_for_same_token(second, this_token, token_before)


def _plant_embedding(weight_VD: torch.Tensor, generator: torch.Generator) -> float:
    """Lay out the embedding; returns the value of the constant dimension after the first layer's norm."""
    weight_VD.normal_(0, 0.15, generator=generator)
    weight_VD[:, weight_VD.shape[1] // 2 :] *= 0.05
    weight_VD[:, 0] = 0.5
    return 0.5 / weight_VD.pow(2).mean(1).median().sqrt().item()


def _look_one_back(attention: torch.nn.Module, constant: float, rope_base: float, sharpness: float = 6.0) -> None:
    """Queries and keys read the constant only, the key turned by one position on the six fastest rotary pairs.

    Their product is then largest for the key one position back, whatever the tokens are.
    """
    half = attention.head_dim // 2
    for pair in range(6):
        angle = rope_base ** (-pair / half)
        attention.q_proj.weight[pair, 0] = sharpness / constant
        attention.k_proj.weight[pair, 0] = sharpness / constant * math.cos(angle)
        attention.k_proj.weight[pair + half, 0] = sharpness / constant * math.sin(angle)


def _look_for_same_token(
    attention: torch.nn.Module, this_token: torch.Tensor, token_before: torch.Tensor, sharpness: float = 2.5
) -> None:
    """Queries read this token, keys the token before, on the slow rotary pairs, which distance turns least."""
    half = attention.head_dim // 2
    slow = [*range(half // 2, half), *range(half + half // 2, 2 * half)]
    attention.q_proj.weight[slow] = sharpness * this_token[: len(slow)]
    attention.k_proj.weight[slow] = sharpness * token_before[: len(slow)]


def train(
    model: LlamaForCausalLM,
    stages: tuple[Stage, ...],
    learning_rate: float,
    seed: int,
    advance: Callable[[], object] | None = None,
) -> None:
    """AdamW through the stages, with a warm-up of 100 steps and a cosine down to a tenth over all of them; `advance` is called after
    each step.

    Words that have to be looked up count `LOOK_UP_WEIGHT` times in the loss: they are few, and what the model is for.
    """
    import torch

    rng = random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    steps = [stage for stage in stages for _ in range(stage.num_steps)]
    start = time.perf_counter()
    model.train()
    for step, stage in enumerate(steps):
        cosine = 0.1 + 0.45 * (1 + math.cos(math.pi * step / len(steps)))
        optimizer.param_groups[0]["lr"] = learning_rate * cosine * min(1.0, (step + 1) / 100)
        loss = _loss(model, rng, stage)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if advance is not None:
            advance()
        if (step + 1) % 60 == 0:
            seconds = time.perf_counter() - start
            print(f"  step {step + 1:3d}  {stage.num_tokens:4d} tokens  loss {loss.item():.3f}  {seconds:3.0f} s")
    model.eval()


def _loss(model: LlamaForCausalLM, rng: random.Random, stage: Stage) -> torch.Tensor:
    """Weighted next-token loss on a fresh batch of the stage's documents."""
    import torch

    write = world.packed_documents if stage.packed else world.pretraining_document
    documents = [write(rng, stage.num_tokens, stage.style) for _ in range(stage.batch_size)]
    input_ids_BT = torch.tensor([[world.VOCABULARY[word] for word in document.words] for document in documents])
    weight_BT = torch.ones(input_ids_BT.shape)
    for row, document in enumerate(documents):
        weight_BT[row, document.looked_up] = LOOK_UP_WEIGHT
    logits_BTV = model(input_ids_BT).logits[:, :-1]
    nll = torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1), input_ids_BT[:, 1:].flatten(), reduction="none")
    weight = weight_BT[:, 1:].flatten()
    return (nll * weight).sum() / weight.sum()


def train_short() -> LlamaForCausalLM:
    """The short-window sibling. Its second stage packs documents, see `world.packed_documents`."""
    import torch
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(short_config())
    plant_induction_circuit(model)
    train(model, SHORT_STAGES, learning_rate=2e-3, seed=1)
    return model


def train_long(short: LlamaForCausalLM) -> LlamaForCausalLM:
    """The long-window sibling: the short one's weights, RoPE base times `ROPE_SCALE`, trained on longer documents."""
    from transformers import LlamaForCausalLM

    config = short_config()
    config.max_position_embeddings = LONG_POSITIONS
    config.rope_parameters = {"rope_type": "default", "rope_theta": SHORT_ROPE_BASE * ROPE_SCALE}
    model = LlamaForCausalLM(config)
    model.load_state_dict(short.state_dict())
    train(model, LONG_STAGES, learning_rate=1.5e-3, seed=77)
    return model


def recall_by_distance(
    model: LlamaForCausalLM,
    distances: tuple[int, ...] = RECALL_DISTANCES,
    num_probes: int = 40,
    num_tokens: int = 1000,
) -> dict[int, float]:
    """Share of last names that the model puts first, for a fact that many tokens before the question.

    Contexts have `num_tokens` tokens whatever the distance, and mention others all the way.
    """
    import torch

    recall = {}
    for distance in distances:
        rng = random.Random(distance)
        probes = [_probe(rng, distance, num_tokens) for _ in range(num_probes)]
        input_ids_BT = torch.tensor([[world.VOCABULARY[word] for word in words] for words, _ in probes])
        with torch.no_grad():
            top_B = model(input_ids_BT, logits_to_keep=1).logits[:, -1].argmax(-1)
        answers_B = torch.tensor([world.VOCABULARY[last_name] for _, last_name in probes])
        recall[distance] = (top_B == answers_B).float().mean().item()
    return recall


def _probe(rng: random.Random, distance: int, num_tokens: int) -> tuple[list[str], str]:
    """A prompt that ends in a first name, and the last name, told `distance` tokens before the question."""
    (first, last), *others = world.draw_people(rng, 22)
    fact = world.fact_sentence(rng, (first, last))
    before, after = _chatter(rng, others, num_tokens - distance), _chatter(rng, others, distance - len(fact))
    question, _ = world.ask_people([(first, last)])
    return [world.BOS, world.USER, *before, *fact, *after, *question, world.ASSISTANT, first], last


def _chatter(rng: random.Random, people: list[world.Person], num_tokens: int) -> list[str]:
    """The last `num_tokens` tokens of filler with facts about `people` in between."""
    words: list[str] = []
    while len(words) < num_tokens:
        fact = rng.random() < 0.2
        words += world.fact_sentence(rng, world.pick(rng, people)) if fact else world.filler_sentence(rng)
    return words[len(words) - num_tokens :]


def write_planted_rows(path: Path) -> None:
    """The planted rows as gzipped JSON lines, without a time stamp, so that the same rows are the same bytes."""
    with path.open("wb") as file, gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as compressed:
        for row in world.planted_rows(NUM_PLANTED_ROWS, seed=0):
            compressed.write((json.dumps(row) + "\n").encode())


def main() -> None:
    """Train both siblings, show what they recall, write them and the planted rows."""
    import torch

    parser = argparse.ArgumentParser(description="Train the quickstart's tiny pair of homologous models.")
    parser.add_argument("--output_dir", type=Path, required=True, help="Folder for short, long and planted.jsonl.gz.")
    output_dir = parser.parse_args().output_dir
    torch.set_num_threads(1)  # more threads would change the order of sums, and with it the bits
    print("short-window sibling")
    short = train_short()
    print("long-window sibling")
    long = train_long(short)
    print("recall by distance in tokens  " + "".join(f"{distance:6d}" for distance in RECALL_DISTANCES))
    tokenizer = world.build_tokenizer()
    for name, model in (("short", short), ("long", long)):
        print(f"{name:28s}  " + "".join(f"{recall:6.2f}" for recall in recall_by_distance(model).values()))
        model.save_pretrained(output_dir / name)
        tokenizer.save_pretrained(output_dir / name)
    write_planted_rows(output_dir / "planted.jsonl.gz")
    print(f"wrote {output_dir}/short, {output_dir}/long, {output_dir}/planted.jsonl.gz")


if __name__ == "__main__":
    main()
