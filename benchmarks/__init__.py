"""Scripts that print what is claimed: speed, memory, and which ranking finds what is needed. Each has --help."""

import os


os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as `hf-gateau` does; torch reads it when it is imported
