"""Where the context of a turn stands: shapes that data and benchmarks have, each with the rule that tells and what it finds.

`§` stands for the document, in the text and in the context that is expected. The prompts named after tasks are
LongBench's (MIT), with their words and white space.
"""

import pytest

from hf_gateau.rows.context_rules import RULES, default_find_context, find_by_rules, last_paragraph


pytestmark = pytest.mark.quick


DOCUMENT = (
    "The harbour of Aveiro smells of salt.\nIts boats return early.\n\nNobody knows the keeper. "
    + "He walks the pier at night. " * 20
    + "\n\nIn the end the light went out."
)
CHINESE = "港口有盐的味道。\n船很早就回来了。\n\n没有人认识守塔人。" + "他夜里在码头上走。" * 20 + "\n\n最后灯灭了。"
FLAT = DOCUMENT.replace("\n", " ")
INTERVIEW = "Ida met us at noon.\n\nQuestion: When did you come?\nAnswer: In May.\n\nQuestion: Why?\nAnswer: For the boats, and I stayed."
# As QMSum's and SQuALITY's rows in LongAlign's form begin
MEETING = (
    "Project Manager: So can we start ?\nMarketing: Yeah .\nProject Manager: Do you want to see the remote control ?\n"
    "Grad A: Hey , you 're not supposed to be drinking in here dude .\nGrad D: OK .\nGrad A: Do we have to read them that slowly ?"
)
STORY = (
    "Produced by Greg Weeks, Mary Meehan and the Online\nDistributed Proofreading Team at http://www.pgdp.net\nAIDE MEMOIRE\n"
    'BY KEITH LAUMER\nThe Fustians looked like turtles—but\n\nthey could move fast when they chose!\n\n"Who goes there?" said Retief.'
)
DO_NOT = "Only give me the answer and do not output any other words."
NARRATIVE = "using a single phrase if possible. Do not provide any explanation."

