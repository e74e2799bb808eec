"""Measurements come in, under the key of everything that changes a number, and survive a crash.

Read `keys` (what a key is made of), `schema` (the tables, and how older stores become them), `owners` (the processes that
measure), `sqlite` (one file, for one machine), `folder` (one folder, for many machines), `claims` (who measures what just now).
"""
