"""Swap the names of the old and the new column of a LanceDB table, and remove what a job has made.

The swap is one commit, so a reader sees the version before it or the one after it, and never a mix. It does not
conflict with rows that other programs write, so the versions that came between are looked at afterwards.
"""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import lance
import numpy as np
import pyarrow as pa
from lance.fragment import LanceFragment

from repstitch.errors import InputError
from repstitch.stores.arrow_columns import id_texts, matrix, vector_column
from repstitch.stores.checksums import checksums
from repstitch.stores.lancedb.filling import Filling, unclear_rows
from repstitch.stores.lancedb.fragments import Written, commit_files, files_with, key_of, read_rows, write_file
from repstitch.stores.lancedb.job import (
    CHECKED,
    JOB,
    JOB_SWAPPED,
    MOVE,
    Columns,
    find_columns,
    need_columns,
    save_metadata,
)
from repstitch.stores.lancedb.opening import committed, count_where, explained, open_latest, quoted
from repstitch.stores.lancedb.states import OUTDATED, no_checksums, split, states
from repstitch.stores.store import NATIVE, CutOver, RolledBack, Translate

CATCH_UPS = 30  # after which a cut-over gives up
BUSY = (
    "Other programs write faster to {} than rows can be translated: {} rows remain after {} tries, more than "
    "`max_rest` ({}). Raise it, or cut over when fewer programs write."
)


@dataclass(frozen=True)
class Swapped:
    """What a swap left: the versions before and after it, and the seconds that it took."""

    before: int
    after: int
    seconds: float

    @property
    def n_between(self) -> int:
        """The number of versions that other programs committed between the check and the swap."""
        return self.after - self.before - 1


def cut_over(filling: Filling, translate: Translate, job: dict[str, Any], max_rest: int) -> CutOver:
    """Catch up the rest, and give the new vectors the readers' name. See `Store.cut_over`.

    Nobody waits: writers go on, and rows that they write between the check and the swap are repaired at once.
    """
    columns = filling.columns(open_latest(filling.path))
    if columns.is_cut_over:  # a process that was killed after the swap may have repaired nothing
        save_metadata(filling.path, filling.vector, {JOB_SWAPPED if columns.is_swapped else JOB: json.dumps(job)})
        repaired, notes = _repair(filling, translate)
        return CutOver(0, 0.0, repaired, ("The new vectors were cut over before.", *notes))
    move = replace(columns.move, keep_names=bool(job.get("keep_names", columns.move.keep_names)))
    if move != columns.move:
        save_metadata(filling.path, filling.vector, {MOVE: json.dumps(asdict(move))})
        columns = filling.columns(open_latest(filling.path))
    _wait_for_few(filling, translate, max_rest)
    if columns.move.keep_names:
        n_rest, before = _catch_up_all(filling, translate)
        move = json.dumps(asdict(replace(columns.move, is_cut_over=True)))
        swapped = Swapped(before, save_metadata(filling.path, filling.vector, {MOVE: move, JOB: json.dumps(job)}), 0.0)
    else:
        save_metadata(filling.path, filling.vector, {JOB_SWAPPED: json.dumps(job)})
        n_rest, before = _catch_up_all(filling, translate)
        swapped = _swap(filling, before, {columns.old or "": columns.move.old, columns.new: columns.move.vector})
    set_tag(open_latest(filling.path).checkout_version(swapped.after), columns.cut_over_tag)
    repaired, notes = _repair(filling, translate)
    if columns.move.keep_names:
        notes = (f"Readers must now use column {columns.new!r}.", *notes)
    if swapped.n_between:
        notes = (f"Other programs committed {swapped.n_between} versions between the check and the swap.", *notes)
    return CutOver(n_rest, swapped.seconds, repaired, notes)


def _wait_for_few(filling: Filling, translate: Translate, max_rest: int) -> None:
    """Catch up until at most `max_rest` rows are left. Raises InputError if other programs are always faster."""
    n_rest = 0
    for _ in range(CATCH_UPS):
        n_rest = filling.count_rest(open_latest(filling.path))
        if n_rest <= max_rest:
            return
        filling.catch_up(translate, None)
    raise InputError(BUSY.format(filling.path, n_rest, CATCH_UPS, max_rest))


def _catch_up_all(filling: Filling, translate: Translate) -> tuple[int, int]:
    """Catch up the rows that are left, and return their number and the version in which they are right."""
    n_rest = filling.count_rest(open_latest(filling.path))
    filling.catch_up(translate, None)
    return n_rest, open_latest(filling.path).version


