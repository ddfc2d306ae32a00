"""Translate a file of embeddings with a stitcher."""

import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from repstitch.arguments import names_keywords
from repstitch.embeddings.columns import Column
from repstitch.embeddings.reading import scan
from repstitch.embeddings.rows import Embeddings, invalid_rows, row_numbers
from repstitch.embeddings.writing import write_stream
from repstitch.errors import InputError
from repstitch.spaces import Space, adopt
from repstitch.stitchers.stitcher import Stitcher

log = logging.getLogger(__name__)


@names_keywords
def translate_file(
    stitcher: Stitcher,
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    source_space: str | Space | None = None,
    ids: Column | None = None,
    dtype: Literal["float32", "float16"] = "float32",
    batch_rows: int = 16_384,
    confidence: bool = False,
) -> int:
    """Translate a file of embeddings into a new Parquet file.

    The file is translated in batches, so memory use does not grow with its size. If a run is interrupted, the same call
    continues after the last finished batch. `out` appears only when it is complete.

    Args:
        stitcher: The stitcher to translate with.
        path: The embeddings to translate: a Parquet, Arrow, `.npy` or `.npz` file, or a folder of Parquet or Arrow
            files (see `repstitch.read`).
        out: The Parquet file to write. It must not exist yet.
        source_space: The name or card (`Space`) of the rows' space, in place of the one in the file. Without a name or
            card, rows are assumed to be in the stitcher's source space if they have its dimension.
        ids: One id per row, in place of those in the file: an array, a text file with one id per line, a `.npy` file or
            `file.npz:key`. Rows without ids get their row numbers as ids.
        dtype: The type of the translated vectors, `float32` or `float16`. Default: `float32`.
        batch_rows: The number of rows per batch. Default: 16,384.
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
    opened = scan(path, space=source_space, ids=ids)
    adopt(opened.space, opened.declared, stitcher.source, str(path), opposite=stitcher.target)
    job = {
        "stitcher": stitcher.version,
        "source": str(path),
        "rows": opened.n_rows,
        "stamp": _stamp(Path(opened.path)),
        "dtype": dtype,
        "ids": [str(ids), _stamp(Path(ids))] if isinstance(ids, str | os.PathLike) else ids is not None,
    }
    if confidence:
        job["confidence"] = True
    row_errors: list[InputError] = []

    def produce(start: int) -> Iterator[tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]]:
        row = start
        with tqdm(total=opened.n_rows, initial=start, unit="row", delay=1, desc="translate", leave=False) as bar:
            for batch in opened.batches(batch_rows, start):
                keys = row_numbers(row, row + len(batch)) if batch.ids is None else batch.ids
                try:
                    _refuse_invalid(batch, row, str(path))
                    translated, measures = _translate(stitcher, batch.vectors, confidence)
                    _refuse_overflow(translated, keys, dtype)
                except InputError as error:
                    row_errors.append(error)
                    raise
                yield keys, translated, measures
                row += len(batch)
                bar.update(len(batch))

    written_by = {"repstitch.translated_by": stitcher.version}
    names = stitcher.calibration.names if confidence and stitcher.calibration else ()
    try:
        return write_stream(out, stitcher.target, produce, job, dtype=dtype, metadata=written_by, measures=names)
    except InputError:
        if row_errors:  # the corrected file is a different job, which cannot reuse the finished parts
            shutil.rmtree(f"{os.fspath(out)}.partial", ignore_errors=True)
        raise


def _translate(stitcher: Stitcher, vectors: np.ndarray, confidence: bool) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Translate the rows. The second result has their confidence by measure, and is empty if `confidence` is False."""
    if not confidence:
        return stitcher.translate(vectors), {}
    translated, measures = stitcher.translate_with_confidence(vectors)
    return translated, measures.to_dict()


def _stamp(path: Path) -> list:
    """Name, size and modification time of a file, or of all files in a folder, to detect changes."""
    files = sorted(f for f in path.rglob("*") if f.is_file()) if path.is_dir() else [path] if path.is_file() else []
    return [[str(f), f.stat().st_size, f.stat().st_mtime_ns] for f in files]


def _refuse_invalid(batch: Embeddings, first_row: int, path: str) -> None:
    for reason, mask in invalid_rows(batch.vectors).items():
        if mask.any():
            row = int(np.argmax(mask))
            name = f"row {first_row + row}" if batch.ids is None else f"id {batch.ids[row]!r}"
            raise InputError(
                f"{path} contains rows that cannot be translated: {name} is {reason}. Remove these rows first."
            )


def _refuse_overflow(translated: np.ndarray, ids: np.ndarray, dtype: str) -> None:
    too_large = np.abs(translated).max(axis=1) > np.finfo(dtype).max
    if too_large.any():
        raise InputError(
            f"`dtype` {dtype} cannot represent the translation of id {ids[int(np.argmax(too_large))]!r}; use float32."
        )
