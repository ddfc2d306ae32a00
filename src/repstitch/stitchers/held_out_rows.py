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
STITCHER_KEY = b"repstitch.held_out_of"


@dataclass(frozen=True, eq=False)
class HeldOutRows:
    """The pairs on which a stitcher was scored.

    Args:
        ids: The ids (n,) of all of them, which are the pool of the scorecard. The first m belong to `vectors`.
        vectors: Native target vectors (m, d_target) of some of them, at most 1,000.
    """

    ids: np.ndarray
    vectors: np.ndarray

    def write(self, stitcher: Path, version: str) -> None:
        """Write the rows to the file beside the folder of a stitcher, in place of those of an earlier one."""
        dim = self.vectors.shape[1]
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(self.vectors.reshape(-1)), dim)
        missing = pa.nulls(len(self.ids) - len(self.vectors), vectors.type)
        schema = pa.schema([("id", pa.string()), ("vector", vectors.type)], metadata={STITCHER_KEY: version})
        table = pa.table([pa.array(self.ids, pa.string()), pa.chunked_array([vectors, missing])], schema=schema)
        with written_whole(held_out_file(stitcher)) as temporary:
            pq.write_table(table, temporary)


def keep_rows(ids: np.ndarray, vectors: np.ndarray) -> HeldOutRows:
    """Return held-out pairs in a random order that depends on their number only, with the vectors of the first."""
    order = np.random.default_rng(len(ids)).permutation(len(ids))
    return HeldOutRows(ids[order], np.ascontiguousarray(vectors[order[:MOST_QUERIES]], np.float32))


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
        table = table.select(["id", "vector"])
        ids, vectors = table["id"], table["vector"].drop_null()
        if table.schema.types != [pa.string(), pa.list_(pa.float32(), dim)]:
            raise InputError(f"columns id and vector must be text and {dim} float32 numbers")
        matrix = vectors.combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(-1, dim)
        if ids.null_count or not len(matrix) or not np.isfinite(matrix).all():
            raise InputError("rows must have ids, and some of them vectors of finite numbers")
        return HeldOutRows(object_column(ids.to_pylist()), matrix)
    except (OSError, pa.ArrowException, KeyError, InputError) as error:
        raise InputError(
            f"{path} cannot be read as held-out rows: {one_line(error)}. Remove the file, or train again to replace it."
        ) from None
