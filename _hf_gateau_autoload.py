"""Teaches the stock `trl` script `trl sft --recipe FILE`; does nothing in any other process.

`import torch` calls `autoload` in every process of the environment (entry points of the group `torch.backends`), so this
file needs the standard library alone and never raises. `TORCH_DEVICE_BACKEND_AUTOLOAD=0` turns it off, as all of its kind.
"""

import os
import sys


def autoload():
    """Replace, for one call, the parsing of `trl sft --recipe`, by launching the plugin's own script."""
    try:
        argv = sys.argv
        if (
            len(argv) < 3
            or argv[1] != "sft"
            or not any(x == "--recipe" or x.startswith("--recipe=") for x in argv[2:])
        ):
            return
        program = os.path.basename(argv[0])
        if program not in ("trl", "trl.exe", "trl-script.py") and not argv[0].endswith(
            os.path.join("trl", "cli", "main.py")
        ):
            return
        from trl.scripts.utils import TrlParser  # imports no torch

        parse = TrlParser.parse_args_and_config

        def launch_instead(self, args=None, *rest, **options):
            TrlParser.parse_args_and_config = parse  # from here on everything is TRL's own again
            from hf_gateau.scripts.launch import launch

            raise SystemExit(launch(list(argv[2:] if args is None else args), "trl sft"))

        TrlParser.parse_args_and_config = launch_instead
    except Exception as error:  # it would make `import torch` fail
        print(
            f"hf-gateau: `trl sft --recipe` is not available here ({type(error).__name__}: {error}); "
            "use `hf-gateau sft --recipe FILE`.",
            file=sys.stderr,
        )
