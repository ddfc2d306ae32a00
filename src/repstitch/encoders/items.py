"""List the items to embed, with their ids: images in a folder or zip, lines of text, or a column of a table."""

import hashlib
import itertools
import logging
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from repstitch.embeddings.ids import IdColumn, column_texts
from repstitch.embeddings.rows import check_unique, join_ids
from repstitch.embeddings.tables import read_column_with_ids
from repstitch.encoders.images import ImageFile
from repstitch.errors import InputError, one_line
from repstitch.files import check_items_exist, split_column
from repstitch.lines import read_lines

log = logging.getLogger(__name__)

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
OTHER_IMAGES = (".avif", ".gif", ".heic", ".heif", ".jp2", ".jxl", ".tif", ".tiff")  # not read, but warned of
Listing = tuple[list[str], list, list[str]]  # ids, values, and one stamp per item that changes with its content


@dataclass(frozen=True, eq=False)
class Items:
    """Items to embed: their `ids`, their `values`, and `stamp`, a hash that changes with the content.

    `data` is the path that they were listed from.
    """

    data: str
    ids: list[str]
    values: list
    stamp: str

    def hashes(self, sizes: Iterable[int]) -> Iterator[str]:
        """Yield a hash of the ids and the content of the items, in batches of these sizes from the first item on."""
        start = 0
        for size in sizes:
            part = slice(start, start + size)
            yield hash_items(self.ids[part], map(content_hash, self.values[part]))
            start += size


def hash_items(ids: Iterable[str], content_hashes: Iterable[bytes]) -> str:
    """Return a hash of items from their ids and the hashes of their content."""
    digest = hashlib.sha256(join_ids(ids))
    digest.update(b"".join(content_hashes))
    return digest.hexdigest()


def content_hash(item: str | bytes | ImageFile) -> bytes:
    """Return a hash of a text, or of an image as it is stored."""
    content = item.read() if isinstance(item, ImageFile) else item
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).digest()


