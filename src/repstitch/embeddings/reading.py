"""Read embeddings from Parquet, Arrow IPC, `.npy` (with ids from another file) and `.npz` (as `file.npz:key`)."""

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset

from repstitch.addresses import is_address
from repstitch.arguments import names_keywords
from repstitch.embeddings.arrays import as_rows, scan_array, scan_array_file
from repstitch.embeddings.arrow_tables import VECTOR, scan_table, with_index
from repstitch.embeddings.columns import Column, Entries, count_entries, open_column, read_column
from repstitch.embeddings.ids import NO_IDS, IdColumn, choose_dimensions, choose_id_column, column_texts, texts
from repstitch.embeddings.rows import Batch, Embeddings, EmbeddingsLike, Scan, take_entries
from repstitch.embeddings.sampling import Sample, sampled
from repstitch.embeddings.shards import ENDINGS, open_dataset
from repstitch.embeddings.stored import column_names, scan_address
from repstitch.errors import InputError, one_line
from repstitch.files import check_embeddings_exist, is_file_or_pipe, split_column, split_key, stem_of
from repstitch.spaces import Space

log = logging.getLogger(__name__)

LISTS = (".txt", ".npy")  # endings of files of ids beside a file of embeddings


def scan(
    path: str | os.PathLike[str],
    *,
    space: str | Space | None = None,
    ids: Column | None = None,
    group: Column | None = None,
    id_column: IdColumn | None = None,
    columns: Sequence[str] | str = (),
    select: Sample | Sequence[str] | None = None,
) -> Scan:
    """Open embeddings without reading their rows. The file ending decides the format.

    `path` is a Parquet or Arrow file, a folder of such files, an `s3://` or `gs://` address, a `.npy` file,
    `file.npz:key`, or the address of a table in a store (see `repstitch.addresses`). The vectors of a Parquet or Arrow
    file are in its column `vector`; `file.parquet:column` names another column. `space` is the name of the space, or
    its whole card. `ids`, `group` and `id_column` are those of `read`. `columns` are the names of further columns to
    read as payload, or "all". `select` is a sample to draw or, for a store, the ids of the rows to read. Raises
    InputError if the input cannot be read as rows of numbers.
    """
    own_id_column = id_column if ids is None else NO_IDS
    if is_address(str(path)):
        opened = _open_address(str(path), group, own_id_column, columns, select)
        return _override(opened, space, ids, group, id_column)
    location, key = split_key(str(path))
    check_embeddings_exist(path)
    data, files = None, []
    try:
        if _is_table(location):
            data, files = open_dataset(location)
            group_column = group if isinstance(group, str) and group in data.schema.names else None
            opened = scan_table(data, location, key or VECTOR, group_column, own_id_column, columns)
        else:
            opened, data = scan_array_file(location, key, own_id_column, columns, group)
    except InputError:
        raise
    except Exception as error:  # the readers of damaged files raise nearly every exception
        raise InputError(f"{location} cannot be read as embeddings: {one_line(error)}") from None
    if ids is None and not opened.has_ids:
        ids = _ids_beside(location, opened.n_rows)
        if ids is None and data is not None and id_column is None:
            opened = with_index(data, opened, files)
    opened = _override(opened, space, ids, group, id_column)
    return sampled(opened, select) if isinstance(select, Sample) else opened


@names_keywords
def read(
    source: EmbeddingsLike,
    *,
    space: str | Space | None = None,
    ids: Column | None = None,
    group: Column | None = None,
    id_column: IdColumn | None = None,
    sample: int | None = None,
    seed: int = 0,
) -> Embeddings:
    """Read embeddings into memory from a file, the table of a store, an array or a tensor.

    Args:
        source: A path, an array (n, dim), a torch tensor on any device, a data frame or Arrow table, or `Embeddings`. A
            path is a Parquet or Arrow file, a folder of such files, an `s3://` or `gs://` address, a `.npy` file,
            `file.npz:key`, or the address of a table in a store: `lancedb://PATH?table=T&vector=V&id=ID` or
            `postgresql://HOST/DATABASE?table=T&vector=V&id=ID`. The vectors of a Parquet or Arrow file are in its
            column `vector`; `file.parquet:column` names another column. Without this column, a data frame must have one
            number per column. The files of a folder are read in natural order (`part_2` before `part_10`).
        space: The name of the space, or its whole card (`Space`), in place of that of `source`. By default the space of
            a file is the one in its card or has the name of the file, and the space of an array is called `array`.
        ids: One id per row, in place of the ids of `source`: an array, a text file with one id per line, a `.npy` file,
            `file.npz:key` or `table.csv:column`. By default, the ids of a file without any are those in a file beside
            it: `NAME.ids.txt`, `NAME.ids.npy`, `ids.txt` or `ids.npy`.
        group: One group per row, in place of the groups of `source`: the name of a column of `source`,
            `table.csv:column` (matched by id if the table has ids), or an array or file as for `ids`. A column goes
            before a file of the same name.
        id_column: The column of `source` that contains the ids, or the names that it has in different files, such as
            `source` and a table of groups. By default it is `id`, else the index of a pandas data frame, else the only
            column with a usual name such as `doc_id`, `_id` or `uuid`.
        sample: The number of rows to draw at random; all if there are no more. Of a store, only these are read.
            Default: None, all rows.
        seed: The seed of the draw. Default: 0.

    Returns:
        The vectors with their space, ids and groups; `source` itself if it is `Embeddings` and nothing replaces its
        space, ids or groups, and no sample is drawn.

    Raises:
        InputError: If `source` cannot be read as floats of shape (n, dim), if it is a masked array, if `ids` or `group`
            does not have one entry per row, or if it is not clear which column contains the ids.
    """
    select = None if sample is None else Sample(sample, seed)
    return read_argument("The array", source, space=space, ids=ids, group=group, id_column=id_column, select=select)


