"""Ranked rows come in; text, figures and one HTML page go out.

Read `quality` (AUROC and its like), `texts` (what a row says), `segments` (which segments tell most, and their text),
`tokens` (what the response's tokens need, as text), `sample_text` (one sample in a terminal), `ranked_rows` (columns of the rows that have a rank), `provenance` (models and data),
`findings` (what comes of a ranking, in words), `drawing` (the look of a figure), `figures`, `page`.
"""
