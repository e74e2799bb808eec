"""Long instruction samples made of documents, as LongAlign made its own (arXiv 2401.18058)."""
