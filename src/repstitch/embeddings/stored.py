"""Open embeddings in the table of a store: all of them, some drawn at random, or those with certain ids."""

import weakref
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset

from repstitch.addresses import parse_address
from repstitch.embeddings.arrow_tables import ALL_COLUMNS, scan_table
from repstitch.embeddings.ids import IdColumn, column_texts
from repstitch.embeddings.rows import Scan
from repstitch.embeddings.sampling import Sample
from repstitch.errors import InputError
from repstitch.spaces import NAME_LENGTH
from repstitch.stores.opening import open_store
from repstitch.stores.store import Store

IDS_PER_REQUEST = 10_000


def scan_address(
    text: str,
    group: str | None = None,
    id_column: IdColumn | None = None,
    columns: Sequence[str] | str = (),
    select: Sample | Sequence[str] | None = None,
) -> Scan:
    """Open the rows that an address selects; the other arguments are those of `scan_table`.

    With `select`, only some of the rows are read: a sample, for which rows without a vector are left out, or the rows
    with these ids, as far as the table contains them.
    """
    store = open_store(parse_address(text))
    rows: Any = store.rows()
    id_column = store.id if id_column is None else id_column
    if select is None:
        weakref.finalize(rows, store.close)
        return _scan(store, rows, group, id_column, columns)
    try:
        schema = rows.schema
        del rows
        table = _select(store, select, _needed(store, schema.names, group, id_column, columns))
        if not len(table) and not isinstance(select, Sample):
            raise InputError(
                f"{store.address} has none of the {len(select):,} ids of the other side, such as {select[0]!r}; pass "
                "embeddings of the same items, or name another column of ids with id= in the address."
            )
        data = pyarrow.dataset.dataset(table.replace_schema_metadata(schema.metadata))
        return _scan(store, data, group, id_column, columns)
    finally:
        store.close()


def column_names(text: str) -> list[str]:
    """Return the names of the columns of the table at an address."""
    with closing(open_store(parse_address(text))) as store:
        return store.rows().schema.names


def ids_in(text: str, ids: Sequence[str] | np.ndarray, at_most: int) -> list[str]:
    """Return those of the ids (n,) that the table at an address has, in their order, at most `at_most`."""
    present: list[str] = []
    with closing(open_store(parse_address(text))) as store:
        for at in range(0, len(ids), IDS_PER_REQUEST):
            part = list(ids[at : at + IDS_PER_REQUEST])
            column = store.take(part, [store.id]).column(store.id)
            in_table = set(column_texts(column, f"Column {store.id!r}"))
            present += [key for key in part if key in in_table]
            if len(present) >= at_most:
                break
    return present[:at_most]


def draw_common_ids(text: str, other: str, sample: Sample) -> list[str]:
    """Return ids that the tables at two addresses both have, drawn at random, as many as `sample` says if there are.

    They are drawn from the smaller table, more and more of them until enough are in the other one too.
    """
    with closing(open_store(parse_address(text))) as one, closing(open_store(parse_address(other))) as two:
        sizes = {text: one.rows().count_rows(), other: two.rows().count_rows()}
    smaller, larger = sorted(sizes, key=sizes.__getitem__) if len(sizes) == 2 else (text, text)
    n = sample.n
    while True:
        with closing(open_store(parse_address(smaller))) as store:
            column = store.sample(n, sample.seed, [store.id]).column(store.id)
            drawn = np.array(column_texts(column, f"Column {store.id!r}"), object)
        np.random.default_rng(sample.seed).shuffle(drawn)
        common = ids_in(larger, drawn, sample.n)
        if len(common) >= sample.n or n >= sizes[smaller]:
            return common or list(drawn)
        n = min(sizes[smaller], max(2 * n, 2 * n * sample.n // max(1, len(common))))


def _needed(
    store: Store, names: Sequence[str], group: str | None, id_column: IdColumn, columns: Sequence[str] | str
) -> list[str]:
    """Return the columns to read of some rows: all, or those of vectors, ids, groups and payload."""
    if columns == ALL_COLUMNS:
        return list(names)
    columns = [columns] if isinstance(columns, str) else columns
    ids = [id_column] if isinstance(id_column, str) else id_column
    wanted = {store.vector, group, *ids, *columns}
    return [name for name in names if name in wanted]


def _select(store: Store, select: Sample | Sequence[str], columns: Sequence[str]) -> pa.Table:
    if isinstance(select, Sample):
        return store.sample(select.n, select.seed, columns)
    starts = range(0, max(len(select), 1), IDS_PER_REQUEST)
    return pa.concat_tables(store.take(select[at : at + IDS_PER_REQUEST], columns) for at in starts)


def _scan(store: Store, rows: Any, group: str | None, id_column: IdColumn, columns: Sequence[str] | str) -> Scan:
    group = group if group in rows.schema.names else None
    address, name = str(store.address), _space_name(store)
    return scan_table(rows, address, store.vector, group, id_column, columns, name=name, card_of=store.vector)


def _space_name(store: Store) -> str:
    """Return `TABLE.VECTOR`, the name of a space without a card, with `_` for what no name may contain."""
    name = ".".join([*store.address.table_parts(), store.vector]).replace("->", "__")
    printable = "".join("_" if not c.isprintable() or c in "/\\" else c for c in name)
    return printable.lstrip(".")[:NAME_LENGTH] or "table"
