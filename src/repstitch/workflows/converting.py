"""Convert a file of embeddings to another format."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from repstitch.arguments import names_keywords
from repstitch.embeddings.arrow_tables import ALL_COLUMNS
from repstitch.embeddings.columns import Column
from repstitch.embeddings.exchange import read_text_table
from repstitch.embeddings.exporting import WRITTEN_FORMATS, write_as
from repstitch.embeddings.ids import NO_IDS, IdColumn
from repstitch.embeddings.reading import scan, scan_argument
from repstitch.errors import InputError
from repstitch.files import check_ending, check_new, split_key
from repstitch.names import CONVERTIBLE, FORMATS
from repstitch.spaces import Space

log = logging.getLogger(__name__)
WITHOUT_COLUMNS = (".npy", ".npz")


@names_keywords
def convert(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    space: str | Space | None = None,
    ids: Column | None = None,
    id_column: IdColumn | None = None,
    columns: Sequence[str] | str = ALL_COLUMNS,
) -> int:
    """Convert a file of embeddings to the format that the ending of `out` names, and return the number of rows.

    Args:
        path: The embeddings: a file or folder that `repstitch.read` accepts, a .csv or .tsv file with vectors such as
            `[0.1,0.2]` or with one number per column, lines of JSON (.jsonl or .ndjson), or a .json file with a list of
            points or the reply to a scroll request of Qdrant. `file.csv:column` names the column of the vectors.
        out: The file to write, which must not exist: .parquet, .arrow, .npy (with NAME.ids.txt beside it), .npz, .csv,
            .jsonl or .ndjson.
        space: The name or card (`Space`) of the space, which .parquet and .arrow files then state. Default: that of the
            card of `path`; without a card, none is written.
        ids: One id per row, in place of those in the file (see `repstitch.read`).
        id_column: The column that contains the ids. Default: chosen as by `repstitch.read`.
        columns: The names of further columns to copy, or "all". An array has none. Default: "all".

    Returns:
        The number of rows.

    Raises:
        InputError: If `path` cannot be read, if a file to write exists, or if its format cannot contain the rows.
    """
    target = check_new(check_ending(out, WRITTEN_FORMATS))
    location, key = split_key(str(path), (*FORMATS, *CONVERTIBLE))
    ending = Path(location).suffix.lower()
    if ending in CONVERTIBLE:
        table = read_text_table(Path(location), key, id_column if ids is None else NO_IDS)
        opened = scan_argument(location, table, ids=ids, id_column=id_column, columns=columns, space=space)
    else:
        further = () if ending in WITHOUT_COLUMNS and columns == ALL_COLUMNS else columns
        opened = scan(path, ids=ids, id_column=id_column, columns=further, space=space)
    lost = [*opened.left_out, *(opened.payload.names if target.suffix in WITHOUT_COLUMNS else ())]
    if lost:
        log.info("%s: not copied: %s.", location, ", ".join(lost))
    taken = {"id", "vector"}.intersection(opened.payload.names)
    if taken:
        raise InputError(f"`columns` must not name {', '.join(sorted(taken))}, which the output has already.")
    write_as(target, opened)
    return opened.n_rows
