"""Where in a user's turn the context stands: named rules, tried in order, of which the first that can tell does.

A rule looks at the two ends of the text alone: what asks for something there is the question, what lies between or beside is
the context. It answers the characters of the context, or None where it cannot tell.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass


Span = tuple[int, int]

MOST_ASKED = 1_500  # characters that a question, and what leads up to a context, may have
LEAST_LONG = 200  # characters of a context that no empty line sets apart
BORDER = re.compile(r"\n[^\S\n]*\n\s*")  # between paragraphs

# What headings name
CONTEXTS = (
    r"(?:(?:meeting|source|input|given|reference|background|provided)\s+)?(?:documents?|contexts?|passages?|paragraphs?|text|articles?|"
    r"story|report|transcript|dialogue|conversation|news|paper|book|chapter|contract|input|code)"
)
CHINESE_CONTEXTS = "文章|文档|文本|原文|正文|上下文|背景|材料|阅读材料|段落|资料|参考资料|已知信息|会议记录|新闻|故事|对话|报告|合同|论文|代码|输入"
QUESTIONS = r"(?:user\s+)?(?:questions?|instructions?|query|task|request|q)"
CHINESE_QUESTIONS = "问题|提问|指令|任务|要求|请求|题目"
ANSWERS = r"(?:the\s+)?(?:final\s+)?(?:answer|response|summary|output|result|next line of code|a)(?:\s+is)?"
CHINESE_ANSWERS = "答案|答案是|回答|总结|会议总结|摘要|输出|答|结果"


def _heading(words: str, chinese: str) -> re.Pattern:
    """A line that begins with one of the words and a colon, a number between them or not, or is a heading of Markdown."""
    marked = rf"(?:\*\*|\[|【)?(?:{words}|{chinese})(?P<number>\s*\[?\d+\]?)?(?:\*\*|\]|】)?\s*[:：](?:\*\*)?"
    return re.compile(
        rf"^[^\S\n]*(?:(?:#{{1,6}}\s*)?{marked}|#{{1,6}}\s*(?:{words}|{chinese})[^\S\n]*$|【(?:{chinese})】)",
        re.I | re.M,
    )


CONTEXT_HEADING = _heading(CONTEXTS, CHINESE_CONTEXTS)
QUESTION_HEADING = _heading(QUESTIONS, CHINESE_QUESTIONS)
ANSWER_HEADING = _heading(ANSWERS, CHINESE_ANSWERS)
TAG = re.compile(rf"^[^\S\n]*<({CONTEXTS})(?:\s[^<>]*)?>", re.I | re.M)

# How a request begins: an order, after words that lead up to it; in Chinese, where no space parts words, those words suffice.
ORDERS = (
    "add|analy[sz]e|answer|arrange|assign|brainstorm|build|calculate|check|choose|classify|comment|compare|"
    "compile|complete|compose|compute|continue|convert|correct|count|create|critique|decide|deduce|define|derive|"
    "describe|design|detect|determine|develop|discuss|draft|edit|elaborate|enter|estimate|evaluate|expand|"
    "explain|extract|fill in|find|fix|generate|give|guess|highlight|identify|illustrate|improve|infer|insert|interpret|"
    "invent|judge|list|make|match|mention|name|order|outline|output|paraphrase|perform|point out|predict|pretend|"
    "produce|propose|provide|rank|rate|react|read|recommend|recount|remove|rename|rephrase|replace|reply|respond|"
    "review|rewrite|select|separate|shorten|show|simplify|solve|sort|split|state|suggest|summari[sz]e|tag|tell|"
    "think|translate|try|turn|use|verify|write"
)
LEADS = (
    r"(?:(?:now|then|next|finally|please|kindly|also|briefly|carefully|in\s[^,.\n]{1,40},|(?:based\son|according\sto|using|given|from|"
    r"after\sreading|as)\s[^,.\n]{1,120},|(?:can|could|would|will)\syou|i\s(?:want|need|would\slike)\syou\sto|your\stask\sis\sto|you\s"
    r"(?:should|must|need\sto|have\sto))[\s,]+)*"
)
ORDER = re.compile(rf"{LEADS}(?:(?:{ORDERS})\b(?!'|:\s*\S)|you (?:are|will be) (?:given|provided|shown)\b)", re.I)
CHINESE_ORDER = re.compile(
    r"(?:现在|接下来|最后|然后)?[,，]?(?:请|根据|基于|结合|阅读|总结|概括|归纳|回答|翻译|分析|简述|简要|列出|列举|描述|解释|说明一下|指出|比较|提取|给出|撰写|写一|将以|把以|用一)"
)
SETTING = re.compile(
    r"you (?:are|will be) (?:an? |the |given|provided|shown)|(?:here|there|below|above) (?:is|are)\b|the (?:following|text|document)\b|下面|以下|下列|给定",
    re.I,
)
ANNOUNCES = re.compile(
    r"\bfollowing\b|\bbelow\b|\bgiven (?!up\b|to\b|that\b)|\bhere (?:is|are)\b|\bthese\b[^.\n]*:$|以下|下面|下列|下述|给定",
    re.I,
)
ASKED_ELSEWHERE = re.compile(
    rf"{LEADS}(?:answer|respond|reply)\b|(?:现在|最后)?[,，]?请?(?:直接|简短|简要)?(?:回答|作答)", re.I
)
WITHOUT_MARK = re.compile(
    r"(?:what|who|whom|whose|which|why|how|when|where)(?:'s| (?:is|are|was|were|did|does|do|can|could|would|should|has|have|had|much|many|long|far))\b"
    r"[^.!\n]{3,200}$|[^。！\n]{2,80}[吗呢][。.]?$",
    re.I,
)
QUOTED = re.compile(r"\s*[\"“«「『‘]")
SPEAKER = re.compile(r"[A-Z][\w .'-]{0,40}:\s")  # in a transcript
SENTENCE = re.compile(r"(?<=[.!?:。！？：])\s*|\n")
BULLET = re.compile(r"\s*(?:[-*•]|\(?\w[.)])\s")


@dataclass(frozen=True)
class Rule:
    """A way to tell the context of a turn.

    Attributes:
        name (`str`): that `gateau_context_rule` has.
        meaning (`str`): in one line.
        find: from the text of the turn to the characters of its context, or None.
    """

    name: str
    meaning: str
    find: Callable[[str], Span | None]


@dataclass(frozen=True)
class Head:
    """What asks at the beginning of a text.

    Attributes:
        end (`int`): the character behind it.
        announces (`bool`): it says that a text follows, so that it is no part of that text.
    """

    end: int
    announces: bool


# What asks


def orders(text: str) -> bool:
    """Whether a piece of text begins as a request, in English or Chinese, or under the heading of a question."""
    text = text.strip().lstrip("*#_ ")
    return any(x.match(text) for x in (ORDER, CHINESE_ORDER, QUESTION_HEADING))


def asks(text: str) -> bool:
    """Whether a piece of text, such as a paragraph, is a question or a request; what somebody is quoted to say is neither."""
    text = text.strip()
    if not text or len(text) > MOST_ASKED or QUOTED.match(text):
        return False
    if orders(text) or WITHOUT_MARK.match(text):
        return True
    return text.rstrip("\"'”’)]）*_ ").endswith(("?", "？")) and not SPEAKER.match(text)


def head_of(text: str) -> Head | None:
    """What asks at the beginning: lines of the first paragraph, up to the last that does; None where none does."""
    begin = len(text) - len(text.lstrip())
    first = BORDER.search(text, begin)
    end, found = begin, None
    for line in text[begin : first.start() if first else len(text)].splitlines(keepends=True):
        is_asked = asks(line) or SETTING.match(line.strip()) or (found is not None and BULLET.match(line))
        end += len(line)
        if not is_asked or end - begin > MOST_ASKED:
            break
        found = end
    if found is None and first and asks(text[begin : first.start()]):  # a question of several lines
        found = first.start()
    if found is None or not text[found:].strip():
        return None
    asked = text[begin:found]
    announces = asked.rstrip().endswith((":", "：")) or bool(ANNOUNCES.search(asked))
    if not announces and not any(map(asks, [asked, *asked.split("\n")])):
        return None
    return Head(found, announces)


def tail_of(text: str, begin: int, head: str = "") -> int | None:
    """Where what asks at the end begins, headings of the answer to come included; None where the end asks nothing.

    Args:
        begin: the first character that may be the context's.
        head: what asks before the context. Where it has a question, another at the end may be the document's last words: it
            counts where it is the same, a request, or under a heading.
    """
    text = text.rstrip()
    starts = [begin, *(border.end() for border in BORDER.finditer(text, begin))]
    end, found = len(text), None
    if len(starts) > 1 and ANSWER_HEADING.fullmatch(text[starts[-1] :]):
        found = starts.pop()
        end = len(text[:found].rstrip())
    piece = text[starts[-1] : end]
    heading = _last(QUESTION_HEADING, piece)
    if heading is not None and _is_open(piece[heading:]) and len(piece) - heading <= MOST_ASKED:
        found = starts[-1] + heading
        if not heading and len(starts) > 1:  # "Now, answer the question." may stand before "Question:"
            above = text[starts[-2] : starts[-1]]
            found = starts[-2] if len(starts) > 2 and orders(above) and len(above) <= MOST_ASKED else found
    elif len(starts) > 1 and _asks_again(piece, head):
        found = starts[-1]
        if len(starts) > 2 and QUESTION_HEADING.fullmatch(text[starts[-2] : starts[-1]].strip()):
            found = starts[-2]
    elif found is None and (heading := _last(ANSWER_HEADING, piece)) and _is_open(piece[heading:]):
        found = starts[-1] + heading  # in the last line of the text itself
    return found if found is None or text[begin:found].strip() else None


def _asks_again(piece: str, head: str) -> bool:
    has_question = "?" in head or "？" in head or bool(QUESTION_HEADING.search(head))
    return asks(piece) and (not has_question or orders(piece) or repeats(head, piece))


def _last(heading: re.Pattern, text: str) -> int | None:
    found = list(heading.finditer(text))
    return found[-1].start() if found else None


def _is_open(text: str) -> bool:
    """Whether nothing answers in a text that begins with the heading of a question or an answer."""
    answer = _last(ANSWER_HEADING, text)
    return answer is None or not ANSWER_HEADING.sub("", text[answer:], count=1).strip()


def repeats(one: str, other: str) -> bool:
    """Whether of two pieces of text one has nearly all words of the other (characters, in Chinese)."""
    words = [set(re.findall(r"[一-鿿]|\w+", text.lower())) for text in (one, other)]
    fewest = min(map(len, words))
    return fewest >= 3 and len(words[0] & words[1]) >= 0.7 * fewest


# The rules


def tags(text: str) -> Span | None:
    """Between `<document>` and `</document>`, or another tag that names a text; from the first to the last where several do."""
    opened = next((x for x in TAG.finditer(text, 0, MOST_ASKED + 100)), None)
    if opened is None:
        return None
    name = re.escape(opened[1])
    closed = list(re.finditer(rf"</{name}\s*>", text, re.I))
    if not closed:
        return None
    several = len(closed) > 1
    span = (opened.start(), closed[-1].end()) if several else (opened.end(), closed[0].start())
    outside = text[: opened.start()] + text[closed[-1].end() :]
    return _trimmed(text, *span) if outside.strip() else None


def headings(text: str) -> Span | None:
    """Under the heading of a text ("Document:", "### Input", "文章："), or before that of a question at the end."""
    for found in CONTEXT_HEADING.finditer(text, 0, MOST_ASKED + 100):
        before = text[: found.start()]
        if before.strip() and not _leads_up(before):
            continue
        start = found.start() if found["number"] else found.end()
        end = tail_of(text, start, before)
        if end is None and not before.strip():
            break
        return _trimmed(text, start, len(text) if end is None else end)
    end = tail_of(text, 0)
    if end is None or _last(QUESTION_HEADING, text[end:]) is None:
        return None
    head = head_of(text)
    return _trimmed(text, head.end if head and head.announces and head.end < end else 0, end)


def _leads_up(before: str) -> bool:
    """Whether each paragraph asks somewhere, or says what is given."""
    return all(
        any(asks(sentence) or SETTING.match(sentence) for sentence in [paragraph, *SENTENCE.split(paragraph)])
        for paragraph in BORDER.split(before.strip())
    )


def between(text: str) -> Span | None:
    """The beginning asks, and so does the end: it says the same, or "Answer ...", or the beginning says that a text follows."""
    head = head_of(text)
    if head is None:
        return None
    asked = text[: head.end]
    end = tail_of(text, head.end, asked)
    if end is None or not (head.announces or ASKED_ELSEWHERE.match(text[end:]) or repeats(asked, text[end:])):
        return None
    return _trimmed(text, head.end, end)


def question_first(text: str) -> Span | None:
    """The beginning asks, the end does not, and the rest is longer."""
    head = head_of(text)
    if head is not None and not head.announces and asks(text[head.end :]):
        return None
    if head is not None and tail_of(text, head.end, "" if not head.announces else text[: head.end]) is None:
        begin = len(text) - len(text.lstrip())
        is_long = len(text[head.end :].strip()) >= head.end - begin
        is_apart = BORDER.match(text, head.end) or head.announces or len(text) - head.end >= LEAST_LONG
        return _trimmed(text, head.end, len(text)) if is_long and is_apart else None
    inline = re.match(r"\s*([^\n:：]{3,300}[:：])(?=\s*\S)", text)
    if inline and orders(inline[1]) and ANNOUNCES.search(inline[1]) and len(text) - inline.end() >= LEAST_LONG:
        return None if tail_of(text, inline.end(), inline[1]) else _trimmed(text, inline.end(), len(text))
    return None


def last_line(text: str) -> Span | None:
    """No empty line, and the last line asks after a long text."""
    text = text.rstrip()
    at = text.rfind("\n")
    if at < LEAST_LONG or BORDER.search(text.strip()) or not asks(text[at:]):
        return None
    return _trimmed(text, 0, at)


def last_paragraph(text: str) -> Span:
    """The last non-empty paragraph is the instruction, the rest the context."""
    borders = list(BORDER.finditer(text.rstrip()))
    return (0, borders[-1].start()) if borders else (0, 0)


def _trimmed(text: str, start: int, end: int) -> Span | None:
    """A span without the white space at its ends; None where nothing is left."""
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return (start, end) if start < end else None


RULES = (
    Rule("tags", "between `<document>` and `</document>` (or text, context, passage, article, ...)", tags),
    Rule(
        "headings",
        "under a heading such as `Document:`, `### Input`, `文章：`, or before `Question:` at the end",
        headings,
    ),
    Rule("question first and last", "between a question at the beginning and one at the end", between),
    Rule("question first", "all behind a question at the beginning, where the end asks nothing", question_first),
    Rule("last line", "before the last line, where that asks and no empty line is in the text", last_line),
    Rule("last paragraph", "before the last paragraph", last_paragraph),
)


def find_by_rules(text: str) -> tuple[str, Span]:
    """The name of the first rule that can tell where the context of a turn stands, and the characters of the context, which
    are none where the whole turn is one paragraph that asks."""
    for rule in RULES:
        span = rule.find(text)
        if span is not None:
            return rule.name, span
    raise AssertionError("the last rule always answers")


def default_find_context(text: str) -> Span:
    """The default `find_context`: the characters of the context by the first of `RULES` that can tell."""
    return find_by_rules(text)[1]
