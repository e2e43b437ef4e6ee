"""Embeddings of many images: a table of them, search, duplicates."""
