"""Bring native vectors of some rows into the new column: from a file or a store, or from an encoder that embeds them.

Rows that have their native vector already are left as they are, so a run that was interrupted goes on where it ended.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm import tqdm

from repstitch.addresses import is_address
from repstitch.bulk.job import CUT_OVER, Job, job_of
from repstitch.bulk.row_check import differ
from repstitch.bulk.settings import JobSettings
from repstitch.embeddings.ids import column_texts
from repstitch.embeddings.normalising import normalise
from repstitch.embeddings.reading import scan
from repstitch.embeddings.rows import Scan, invalid_rows
from repstitch.errors import InputError, one_line
from repstitch.files import split_key
from repstitch.lines import read_lines
from repstitch.mixing.placement import Placement
from repstitch.names import FORMATS
from repstitch.spaces import adopt
from repstitch.stitchers.stitcher import Stitcher
from repstitch.stores.store import NATIVE, Store

if TYPE_CHECKING:
    from repstitch.encoders.encoder import Encoder

BATCH_BYTES = 2**27  # of vectors that are written together: a store may write a whole file for a few of its rows
BATCH_TEXTS = 8_192  # that are embedded and written together, and are lost if the process is killed
ENDINGS = (".parquet", ".arrow")  # of files in a folder of embeddings


def native_as_stored(vectors: np.ndarray, stitcher: Stitcher, placement: Placement) -> np.ndarray:
    """Return native vectors (n, d_target) as they are stored beside the translations, as float32."""
    rows = torch.from_numpy(np.array(vectors, np.float32))
    return placement.native(normalise(rows, stitcher.output_norm, "`reembed`").numpy())


@dataclass
class Written:
    """What became of the rows to embed anew.

    Args:
        written: Rows whose native vector was written.
        unchanged: Rows that had it already.
        left_out: Ids without a row in the table, or without a text or a vector to write.
    """

    written: int = 0
    unchanged: int = 0
    left_out: int = 0

    def to_dict(self) -> dict[str, int]:
        """Return the numbers as JSON types."""
        return asdict(self)

    def __str__(self) -> str:
        text = f"{self.written:,} native vectors written"
        text += f", {self.unchanged:,} were there already" if self.unchanged else ""
        return text + (f"; {self.left_out:,} ids have no row, no text or no vector" if self.left_out else "")


@dataclass(eq=False)
class NativeRows(ABC):
    """Native vectors of rows of a table, by id. `counts` says what became of them in `write`."""

    stitcher: Stitcher
    counts: Written = field(default_factory=Written, kw_only=True)

    @property
    @abstractmethod
    def n_rows(self) -> int:
        """The number of rows to write."""

    @abstractmethod
    def write_all(self, store: Store, write: Callable[[list[str], np.ndarray], None], show: Callable[[int], object]):
        """Pass all rows to `write` in batches, and the number of rows of each batch to `show`."""

    def write(self, store: Store, placement: Placement, begin: Callable[[], None]) -> None:
        """Write the vectors to the new column of a table, whose job is resumed and has this placement.

        `begin` is called before the first vector is written, and not if all are there already.
        """
        self.counts.unchanged = self.counts.left_out = 0  # after a lost connection all rows are looked at again
        has_native = store.states().get(NATIVE, 0) > 0
        has_begun = False

        def write(ids: list[str], vectors: np.ndarray) -> None:
            nonlocal has_begun
            stored = native_as_stored(vectors, self.stitcher, placement)
            todo = _differ(ids, stored, natives_in(store, ids) if has_native else {})
            self.counts.unchanged += int((~todo).sum())
            if not todo.any():
                return
            if not has_begun:
                begin()
                has_begun = True
            n_written = store.write_native([ids[i] for i in np.flatnonzero(todo)], stored[todo])
            self.counts.written += n_written
            self.counts.left_out += int(todo.sum()) - n_written

        with tqdm(total=self.n_rows, unit="row", unit_scale=True, delay=1, desc="native", leave=False) as bar:
            self.write_all(store, write, bar.update)


@dataclass(eq=False)
class NativeVectors(NativeRows):
    """Native vectors in a file or in a store. With `only`, those of these ids."""

    rows: Scan
    only: frozenset[str] | None = None

    @property
    def n_rows(self) -> int:
        return self.rows.n_rows if self.only is None else len(self.only)

    def write_all(self, store: Store, write: Callable[[list[str], np.ndarray], None], show: Callable[[int], object]):
        n_seen = 0
        for ids, vectors in self.batches():
            write(ids, vectors)
            show(len(ids))
            n_seen += len(ids)
        self.counts.left_out += self.n_rows - n_seen

    def check(self) -> "NativeVectors":
        """Return these rows. Raises InputError if an id occurs twice, or if a vector cannot be used."""
        n_rows, n_invalid, hashes = 0, 0, []
        for ids, vectors in self.batches():
            n_rows += len(ids)
            n_invalid += int(np.logical_or(*invalid_rows(vectors).values()).sum())
            hashes.append(np.fromiter(map(hash, ids), np.int64, len(ids)))
        if n_invalid:
            raise InputError(
                f"`reembed` must have a vector in every row; {n_invalid:,} of {n_rows:,} rows have NaN, Inf or only "
                "zeros. Embed them again, or leave them out."
            )
        n_repeats = n_rows - len(np.unique(np.concatenate(hashes))) if hashes else 0
        if n_repeats:
            raise InputError(f"`reembed` must have each id once; {n_repeats:,} rows repeat one. Remove the repeats.")
        return self

    def batches(self) -> Iterator[tuple[list[str], np.ndarray]]:
        """Yield ids and vectors in the order of the file."""
        for batch in self.rows.batches(max(1, BATCH_BYTES // (4 * self.rows.space.dim))):
            assert batch.ids is not None
            ids, vectors = list(batch.ids), np.asarray(batch.vectors, np.float32)
            if self.only is not None:
                chosen = [i for i, key in enumerate(ids) if key in self.only]
                ids, vectors = [ids[i] for i in chosen], vectors[chosen]
            if ids:
                yield ids, vectors


@dataclass(eq=False)
class NativeTexts(NativeRows):
    """Texts of rows of the table, which an encoder embeds."""

    encoder: "Encoder"
    ids: tuple[str, ...]
    column: str

    @property
    def n_rows(self) -> int:
        return len(self.ids)

    def write_all(self, store: Store, write: Callable[[list[str], np.ndarray], None], show: Callable[[int], object]):
        has_native = store.states().get(NATIVE, 0) > 0
        for at in range(0, len(self.ids), BATCH_TEXTS):
            ids = self.ids[at : at + BATCH_TEXTS]
            done = natives_in(store, ids) if has_native else {}
            self.counts.unchanged += len(done)
            texts = self._texts(store, [key for key in ids if key not in done])
            self.counts.left_out += len(ids) - len(done) - len(texts)
            if texts:
                write(list(texts), self._embedded(list(texts.values())))
                self._redo_changed(store, texts)
            show(len(ids))

    def _texts(self, store: Store, ids: Sequence[str]) -> dict[str, str]:
        """Return the texts of rows by id, as far as there are any."""
        table = store.take(ids, [store.id, self.column])
        keys = column_texts(table.column(store.id), f"Column {store.id!r}")
        texts = zip(keys, table.column(self.column).to_pylist(), strict=True)
        return {key: str(text) for key, text in texts if text is not None}

    def _embedded(self, texts: list[str]) -> np.ndarray:
        try:
            vectors = self.encoder.encode(texts)
        except InputError:
            raise
        except Exception as error:  # models raise nearly every exception, for example if memory is short
            raise InputError(f"`reembed` {self.encoder.space.name!r} failed: {one_line(error)}") from error
        n_zeros = int((~vectors.any(axis=1)).sum())
        if n_zeros:
            raise InputError(
                f"`reembed` {self.encoder.space.name!r} returned only zeros for {n_zeros:,} of {len(texts):,} texts; "
                "leave their ids out."
            )
        return vectors

    def _redo_changed(self, store: Store, texts: dict[str, str]) -> None:
        """Let rows be translated whose texts others changed while they were embedded."""
        now = self._texts(store, list(texts))
        changed = [key for key, text in texts.items() if now.get(key) != text]
        if changed:
            n_rows = store.redo(changed)
            self.counts.written -= n_rows
            self.counts.left_out += n_rows


def open_native(store: Store, stitcher: Stitcher, settings: JobSettings) -> NativeRows | None:
    """Open the native rows that `settings.reembed` names, and check that they can be written to a table.

    Returns:
        The rows, or None if the settings name none.

    Raises:
        InputError: If the migration is cut over, or if the rows cannot be used: they have no ids, are in another space,
            or have invalid vectors; or there is no encoder of this name, or its vectors are in another space.
    """
    if settings.reembed is None:
        return None
    job = job_of(store)
    if job is not None:
        check_not_cut_over(store, job)
    ids = None if settings.ids is None else dict.fromkeys(filter(None, read_lines(settings.ids, "ids")))
    if not _is_embeddings(settings.reembed):
        return _open_encoder(store, stitcher, settings, ids)
    rows = scan(settings.reembed)
    adopt(rows.space, rows.declared, stitcher.target, "`reembed`", opposite=stitcher.source)
    if not rows.has_ids:
        raise InputError("`reembed` must have ids, by which its rows belong to those of the table.")
    return NativeVectors(stitcher, rows, None if ids is None else frozenset(ids)).check()


def check_not_cut_over(store: Store, job: Job) -> None:
    """Raise InputError if readers already see the new vectors."""
    if job.phase == CUT_OVER:
        raise InputError(
            f"`reembed` is for the time before the cut-over, and the migration of {store.address.label} is cut over; "
            "write native vectors to the new column as your application does."
        )


def natives_in(store: Store, ids: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the new vectors of those rows with these ids that are native and unchanged since."""
    natives: dict[str, np.ndarray] = {}
    for rows in store.compare(ids):
        mask = (rows.states == NATIVE) & rows.intact
        natives |= zip(rows.ids[mask], rows.new[mask], strict=True)
    return natives


