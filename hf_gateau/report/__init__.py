"""Ranked rows come in; text, figures, one HTML page and an explorer of all rows go out.

Read `quality` (AUROC and its like), `texts` (what a row says), `segments` (which segments tell most, and their text), `tokens` (what
the response's tokens need, as text), `marking` (how that is shown), `sample_text` (one sample in a terminal), `ranked_rows` (columns
of the rows that have a rank), `provenance` (models and data), `reach` (how far back they need text), `findings` (what comes of a
ranking, in words), `overview` (all that is said of a ranking), `comparison` (two rankings side by side), `comparison_text` (the same
in a terminal), `drawing` (the look of a figure), `figures`, `page`; then `pieces` (data that a page reads from the disk), `variants`
(what a page ranks anew by), `explorer_rows` (one row for the page), `explorer`. `static/` is the explorer's page itself: HTML, CSS
and JavaScript without a build step.
"""
