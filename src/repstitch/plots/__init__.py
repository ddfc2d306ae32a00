"""Pictures: a result in, a matplotlib Figure out."""
