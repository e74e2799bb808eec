"""Ranked rows come in; text, figures and one HTML page go out.

Read `quality` (AUROC and its like), `texts` (what a row says), `segments` (which segments tell most, and their text),
`tokens` (what the response's tokens need, as text), `marking` (how that is shown), `sample_text` (one sample in a terminal),
`ranked_rows` (columns of the rows that have a rank), `provenance` (models and data), `reach` (how far back they need text),
`findings` (what comes of a ranking, in words), `comparison` (two rankings side by side), `comparison_text` (the same in a
terminal), `drawing` (the look of a figure), `figures`, `page`.
"""
