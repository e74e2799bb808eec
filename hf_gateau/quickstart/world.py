"""The planted language of the quickstart: samples for which we know what makes them hard.

Real long-context data comes without labels, so a score on it can only be believed. Here every row says where its
answer lies: far back in the context, in its last sentences, in no context at all, or nowhere because it is noise. The
language is 190 words of plain English: people (`adam baxter waited near the river .`), pairs of opposites that hold in
every document, and filler. It is small enough for the pair of models in `make_pair.py` to learn it on one CPU core.

Everything is drawn from `random.Random(seed).random()` alone, the one generator method that Python promises to keep
the same between versions. Importing this module imports neither torch nor transformers.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

T = TypeVar("T")
Words = list[str]
Person = tuple[str, str]  # first name, last name: who is `adam`? `adam baxter`

FIRST_NAMES = """adam amber arthur beatrice boris brenda caleb casper clara cora damon diana edgar elena emma fanny
    fiona frank gilbert greta harold helga hilda ida irene jasper jonas julia kitty leo lionel lucas marlow milo nadia
    nina olga otto percy quentin""".split()
LAST_NAMES = """abbott ashby atwood baxter bishop brooks carver chapman clayton cooper crane dalton dawson dixon ellis
    emerson fisher fletcher foster gibson graves hale harding hobbs hudson jarvis keller lambert lawson mercer morris
    norton osborn palmer porter quincy ramsey sawyer thorne walker""".split()
ADJECTIVES = """old quiet narrow green bright cold dusty gentle broken distant silver crowded lonely wooden misty
    empty""".split()
NOUNS = """river bridge market tower garden harbor forest village castle road mill valley church meadow station
    orchard""".split()
VERBS = "stood waited rested slept shone faded echoed vanished".split()
PREPOSITIONS = "near behind above beyond beside under".split()
TIMES = "today yesterday later again soon".split()
OPPOSITE_PAIRS = """hot-ice day-night big-small up-down fast-slow rich-poor wet-dry hard-soft loud-mute early-late
    young-aged full-hollow thick-thin sharp-blunt sweet-bitter tall-short war-peace love-hate begin-end left-right
    north-south east-west summer-winter black-white""".split()
FUNCTION_WORDS = "the . ? and who what is are of opposite opposites".split()

OPPOSITE = {a: b for pair in OPPOSITE_PAIRS for a, b in (pair.split("-"), pair.split("-")[::-1])}

PAD, UNKNOWN, BOS, EOS, USER, ASSISTANT = "<pad>", "<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>"
SPECIAL_TOKENS = (PAD, UNKNOWN, BOS, EOS, USER, ASSISTANT)
PLAIN_WORDS = (
    *FUNCTION_WORDS, *FIRST_NAMES, *LAST_NAMES, *ADJECTIVES, *NOUNS, *VERBS, *PREPOSITIONS, *TIMES, *OPPOSITE,
)  # fmt: skip
VOCABULARY = {word: index for index, word in enumerate((*SPECIAL_TOKENS, *PLAIN_WORDS))}

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ ' <|user|> ' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}{{ ' <|assistant|> ' }}"
    "{% generation %}{{ message['content'] + ' </s>' }}{% endgeneration %}"
    "{% else %}{{ raise_exception('The planted language knows the roles user and assistant only.') }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ ' <|assistant|> ' }}{% endif %}"
)

KINDS = {
    "far": "the answer stands in the first 60% of the context, and nowhere else",
    "local": "the answer stands in the last seven sentences of the context",
    "context_free": "the answer is known without any context (opposites)",
    "noise_wrong": "a fluent answer that contradicts the context",
    "noise_random": "random words for an answer",
}
KIND_PERCENT = {"far": 20, "local": 30, "context_free": 30, "noise_wrong": 10, "noise_random": 10}
NUM_CONTEXT_TOKENS = 960


def pick(rng: random.Random, options: Sequence[T]) -> T:
    """One of `options`."""
    return options[int(rng.random() * len(options))]


def draw(rng: random.Random, options: Sequence[T], count: int) -> list[T]:
    """`count` of `options` without replacement, in random order."""
    pool = list(options)
    return [pool.pop(int(rng.random() * len(pool))) for _ in range(count)]


def between(rng: random.Random, low: int, high: int) -> int:
    """An integer from `low` to `high`, both included."""
    return low + int(rng.random() * (high - low + 1))


def draw_people(rng: random.Random, count: int) -> list[Person]:
    """`count` people, no first or last name twice. The pairing is new in every document, so only its text can tell."""
    return list(zip(draw(rng, FIRST_NAMES, count), draw(rng, LAST_NAMES, count), strict=True))


def filler_sentence(rng: random.Random) -> Words:
    """A sentence that answers no question."""
    place = [pick(rng, PREPOSITIONS), "the", pick(rng, NOUNS)] if rng.random() < 0.6 else []
    return ["the", pick(rng, ADJECTIVES), pick(rng, NOUNS), pick(rng, VERBS), *place, "."]


def fact_sentence(rng: random.Random, person: Person) -> Words:
    """A sentence that says a person's last name."""
    time = [pick(rng, TIMES)] if rng.random() < 0.2 else []
    place = [pick(rng, PREPOSITIONS), "the", pick(rng, NOUNS)] if rng.random() < 0.2 else []
    return [*time, *person, pick(rng, VERBS), *place, "."]


