"""Rows come in from files and from the Hub, and go out to files, with the record of how they came about beside them.

Read `hub_reading` (the Hub, tried again), `texts` (what encoding a text is in), `unpacking` (of gzip and Zstandard), `replacing`
(old or new, whatever happens), `shards` (a folder of Parquet, whole or not there), `sidecar` (the record beside the rows),
`json_records` (what stands in a file of JSON, line by line), `json_types` (which columns that makes), `common_types` (of files
that were written apart), `json_rows` (both as a reader of `datasets`), `csv_files` (columns of those), `finding` (which files a
folder or a pattern stands for), `reading`, `writing`, `apart` (outputs that would be inputs).
"""
