"""Rows and settings come in; what measuring them will take goes out: time, memory, money, and what would be cheaper.

Read `pilot` (a few rows, measured), `plan`, `plan_text`.
"""
