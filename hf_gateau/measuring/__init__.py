"""Samples come in; the raw columns of a row go out, kept in the store at once. Everything that runs a model on rows is here.

Read `config`, `segments` (Eq. 3), `heads` (that tell which segment matters), `passes` (all numbers of some samples), `costs`
(their floating-point operations), `progress` (how far and how fast), `lengths` (what those of all rows make of the settings),
`screening` (whose segments are worth it), `known` (of a row before it is measured), `runtime` (pair, store and key in one
process), `scorer` (`GateauScorer`, which `Dataset.map` calls); the scorers of one value a row: `value_scorer`, `long_model`,
`responses`, `windows`, `rewards`, `embeddings`; then what looks at all rows: `survey` (rows laid out once), `calibration` (heads
chosen by some of them), `together` (many processes), `screened` (segments of some rows alone).
"""
