# pyright: strict
"""The queries and relevance judgements that a caller passes to `score`, before any file is read."""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from repstitch.errors import InputError

if TYPE_CHECKING:
    import os

    from repstitch.embeddings.columns import Column
    from repstitch.embeddings.rows import EmbeddingsLike


@dataclass(frozen=True, eq=False)
class RelevanceData:
    """Queries and relevance judgements; the documents are the pairs that are passed to `score`.

    `qrels` is a file of judgements (see `evaluation.read_qrels`). `source_queries` and `target_queries` are the same
    queries in the two spaces. Queries and documents must have the ids that the judgements use; `source_query_ids` and
    `target_query_ids` supply ids for queries without any. Raises InputError unless the first three are set.
    """

    qrels: "str | os.PathLike[str]"
    source_queries: "EmbeddingsLike"
    target_queries: "EmbeddingsLike"
    source_query_ids: "Column | None" = None
    target_query_ids: "Column | None" = None

    def __post_init__(self) -> None:
        if any(getattr(self, name) is None for name in ("qrels", "source_queries", "target_queries")):
            raise InputError(
                "`source_queries`, `target_queries` and `qrels` must be passed together: all three, or none."
            )

    def __repr__(self) -> str:
        named = ", ".join(f.name for f in fields(self) if getattr(self, f.name) is not None)
        return f"RelevanceData({named})"
