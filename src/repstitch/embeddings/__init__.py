"""Embeddings: read, write, pair, match, split and check rows of vectors."""

from typing import TYPE_CHECKING

from repstitch.lazy import public_names

if TYPE_CHECKING:
    from repstitch.embeddings.matching import match
    from repstitch.embeddings.pairs import Pairs, pair
    from repstitch.embeddings.reading import read, scan
    from repstitch.embeddings.rows import Embeddings
    from repstitch.embeddings.splitting import split
    from repstitch.embeddings.writing import write

__all__ = ["Embeddings", "Pairs", "match", "pair", "read", "scan", "split", "write"]
__getattr__, __dir__ = public_names(
    __name__,
    {
        "matching": ("match",),
        "pairs": ("Pairs", "pair"),
        "reading": ("read", "scan"),
        "rows": ("Embeddings",),
        "splitting": ("split",),
        "writing": ("write",),
    },
)
