"""`hf-gateau sft`: select and fine-tune by a recipe."""


def command(arguments: list[str]) -> int:
    """Select and fine-tune, as `trl sft --recipe` does: any TRL argument, a recipe's name or file, and accelerate's own
    arguments. Example: hf-gateau sft --recipe tiny-cpu --num_processes 2 --dry_run true"""
    from ..scripts.launch import launch

    return launch(arguments)


TAKES = ()