def _repair(filling: Filling, translate: Translate) -> tuple[int, tuple[str, ...]]:
    """Catch up the rows that were written during a swap, and return their number and notes."""
    repaired = 0
    for _ in range(CATCH_UPS):
        n_rest = filling.count_rest(open_latest(filling.path))
        if not n_rest:
            return repaired, ()
        repaired += n_rest
        filling.catch_up(translate, None)
    return repaired, ("Other programs go on writing old vectors; let the job catch up again.",)


def _swap(filling: Filling, checked: int, names: dict[str, str]) -> Swapped:
    """Rename columns in one commit. `checked` is the version that was last found right."""
    started = time.perf_counter()

    def change() -> int:
        dataset = open_latest(filling.path)  # an older one would undo changes of metadata
        alterations: list[Any] = [{"path": name, "name": new} for name, new in names.items()]
        alterations[0]["nullable"] = True  # rows that are written without an old vector must be accepted
        dataset.alter_columns(*alterations)
        return dataset.version

    after = committed(change, f"The columns of {filling.path} cannot be renamed")
    return Swapped(checked, after, time.perf_counter() - started)


def set_tag(dataset: lance.LanceDataset, name: str) -> None:
    """Tag a version, in place of the one that has the tag."""
    with explained(f"Version {dataset.version} of {dataset.uri} cannot be tagged"):
        if name in dataset.tags.list():
            dataset.tags.update(name, dataset.version)
        else:
            dataset.tags.create(name, dataset.version)


def remove_tags(dataset: lance.LanceDataset, names: Sequence[str]) -> None:
    """Remove those of the tags that exist."""
    with explained(f"The tags of the job cannot be removed from {dataset.uri}"):
        for name in set(names) & set(dataset.tags.list()):
            dataset.tags.delete(name)


def roll_back(filling: Filling, job: dict[str, Any]) -> RolledBack:
    """Give the old vectors their name again, after removing those that are out of date. See `Store.roll_back`."""
    columns = filling.columns(open_latest(filling.path))
    if not columns.is_cut_over:
        save_metadata(filling.path, filling.vector, {JOB: json.dumps(job)})
        return RolledBack(count_only_new(filling), 0.0, ("The names had been swapped back before.",))
    checked = _remove_outdated(filling)
    seconds, notes = 0.0, []
    # the version that was found right has rows whose state does not say yet that they are native
    changes = {JOB: json.dumps(job), CHECKED: None}
    if columns.is_swapped:
        save_metadata(filling.path, filling.vector, changes)
        checked = _remove_outdated(filling)
        swapped = _swap(filling, checked, {columns.new: columns.move.new, columns.old or "": columns.move.vector})
        seconds = swapped.seconds
        if swapped.n_between:
            _remove_outdated(filling)
            notes.append(f"Other programs committed {swapped.n_between} versions during the swap.")
    else:
        move = json.dumps(asdict(replace(columns.move, is_cut_over=False)))
        save_metadata(filling.path, filling.vector, changes | {MOVE: move})
    filling.checked.clear()
    remove_tags(open_latest(filling.path), [columns.cut_over_tag])
    n_without_old = count_only_new(filling)
    if columns.move.not_null and columns.is_swapped and not _restore_not_null(filling):
        notes.append(f"Column {filling.vector!r} accepts nulls now, because some rows have no old vector.")
    return RolledBack(n_without_old, seconds, tuple(notes))


def count_only_new(filling: Filling) -> int:
    """Return the number of rows that have a new vector and no old one."""
    dataset = open_latest(filling.path)
    columns = filling.columns(dataset)
    return count_where(dataset, f"{quoted(columns.old or '')} is null and {quoted(columns.new)} is not null")


def _restore_not_null(filling: Filling) -> bool:
    """Let the old column accept no nulls, as before the job. Returns False if it has some."""

    def change() -> bool:
        dataset = open_latest(filling.path)
        if count_where(dataset, f"{quoted(filling.vector)} is null"):
            return False
        alteration: Any = {"path": filling.vector, "nullable": False}
        dataset.alter_columns(alteration)
        return True

    return committed(change, f"Column {filling.vector!r} of {filling.path} cannot be made not null again")