def opposite_clause(word: str) -> Words:
    """What holds in every document, so that a model can know it without context."""
    return ["the", "opposite", "of", word, "is", OPPOSITE[word]]


def ask_people(people: Sequence[Person]) -> tuple[Words, Words]:
    """Question about one or two people, and its answer."""
    verb = "is" if len(people) == 1 else "are"
    return ["who", verb, *_join([[first] for first, _ in people]), "?"], [*_join(people), "."]


def ask_opposites(words: Sequence[str]) -> tuple[Words, Words]:
    """Question about the opposites of one or two words, and its answer."""
    noun = ["is", "the", "opposite"] if len(words) == 1 else ["are", "the", "opposites"]
    answer = _join([opposite_clause(word) for word in words])
    return ["what", *noun, "of", *_join([[word] for word in words]), "?"], [*answer, "."]


def _join(phrases: Sequence[Sequence[str]]) -> Words:
    """The phrases with `and` between them."""
    return [word for phrase in phrases for word in ("and", *phrase)][1:]


class DocumentStyle(NamedTuple):
    """What pretraining documents are made of; what the three probabilities leave is filler."""

    num_people: tuple[int, int] = (6, 14)
    p_fact: float = 0.5
    p_question: float = 0.22
    p_opposite: float = 0.15


class Document(NamedTuple):
    """Words of a document, and the positions of those that only a look back can predict."""

    words: Words
    looked_up: list[int]


def pretraining_document(rng: random.Random, num_tokens: int, style: DocumentStyle) -> Document:
    """A conversation of exactly `num_tokens` tokens: text that ends in a question, the answer, more text.

    People are mentioned again and again, so reading pays. The chat form is part of pretraining because role tokens
    that no model has seen make every response after them measure the accidents of initialisation.
    """
    people = draw_people(rng, between(rng, *style.num_people))
    mentioned: list[Person] = []
    words = [BOS, USER]
    while len(words) < num_tokens:
        words += _next_sentence(rng, style, people, mentioned)
    words = words[:num_tokens]
    return Document(words, _looked_up(words))


