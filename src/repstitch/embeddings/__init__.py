"""Embeddings: read, write, pair, match, split and check rows of vectors."""
