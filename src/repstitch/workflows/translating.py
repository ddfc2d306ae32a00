"""Translate a file of embeddings with a stitcher."""

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
    """Translate embeddings into a new Parquet file.

    Works in batches, so memory does not grow with the file. A run that was stopped continues when it is called again;
    the file appears only when it is complete.

    Args:
        stitcher: The stitcher to translate with.
        path: The file to translate (see `embeddings.scan`).
        out: The Parquet file to write; it must not exist yet.
        source_space: The name or card of the space, for a file without a card.
        ids: One id a row, for a file without ids. Without any, rows get their positions as ids.
        dtype: The type of the translated vectors, `float32` or `float16`.
        batch_rows: Rows to translate at a time.
        confidence: Add a float32 column for each of the stitcher's measures of confidence.

    Returns:
        The number of rows.

    Raises:
        InputError: On another space, on rows that cannot be translated (naming the first), when `out` exists, and when
            `confidence` is asked of a stitcher without a calibration.
    """
    if dtype not in ("float32", "float16"):
        raise InputError(f"`dtype` must be float32 or float16; got {dtype!r}.")
    if confidence and stitcher.calibration is None:
        raise InputError(
            "`confidence` needs a stitcher with a calibration; this one has none. Train it again on more pairs."
        )
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
        if row_errors:  # with the rows mended it is another job, and the finished parts are of no use to that
            shutil.rmtree(f"{os.fspath(out)}.partial", ignore_errors=True)
        raise


def _translate(stitcher: Stitcher, vectors: np.ndarray, confidence: bool) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The translated rows, and each measure of their confidence where it is wanted."""
    if not confidence:
        return stitcher.translate(vectors), {}
    translated, measures = stitcher.translate_with_confidence(vectors)
    return translated, measures.to_dict()


def _stamp(path: Path) -> list:
    """Name, size and time of a file, or of all files of a folder: what changes when one of them does."""
    files = sorted(f for f in path.rglob("*") if f.is_file()) if path.is_dir() else [path] if path.is_file() else []
    return [[str(f), f.stat().st_size, f.stat().st_mtime_ns] for f in files]


def _refuse_invalid(batch: Embeddings, first_row: int, path: str) -> None:
    for reason, mask in invalid_rows(batch.vectors).items():
        if mask.any():
            row = int(np.argmax(mask))
            name = f"row {first_row + row}" if batch.ids is None else f"id {batch.ids[row]!r}"
            raise InputError(
                f"{path} holds rows that cannot be translated: {name} is {reason}. Remove such rows first."
            )


def _refuse_overflow(translated: np.ndarray, ids: np.ndarray, dtype: str) -> None:
    too_large = np.abs(translated).max(axis=1) > np.finfo(dtype).max
    if too_large.any():
        raise InputError(
            f"`dtype` {dtype} cannot hold the translation of id {ids[int(np.argmax(too_large))]!r}; use float32."
        )
