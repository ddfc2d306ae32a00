"""Files of a folder of Parquet files: which there are, their columns of a store, and translated copies of them.

Files that are not translated, such as a README, are companions: a job copies them, so that readers keep them.
"""

import json
import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from repstitch.errors import InputError, one_line
from repstitch.files import written_whole
from repstitch.stores.arrow_columns import is_vectors, matrix, vector_column

BATCH_ROWS = 8192  # also the number of rows in a row group of a translated file
VERSION_KEY = b"repstitch.translated_by"  # the version of the stitcher
MARK_KEY = b"repstitch.translated_from"  # the file that was translated
STATE_FILE = "_repstitch.json"  # readers of folders leave out names that begin with an underscore
SCRATCH = ".repstitch"  # the beginning of the names of temporary files and locks
Token = tuple[int, int]  # size and time of the last change of a file


@dataclass(frozen=True)
class Mark:
    """What a translated file says of its source: its token, and the numbers of rows by their state.

    `native` is the token of the file of its native rows that was used, or None if it has none.
    """

    size: int
    changed: int
    n_translated: int
    n_skipped: int
    n_without: int
    n_native: int = 0
    native: list[int] | None = None

    def is_of(self, source: Token | None, native: Token | None) -> bool:
        """Return whether the file was made from these files."""
        return (self.size, self.changed) == source and as_token(self.native) == native


def list_files(folder: Path) -> dict[str, Token]:
    """Return the Parquet files of a folder and its subfolders, by their paths in it, without hidden ones."""
    files = {}
    for file in sorted(folder.rglob("*.parquet")):
        name = file.relative_to(folder)
        if not any(part.startswith((".", "_")) for part in name.parts):
            token = token_of(file)
            if token is not None:
                files[str(name)] = token
    return files


def token_of(file: Path) -> Token | None:
    """Return what changes if a file is written again, or None if there is no file."""
    try:
        status = file.stat()
    except FileNotFoundError:
        return None
    return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None


def as_token(stored: list[int] | None) -> Token | None:
    """Return a token as JSON has stored it."""
    return None if stored is None else (stored[0], stored[1])


@contextmanager
def read_errors(file: Path) -> Iterator[None]:
    """Convert an error of reading a file to an InputError that names it."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(f"{file} cannot be read: {one_line(error)}") from None


def open_file(file: Path) -> pq.ParquetFile:
    """Open a file without reading ahead. Raises InputError if it is not a Parquet file."""
    with read_errors(file):
        return pq.ParquetFile(file, pre_buffer=False, buffer_size=2**22)


def read_batches(file: Path, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a file in batches."""
    with open_file(file) as opened:
        batches = opened.iter_batches(BATCH_ROWS, columns=None if columns is None else list(columns), use_threads=False)
        while True:
            with read_errors(file):
                batch = next(batches, None)
            if batch is None:
                return
            # The reader takes the name of a column with a dot for a part of another column too.
            yield batch if columns is None else batch.select(present(columns, batch.schema))


def present(columns: Sequence[str], schema: pa.Schema) -> list[str]:
    """Return those of some columns that a file has."""
    return [name for name in columns if name in schema.names]


def read_mark(file: Path) -> Mark | None:
    """Return the mark of a translated file, or None for a file that this job has not written."""
    with open_file(file) as opened:
        mark = (opened.metadata.metadata or {}).get(MARK_KEY)
    return None if mark is None else Mark(**json.loads(mark))


def vector_type(schema: pa.Schema, name: str, place: str) -> pa.DataType:
    """Return the type of the column of vectors. Raises InputError if it is missing or has no lists of floats."""
    if name not in schema.names:
        raise InputError(f"{place} has no column {name!r}; its columns are: {', '.join(schema.names[:20])}.")
    kind = schema.field(name).type
    if not is_float_lists(kind):
        raise InputError(f"Column {name!r} of {place} must have one list of floats in each row; it has {kind}.")
    return kind


def is_float_lists(kind: pa.DataType) -> bool:
    """Return whether a type is a list of floats, of fixed size or not."""
    lists = pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return lists and pa.types.is_floating(kind.value_type)


