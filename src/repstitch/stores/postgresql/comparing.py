"""Read the old and the new vectors of rows together, with their states."""

from collections.abc import Iterator, Sequence

import numpy as np

from repstitch.stores.postgresql.connection import raw
from repstitch.stores.postgresql.copying import FLAG, record, rows_of
from repstitch.stores.postgresql.layout import Layout, word_of
from repstitch.stores.postgresql.rows import Selection, batch_rows, grouped, one_of, or_zeros
from repstitch.stores.store import NATIVE, SKIPPED, TRANSLATED, Compared

WORDS = ("", TRANSLATED, NATIVE, SKIPPED)
NO_OLD, NO_NEW, BROKEN = 4, 8, 16  # added to the place in WORDS, in the flag of a row
SIGNS = ord("A")  # of the flag 0


def compare(layout: Layout, selection: Selection, ids: Sequence[str] | None) -> Iterator[Compared]:
    """Yield all rows with an old or a new vector, in batches, at one moment; only those with `ids` if given.

    A row that is no longer in the table, though its new vector is, has no state and is not intact.
    """
    table = layout.table
    chosen = raw("is not null") if ids is None else one_of(ids, table.fields[layout.id].type)
    relation, columns = layout.compared(chosen)
    query = layout.compose(
        """select chr({signs} + case when {is_orphan} then {broken} else case {word} when {translated} then 1
                when {native} then 2 when {skipped} then 3 else 0 end
            + case when case {word} when {native} then split_part({state}, ':', 2) <> {checksum}
                when {translated} then {state} <> {job_state} when {skipped} then {new} is not null
                else {new} is not null end or {new} is null and {state} <> {skipped} then {broken} else 0 end end
            + case when {old} is null then {no_old} else 0 end + case when {new} is null then {no_new} else 0 end
            )::"char", {old_or_zeros}, {new_or_zeros}, {id}::text
        from {relation} where {old} is not null or {new} is not null""",
        relation=relation,
        signs=SIGNS,
        word=word_of(columns["state"]),
        translated=TRANSLATED,
        native=NATIVE,
        no_old=NO_OLD,
        no_new=NO_NEW,
        broken=BROKEN,
        job_state=layout.names["state"],
        checksum=layout.checksum(columns["new"]),
        old_or_zeros=or_zeros(table, columns["old"], layout.source),
        new_or_zeros=or_zeros(table, columns["new"], layout.target),
        **columns,
    )
    fields = record({"flag": FLAG, "old": layout.source, "new": layout.target})
    for rows in grouped(rows_of(layout.session.copy_out(query)), batch_rows(layout.target)):
        records, texts = selection.decoded(rows, fields)
        yield _compared(records, texts)


def _compared(records: np.ndarray, ids: list[str]) -> Compared:
    """Return rows as they are compared, from records with a flag."""
    flags = records["flag"].view(np.uint8).astype(int) - SIGNS
    old, new = records["old"].astype(np.float32), records["new"].astype(np.float32)
    old[flags & NO_OLD > 0] = np.nan
    new[flags & NO_NEW > 0] = np.nan
    words = np.array(WORDS, dtype=object)[flags & 3]
    return Compared(np.array(ids, dtype=object), old, new, words, flags & BROKEN == 0)
