"""Translate a file of embeddings with a stitcher."""

import hashlib
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby, islice
from typing import Literal

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from repstitch.arguments import names_keywords
from repstitch.embeddings.columns import Column
from repstitch.embeddings.ids import IdColumn
from repstitch.embeddings.parts import Job
from repstitch.embeddings.plain_types import content
from repstitch.embeddings.reading import scan
from repstitch.embeddings.rows import Embeddings, Scan, invalid_rows, join_ids, row_numbers
from repstitch.embeddings.writing import write_stream
from repstitch.errors import InputError
from repstitch.files import check_translated_file, partial_folder
from repstitch.spaces import Space, adopt
from repstitch.stitchers.stitcher import Stitcher

log = logging.getLogger(__name__)


@names_keywords
def translate_file(  # noqa: PLR0913 - the whole job in one call
    stitcher: Stitcher,
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    source_space: str | Space | None = None,
    ids: Column | None = None,
    id_column: IdColumn | None = None,
    columns: Sequence[str] | str = (),
    dtype: Literal["float32", "float16"] = "float32",
    batch_rows: int = 8_192,
    confidence: bool = False,
) -> int:
    """Translate a file of embeddings into a new file.

    The file is translated in batches, so memory use does not grow with its size. If a run is interrupted, the same call
    continues after the last finished batch. `out` appears only when it is complete.

    Args:
        stitcher: The stitcher to translate with.
        path: The embeddings to translate: a Parquet, Arrow, `.npy` or `.npz` file, or a folder of Parquet or Arrow
            files (see `repstitch.read`).
        out: The file to write, which must not exist yet: .parquet, .arrow, or .npy with its ids in `NAME.ids.txt`
            beside it.
        source_space: The name or card (`Space`) of the rows' space, in place of the one in the file. Without a name or
            card, rows are assumed to be in the stitcher's source space if they have its dimension.
        ids: One id per row, in place of those in the file: an array, a text file with one id per line, a `.npy` file,
            `file.npz:key` or `table.csv:column`. Rows without ids get their row numbers as ids, and none beside an
            `.npy` file.
        id_column: The column that contains the ids. Default: chosen as by `repstitch.read`. The ids keep the type of
            their column, except that UUIDs become text.
        columns: The names of further columns to copy to `out`, or "all". Default: none.
        dtype: The type of the translated vectors, `float32` or `float16`. Default: `float32`.
        batch_rows: The number of rows per batch. Default: 8,192.
        confidence: If True, add a float32 column for each measure of the stitcher's confidence. Default: False.

    Returns:
        The number of rows in `out`.

    Raises:
        InputError: If the rows are in another space than the stitcher's source, if a row cannot be translated (the
            message names the first), if `out` exists, or if `confidence` is True and the stitcher has no calibration.
    """
    if dtype not in ("float32", "float16"):
        raise InputError(f"`dtype` must be float32 or float16; got {dtype!r}.")
    if confidence and stitcher.calibration is None:
        raise InputError(
            "`confidence` requires a stitcher with a calibration; this one has none. Train it again on more pairs."
        )
    tested = stitcher.scorecard.confidence
    if confidence and tested is not None and tested.usable is False:
        log.warning("The column of p_match is not usable: %s. It is written anyway.", tested.reason)
    target = check_translated_file(out, "confidence" if confidence else "columns" if columns else None)
    opened = scan(path, space=source_space, ids=ids, id_column=id_column, columns=columns)
    adopt(opened.space, opened.declared, stitcher.source, str(path), opposite=stitcher.target)
    names = stitcher.calibration.names if confidence and stitcher.calibration else ()
    further = _further_columns(opened, names)
    settings = {"stitcher": stitcher.version, "dtype": dtype, "ids": str(opened.id_type), "columns": str(further)}
    overflows: list[InputError] = []

    def produce(start: int) -> Iterator[tuple]:
        row = start
        with (
            ThreadPoolExecutor(1) as hashing,
            tqdm(total=opened.n_rows, initial=start, unit="row", delay=1, desc="translate", leave=False) as bar,
        ):
            for batch in opened.batches(batch_rows, start):
                input_hash = hashing.submit(_input_hash, batch)
                keys = row_numbers(row, row + len(batch)) if batch.ids is None else batch.ids
                _refuse_invalid(batch, row, str(path))
                translated, measures = _translate(stitcher, batch.vectors, confidence)
                try:
                    _refuse_overflow(translated, keys, dtype)
                except InputError as error:
                    overflows.append(error)
                    raise
                payload = [] if batch.payload is None else batch.payload.columns
                yield input_hash.result(), keys, translated, [*measures, *payload]
                row += len(batch)
                bar.update(len(batch))
                del batch, translated, measures, payload  # before others are read

    def input_hashes(sizes: Sequence[int]) -> Iterator[str]:
        start = 0
        for size, equal in groupby(sizes):
            n_parts = len(list(equal))
            yield from map(_input_hash, islice(opened.batches(size, start), n_parts))
            start += n_parts * size

    job = Job(settings, opened.n_rows, produce, input_hashes)
    written_by = {"repstitch.translated_by": stitcher.version}
    try:
        return write_stream(target, stitcher.target, job, dtype, written_by, opened.id_type, further, opened.has_ids)
    except InputError:
        if overflows:  # with another dtype it is a different job, which cannot reuse the finished parts
            shutil.rmtree(partial_folder(target), ignore_errors=True)
        raise


