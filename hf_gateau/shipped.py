"""Where what ships beside the package is, and how the templates of pages and cards are filled in."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any


def shipped_folder(name: str, file: str) -> Path:
    """Where a top-level folder that ships with the package is: in the installed package, or beside it in a checkout.

    Args:
        name (`str`): of the folder.
        file (`str`): one that it holds.

    Raises:
        FileNotFoundError: neither is there.
    """
    packaged = Path(str(files("hf_gateau"))) / name
    for folder in (packaged, packaged.parent.parent / name):
        if (folder / file).is_file():
            return folder
    raise FileNotFoundError(f"{name}/{file} did not come with this installation; install hf-gateau again.")


def templates_folder() -> Path:
    """Where the templates are; see `shipped_folder`."""
    return shipped_folder("model_cards", "report.html")


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
