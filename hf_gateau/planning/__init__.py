"""Rows and settings come in; what is to be known before measuring goes out: whether the rows are read as they are meant, and what
measuring them will take: time, memory, money, and what would be cheaper.

Read `pilot` (a few rows, measured), `plan`, `plan_text`; `token_counts` (how long rows are), `check` (what rows are, before any
model loads), `check_text`.
"""
