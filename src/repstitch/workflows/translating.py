"""A stitcher applied to files: translate rows into a new file, score it on pairs it was not trained on."""

import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from repstitch.embeddings.reading import scan
from repstitch.embeddings.rows import invalid_rows, row_numbers
from repstitch.embeddings.writing import write_stream
from repstitch.errors import InputError
from repstitch.spaces import Space, adopt
from repstitch.stitchers.stitcher import Stitcher

log = logging.getLogger(__name__)


def translate_file(
    stitcher: Stitcher,
    path: str | os.PathLike,
    out: str | os.PathLike,
    *,
    source_space: str | Space | None = None,
    ids=None,
    dtype: str = "float32",
    batch_rows: int = 16_384,
    confidence: bool = False,
) -> int:
    """Translate embeddings into a new Parquet file and return the number of rows.

    Streams: memory does not grow with the file. A stopped run goes on where it was when called again; the file appears
    only when whole. Rows without ids get their positions as ids. With `confidence` each of the stitcher's measures is a
    float32 column of its name. Raises InputError on another space, on rows that cannot be translated (naming the
    first), on a stitcher without calibration where it is needed, and when `out` exists.
    """
    if dtype not in ("float32", "float16"):
        raise InputError(f"`dtype` must be float32 or float16; got {dtype!r}.")
    if confidence and stitcher.calibration is None:
        raise InputError(
            "`confidence` needs a stitcher with a calibration; this one has none. Train it again on more pairs."
        )
    measures = stitcher.calibration.names if confidence and stitcher.calibration else ()
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

    refused: list[InputError] = []

    def produce(start: int) -> Iterator[tuple]:
        at = start
        with tqdm(total=opened.n_rows, initial=start, unit="row", delay=1, desc="translate", leave=False) as bar:
            for batch in opened.batches(batch_rows, start):
                keys = row_numbers(at, at + len(batch)) if batch.ids is None else batch.ids
                try:
                    _refuse_invalid(batch.vectors, batch.ids, at, str(path))
                    if confidence:
                        translated, measured = stitcher.translate_with_confidence(batch.vectors)
                    else:
                        translated, measured = stitcher.translate(batch.vectors), {}
                    _refuse_overflow(translated, keys, dtype)
                except InputError as error:
                    refused.append(error)
                    raise
                yield keys, translated, measured
                at += len(batch)
                bar.update(len(batch))

    written_by = {"repstitch.translated_by": stitcher.version}
    try:
        return write_stream(out, stitcher.target, produce, job, dtype=dtype, metadata=written_by, measures=measures)
    except InputError:
        if refused:  # once the rows are mended it is another job, which the finished parts are of no use to
            shutil.rmtree(f"{os.fspath(out)}.partial", ignore_errors=True)
        raise


def _stamp(place: Path) -> list:
    """What changes when a file, or any file of a folder, does."""
    files = sorted(f for f in place.rglob("*") if f.is_file()) if place.is_dir() else [place] if place.is_file() else []
    return [[str(f), f.stat().st_size, f.stat().st_mtime_ns] for f in files]


def _refuse_overflow(translated: np.ndarray, ids: np.ndarray, dtype: str) -> None:
    over = np.abs(translated).max(axis=1) > np.finfo(dtype).max
    if over.any():
        raise InputError(
            f"`dtype` {dtype} cannot hold the translation of id {ids[int(np.argmax(over))]!r}; use float32."
        )


def _refuse_invalid(vectors: np.ndarray, ids: np.ndarray | None, start: int, path: str) -> None:
    for what, mask in invalid_rows(vectors).items():
        if mask.any():
            row = int(np.argmax(mask))
            name = f"row {start + row}" if ids is None else f"id {ids[row]!r}"
            raise InputError(f"{path} holds rows that cannot be translated: {name} is {what}. Remove such rows first.")