HEADINGS, FIRST, BOTH, LAST, TAGS = "headings", "question first", "question first and last", "last paragraph", "tags"
# name -> (text, document, rule, context)
SHAPES = {
    # The document first
    "a question last": ("§\n\nWho is the keeper?", DOCUMENT, LAST, "§"),
    "a request last": ("§\n\nDescribe the setting of the story.", DOCUMENT, LAST, "§"),
    "no verb last": ("§\n\nThe main themes, in three bullets", DOCUMENT, LAST, "§"),
    "a question of several lines last": ("§\n\nWho is he?\nWhat does he do?", DOCUMENT, LAST, "§"),
    "a meeting": ("§\n\nSummarize the discussion about the results", MEETING, LAST, "§"),
    "a story": ("§\n\nWho is Magnan, and what is his role?", STORY, LAST, "§"),
    "a Chinese request last": ("§\n\n请总结这篇文章。", CHINESE, LAST, "§"),
    "a Chinese question last": ("§\n\n谁是守塔人", CHINESE, LAST, "§"),
    "two short paragraphs": ("a\n\nb", "", LAST, "a"),
    "an interview, then a request": ("§\n\nSummarise the interview.", INTERVIEW, LAST, "§"),
    "a question under a heading last": ("§\n\nQuestion: Who is the keeper?", DOCUMENT, HEADINGS, "§"),
    "no empty line before its heading": ("§\nQuestion: Who is the keeper?\nAnswer:", DOCUMENT, HEADINGS, "§"),
    "a heading with the answer's apart": ("§\n\nQ: Who is the keeper?\n\nA:", DOCUMENT, HEADINGS, "§"),
    "a Chinese heading last": ("§\n\n问题：谁是守塔人？\n回答：", CHINESE, HEADINGS, "§"),
    "no empty line at all": ("§\nWho is the keeper?", DOCUMENT.replace("\n\n", "\n"), "last line", "§"),
    # Documents that begin as a question or a request does
    "a title that asks": ("§\n\nWho is the keeper?", f"Who Goes There?\n\n{DOCUMENT}", LAST, "§"),
    "a title that asks, a request last": ("§\n\nDescribe the setting.", f"Who Goes There?\n\n{DOCUMENT}", LAST, "§"),
    "a first sentence that orders": ("§\n\nWho is the speaker?", f"Call me Ishmael.\n\n{DOCUMENT}", LAST, "§"),
    "a first sentence that orders in earnest": ("§\n\nWho is the speaker?", f"Give me liberty.\n\n{DOCUMENT}", LAST, "§"),
    "speech that asks": ("§\n\nThe main themes", f'"Who are you?"\n\n{DOCUMENT}', LAST, "§"),
    "the text as a subject": ("§\n\nThe main themes", f"The text on the wall was old.\n\n{DOCUMENT}", LAST, "§"),
    "a recipe": ("§\n\nHow many onions are needed?", "Fry two onions.\n\nAdd water.\n\nServe hot.", LAST, "§"),
    "a list of questions": ("§\n\nSort these questions.", "Who came?\n\nWhen?\n\nWhy did they leave?", LAST, "§"),
    "a heading far inside": ("§\n\nWho wrote it?", DOCUMENT * 4 + "\n\nReport: all is well.\n\nThe end.", LAST, "§"),
    "an earlier question of an interview": ("§\n\nThe main themes", INTERVIEW + "\n\nShe left.", LAST, "§"),
    # The question first
    "a request with a colon": ("Summarise this:\n\n§", DOCUMENT, FIRST, "§"),
    "a colon and one line break": ("Summarise this:\n§", DOCUMENT, FIRST, "§"),
    "a colon in one paragraph": ("Summarise the following text: §", FLAT, FIRST, "§"),
    "a question": ("Who is the keeper?\n\n§", DOCUMENT, FIRST, "§"),
    "a question of two lines": ("Who is the\nkeeper?\n\n§", DOCUMENT, FIRST, "§"),
    "a request": ("Please list all people in the story.\n\n§", DOCUMENT, FIRST, "§"),
    "a request with bullets": ("Write a summary.\n- short\n- in English\n\n§", DOCUMENT, FIRST, "§"),
    "a condition first": ("Based on the story, list all people.\n\n§", DOCUMENT, FIRST, "§"),
    "a role first": ("You are a lawyer.\nRead the contract below and name its parties.\n\n§", DOCUMENT, FIRST, "§"),
    "a question, then a meeting": ("What did they say about the remote control?\n\n§\nMarketing: No .", MEETING, FIRST, "§\nMarketing: No ."),
    "a Chinese request": ("请总结下面的文章：\n\n§", CHINESE, FIRST, "§"),
    "a Chinese question": ("谁是守塔人？\n\n§", CHINESE, FIRST, "§"),
    "shorter than its question": ("Who is the keeper of the light?\n\nThe man", "", LAST, "Who is the keeper of the light?"),
    # The question first and last
    "the same question twice": ("Who is the keeper?\n\n§\n\nWho is the keeper?", DOCUMENT, BOTH, "§"),
    "nearly the same": ("Who is the keeper?\n\n§\n\nSo, who is the keeper?", DOCUMENT, BOTH, "§"),
    "the answer's form last": ("Who is the keeper?\n\n§\n\nAnswer in one word.", DOCUMENT, BOTH, "§"),
    "a text announced": ("Read the following story.\n\n§\n\nWho is the keeper?", DOCUMENT, BOTH, "§"),
    "a document's own question at its end": ("Summarise the text below:\n\n§", f"{DOCUMENT}\n\n“Who was he?”", FIRST, "§"),
    # Headings and tags
    "question, document": ("Question: Who?\n\nDocument: §", DOCUMENT, HEADINGS, "§"),
    "document, question": ("Document:\n§\n\nQuestion: Who?", DOCUMENT, HEADINGS, "§"),
    "context, question, answer": ("Context: §\n\nQuestion: who?\nAnswer:", DOCUMENT, HEADINGS, "§"),
    "context, question without a heading": ("Context: §\n\nWho is the keeper?", DOCUMENT, HEADINGS, "§"),
    "Alpaca": ("### Instruction:\nSummarise.\n\n### Input:\n§\n\n### Response:", DOCUMENT, HEADINGS, "§"),
    "the paper's form": ("### Input:\n§\n\n### Instruction:\nThe themes\n\n### Response:", DOCUMENT, HEADINGS, "§"),
    "Markdown": ("## Document\n\n§\n\n## Question\n\nWho?", DOCUMENT, HEADINGS, "§"),
    "bold": ("**Question:** Who?\n\n**Passage:** §", DOCUMENT, HEADINGS, "§"),
    "Chinese": ("问题：谁是守塔人？\n\n文章：§", CHINESE, HEADINGS, "§"),
    "Chinese, the other way": ("文章：\n§\n\n问题：谁是守塔人？", CHINESE, HEADINGS, "§"),
    "several documents": ("Who?\n\nDocument 1: §\n\nDocument 2: §", DOCUMENT, HEADINGS, "Document 1: §\n\nDocument 2: §"),
    "a tag": ("<document>\n§\n</document>\n\nWho?", DOCUMENT, TAGS, "§"),
    "a tag, question first": ("Who?\n<document>\n§\n</document>", DOCUMENT, TAGS, "§"),
    "two documents in tags": (
        "<document>\n§\n</document>\n<document>\n§\n</document>\n\nWho?",
        DOCUMENT,
        TAGS,
        "<document>\n§\n</document>\n<document>\n§\n</document>",
    ),
    # No context
    "one line": ("Who is the keeper?", "", LAST, ""),
    "one short paragraph": ("I have a dog.\nWhat does it eat?", "", LAST, ""),
    "a request with its matter": ("Write a story with these: a dog, a cat.", "", LAST, ""),
    # LongBench
    "narrativeqa": (
        f"You are given a story, which can be either a novel or a movie script, and a question. Answer the question asconcisely as "
        f"you can, {NARRATIVE}\n\nStory: §\n\nNow, answer the question based on the story asconcisely as you can, {NARRATIVE}\n\n"
        "Question: Who is the keeper?\n\nAnswer:",
        DOCUMENT,
        HEADINGS,
        "§",
    ),
    "multifieldqa_en": (
        "Read the following text and answer briefly.\n\n§\n\nNow, answer the following question based on the above text, only give "
        "me the answer and do not output any other words.\n\nQuestion: Who is the keeper?\nAnswer:",
        DOCUMENT,
        HEADINGS,
        "§",
    ),
    "multifieldqa_zh": (
        "阅读以下文字并用中文简短回答：\n\n§\n\n现在请基于上面的文章回答下面的问题，只告诉我答案，不要输出任何其他字词。\n\n问题：谁？\n回答：",
        CHINESE,
        HEADINGS,
        "§",
    ),
    "hotpotqa": (
        f"Answer the question based on the given passages. {DO_NOT}\n\nThe following are given passages.\nPassage 1:\n§\n\nAnswer "
        f"the question based on the given passages. {DO_NOT}\n\nQuestion: Who is the keeper?\nAnswer:",
        DOCUMENT,
        HEADINGS,
        "Passage 1:\n§",
    ),
    "dureader": (
        "请基于给定的文章回答下述问题。\n\n文章：§\n\n请基于上述文章回答下面的问题。\n\n问题：谁是守塔人？\n回答：",
        CHINESE,
        HEADINGS,
        "§",
    ),
    "gov_report": (
        "You are given a report by a government agency. Write a one-page summary of the report.\n\nReport:\n§\n\nNow, write a "
        "one-page summary of the report.\n\nSummary:",
        DOCUMENT,
        HEADINGS,
        "§",
    ),
    "qmsum": (
        "You are given a meeting transcript and a query containing a question or instruction. Answer the query in one or more "
        "sentences.\n\nTranscript:\n§\n\nNow, answer the query based on the above meeting transcript in one or more sentences.\n\n"
        "Query: What was decided?\nAnswer:",
        MEETING,
        HEADINGS,
        "§",
    ),
    "vcsum": (
        "下面有一段会议记录，请你阅读后，写一段总结，总结会议的内容。\n会议记录：\n§\n\n会议总结：",
        CHINESE,
        HEADINGS,
        "§",
    ),
    "samsum": (
        "Summarize the dialogue into a few short sentences. The following are some examples.\n\n§\n\nDialogue: Ida: Who?\nSummary: ",
        DOCUMENT,
        BOTH,
        "§\n\nDialogue: Ida: Who?",
    ),
    "passage_count": (
        "There are some paragraphs below sourced from Wikipedia. Some of them may be duplicates. In other words, how many "
        "non-repeating paragraphs are there in total?\n\n§\n\nPlease enter the final count of unique paragraphs after removing "
        "duplicates.\n\nThe final answer is: ",
        DOCUMENT,
        BOTH,
        "§",
    ),
    "lcc": ("Please complete the code given below. \n§\nNext line of code:\n", "import os\n\n\ndef f(x):\n    return x" * 9, BOTH, "§"),
    "LongBench v2": (
        "Please read the following text and answer the question below.\n\n<text>\n§\n</text>\n\nWhat is the correct answer to this "
        "question: Who?\nChoices:\n(A) Ida\n(B) Frank\n\nFormat your response as follows: ...",
        DOCUMENT,
        TAGS,
        "§",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name):
    text, document, rule, context = SHAPES[name]
    text, context = (x.replace("§", document) for x in (text, context))
    found, (start, end) = find_by_rules(text)
    assert (found, text[start:end].strip()) == (rule, context.strip())
    assert default_find_context(text) == (start, end)


def test_rules_are_named_once_and_the_last_one_always_tells():
    assert len({rule.name for rule in RULES}) == len(RULES) and RULES[-1].find is last_paragraph
    assert {rule for _, _, rule, _ in SHAPES.values()} == {rule.name for rule in RULES}  # the table has each


@pytest.mark.parametrize(
    "text", ["", "\n\n", "?", ":", "Question:", "Document:", "<text></text>", "Answer:\n\nAnswer:", "#" * 9]
)
def test_scraps_have_a_span_inside_the_text(text):
    for piece in (text, text + "\n\n", "\n" + text, text + "\n\nb", "a\n\n" + text):
        name, (start, end) = find_by_rules(piece)
        assert 0 <= start <= end <= len(piece)


def test_a_long_text_takes_no_long_time():
    """Rules look at both ends alone: a megabyte of any paragraphs is told in a blink."""
    import time

    for line in ("Who came?\n\n", "Question: who?\n", "- a\n", "Document: x\n\n", "\n \n", "a" * 99):
        started = time.monotonic()
        find_by_rules("Summarise this:\n\n" + line * (1_000_000 // len(line)))
        assert time.monotonic() - started < 2, line
