"""All chat templates that TRL ships, a tokenizer that knows their marks, and the shapes that rows of conversations have."""

import re
from importlib.resources import files

from tests.chats import ANSWER, CONTEXT, QUESTION, train_bpe


TEMPLATES = {
    file.name.removesuffix(".jinja"): file.read_text()
    for file in sorted((files("trl") / "chat_templates").iterdir(), key=lambda file: file.name)
    if file.name.endswith(".jinja")
}
MARK = r"<[|｜/]?[A-Za-z_▁|｜/]+[^<>\s{}'\"]*>|\[/?[A-Z_]+\]"
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "tide",
            "description": "The tide.",
            "parameters": {
                "type": "object",
                "properties": {
                    "at": {"type": "string", "description": "a harbour"},
                    "hour": {"type": "integer", "description": "of the day"},
                },
                "required": ["at"],
            },
        },
    }
]


def marked_tokenizer():
    """A byte-level BPE to which every mark of TRL's templates is one token, as it is to the models they belong to."""
    tokenizer = train_bpe(byte_level=True, bos=False)
    marks = {mark for template in TEMPLATES.values() for mark in re.findall(MARK, template)}
    tokenizer.add_special_tokens({"additional_special_tokens": sorted(marks)})
    return tokenizer


def user(content):
    return {"role": "user", "content": content}


def assistant(content, **more):
    return {"role": "assistant", "content": content, **more}


def system(content):
    return {"role": "system", "content": content}


def result(content):
    return {"role": "tool", "name": "tide", "content": content}


def call(arguments, number=0):
    return {"type": "function", "id": f"call{number:05d}", "function": {"name": "tide", "arguments": arguments}}


DOCUMENT = CONTEXT + "\n\n" + QUESTION
CALL = [call({"at": "Aveiro", "hour": 6})]
AGAIN = [user("Sure?"), assistant("", tool_calls=[call({"at": "Faro"})]), result("07:15"), assistant("Yes.")]
THOUGHT = "<think>\nBoats.\n</think>\n\n"
SEVERAL = [system("Be brief."), user(DOCUMENT), assistant("No."), user("Sure?"), assistant(ANSWER)]


def answered(content, tool_calls, *results, **more):
    asked = [user(DOCUMENT), assistant(content, tool_calls=tool_calls, **more)]
    return {"messages": [*asked, *map(result, results), assistant(ANSWER)], "tools": TOOLS}


SHAPES = {
    "one pair": {"messages": [user(DOCUMENT), assistant(ANSWER)]},
    "a system turn": {"messages": [system("Be brief."), user(DOCUMENT), assistant(ANSWER)]},
    "an empty system turn": {"messages": [system(""), user(DOCUMENT), assistant(ANSWER)]},
    "several turns": {"messages": SEVERAL},
    "tools given": {"messages": [user(DOCUMENT), assistant(ANSWER)], "tools": TOOLS},
    "tools given, several turns": {"messages": SEVERAL, "tools": TOOLS},
    "a tool called": {"messages": [user(DOCUMENT), assistant(None, tool_calls=CALL)], "tools": TOOLS},
    "a call answered": answered(None, CALL, "06:15"),
    "a call with empty text": answered("", CALL, "06:15"),
    "a call with text": answered("Let me look.", CALL, "06:15"),
    "arguments as a string": answered("", [call('{"at": "Aveiro"}')], "06:15"),
    "no arguments": answered("", [call({})], "06:15"),
    "two calls": answered("", [*CALL, call({"at": "Faro"}, 1)], "06:15", "07:15"),
    "an empty result": answered("", CALL, ""),
    "two calls in turn": {"messages": [*answered("", CALL, "06:15")["messages"], *AGAIN], "tools": TOOLS},
    "thoughts": {"messages": [user(DOCUMENT), assistant(ANSWER, reasoning_content="Boats.")]},
    "thoughts earlier": {
        "messages": [user(DOCUMENT), assistant("No.", reasoning_content="Boats."), user("Sure?"), assistant(ANSWER)]
    },
    "thoughts before a call": answered("", CALL, "06:15", reasoning_content="Boats."),
    "thoughts in the text": {"messages": [user(DOCUMENT), assistant(THOUGHT + ANSWER)]},
    "thoughts in an earlier text": {
        "messages": [user(DOCUMENT), assistant(THOUGHT + "No."), user("Sure?"), assistant(ANSWER)]
    },
    "enable_thinking": {"messages": SEVERAL, "chat_template_kwargs": {"enable_thinking": False}},
    "date_string": {"messages": SEVERAL, "chat_template_kwargs": {"date_string": "1 May 2020"}},
    "two answers in turn": {"messages": [user(DOCUMENT), assistant("Well."), assistant(ANSWER)]},
}