def read_argument(subject: str, source: EmbeddingsLike, **options: Any) -> Embeddings:
    """Read `source` like `read`, with its options. Messages about an array call it `subject`."""
    if isinstance(source, Embeddings) and all(
        options.get(name) is None for name in ("space", "ids", "group", "select")
    ):
        return source
    return scan_argument(subject, source, **options).read()


def scan_argument(
    subject: str,
    source: EmbeddingsLike,
    *,
    space: str | Space | None = None,
    ids: Column | None = None,
    group: Column | None = None,
    id_column: IdColumn | None = None,
    columns: Sequence[str] | str = (),
    select: Sample | Sequence[str] | None = None,
) -> Scan:
    """Open a file as `scan` does, or embeddings, a table or an array in memory, which messages call `subject`."""
    if isinstance(source, str | os.PathLike):
        return scan(source, space=space, ids=ids, group=group, id_column=id_column, columns=columns, select=select)
    if isinstance(source, Embeddings):
        opened = _scan_embeddings(source, group)
    elif hasattr(source, "__arrow_c_stream__") and (hasattr(source, "columns") or hasattr(source, "column_names")):
        opened = _scan_frame(pa.table(source), subject, group, NO_IDS if ids is not None else id_column, columns)
        if ids is None and not opened.has_ids and id_column is None:
            opened = with_index(pyarrow.dataset.dataset(pa.table(source)), opened)
    else:
        opened = replace(scan_array("array", as_rows(source, subject)), path=subject)
    opened = _override(opened, space, ids, group, id_column)
    return sampled(opened, select) if isinstance(select, Sample) else opened


def _open_address(
    address: str,
    group: Column | None,
    id_column: IdColumn | None,
    columns: Sequence[str] | str,
    select: Sample | Sequence[str] | None,
) -> Scan:
    """Open rows of a store. Their ids are always a column, because a store has no order by which to pair."""
    if id_column == NO_IDS:
        raise InputError(f"`ids` cannot replace the ids of a table; name their column in the address: {address}&id=ID.")
    return scan_address(address, group if isinstance(group, str) else None, id_column, columns, select)


def _is_table(location: str) -> bool:
    return Path(location).suffix in ENDINGS or "://" in location or Path(location).is_dir()


def _scan_embeddings(embeddings: Embeddings, group: Column | None) -> Scan:
    groups_of = embeddings.groups
    if has_column(embeddings, group):
        groups_of = column_texts(embeddings.payload[group], f"Column {group!r} of the payload")  # type: ignore[index]

    def rows(size: int, start: int) -> Iterator[Batch]:
        for at in range(start, len(embeddings), size):
            part = embeddings.take(slice(at, at + size))
            yield part.vectors, part.ids, take_entries(groups_of, slice(at, at + size)), part.payload

    has_ids, has_groups = embeddings.ids is not None, groups_of is not embeddings.groups
    opened = Scan("embeddings", len(embeddings), embeddings.space, embeddings.declared, has_ids, rows)
    return replace(opened, has_groups=has_groups, has_range_index=embeddings.has_range_index)


def _scan_frame(
    table: pa.Table, subject: str, group: Column | None, id_column: IdColumn | None, columns: Sequence[str] | str
) -> Scan:
    """Scan a data frame or Arrow table: its column `vector`, or else all columns but those of ids and groups."""
    group_column = group if isinstance(group, str) and group in table.column_names else None
    if VECTOR not in table.column_names:
        ids = choose_id_column(table.schema, subject, id_column, others=(group_column,) if group_column else ())
        names = choose_dimensions(table, subject, ids, ids is not None or id_column == NO_IDS, group_column)
        array = np.column_stack([table[name].to_numpy() for name in names]) if names else np.zeros((len(table), 0))
        array = as_rows(array, subject)
        column = pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), array.shape[1])
        table = table.drop_columns(names).append_column(VECTOR, column)
        id_column = NO_IDS if ids is None else ids
    opened = scan_table(pyarrow.dataset.dataset(table), subject, VECTOR, group_column, id_column, columns)
    return replace(opened, space=opened.space if opened.declared else replace(opened.space, name="array"))