def _differ(ids: list[str], vectors: np.ndarray, natives: dict[str, np.ndarray]) -> np.ndarray:
    """Return a mask (n,) of the rows that do not have their vector yet."""
    mask = np.array([key not in natives for key in ids], bool)
    if natives:
        present = np.flatnonzero(~mask)
        mask[present] = differ(np.stack([natives[ids[i]] for i in present]), vectors[present])
    return mask


def _is_embeddings(source: str) -> bool:
    """Return whether a source of native vectors is a file, a folder of files or an address, and not an encoder."""
    location, path = split_key(source)[0], Path(source)
    if is_address(source) or "://" in source or Path(location).suffix.lower() in FORMATS:
        return True
    return path.is_dir() and any(file.suffix.lower() in ENDINGS for file in path.rglob("*"))


def _open_encoder(store: Store, stitcher: Stitcher, settings: JobSettings, ids: dict[str, None] | None) -> NativeTexts:
    """Load the encoder of the target space. Raises InputError if it is another one, or if the texts are not named."""
    source, target, column = str(settings.reembed), stitcher.target, settings.text_column
    if ids is None or column is None:
        raise InputError(
            f"`reembed` {source} is taken for an encoder, for which `ids` and `text_column` must be passed too: the "
            f"file with the ids of the rows, and the column of their texts. A file of vectors ends in "
            f"{', '.join(FORMATS)}."
        )
    if column not in store.rows().schema.names:
        raise InputError(f"`text_column` must be a column of the table; there is no {column!r}.")
    from repstitch.encoders.catalogue import modality, resolve
    from repstitch.encoders.encoder import load_encoder

    role = None if target.role == "none" else target.role
    card = resolve(source, role=role, prompt=target.prompt)
    if modality(card) != "text":
        raise InputError(f"`reembed` {source} must be an encoder of texts; for images, embed them to a file first.")
    encoder = load_encoder(card)
    # A target space that does not state its encoder can only be compared by its number of dimensions.
    adopt(encoder.space, target.encoder is not None, target, "`reembed`", opposite=stitcher.source)
    return NativeTexts(stitcher, encoder, tuple(ids), column)
