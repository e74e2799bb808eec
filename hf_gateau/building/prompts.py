"""What the model is asked, and how its replies are read.

The steps are those of LongAlign's appendix A (arXiv 2401.18058): for each context one of four kinds of questions is chosen,
the model proposes five questions of that kind in the form "1: ", "2: ", ..., one of the five is chosen, and the model is
asked for its answer with the context and the question alone. The kinds and what each asks for are LongAlign's too; the
wording in English and in Chinese is our own.
"""

from __future__ import annotations

import re

from ..endpoint.chat_client import ReplyError
from .duplicates import words_of


PROMPT_VERSION = "1"  # kept with every row; count it up with any change below
NUM_QUESTIONS = 5
ENGLISH, CHINESE = "en", "zh"
TASK_TYPES = ("general", "summary", "reasoning", "extraction")
KINDS = {
    ENGLISH: {
        "general": "questions in English about it",
        "summary": "questions in English about it that can only be answered by summarizing it or by integrating several of "
        "its parts",
        "reasoning": "questions in English about it that need multi-hop reasoning over several of its parts",
        "extraction": "information-seeking questions in English about it, whose answers stand in the text",
    },
    CHINESE: {
        "general": "个中文问题",
        "summary": "个需要概括全文或综合多个部分才能回答的中文问题",
        "reasoning": "个需要结合多处内容进行多步推理才能回答的中文问题",
        "extraction": "个信息查找类的中文问题，答案应能在文中找到",
    },
}
FORMS = {
    ENGLISH: "The text above is given. Propose {number} {kind}. Make them diverse, and let them cover all parts of the text. "
    "Each must make sense without the others. Write one a line and nothing else, in this form:\n1: \n2: \n...",
    CHINESE: "请根据以上文章提出{number}{kind}。问题应当多样，并尽量覆盖文章的各个部分；每个问题都应能独立理解。"
    "每行一个问题，不要写其他内容，格式如下：\n1: \n2: \n...",
}
NUMBERED = re.compile(
    r"[\s*\"“'#-]*(?:Q|Question|问题)?\s*(\d+)\s*[*\"]*\s*[:：.、)）]\s*[*\"“]*\s*(.*)", re.IGNORECASE
)
REFUSAL = re.compile(
    r"(i['’]?m sorry|i am sorry|sorry,|i apologi[sz]e|as an ai\b|i (cannot|can['’]?t|am unable to|['’]m unable to|am not able to)"
    r"|unfortunately, i|(很|非常)?抱歉|对不起|作为一(个|名)(人工智能|ai|AI)|我(无法|不能))",
    re.IGNORECASE,
)
LEAST_WORDS = 3  # of a question


def language_of(text: str) -> str:
    """Chinese where a third of the letters or more are Chinese characters and there are no kana, else English."""
    letters = [character for character in text[:20_000] if character.isalpha()]
    han = sum("\u4e00" <= character <= "\u9fff" for character in letters)
    kana = sum("\u3040" <= character <= "\u30ff" for character in letters)
    return CHINESE if han > 0 and 3 * han >= len(letters) and 20 * kana < len(letters) else ENGLISH


def question_prompt(context: str, task_type: str, language: str) -> str:
    """What asks for five questions about a context."""
    kind = KINDS[language][task_type]
    return f"{context}\n\n{FORMS[language].format(number=NUM_QUESTIONS, kind=kind)}"


def parse_questions(reply: str) -> tuple[str, ...]:
    """The five questions, each one paragraph.

    Raises:
        ReplyError: there are not five, numbered from 1, or one of them is too short to be one.
    """
    found: list[str] = []
    open_question = False  # a line without the next number goes on with a question, up to an empty line
    for line in reply.strip().splitlines():
        match = NUMBERED.fullmatch(line)
        if match and int(match.group(1)) == len(found) + 1:
            found.append(match.group(2))
            open_question = True
        elif not line.strip():
            open_question = False
        elif open_question:
            found[-1] += f" {line}"
    if len(found) != NUM_QUESTIONS:
        raise ReplyError(f"not {NUM_QUESTIONS} questions, numbered from 1, one a line")
    questions = tuple(" ".join(text.split()).strip('*"“”, ') for text in found)
    if any(len(words_of(question)) < LEAST_WORDS for question in questions):
        raise ReplyError(f"a question has fewer than {LEAST_WORDS} words")
    return questions


def parse_answer(reply: str) -> str:
    """The answer, without space around it.

    Raises:
        ReplyError: it is empty, or refuses.
    """
    answer = re.sub(r"^(A|Answer|答|答案|回答)\s*[:：]\s*", "", reply.strip())
    if not any(character.isalnum() for character in answer):
        raise ReplyError("the answer is empty")
    if REFUSAL.match(answer):
        raise ReplyError("the answer is a refusal")
    return answer
