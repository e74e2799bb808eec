"""Markdown that models wrote, as HTML that shows it and does nothing else: no tag, link or picture of theirs is one on the page."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from ..report.texts import readable


if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markupsafe import Markup

# Left as they are written, so that people see the address, and nothing can be clicked, loaded, or hidden in a definition.
NOT_RENDERED = ("link", "image", "autolink", "reference", "html_block", "html_inline")


DEEPEST = (
    100  # lists in lists and the like: what is nested deeper is shown as it is written, since the parser drops it
)


def markdown_html(text: str) -> Markup:
    """CommonMark with tables and strikethrough as HTML of paragraphs, lists, tables, code and emphasis; of attributes, the text
    decides where a column is aligned and where a list's numbers begin. Headings are bold paragraphs: the page's own headings
    tell where one is."""
    from markupsafe import Markup

    parser, text = _parser(), readable(text)
    tokens = parser.parse(text)
    if any(token.level >= DEEPEST - 2 for token in tokens):
        return Markup('<p class="text">{}</p>').format(text)
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = "p"
            if token.type == "heading_open":
                token.attrSet("class", "heading")
        token.info = ""  # a fence's language, which would be a class
    return Markup(parser.renderer.render(tokens, parser.options, {}))


@cache
def _parser() -> MarkdownIt:
    from markdown_it import MarkdownIt

    settings = {"html": False, "maxNesting": DEEPEST}
    return MarkdownIt("commonmark", settings).enable(["table", "strikethrough"]).disable(list(NOT_RENDERED))
