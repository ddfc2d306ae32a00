"""Native rows of held-out pairs, kept beside a stitcher, so that a migration can be verified by search."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from repstitch.embeddings.ids import object_column
from repstitch.errors import InputError, one_line
from repstitch.files import written_whole

MOST_QUERIES = 1_000
OPTIONAL = ("translated", "source", "similar")
STITCHER_KEY = b"repstitch.held_out_of"


@dataclass(frozen=True, eq=False)
class HeldOutRows:
    """The pairs on which a stitcher was scored.

    Args:
        ids: The ids (n,) of all of them, which are the pool of the scorecard. The first m belong to the matrices.
        vectors: Native target vectors (m, d_target) of some of them, at most 1,000.
        translated: Translations (m, d_target) of the same rows by a map that was not trained on them. Default: None, as
            in files of earlier releases.
        source: Source vectors (m, d_source) of the same rows. Default: None, likewise.
        similar: Similarities (m, m) of each native row with each translation, if several maps have translated them.
            Default: None, the cosines of the vectors.
    """

    ids: np.ndarray
    vectors: np.ndarray
    translated: np.ndarray | None = None
    source: np.ndarray | None = None
    similar: np.ndarray | None = None

    def write(self, stitcher: Path, version: str) -> None:
        """Write the rows to the file beside the folder of a stitcher, in place of those of an earlier one."""
        matrices = {"vector": self.vectors, "translated": self.translated, "source": self.source}
        matrices["similar"] = self.similar
        columns: dict[str, pa.Array | pa.ChunkedArray] = {"id": pa.array(self.ids, pa.string())}
        for name, matrix in matrices.items():
            if matrix is not None:
                vectors = pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), matrix.shape[1])
                columns[name] = pa.chunked_array([vectors, pa.nulls(len(self.ids) - len(matrix), vectors.type)])
        table = pa.table(columns).replace_schema_metadata({STITCHER_KEY: version})
        with written_whole(held_out_file(stitcher)) as temporary:
            pq.write_table(table, temporary)


def keep_rows(
    ids: np.ndarray,
    vectors: np.ndarray,
    translated: np.ndarray | None = None,
    source: np.ndarray | None = None,
    similar: np.ndarray | None = None,
) -> HeldOutRows:
    """Return held-out pairs in a random order that depends on their number only, with the vectors of the first."""
    order = np.random.default_rng(len(ids)).permutation(len(ids))
    first = order[:MOST_QUERIES]

    def of_first(rows: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(rows[first], np.float32)

    return HeldOutRows(
        ids[order],
        of_first(vectors),
        None if translated is None else of_first(translated),
        None if source is None else of_first(source),
        None if similar is None else of_first(similar[:, first]),
    )


def held_out_file(stitcher: Path) -> Path:
    """Return the file of held-out rows beside the folder of a stitcher. It is never inside, since that is published."""
    path = stitcher.absolute()
    return path.with_name(f"{path.name}.held-out.parquet")


def read_held_out(stitcher: Path, version: str, dim: int) -> HeldOutRows | None:
    """Read the held-out rows beside a stitcher whose target has `dim` dimensions; None if its version has none.

    Raises InputError if the file does not have ids and vectors as `write` writes them.
    """
    path = held_out_file(stitcher)
    if not path.exists():
        return None
    try:
        table = pq.read_table(path)
        if (table.schema.metadata or {}).get(STITCHER_KEY) != version.encode():
            return None
        ids, matrices = table["id"], {n: _matrix(table, n) for n in ("vector", *OPTIONAL)}
        vectors, translated = matrices["vector"], matrices["translated"]
        if table.schema.field("id").type != pa.string() or vectors is None or vectors.shape[1] != dim:
            raise InputError(f"columns id and vector must be text and {dim} float32 numbers")
        if (
            ids.null_count
            or not len(vectors)
            or not all(np.isfinite(m).all() for m in matrices.values() if m is not None)
        ):
            raise InputError("rows must have ids, and some of them vectors of finite numbers")
        if translated is not None and translated.shape != vectors.shape:
            raise InputError("columns vector and translated must have as many numbers")
        similar = matrices["similar"]
        if similar is not None and similar.shape != (len(vectors), len(vectors)):
            raise InputError("column similar must have a number for each row with a vector")
        return HeldOutRows(object_column(ids.to_pylist()), vectors, *(matrices[name] for name in OPTIONAL))
    except (OSError, pa.ArrowException, KeyError, InputError) as error:
        raise InputError(
            f"{path} cannot be read as held-out rows: {one_line(error)}. Remove the file, or train again to replace it."
        ) from None


def _matrix(table: pa.Table, name: str) -> np.ndarray | None:
    """Return the vectors (m, d) of a column; None if there is none, or if they are no lists of float32 of one size."""
    if name not in table.column_names or not pa.types.is_fixed_size_list(table.schema.field(name).type):
        return None
    kind = table.schema.field(name).type
    if kind.value_type != pa.float32():
        return None
    return table[name].drop_null().combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(-1, kind.list_size)
