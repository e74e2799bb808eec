"""Scored rows go to the Hub with a card and a record, and come back checked.

Read `config`, `readme` (our part of other people's README), `commits` (whole or not there), `scored` (columns and record of a
scored dataset), `dataset_card`, `pull` (`load_scored`), `push` (`push_scored`), `space` (an explorer as a static Space),
`reuse` (what was measured elsewhere).
"""
