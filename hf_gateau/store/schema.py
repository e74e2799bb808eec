"""The tables of a SQLite store, and how those of older stores become them.

A file says in `PRAGMA user_version` how many of `MIGRATIONS` it has been through; stores from before there were versions say 0.
To change the tables, append to `MIGRATIONS` and never edit what stands there: a new column of `measurements` is one entry,

    ("ALTER TABLE measurements ADD COLUMN token_nll BLOB",)

and one field of `Measurement`, with a default for the rows that were measured before.
"""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager


Migration = tuple[str, ...] | Callable[[sqlite3.Connection], None]  # statements, or what executes them

# Entry n leads from version n to n + 1.
MIGRATIONS: tuple[Migration, ...] = (
    # From an empty file, or from one of before versions were written, which has some of these tables already.
    (
        """CREATE TABLE IF NOT EXISTS configurations (
            config_key TEXT PRIMARY KEY, description TEXT NOT NULL, created REAL NOT NULL) WITHOUT ROWID""",
        """CREATE TABLE IF NOT EXISTS measurements (
            config_key TEXT NOT NULL, sample_key TEXT NOT NULL,
            ppl_short REAL NOT NULL, ppl_long REAL NOT NULL, ppl_no_context REAL NOT NULL,
            segment_ppl BLOB NOT NULL, segment_attention BLOB NOT NULL,
            times_measured INTEGER NOT NULL DEFAULT 1, created REAL NOT NULL,
            PRIMARY KEY (config_key, sample_key)) WITHOUT ROWID""",
        """CREATE TABLE IF NOT EXISTS row_values (
            config_key TEXT NOT NULL, content_key TEXT NOT NULL, value NOT NULL,
            times_measured INTEGER NOT NULL DEFAULT 1, created REAL NOT NULL,
            PRIMARY KEY (config_key, content_key)) WITHOUT ROWID""",
    ),
    # Rows that a process is measuring just now; see `claims`.
    (
        """CREATE TABLE claims (
            config_key TEXT NOT NULL, row_key TEXT NOT NULL, owner TEXT NOT NULL, expires REAL NOT NULL,
            PRIMARY KEY (config_key, row_key)) WITHOUT ROWID""",
    ),
    # What the response's tokens tell
    (
        "ALTER TABLE measurements ADD COLUMN num_far_segments INTEGER",
        "ALTER TABLE measurements ADD COLUMN token_nll_long BLOB",
        "ALTER TABLE measurements ADD COLUMN token_nll_short BLOB",
        "ALTER TABLE measurements ADD COLUMN token_nll_no_context BLOB",
        "ALTER TABLE measurements ADD COLUMN token_nll_far BLOB",
        "ALTER TABLE measurements ADD COLUMN token_nll_near BLOB",
        "ALTER TABLE measurements ADD COLUMN token_far_segment BLOB",
    ),
    # What heads see of segments; rows that have it need no numbers of segments alone, which were NOT NULL before.
    (
        "ALTER TABLE measurements RENAME TO measurements_of_segments",
        """CREATE TABLE measurements (
            config_key TEXT NOT NULL, sample_key TEXT NOT NULL,
            ppl_short REAL NOT NULL, ppl_long REAL NOT NULL, ppl_no_context REAL NOT NULL,
            segment_ppl BLOB, segment_attention BLOB, segment_heads BLOB,
            num_far_segments INTEGER, token_nll_long BLOB, token_nll_short BLOB, token_nll_no_context BLOB,
            token_nll_far BLOB, token_nll_near BLOB, token_far_segment BLOB,
            times_measured INTEGER NOT NULL DEFAULT 1, created REAL NOT NULL,
            PRIMARY KEY (config_key, sample_key)) WITHOUT ROWID""",
        """INSERT INTO measurements SELECT
            config_key, sample_key, ppl_short, ppl_long, ppl_no_context, segment_ppl, segment_attention, NULL,
            num_far_segments, token_nll_long, token_nll_short, token_nll_no_context,
            token_nll_far, token_nll_near, token_far_segment, times_measured, created FROM measurements_of_segments""",
        "DROP TABLE measurements_of_segments",
    ),
)


class SchemaError(ValueError):
    """The tables of a file are not those of a store that this version reads."""


class NewerError(ValueError):
    """A store has a version above the one that is known here."""

    def __init__(self, version: int, known: int):
        super().__init__(f"has version {version}, and this hf_gateau reads up to {known}: a newer one made it")


def is_current(connection: sqlite3.Connection, migrations: tuple[Migration, ...] = MIGRATIONS) -> bool:
    """Whether a store needs no migration; only reads.

    Args:
        connection: of autocommit.
        migrations: all that there are.

    Raises:
        NewerError: the file has been through more migrations than there are.
        SchemaError: it has other tables than a store of its version.
    """
    with transaction(connection, "DEFERRED"):  # version and tables as of one moment
        return _checked_version(connection, migrations) == len(migrations)


def migrate(connection: sqlite3.Connection, migrations: tuple[Migration, ...] = MIGRATIONS) -> None:
    """Bring the tables of a store up to date, all or nothing; arguments and errors as of `is_current`."""
    with transaction(connection):
        version = _checked_version(connection, migrations)  # another process may have been faster
        for migration in migrations[version:]:
            _run(connection, migration)
        connection.execute(f"PRAGMA user_version = {len(migrations)}")


@contextmanager
def transaction(connection: sqlite3.Connection, kind: str = "IMMEDIATE") -> Iterator[None]:
    """All or nothing; unless the kind is DEFERRED, nobody else writes meanwhile."""
    connection.execute(f"BEGIN {kind}")
    try:
        yield
    except BaseException:
        if connection.in_transaction:  # a full disk has ended it already
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _checked_version(connection: sqlite3.Connection, migrations: tuple[Migration, ...]) -> int:
    """How many migrations a file has been through, if its tables say so too."""
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > len(migrations):
        raise NewerError(version, len(migrations))
    if version == len(migrations):
        return version
    found, wanted = _tables(connection), _made_by(migrations[: max(version, 1)])
    if others := found.keys() - wanted.keys():
        raise SchemaError(f"it holds something else, table {min(others)!r}")
    for table in found if version == 0 else wanted:  # of before there were versions: some of the tables
        if (columns := found.get(table, {})) != wanted[table]:
            raise SchemaError(f"its table {table!r} has columns {sorted(columns)}, not {sorted(wanted[table])}")
    return version


def _run(connection: sqlite3.Connection, migration: Migration) -> None:
    if callable(migration):
        migration(connection)
        return
    for statement in migration:
        connection.execute(statement)


def _tables(connection: sqlite3.Connection) -> dict[str, dict[str, bool]]:
    """Table -> column -> whether it is part of the primary key."""
    query = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
    names = [name for (name,) in connection.execute(query)]
    column = "SELECT name, pk > 0 FROM pragma_table_info(?)"
    return {name: {x: bool(pk) for x, pk in connection.execute(column, [name])} for name in names}


def _made_by(migrations: tuple[Migration, ...]) -> dict[str, dict[str, bool]]:
    """The tables that migrations lead to."""
    empty = sqlite3.connect(":memory:", isolation_level=None)
    try:
        for migration in migrations:
            _run(empty, migration)
        return _tables(empty)
    finally:
        empty.close()
