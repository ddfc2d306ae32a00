"""Draw rows of a corpus that are worth embedding with the new model too, to train on."""

import os
from collections.abc import Sequence

import numpy as np

from repstitch.arguments import check_positive, check_seed, names_keywords
from repstitch.embeddings.ids import IdColumn
from repstitch.embeddings.reading import scan
from repstitch.embeddings.rows import invalid_rows
from repstitch.embeddings.sampling import Sample, farthest_first
from repstitch.embeddings.writing import check_embeddings_file, write
from repstitch.errors import InputError

POOL = 20  # rows drawn at random for each row that is chosen among them
MOST_POOL = 100_000


@names_keywords
def draw(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    n: int = 2_000,
    spread: bool = False,
    columns: Sequence[str] | str = (),
    id_column: IdColumn | None = None,
    seed: int = 0,
) -> int:
    """Draw rows of a corpus to a file, and return their number.

    Args:
        source: The corpus in the old space: the address of a table, or a file or folder (see `repstitch.read`).
        out: The Parquet file to write, with ids, vectors and the further columns; it must not exist.
        n: The number of rows; all if there are no more.
        spread: If True, the rows are spread over the corpus: of some random rows, those farthest from each other
            (Gonzalez 1985, "Clustering to Minimize the Maximum Intercluster Distance"). Maps trained on them are
            better, but they are unlike the rest of the corpus, so scores and confidence on them do not hold for it.
        columns: Further columns to copy, such as that of the texts, or "all".
        id_column: The column that contains the ids. Default: chosen as by `repstitch.read`.
        seed: The seed of the draw.

    Returns:
        The number of rows.

    Raises:
        InputError: If the corpus cannot be read or has no ids, or if `out` exists or is no Parquet file.
    """
    check_positive(n, "`n`")
    check_seed(seed)
    target = check_embeddings_file(out)
    n_drawn = n if not spread else max(n, min(POOL * n, MOST_POOL))
    rows = scan(source, id_column=id_column, columns=columns, select=Sample(n_drawn, seed)).read()
    if rows.ids is None:
        raise InputError(f"{source} has no ids, by which the rows could be paired; name their column with `id_column`.")
    vectors = np.asarray(rows.vectors, np.float32)
    valid = np.flatnonzero(~np.logical_or(*invalid_rows(vectors).values()))
    if spread:
        valid = np.sort(valid[farthest_first(vectors[valid], n, seed)])
    write(target, rows.take(valid))
    return len(valid)
