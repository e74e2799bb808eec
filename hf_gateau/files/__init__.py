"""Rows come in from files and from the Hub, and go out to files, with the record of how they came about beside them.

Read `hub_reading` (the Hub, tried again), `shards` (a folder of Parquet, whole or not there), `sidecar` (the record beside the
rows), `reading`, `writing`.
"""
