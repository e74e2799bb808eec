"""Arguments that several commands take, and what stands on the command line without a name."""

from dataclasses import dataclass, field


PROGRAM = "hf-gateau"
POSITIONALS = {
    "data": "A .jsonl (also .gz, .zst), .json, .parquet, .csv or .tsv file, a pattern of such files in quotes "
    "('data/*.parquet'), a folder (of one kind of such files, or save_to_disk's), or a Hub id.",
    "other": "The rows to compare with: likewise.",
    "repo_id": "Dataset on the Hub, OWNER/NAME.",
    "model": "A model: folder (of a PEFT adapter too), .gguf file, or Hub id.",
    "grid": "YAML file of experiments.",
    "documents": "Texts: a .txt, .jsonl or .parquet file, a folder of such files, or a Hub id.",
}


@dataclass
class DataArguments:
    """Which rows."""

    RARELY_GIVEN = ("revision",)

    split: str | None = field(default=None, metadata={"help": "Split to take. Default: train, or the only one."})
    name: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset."})
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a Hub dataset."})
    limit: int | None = field(default=None, metadata={"help": "Take the first rows only, this many."})

    columns: str | None = field(
        default=None,
        metadata={
            "help": "Your names of columns for ours, such as context=document,instruction=question,response=answer."
        },
    )

    def __post_init__(self):
        from ..rows.naming import parse_columns

        if self.columns is not None:
            parse_columns(self.columns)
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"--limit is a number of rows, got {self.limit}; give 1 or more.")


@dataclass
class OutputArguments:
    """Where to."""

    RARELY_GIVEN = ("max_shard_size",)

    output: str = field(
        metadata={
            "help": "Where the rows go: a .jsonl or .parquet file, or a folder, for Parquet files that `load_dataset` reads.",
            "aliases": ["-o"],
        }
    )
    max_shard_size: str = field(
        default="500MB",
        metadata={
            "help": "Where the output is a folder: about how large a Parquet file gets, uncompressed, as in datasets."
        },
    )

    def __post_init__(self):
        from ..files.shards import num_bytes_of

        num_bytes_of(self.max_shard_size)
