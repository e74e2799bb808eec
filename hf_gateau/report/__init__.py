"""Ranked rows come in; text, figures and one HTML page go out.

Read `quality` (AUROC and its like), `sample_text` (one sample in a terminal), `ranked_rows` (columns of the rows that have a
rank), `drawing` (the look of a figure), `figures`, `page`.
"""