# --- space, ids and groups of the caller ------------------------------------------------------------------------------


def _ids_beside(location: str, n_rows: int) -> Path | None:
    """Return the file of ids beside a file without ids: one with its name, or one for the folder if the number fits."""
    if "://" in location:
        return None
    is_folder = os.path.isdir(location)
    path = Path(os.path.abspath(location) if is_folder else location)
    folder = path if is_folder else path.parent
    for ids_file in (path.with_name(f"{stem_of(location)}.ids{ending}") for ending in LISTS):
        if os.path.isfile(ids_file):  # unlike `Path.is_file`, it accepts names that are too long
            log.info("%s: the ids are those in %s.", location, ids_file)
            return ids_file
    for ids_file in (folder / f"ids{ending}" for ending in LISTS):
        if os.path.isfile(ids_file) and ids_file != path:
            n_ids = count_entries(ids_file, "ids")
            if n_ids == n_rows:
                log.info("%s: the ids are those in %s.", location, ids_file)
                return ids_file
            log.warning("%s: %s is not used, because it has %d ids for %d rows.", location, ids_file, n_ids, n_rows)
    return None


def place_group(sources: Sequence[EmbeddingsLike | None], group: Column | None) -> list[Column | None]:
    """Return the `group` to read each source with: only one source, the first with a column of this name, gets it.

    Groups that are no column belong to the first source that is not None. Raises InputError if `group` is text that
    names neither a column nor a file.
    """
    owners = [i for i, source in enumerate(sources) if source is not None and has_column(source, group)]
    present = [i for i, source in enumerate(sources) if source is not None]
    if not owners and isinstance(group, str) and not _is_list(group):
        raise InputError(
            "`group` must be a column of either side, TABLE:COLUMN, or a file or array with one group per row; got "
            f"{group!r}."
        )
    owner = next(iter([*owners, *present]), None)
    return [group if i == owner else None for i in range(len(sources))]


def has_column(source: EmbeddingsLike, group: object) -> bool:
    """Return whether `group` is the name of a column of the source."""
    if not isinstance(group, str):
        return False
    if is_address(source):
        return group in column_names(str(source))
    if isinstance(source, str | os.PathLike):
        location, _ = split_key(str(source))
        check_embeddings_exist(location)
        if location.endswith(".npz"):
            with np.load(location, allow_pickle=False) as archive:
                return group in archive.files
        return _is_table(location) and group in open_dataset(location)[0].schema.names
    table: Any = source.payload if isinstance(source, Embeddings) else source
    if isinstance(table, pa.Table | pa.RecordBatch):
        return group in table.schema.names
    return group in getattr(table, "columns", ())


def _override(
    opened: Scan, space: str | Space | None, ids: Column | None, group: Column | None, id_column: IdColumn | None
) -> Scan:
    """Return the scan with the space, ids and groups of the caller in place of those of the file."""
    if isinstance(space, Space):
        if space.dim != opened.space.dim:
            raise InputError(
                f"{opened.path} has {opened.space.dim} dimensions but `space` {space.name!r} has {space.dim}."
            )
        opened = replace(opened, space=space, declared=True)
    elif space is not None:
        opened = replace(opened, space=replace(opened.space, name=space), declared=True)
    stated_ids = None if ids is None else read_column(ids, opened.n_rows, "ids", opened.path)
    groups_of = None if group is None or opened.has_groups else _open_group(group, opened, id_column)
    if stated_ids is None and groups_of is None:
        return opened
    file_rows = opened._rows

    def rows(size: int, start: int) -> Iterator[Batch]:
        at = start
        for vectors, row_ids, groups, payload in file_rows(size, start):
            part = slice(at, at + len(vectors))
            at += len(vectors)
            row_ids = row_ids if stated_ids is None else stated_ids[part]
            groups = groups if groups_of is None else texts(groups_of(part, row_ids), "`group`", part.start)
            yield vectors, row_ids, groups, payload

    has_range_index = opened.has_range_index and ids is None
    return replace(opened, has_ids=opened.has_ids or ids is not None, has_range_index=has_range_index, _rows=rows)


def _is_list(group: str) -> bool:
    """Return whether `group` is a file of groups or a column of a table, and not the name of a column."""
    return is_file_or_pipe(Path(split_column(split_key(group)[0])[0]))


def _open_group(group: Column, opened: Scan, id_column: IdColumn | None) -> Entries:
    if isinstance(group, str) and not _is_list(group):
        raise InputError(
            f"`group` must be a column of {opened.path}, TABLE:COLUMN, or a file or array with one group per row; got "
            f"{group!r}."
        )
    return open_column(group, opened.n_rows, "group", opened.path, id_column)
