"""The `hf-gateau` command: a file a subcommand, each with `command`, whose docstring is its help, and `TAKES`.

Read `arguments` (which several take), `rows` (loaded and ranked for a command), `unnamed` (models that nobody named), `ready`
(what `hf-gateau score` looks at before it measures), `measured` (what it does with rows), `outcome` (what it says of them); the
subcommands `quickstart`, `check`, `score`, `plan`, `rank`, `select`, `push`, `pull`, `sft`, `top`, `report`, `store`;
`commands` (all of them, other rooms' too), `parser`, `entry`.
"""

from .entry import main


__all__ = ["main"]