def _next_sentence(rng: random.Random, style: DocumentStyle, people: list[Person], mentioned: list[Person]) -> Words:
    """A fact, a question on facts already `mentioned` (which grows), something on opposites, or filler."""
    choice = rng.random()
    if choice < style.p_fact:
        person = pick(rng, people)
        if person not in mentioned:
            mentioned.append(person)
        return fact_sentence(rng, person)
    choice -= style.p_fact
    if choice < style.p_question and len(mentioned) >= 2:
        return _turns(*ask_people(draw(rng, mentioned, between(rng, 1, 2))))
    if choice < style.p_question + style.p_opposite:
        if rng.random() < 0.2:
            return [*opposite_clause(pick(rng, list(OPPOSITE))), "."]
        return _turns(*ask_opposites(draw(rng, list(OPPOSITE), between(rng, 1, 2))))
    return filler_sentence(rng)


def _turns(question: Words, answer: Words) -> Words:
    """The end of a user's turn, the assistant's turn, the start of the next."""
    return [*question, ASSISTANT, *answer, EOS, USER]


def _looked_up(words: Words) -> list[int]:
    """Positions of answers, and of last names said for the second time or later."""
    last_names, seen, positions, in_answer = set(LAST_NAMES), set(), [], False
    for position, word in enumerate(words):
        if in_answer or word in seen:
            positions.append(position)
        if word in last_names:
            seen.add(word)
        in_answer = word == ASSISTANT or (in_answer and word != EOS)
    return positions


def packed_documents(
    rng: random.Random, num_tokens: int, style: DocumentStyle, document_tokens: tuple[int, int] = (48, 128)
) -> Document:
    """`num_tokens` tokens of short documents one after the other, as rows of ordinary pretraining are.

    They get a short-window model used to large positions without giving it any reason to look further back than its
    window, so that a long input finds it forgetful rather than broken.
    """
    words: Words = []
    looked_up: list[int] = []
    while len(words) < num_tokens:
        document = pretraining_document(rng, between(rng, *document_tokens), style)
        looked_up += [len(words) + position for position in document.looked_up]
        words += document.words
    return Document(words[:num_tokens], [position for position in looked_up if position < num_tokens])


def planted_rows(num_rows: int, seed: int, num_context_tokens: int = NUM_CONTEXT_TOKENS) -> list[dict]:
    """`num_rows` labelled rows in LongAlign's form, `KIND_PERCENT` of each kind, in random order.

    Each is `{"id", "messages": [user, assistant], "length", "kind"}`: the user's content is the context, a blank line,
    the instruction; `length` is the number of tokens of the row in the tokenizer's chat template. The same seed gives
    the same rows.
    """
    rng = random.Random(seed)
    order = enumerate(draw_kinds(rng, num_rows, KIND_PERCENT))
    return [_planted_row(rng, kind, f"planted-{seed}-{i}", num_context_tokens) for i, kind in order]


