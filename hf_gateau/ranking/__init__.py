"""Measured columns come in; an order of rows and a selection go out. Numpy in float64; models run in the last file alone.

Read `config`, `clustering` (CaR's), `lists` (columns of lists, measured), `evidence` (what the response's tokens tell), `formulas`
(Eqs. 2-6, variants, baselines), `bounds` (what is certain without some segments), `columns` (a dataset's columns as arrays),
`order` (`rank`), `decisions` (what a person decided), `choice` (which rows are kept), `selection` (`select`, and its record),
`mixture` (short data beside the selection), `supply` (columns that a method needs and the rows lack, measured), `screening` (rows
whose segments are worth measuring).
"""
