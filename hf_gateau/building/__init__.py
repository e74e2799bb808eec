"""Documents come in; long instruction samples go out, made as LongAlign made its own (arXiv 2401.18058).

Read `duplicates`, `prompts`, `config`, `documents`, `contexts` (cut from documents), `rows` (asked of a model), `summary`,
`command`.
"""
