"""A model for `tests.servers.chat_server` that proposes questions about a text and answers them, plausibly, and at times badly.

What it replies is a function of the request: words of the text that was asked about, and faults by the hash of the text, of
which some befall the first reply alone and some every reply to a question.
"""

import hashlib
import re


def is_proposal(prompt: str) -> bool:
    """Whether questions are asked for, and not an answer."""
    return prompt.endswith("1: \n2: \n...")


def _number(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)


def good_reply(request: dict) -> str:
    """Five questions, or an answer, of words from the text."""
    prompt = request["messages"][-1]["content"]
    text, _, task = prompt.rpartition("\n\n")
    words = re.findall(r"[A-Za-z']{4,}|[\u4e00-\u9fff]", text)
    start = _number(task)
    if not is_proposal(prompt):
        return f"It is told of {' '.join(words[start % len(words) :][:30])}, and so the answer is {task.split()[-1]}"
    lines = []
    for i in range(1, 6):
        at = (start + i * len(words) // 5) % max(1, len(words) - 12)
        lines.append(
            f'{i}: How do "{" ".join(words[at : at + 6])}" and "{" ".join(words[at + 6 : at + 12])}" go together?'
        )
    return "\n".join(lines)


def reply_with_faults(request: dict) -> str:
    """Like `good_reply`; of eight requests, one is malformed at first, one refused at first, one refused for good."""
    prompt, first = request["messages"][-1]["content"], request.get("seed", 0) % 1000 == 0
    fault = _number(prompt) % 8
    if is_proposal(prompt):
        malformed = "Here are some questions that you could ask:\n- Who is it about?\n- What becomes of them?"
        return malformed if fault == 0 and first else good_reply(request)
    if fault == 2 or (fault == 1 and first):
        return "I'm sorry, but I cannot answer that from the text."
    return "" if fault == 0 and first else good_reply(request)
