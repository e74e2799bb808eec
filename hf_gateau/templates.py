"""Where the templates of pages and cards are, and how they are filled in."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any


def templates_folder() -> Path:
    """Where the templates are: in the installed package, or beside it in a checkout.

    Raises:
        FileNotFoundError: neither is there.
    """
    packaged = Path(str(files("hf_gateau"))) / "model_cards"
    for folder in (packaged, packaged.parent.parent / "model_cards"):
        if (folder / "report.html").is_file():
            return folder
    raise FileNotFoundError(
        f"The templates did not come with this installation: there is no report.html in {packaged}; install hf-gateau again."
    )


def render(name: str, autoescape: bool, **values: Any) -> str:
    """Fill in a template.

    Args:
        name (`str`): its file name in `templates_folder`.
        autoescape (`bool`): escape the values for HTML.
        values: what the template prints; one that it lacks raises `jinja2.UndefinedError`.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(templates_folder()),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(name).render(**values)
