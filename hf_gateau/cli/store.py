"""`hf-gateau store`: what has been measured."""

import textwrap
import time
from dataclasses import dataclass, field


@dataclass
class StoreArguments:
    """What to do with the store."""

    prune: list[str] = field(
        default_factory=list, metadata={"help": "Delete the measurements of these configurations, by key."}
    )
    store: str | None = field(
        default=None, metadata={"help": "The store's file or folder. Default: as in `hf-gateau score`."}
    )


def command(arguments: StoreArguments) -> None:
    """List what has been measured, or delete some of it. One configuration a line, with its key; --prune deletes by key.

    Examples:
        hf-gateau store
        hf-gateau store --prune 1f0c9a7be2d34a55
    """
    import json

    from ..store.folder import open_store
    from ..store.sqlite import resolve_store_path

    path = resolve_store_path(arguments.store)
    if path is None or not path.exists():
        print(f"There is no store {'(it is turned off)' if path is None else f'at {path} yet'}.")
        return
    kept = open_store(path)
    known = {configuration["config_key"] for configuration in kept.configurations()}
    if unknown := set(arguments.prune) - known:
        raise ValueError(f"The store has no configuration {', '.join(sorted(unknown))}; it has {sorted(known)}.")
    if arguments.prune:
        print(f"{kept.prune(arguments.prune)} measurements deleted.")
    print(f"{path}, {kept.num_bytes / 2**20:.1f} MiB")
    for configuration in kept.configurations():
        day = time.strftime("%Y-%m-%d %H:%M", time.localtime(configuration["last_measured"]))
        print(f"{configuration['config_key']}  {configuration['num_rows']:>9,} rows  last {day}")
        print(textwrap.indent(json.dumps(configuration["description"]), "    "))


TAKES = (StoreArguments,)
