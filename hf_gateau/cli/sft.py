"""`hf-gateau sft`: select and fine-tune by a recipe."""


def command(arguments: list[str]) -> int:
    """Select rows and fine-tune on them, as `trl sft --recipe` does. Takes a recipe's name or file, any TRL argument, and
    accelerate's own arguments.

    Examples:
        hf-gateau sft --recipe tiny-cpu --dry_run true  # shows the plan
        hf-gateau sft --recipe tiny-cpu --gateau_fraction 0.2 --num_processes 2
    """
    from ..scripts.launch import launch

    return launch(arguments)


TAKES = ()
