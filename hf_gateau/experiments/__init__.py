"""A grid of experiments: ways to select x fractions x settings x seeds, each trained, evaluated, and put into tables.

In reading order: `grid.py` (what the YAML file says), `sources.py` (its data and models), `cells.py` (each cell's selection,
recipe and key), `running.py` (one cell), `workers.py` (many), `estimates.py` (the dry run),
`statistics.py`, `specs.py` (which tables), `tables.py`, `plots.py`, `summary.py` (FOLDER/README.md), `command.py`.
"""