def outdated(filling: Filling, fragment: LanceFragment, columns: Columns) -> Iterator[tuple[Any, np.ndarray]]:
    """Yield the rows of a fragment, with a mask of those of which only the new vector was written since."""
    for batch in filling.batches(fragment, columns, filling.history.id):
        written_by_readers = filling.history.readers_own(unclear_rows(batch), columns.cut_over_tag)
        mask = np.zeros(len(batch.places), bool)
        if written_by_readers and batch.ids is not None:
            mask |= [key in written_by_readers for key in id_texts(batch.ids)]
        for row in np.flatnonzero(batch.has_old & batch.has_new & np.asarray(batch.states.is_valid())):
            _, old, new = split(batch.states[row].as_py())
            is_written = batch.new_sums[row].tobytes() != new.encode()
            is_intact = batch.old_sums[row].tobytes() == old.encode()
            mask[row] |= (is_written and is_intact) or old == OUTDATED.decode()
        yield batch, mask


def _remove_outdated(filling: Filling) -> int:
    """Empty the old vectors of rows whose new vector was written since the cut-over, and return the version checked."""
    for _ in range(CATCH_UPS):
        dataset = open_latest(filling.path)
        columns = filling.columns(dataset)
        cut_over_keys = _keys_at_cut_over(filling, dataset, columns)
        ids = {name: columns.ids[name] for name in (columns.old or "", columns.state)}
        kind = dataset.schema.field(columns.old or "").type
        written = []
        for fragment in dataset.get_fragments():
            if key_of(fragment, columns) in cut_over_keys:
                continue
            n_outdated = sum(int(mask.sum()) for _, mask in outdated(filling, fragment, columns))
            if n_outdated:
                file = write_file(filling.path, fragment, ids, _without_outdated(filling, fragment, columns, kind))
                replaced = files_with(fragment, ids.values())
                written.append(Written(fragment.fragment_id, replaced, file, n_outdated))
        if not written:
            return dataset.version
        commit_files(filling.path, written)
    raise InputError(f"Other programs write faster to {filling.path} than old vectors can be checked; try again later.")


def _keys_at_cut_over(filling: Filling, dataset: lance.LanceDataset, columns: Columns) -> set:
    """Return the keys of the fragments in the version that readers first saw after the cut-over."""
    return keys_at(dataset, columns.cut_over_tag, filling.vector)


def keys_at(dataset: lance.LanceDataset, version: int | str, vector: str) -> set:
    """Return the keys of the fragments in a version, by its number or tag: none if it is gone."""
    try:
        opened = dataset.checkout_version(version)
    except (OSError, ValueError):
        return set()
    columns = find_columns(opened, vector)
    return {key_of(fragment, columns) for fragment in opened.get_fragments()} if columns else set()


def _without_outdated(
    filling: Filling, fragment: LanceFragment, columns: Columns, kind: pa.DataType
) -> Iterator[tuple[np.ndarray, pa.RecordBatch]]:
    """Yield the old vectors, of this type, and states of a fragment without the old vectors that are out of date."""
    for batch, mask in outdated(filling, fragment, columns):
        texts = np.asarray(batch.states.to_pylist(), object)
        texts[mask] = states(NATIVE, no_checksums(int(mask.sum())), batch.new_sums[mask]).to_numpy(False)
        old = vector_column(batch.old, batch.has_old & ~mask).cast(kind)
        yield (
            batch.places,
            pa.record_batch([old, pa.array(texts, pa.string())], names=[columns.old or "", columns.state]),
        )


def written_since(filling: Filling, limit: int) -> np.ndarray:
    """Return readers' vectors (n, d) that others wrote since the cut-over, at most `limit`. See `Store`."""
    dataset = open_latest(filling.path)
    columns = need_columns(dataset, filling.vector)
    keys_at_cut_over, parts, n = _keys_at_cut_over(filling, dataset, columns), [], 0
    for fragment in dataset.get_fragments():
        if n >= limit:
            break
        if key_of(fragment, columns) in keys_at_cut_over:
            continue
        for _, batch in read_rows(fragment, [columns.new, columns.state]):
            new, has_new = matrix(batch[columns.new], filling.dims[1])
            new_sums = checksums(new, has_new)
            stored = [split(state or "") for state in batch[columns.state].to_pylist()]
            mask = has_new & [
                new_sum.tobytes() != state[2].encode() or state[1] == OUTDATED.decode()
                for new_sum, state in zip(new_sums, stored, strict=True)
            ]
            parts.append(new[mask])
            n += len(parts[-1])
    return np.concatenate([*parts, np.empty((0, filling.dims[1]), np.float32)])[:limit]
