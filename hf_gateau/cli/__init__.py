"""The `hf-gateau` command: a file a subcommand, each with `command`, whose docstring is its help, and `TAKES`.

Read `arguments` (which several take), `rows` (loaded and ranked for a command), `unnamed` (models that nobody named), `ready`
(what `hf-gateau score` looks at before it measures), `measured` (what it does with rows), `windows` (how far back they reach),
`outcome` (what it says of them); the subcommands `quickstart`, `check`, `score`, `plan`, `rank`, `select`, `push`, `pull`,
`sft`, `top`, `report`, `compare`, `explore`, `store`; `commands` (all of them, other rooms' too), `parser`, `entry`.
"""

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Entry point of `hf-gateau`; returns the exit status: 0, 2 for wrong input, 1 for an error that nobody expected, 130 for
    Ctrl-C, 141 where the reader of the output has gone away.
    """
    try:  # from here on Ctrl-C is heard; all that takes time is imported below
        from .entry import run

        return run(arguments)
    except KeyboardInterrupt:
        from ..shell.ending import interrupted

        return interrupted()