def _further_columns(opened: Scan, measures: Sequence[str]) -> pa.Schema:
    """Return the columns of the output after ids and vectors, and log which columns of the input are left out.

    Raises InputError if two of them would have the same name.
    """
    if opened.left_out:
        log.info("%s: not copied: %s. Copy columns with `columns`.", opened.path, ", ".join(opened.left_out))
    taken = {"id", "vector", *measures}.intersection(opened.payload.names)
    if taken:
        raise InputError(
            f"`columns` must not name {', '.join(sorted(taken))}, which the output has already; name the other columns."
        )
    return pa.schema([*((name, pa.float32()) for name in measures), *opened.payload])


def _input_hash(batch: Embeddings) -> str:
    """Return a hash of the content of rows: their vectors, ids and further columns.

    Of the vectors, sums are hashed, which takes a quarter of the time of hashing the vectors: their bytes are laid out
    as a grid of integers, and each column of it is summed within each piece, and each row. Rounding, other rows and
    another order change several of these sums. Changes that cancel in all of them are made only on purpose.
    """
    digest = hashlib.sha256(f"{batch.vectors.dtype} {batch.vectors.shape}\n".encode())
    flat = np.ascontiguousarray(batch.vectors).reshape(-1).view(np.uint8)
    in_grid = len(flat) - len(flat) % (GRID_COLUMNS * np.uint64().itemsize)
    grid = flat[:in_grid].view(np.uint64).reshape(-1, GRID_COLUMNS)
    for at in range(0, len(grid), PIECE_ROWS):
        piece = grid[at : at + PIECE_ROWS]
        digest.update(piece.sum(axis=0))
        digest.update(piece.sum(axis=1))
    digest.update(flat[in_grid:].data)
    if batch.ids is not None:
        digest.update(join_ids(batch.ids, "\n"))
    if batch.payload is not None:
        digest.update(content(batch.payload))
    return digest.hexdigest()


def _translate(stitcher: Stitcher, vectors: np.ndarray, confidence: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the translated rows (n, d_target) and their measures of confidence (k, n); k is 0 without `confidence`.

    The rows are translated a few at a time, so that intermediate results need little memory.
    """
    names = stitcher.calibration.names if confidence and stitcher.calibration else ()
    translated = np.empty((len(vectors), stitcher.target.dim), dtype=np.float32)
    measures = np.empty((len(names), len(vectors)), dtype=np.float32)
    size = max(1, CHUNK_BYTES // vectors[:1].nbytes)
    for at in range(0, len(vectors), size):
        part = slice(at, at + size)
        if names:
            translated[part], of_part = stitcher.translate_with_confidence(vectors[part])
            measures[:, part] = list(of_part.to_dict().values())
        else:
            translated[part] = stitcher.translate(vectors[part])
    return translated, measures


def _refuse_invalid(batch: Embeddings, first_row: int, path: str) -> None:
    for reason, mask in invalid_rows(batch.vectors).items():
        if mask.any():
            row = int(np.argmax(mask))
            name = f"row {first_row + row}" if batch.ids is None else f"id {batch.ids[row]!r}"
            raise InputError(
                f"{path} contains rows that cannot be translated: {name} is {reason}. Remove these rows first."
            )


def _refuse_overflow(translated: np.ndarray, ids: np.ndarray, dtype: str) -> None:
    largest = np.finfo(dtype).max
    if -largest <= translated.min() and translated.max() <= largest:
        return
    too_large = np.abs(translated).max(axis=1) > largest
    if too_large.any():
        raise InputError(
            f"`dtype` {dtype} cannot represent the translation of id {ids[int(np.argmax(too_large))]!r}; use float32."
        )


CHUNK_BYTES = 2**22
GRID_COLUMNS, PIECE_ROWS = 2**10, 2**7  # a piece fits in the cache of a core