def draw_kinds(rng: random.Random, num_rows: int, percents: dict[str, int]) -> Words:
    """The kind of each row, in random order: of each kind its percents of the rows."""
    kinds: list[str] = []
    percent = 0
    for kind, share in percents.items():
        percent += share
        kinds += [kind] * (num_rows * percent // 100 - len(kinds))
    return draw(rng, kinds, num_rows)


def short_rows(num_rows: int, seed: int) -> list[dict]:
    """Short instruction data: a third ask for opposites, the others about two people in a text of 60 to 250 words."""
    rng = random.Random(seed)
    rows = []
    for i in range(num_rows):
        if i % 3:
            people = draw_people(rng, 4)
            sentences = [filler_sentence(rng) for _ in range(between(rng, 6, 30))]
            for person in people:
                insert_at(sentences, fact_sentence(rng, person), rng.random())
            question, answer = ask_people(draw(rng, people, 2))
            question = [word for sentence in sentences for word in sentence] + ["\n\n", *question]
        else:
            question, answer = ask_opposites(draw(rng, list(OPPOSITE), 2))
        contents = ("user", " ".join(question)), ("assistant", " ".join(answer))
        rows.append({"messages": [{"role": role, "content": content} for role, content in contents]})
    return rows


def _planted_row(rng: random.Random, kind: str, row_id: str, num_context_tokens: int) -> dict:
    """One row. Contexts have the same make-up whatever the kind: only the place of the answer tells kinds apart."""
    people = draw_people(rng, 24)
    context = _planted_context(rng, people[:2], people[2:], kind == "local", num_context_tokens)
    question, answer = question_and_answer(rng, kind, people[:2])
    return make_row(row_id, kind, context, question, answer)


def make_row(row_id: str, kind: str, context: Words, question: Words, answer: Words) -> dict:
    """A labelled row in LongAlign's form."""
    messages = [
        {"role": "user", "content": f"{' '.join(context)}\n\n{' '.join(question)}"},
        {"role": "assistant", "content": " ".join(answer)},
    ]
    num_markup_tokens = len((BOS, USER, ASSISTANT, EOS))
    length = len(context) + len(question) + len(answer) + num_markup_tokens
    return {"id": row_id, "messages": messages, "length": length, "kind": kind}


def question_and_answer(rng: random.Random, kind: str, asked: list[Person]) -> tuple[Words, Words]:
    """The instruction of a row, and its response: right, or noise."""
    if kind == "context_free":
        return ask_opposites(draw(rng, list(OPPOSITE), 2))
    question, answer = ask_people(asked)
    if kind == "noise_wrong":
        right = {last for _, last in asked}
        wrong = draw(rng, [last for last in LAST_NAMES if last not in right], len(asked))
        _, answer = ask_people([(first, last) for (first, _), last in zip(asked, wrong, strict=True)])
    if kind == "noise_random":
        answer = [*(pick(rng, PLAIN_WORDS) for _ in range(5)), "."]
    return question, answer


def _planted_context(
    rng: random.Random, asked: list[Person], others: list[Person], near: bool, num_context_tokens: int
) -> Words:
    """Up to `num_context_tokens` tokens that mention everybody once: the two `asked` far back or `near` the end.

    Two of the `others` always stand near the end, so that nearness alone does not give the answer away.
    """
    asked_facts = [fact_sentence(rng, person) for person in asked]
    other_facts = [fact_sentence(rng, person) for person in others]
    sentences = fill(rng, num_context_tokens - sum(map(len, asked_facts + other_facts)))
    for fact in other_facts[2:]:
        insert_at(sentences, fact, rng.random())
    for fact in other_facts[:2]:
        sentences.insert(len(sentences) - between(rng, 0, 6), fact)
    if near:
        for fact in asked_facts:
            sentences.insert(len(sentences) - between(rng, 0, 5), fact)
    else:
        later, earlier = draw(rng, asked_facts, 2)
        insert_at(sentences, later, 0.35 + 0.24 * rng.random())
        insert_at(sentences, earlier, 0.03 + 0.27 * rng.random())
    return [word for sentence in sentences for word in sentence]


def fill(rng: random.Random, num_tokens: int) -> list[Words]:
    """Sentences without people, `num_tokens` tokens together or a few less."""
    sentences: list[Words] = []
    while True:
        opposite = rng.random() < 0.06
        sentence = [*opposite_clause(pick(rng, list(OPPOSITE))), "."] if opposite else filler_sentence(rng)
        num_tokens -= len(sentence)
        if num_tokens < 0:
            return sentences
        sentences.append(sentence)


def insert_at(sentences: list[Words], sentence: Words, fraction: float) -> None:
    """Insert before the sentence that holds the token at `fraction` of the text."""
    tokens_left = int(fraction * sum(map(len, sentences)))
    for index, other in enumerate(sentences):
        tokens_left -= len(other)
        if tokens_left < 0:
            sentences.insert(index, sentence)
            return


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The word-level tokenizer of the language: a token is what stands between white space.

    Its chat template marks the assistant's content and end token as generated, so a row's response tokens can be read
    off the template.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel(VOCABULARY, unk_token=UNKNOWN))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNKNOWN,
        additional_special_tokens=[USER, ASSISTANT],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