def dimensions(file: Path, name: str) -> int:
    """Return the number of dimensions of the vectors in a file: 0 if it has none."""
    with open_file(file) as opened:
        kind = vector_type(opened.schema_arrow, name, str(file))
    if pa.types.is_fixed_size_list(kind):
        return kind.list_size
    for batch in read_batches(file, [name]):
        lengths = [len(vector) for vector in batch[name].to_pylist() if vector]
        if lengths:
            return lengths[0]
    return 0


def is_old_file(file: Path, name: str, dims: tuple[int, int]) -> bool:
    """Return whether the vectors in a file have the old number of dimensions and not the new one."""
    return dims[0] != dims[1] and dimensions(file, name) == dims[0]


def with_vectors(batch: pa.RecordBatch, name: str, dim: int) -> pa.RecordBatch:
    """Return rows with the vectors, if their column is there, as fixed-size lists of float32."""
    at = batch.schema.get_field_index(name)
    if at < 0 or is_vectors(batch.schema.field(at).type):
        return batch
    return batch.set_column(at, name, vector_column(*matrix(batch[name], dim)))


def count_rows(file: Path) -> int:
    """Return the number of rows of a file."""
    with open_file(file) as opened:
        return opened.metadata.num_rows


def remove_file(file: Path, folder: Path) -> None:
    """Remove a file, and the folders up to `folder` that are then empty."""
    file.unlink(missing_ok=True)
    for parent in file.parents:
        if parent == folder or any(parent.iterdir()):
            return
        os.rmdir(parent)


def list_companions(folder: Path) -> dict[str, Token]:
    """Return the files that are not translated, by their paths in the folder.

    Raises InputError if there is a link, because what it points to can be outside the folder.
    """
    rows, companions = list_files(folder), {}
    for place, folders, files in os.walk(folder, onerror=_refuse):
        folders[:] = sorted(name for name in folders if not name.startswith(SCRATCH))
        for name in [*folders, *sorted(files)]:
            path = Path(place, name)
            inner, token = str(path.relative_to(folder)), token_of(path)
            if path.is_symlink() or (name in files and token is None and path.exists()):
                raise InputError(f"{path} must be a file or a folder, not a link to one; replace it by its content.")
            if token is not None and inner not in rows and inner != STATE_FILE and not name.startswith(SCRATCH):
                companions[inner] = token
    return companions


def _refuse(error: OSError) -> None:
    raise InputError(f"{error.filename} cannot be read: {one_line(error)}") from None


def carry_companions(source: Path, target: Path, carried: dict[str, list[int]]) -> dict[str, list[int]]:
    """Copy the companions of one folder to another, and return `carried` with their tokens.

    `carried` has the tokens of those copied before. A file that others wrote to the target is kept.
    """
    carried = dict(carried)
    for name, token in list_companions(source).items():
        existing = token_of(target / name)
        if existing not in (None, token, as_token(carried.get(name))):
            continue
        if existing != token:
            place_copy(source / name, target / name)
        carried[name] = list(token)
    return carried


def place_copy(source: Path, target: Path) -> None:
    """Link or, on another disk, copy a file with its time of change, in place of an older one."""
    with written_whole(target, None, parents=True) as temporary:
        try:
            os.link(source, temporary)
        except OSError:  # the file system has no such links
            try:
                shutil.copy2(source, temporary)
            except OSError as error:
                raise InputError(f"{source} cannot be copied to {target}: {one_line(error)}") from None


def check_companions(removed: Path, kept: Path, carried: dict[str, list[int]]) -> None:
    """Raise InputError if a folder that is to be removed has companions of which there is no copy."""
    refuse_loss(
        removed,
        [
            name
            for name, token in list_companions(removed).items()
            if token not in (token_of(kept / name), as_token(carried.get(name)))
        ],
    )


def refuse_loss(folder: Path, lost: list[str]) -> None:
    """Raise InputError if files would be lost with a folder."""
    if lost:
        more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
        raise InputError(
            f"{folder} has files that this job has not written ({', '.join(lost[:3])}{more}); move them away first. "
            "Nothing was removed."
        )