def read_items(
    data: str | os.PathLike, modality: str, limit: int | None = None, id_column: IdColumn | None = None
) -> Items:
    """List the items of `data` for an encoder of a modality; see `embed` for the forms of `data`.

    The column of a table follows a colon, as in `table.csv:text`. For a .csv or .tsv without a header, it is a number
    counted from 0. The ids of a table are those of `id_column`, by the rules of `repstitch.read`. With `limit`, only
    that number of items is listed, evenly spaced. Raises InputError on repeated ids and on empty texts.
    """
    if limit is not None and limit < 1:
        raise InputError(f"`limit` must be at least 1; got {limit}.")
    check_items_exist(data)
    location, column = split_column(str(data))
    path = Path(location)
    kind = "folder" if path.is_dir() else path.suffix.lower()
    if kind not in READERS:
        raise InputError(f"`data` must be a folder or a file of type {', '.join(list(READERS)[1:])}; got {path.name}.")
    if kind in {"text": ("folder", ".zip"), "image": (".txt",)}.get(modality, ()):
        advice = " If the encoder embeds images, set `modality` to image." if modality == "text" else ""
        raise InputError(
            f"`data` {path.name} must contain {modality}s, which the encoder embeds; a {kind} cannot contain them."
            + advice
        )
    try:
        ids, values, stamps = READERS[kind](path, column, modality, id_column)
    except InputError:
        raise
    except Exception as error:  # the readers of damaged files and archives raise nearly every exception
        raise InputError(f"`data` {location} cannot be read: {one_line(error)}") from None
    if not ids:
        raise InputError(f"`data` {location} must contain at least one item ({', '.join(IMAGES)} or text); got none.")
    check_unique(np.array(ids, dtype=object), "`data`")
    if limit is not None and limit < len(ids):
        picked = [i * len(ids) // limit for i in range(limit)]
        ids, values, stamps = [ids[i] for i in picked], [values[i] for i in picked], [stamps[i] for i in picked]
    total = hashlib.sha256()
    for entry in itertools.chain(ids, stamps):
        total.update(entry.encode() + b"\0")
    return Items(str(data), ids, values, total.hexdigest())


def load_and_hash(load: Callable, item: Any) -> tuple[bytes, Any]:
    """Return a hash of the content of a text or an ImageFile, and the preprocessed item. The content is read once."""
    if isinstance(item, str):
        return content_hash(item), load(item)
    hashes = []

    def read() -> bytes:
        content = item.read()
        hashes.append(content_hash(content))
        return content

    loaded = load(ImageFile(item.name, read))
    return hashes[0], loaded


def load_ahead(items: Sequence, load: Callable, size: int) -> Iterator[list]:
    """Yield preprocessed items, `size` at a time. Threads load the next ones while the caller processes these."""
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        waiting = None
        for at in range(0, len(items), size):
            ready, waiting = waiting, [pool.submit(load, item) for item in items[at : at + size]]
            if ready:
                yield [future.result() for future in ready]
        if waiting:
            yield [future.result() for future in waiting]
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGES and not path.name.startswith(".")


def _warn_of_others(source: Path, paths: list[Path]) -> None:
    """Warn of images in formats that are not read, which would otherwise be missing without a word."""
    others = sorted(p for p in paths if p.suffix.lower() in OTHER_IMAGES and not p.name.startswith("."))
    if others:
        log.warning(
            "%s contains %d images that are not read and have no vectors (first: %s); convert them to %s.",
            source,
            len(others),
            others[0],
            ", ".join(IMAGES),
        )


def _read_folder(path: Path, column: str | None, modality: str, id_column: IdColumn | None) -> Listing:
    paths = list(path.rglob("*"))
    _warn_of_others(path, [p.relative_to(path) for p in paths])
    files = sorted(filter(_is_image, paths), key=lambda p: p.relative_to(path).as_posix())
    ids = [p.relative_to(path).as_posix() for p in files]
    return ids, [ImageFile(str(p), p.read_bytes) for p in files], [_file_stamp(p) for p in files]


def _read_zip(path: Path, column: str | None, modality: str, id_column: IdColumn | None) -> Listing:
    archive = zipfile.ZipFile(path)
    _warn_of_others(path, [Path(m.filename) for m in archive.infolist()])
    members = sorted((m for m in archive.infolist() if _is_image(Path(m.filename))), key=lambda m: m.filename)
    images = [ImageFile(f"{path.name}/{m.filename}", partial(archive.read, m)) for m in members]
    return [m.filename for m in members], images, [f"{m.file_size} {m.CRC}" for m in members]


def _read_lines(path: Path, column: str | None, modality: str, id_column: IdColumn | None) -> Listing:
    lines = read_lines(path, "data")
    ids = [str(i) for i in range(len(lines))]
    _check_texts(lines, lambda i: f"line {i + 1} of {path.name}")
    return ids, lines, lines


def _read_table(path: Path, column: str | None, modality: str, id_column: IdColumn | None) -> Listing:
    numbered = column is not None and column.isdigit() and path.suffix.lower() != ".parquet"
    name = f"f{column}" if numbered else column
    table = read_column_with_ids(path, name, "data", id_column, header=not numbered)
    values = table.column(0).to_pylist()
    if table.num_columns == 2:
        ids = column_texts(table.column(1), f"Column {table.column_names[1]!r} of {path.name}").tolist()
    else:
        ids = [str(i) for i in range(len(values))]

    def row_name(i: int) -> str:
        return f"row {i} of {path.name}:{column}"

    if modality == "text":
        _check_texts(values, row_name)
        return ids, values, values
    images = [_table_image(value, path.parent, row_name(i)) for i, value in enumerate(values)]
    return ids, images, [_table_stamp(value, path.parent) for value in values]


def _check_texts(texts: list, name: Callable[[int], str]) -> None:
    for i, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"`data` must not contain empty texts; {name(i)} is {text!r}. Remove or fill it.")


def _file_stamp(path: Path) -> str:
    """Return the size and modification time of a file, which change with its content."""
    stat = path.stat()
    return f"{stat.st_size} {stat.st_mtime_ns}"


def _bytes_or_path(value: Any) -> Any:
    """Return the bytes or the path in a cell. Hugging Face data sets store a dict of both, one of which may be null."""
    return value["bytes"] or value.get("path") if isinstance(value, dict) and "bytes" in value else value


def _table_stamp(value: Any, folder: Path) -> str:
    """Return a stamp that changes with the image in a cell. If the cell is a path, it contains the file's stamp."""
    stamp, content = hashlib.sha256(repr(value).encode()).hexdigest(), _bytes_or_path(value)
    is_file = isinstance(content, str) and (folder / content).is_file()
    return f"{stamp} {_file_stamp(folder / content)}" if is_file else stamp


def _table_image(value: Any, folder: Path, name: str) -> ImageFile:
    value = _bytes_or_path(value)
    if isinstance(value, bytes):
        return ImageFile(name, partial(bytes, value))
    if isinstance(value, str):
        return ImageFile(f"{folder / value} ({name})", (folder / value).read_bytes)
    raise InputError(f"`data` must contain image bytes or paths for this encoder; {name} is {type(value).__name__}.")


READERS = {
    "folder": _read_folder,
    ".zip": _read_zip,
    ".txt": _read_lines,
    ".parquet": _read_table,
    ".csv": _read_table,
    ".tsv": _read_table,
}
