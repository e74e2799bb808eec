"""A grid comes in (ways to select x fractions x settings x seeds); each cell is trained and evaluated, and tables go out.

Read `grid` (what the YAML file says), `sources` (its data and models), `cells` (each cell's selection, recipe and key), `kept`
(the card of a kept model), `running` (one cell), `workers` (many), `estimates` (the dry run), `statistics`, `specs` (which
tables), `tables`, `plots`, `summary` (FOLDER/README.md), `command`; `planted` is what `recipes/reproduce-tiny.yaml` names.
"""
