"""List the items to embed, with their ids: images in a folder or zip, lines of text, or a column of a table."""

import hashlib
import io
import itertools
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from repstitch.embeddings.rows import check_unique
from repstitch.embeddings.tables import read_table
from repstitch.errors import InputError, one_line
from repstitch.files import check_items_exist, split_column

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
Listing = tuple[list[str], list, list[str]]  # ids, values, and one stamp per item that changes with its content


@dataclass(frozen=True, eq=False)
class Items:
    """Items to embed: their `ids`, their `values`, and `stamp`, a hash that changes with the content."""

    ids: list[str]
    values: list
    stamp: str


@dataclass(frozen=True)
class ImageFile:
    """An image that is read only when an encoder loads it. Messages call it `name`."""

    name: str
    read: Callable[[], bytes]


def open_image(item: Any) -> Any:
    """Open an image as a PIL image. Raises InputError if it cannot be read.

    `item` is a path, bytes, an ImageFile, a PIL image or a uint8 array (h, w, 3).
    """
    from PIL import Image, UnidentifiedImageError

    if isinstance(item, Image.Image):
        return item
    if isinstance(item, np.ndarray):
        return Image.fromarray(item)
    if isinstance(item, str | os.PathLike):
        item = ImageFile(str(item), Path(item).read_bytes)
    elif isinstance(item, bytes):
        item = ImageFile(f"an image of {len(item)} bytes", partial(bytes, item))
    try:
        image = Image.open(io.BytesIO(item.read()))
        image.load()
    except Exception as error:  # the readers of image formats and archives raise nearly every exception
        reason = "its format is unknown" if isinstance(error, UnidentifiedImageError) else one_line(error)
        raise InputError(
            f"`data`: {item.name} must be an image that can be read; {reason}. Repair or remove it."
        ) from None
    return image


def read_items(data: str | os.PathLike, modality: str, limit: int | None = None) -> Items:
    """List the items of `data` for an encoder of a modality; see `embed` for the forms of `data`.

    The column of a table follows a colon, as in `table.csv:text`. For a .csv or .tsv without a header, it is a number
    counted from 0. With `limit`, only that number of items is listed, evenly spaced. Raises InputError on repeated ids
    and on empty texts.
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
        raise InputError(
            f"`data` {path.name} must contain {modality}s, which the encoder embeds; a {kind} cannot contain them."
        )
    try:
        ids, values, stamps = READERS[kind](path, column, modality)
    except InputError:
        raise
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:  # these include Arrow's errors
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
    return Items(ids, values, total.hexdigest())


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGES and not path.name.startswith(".")


def _read_folder(path: Path, column: str | None, modality: str) -> Listing:
    files = sorted((p for p in path.rglob("*") if _is_image(p)), key=lambda p: p.relative_to(path).as_posix())
    ids = [p.relative_to(path).as_posix() for p in files]
    return ids, [ImageFile(str(p), p.read_bytes) for p in files], [_file_stamp(p) for p in files]


def _read_zip(path: Path, column: str | None, modality: str) -> Listing:
    archive = zipfile.ZipFile(path)
    members = sorted((m for m in archive.infolist() if _is_image(Path(m.filename))), key=lambda m: m.filename)
    images = [ImageFile(f"{path.name}/{m.filename}", partial(archive.read, m)) for m in members]
    return [m.filename for m in members], images, [f"{m.file_size} {m.CRC}" for m in members]


def _read_lines(path: Path, column: str | None, modality: str) -> Listing:
    lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    ids = [str(i) for i in range(len(lines))]
    _check_texts(lines, lambda i: f"line {i + 1} of {path.name}")
    return ids, lines, lines


def _read_table(path: Path, column: str | None, modality: str) -> Listing:
    numbered = column is not None and column.isdigit() and path.suffix.lower() != ".parquet"
    text_columns = (f"f{column}" if numbered else str(column), "id")
    table = read_table(path, "data", text_columns, only_text=True, header=not numbered)
    name = f"f{column}" if column and column.isdigit() and column not in table.column_names else column
    if name not in table.column_names:
        raise InputError(
            f"`data` must name a column of {path.name} as {path.name}:COLUMN, one of {', '.join(table.column_names)}; "
            f"got {column}."
        )
    values = table.column(name).to_pylist()
    ids = [str(i) for i in range(len(values))]
    if "id" in table.column_names and name != "id":
        ids = [str(value) for value in table.column("id").to_pylist()]

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
