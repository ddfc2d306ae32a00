"""What a store of vectors must be able to do, so that its embeddings can be read and moved to another space.

A store knows tables, columns, indexes and transactions, and nothing of stitchers: a job passes the function that
translates. To add a store, write a module with a subclass of `Store`, and add one row to STORES in `opening.py`.

A job calls the methods in this order: `facts`, `check`, `begin`; `units` and `fill` until no unit is left; `catch_up`
until `count_rest` is 0; `write_native`, if rows are embedded anew; `index`; `compare` and `search`; `cut_over`; then
`roll_back` or `clean_up`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import pyarrow as pa

from repstitch.addresses import Address

Translate = Callable[[np.ndarray], np.ndarray]
"""Translates float32 rows (n, d_source) to (n, d_target). A row that has no translation, such as one of zeros, becomes
NaN; the store then writes no vector for it, and the state SKIPPED."""

TRANSLATED, NATIVE, SKIPPED = "translated", "native", "skipped"  # the states of a row begin with one of these words
MISSING = "missing"  # the stamp of an index that should be there
Which = Literal["old", "new"]  # the two columns of vectors of a job


class Rows(Protocol):
    """The rows of a table, with the part of the interface of `pyarrow.dataset.Dataset` that reading uses.

    `schema` has the vectors as fixed-size lists of float32 or float16. Its metadata has the card of the space under
    `repstitch.space`, if the column states one.
    """

    @property
    def schema(self) -> pa.Schema: ...
    def count_rows(self) -> int: ...
    def head(self, num_rows: int, columns: Sequence[str] | None = None) -> pa.Table: ...
    def get_fragments(self) -> Iterator[Any]: ...


@dataclass(frozen=True)
class Capabilities:
    """What a store declares that it can do. Each is tested on every store; what is not declared is refused.

    Args:
        concurrent_writers: Whether other programs may insert, update and delete rows during the whole job.
        atomic_cutover: Whether the cut-over is one step, so that no reader sees two spaces, or none.
        column_in_place: Whether the new vectors stand in the same table as the old ones.
        writers_guard: Whether writers of old vectors can be refused after a cut-over between equal dimensions.
        state_kept: Where the state of a job is kept, for people.
    """

    concurrent_writers: bool
    atomic_cutover: bool
    column_in_place: bool
    writers_guard: bool
    state_kept: str


@dataclass(frozen=True)
class Index:
    """An index on the column of vectors.

    `settings` are the store's own, such as m and ef_construction. `metric` is `cosine`, `l2` or `dot`; another one,
    such as a distance of city blocks, cannot be compared with an exact search.
    """

    name: str
    kind: str
    settings: dict[str, Any]
    n_bytes: int | None = None
    metric: str = "cosine"


@dataclass(frozen=True)
class Facts:
    """What a plan must know of a table.

    Args:
        n_rows: Number of rows.
        n_without_vector: Number of rows whose vector is null.
        dim: Number of dimensions of the vectors.
        table_bytes: Size of the table with its vectors, without indexes.
        index_bytes: Size of all indexes.
        free_bytes: Free space on the disk of the store, or None if it cannot be known.
        indexes: The indexes on the column of vectors.
        dependents: Sentences that name what depends on the column: views, generated columns, policies, grants, …
        layout: How the store would keep the new vectors, such as `column` or `side table`, for people.
    """

    n_rows: int
    n_without_vector: int
    dim: int
    table_bytes: int
    index_bytes: int
    free_bytes: int | None
    indexes: tuple[Index, ...] = ()
    dependents: tuple[str, ...] = ()
    layout: str = "column"


@dataclass(frozen=True)
class Migration:
    """The move of a column of vectors to another space.

    Args:
        dim: Number of dimensions of the new vectors.
        version: The version of the stitcher; the state of a translated row is `translated@VERSION`.
        space: The card of the new space, as JSON, which is stored with the new column.
        new: The name of the new column until the cut-over.
        old: The name of the old column after a cut-over that swaps the names.
        keep_names: If True, the cut-over leaves the names as they are, and readers go to the new name. The default
            between equal dimensions, where old readers of a swapped name would get wrong results without an error.
        view: The view through which readers read. The cut-over replaces it, and no column is renamed.
        layout: `column` or `side`, or None to let the store choose.
    """

    dim: int
    version: str
    space: str
    new: str
    old: str
    keep_names: bool = False
    view: str | None = None
    layout: str | None = None

    @property
    def state(self) -> str:
        """The state of a row that this job has translated."""
        return f"{TRANSLATED}@{self.version}"


@dataclass(frozen=True)
class Unit:
    """Rows that are translated together: a fragment, a range of blocks, a file.

    `token` is the store's own. It says which content of the unit is meant, so that nothing is written over a later one.
    """

    name: str
    n_rows: int
    token: Any = field(default=None, repr=False)


@dataclass(frozen=True)
class Compared:
    """Rows of both columns at one moment, as `compare` reads them.

    Args:
        ids: The ids (n,), as text.
        old: The old vectors (n, d_source) as float32; NaN where there is none.
        new: The new vectors (n, d_target) as float32; NaN where there is none.
        states: The first word of the state of each row (n,): `translated`, `native`, `skipped`, or "" for none.
        intact: Mask (n,): False where the stored state says that a vector has been changed since, for example by
            another checksum of a native vector, or where the state has another version than the job's.
    """

    ids: np.ndarray
    old: np.ndarray
    new: np.ndarray
    states: np.ndarray
    intact: np.ndarray


@dataclass(frozen=True)
class Hits:
    """Results of searches in the store: `ids` (n_queries, k) as text ("" beyond the last hit) and `seconds` (n,)."""

    ids: np.ndarray
    seconds: np.ndarray


@dataclass(frozen=True)
class CutOver:
    """What a cut-over did: rows caught up inside it, the seconds for which others had to wait, and notes for people.

    `repaired` are rows that others wrote between the check and the cut-over, where the store cannot prevent it.
    """

    n_rest: int
    pause_seconds: float
    repaired: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class RolledBack:
    """What a roll-back left: rows without an old vector, because they were written since the cut-over."""

    n_without_old: int
    pause_seconds: float
    notes: tuple[str, ...] = ()


class Store(ABC):
    """The embeddings at one address, opened. An instance is used by one thread at a time; `reopen` gives another.

    Every error that the caller can mend is an InputError with one line that says what to do. A lost connection is a
    ConnectionError, after which the job opens the store again and goes on.
    """

    capabilities: ClassVar[Capabilities]
    address: Address
    vector: str  # the column of vectors that the address names, or the only one
    id: str  # the column of ids

    # --- reading ------------------------------------------------------------------------------------------------------

    @abstractmethod
    def rows(self) -> Rows:
        """Return the rows that the address selects, at one moment."""

    @abstractmethod
    def sample(self, n: int, seed: int, columns: Sequence[str]) -> pa.Table:
        """Return n rows drawn at random, each with the same probability, without reading the whole table.

        All rows if there are no more than n. Rows without a vector are left out.
        """

    @abstractmethod
    def take(self, ids: Sequence[str], columns: Sequence[str]) -> pa.Table:
        """Return the rows with these ids, in any order. Rows that do not exist are left out."""

    @abstractmethod
    def reopen(self) -> "Store":
        """Return the same embeddings through a new connection."""

    @abstractmethod
    def close(self) -> None:
        """End the connection."""

    # --- before a job -------------------------------------------------------------------------------------------------

    @abstractmethod
    def facts(self) -> Facts:
        """Return what a plan must know. Writes nothing."""

    @abstractmethod
    def check(self, migration: Migration) -> None:
        """Raise InputError, which says what to do, if the column cannot be moved so. Writes nothing.

        Reasons: no permission, a read-only store, a name that is taken, ids that are missing or doubled, a condition in
        the address, a view that would go on showing old vectors, too many dimensions for the index.
        """

    def describe_place(self, migration: Migration) -> str:
        """Return where the new vectors will stand until the cut-over, for people."""
        return f"column {migration.new}"

    def describe_cut_over(self, migration: Migration) -> str:
        """Return what a cut-over changes, for people."""
        if migration.view is not None:
            return f"view {migration.view} shows the new vectors"
        if migration.keep_names:
            return f"no name changes; readers go to {migration.new}"
        return f"{self.vector} becomes {migration.old}, and {migration.new} becomes {self.vector}"

    @abstractmethod
    def peak_bytes(self, migration: Migration, facts: Facts) -> dict[str, int]:
        """Estimate the bytes that a job adds at its peak, by cause, such as `new vectors` and `write-ahead log`."""

    @abstractmethod
    def rehearsal(self, n: int) -> AbstractContextManager["Store"]:
        """Yield a store with a copy of n random rows that has the same indexes, and remove it at the end.

        The user's table is not written. A plan times a whole job on it.
        """

    # --- the job ------------------------------------------------------------------------------------------------------

    @abstractmethod
    def locked(self) -> AbstractContextManager[None]:
        """Hold the right to work on this column. Raises InputError if another job on it is running.

        The right ends with the process, however it ends.
        """

    @abstractmethod
    def job(self) -> dict[str, Any] | None:
        """Return what `save_job` has stored with the column, or None if there is no job."""

    @abstractmethod
    def save_job(self, job: dict[str, Any]) -> None:
        """Store the state of the job, as JSON, with what the job has made, never over what belongs to the user."""

    @abstractmethod
    def begin(self, migration: Migration, job: dict[str, Any]) -> None:
        """Make the place for the new vectors, with the state of the job in it; if it is there, check that it fits."""

    @abstractmethod
    def resume(self, migration: Migration) -> None:
        """Prepare this instance for the methods below, for a job that has begun. Writes nothing.

        Raises InputError if what the job needs is gone.
        """

    @abstractmethod
    def units(self) -> list[Unit]:
        """Return the units of the first pass that are still to do."""

    @abstractmethod
    def fill(self, unit: Unit, translate: Translate) -> int:
        """Translate and write the rows of a unit that have no new vector, and return their number.

        Rows that have changed since the token was taken are not written; they come again in `units` or `catch_up`.
        """

    @abstractmethod
    def catch_up(self, translate: Translate) -> int:
        """Translate some of the rows that were written since, at most some thousands. Return the number looked at."""

    @abstractmethod
    def redo(self, ids: Sequence[str]) -> int:
        """Mark rows whose new vectors are not right, so that `catch_up` translates them again. Return their number.

        New vectors of rows that do not exist any more are removed.
        """

    @abstractmethod
    def write_native(self, ids: Sequence[str], vectors: np.ndarray) -> int:
        """Write native vectors of rows into the new column before the cut-over, and mark these rows as native.

        `fill` and `catch_up` leave a native vector alone until others change the old vector of its row. A store that
        writes whole files may put the vectors into them in the next `catch_up`. A call can be repeated.

        Args:
            ids: The ids (n,) of the rows, each once. Those that are not in the table are left out.
            vectors: The native vectors (n, d_target), finite, as they are to be stored.

        Returns:
            The number of rows that have their native vector.

        Raises:
            InputError: If the vectors cannot be stored, or if other programs lock or change the rows all the time.
        """

    @abstractmethod
    def count_rest(self, at_most: int | None = None) -> int:
        """Return the number of rows whose new vector is missing or out of date; counting may end at `at_most`."""

    @abstractmethod
    def states(self) -> dict[str, int]:
        """Return the number of rows by the first word of their state, with "" for those that are still to do."""

    def count_only_new(self) -> int:
        """Return the number of rows that have a new vector and no old one."""
        masks = (np.isfinite(rows.new).all(axis=1) & ~np.isfinite(rows.old).all(axis=1) for rows in self.compare())
        return sum(int(mask.sum()) for mask in masks)

    @abstractmethod
    def index(self, progress: Callable[[float], None]) -> None:
        """Build the index of the new column with the settings of the old one, if there is one; a broken one is redone.

        `progress` is called with the share that is done, from 0 to 1, as far as the store tells it.
        """

    @abstractmethod
    def index_stamp(self) -> str:
        """Return text that changes if the index of the new column is made anew or is no longer usable.

        It is "" if there is none and the old column has none either, and MISSING if only the old column has one.
        """

    # --- verification -------------------------------------------------------------------------------------------------

    @abstractmethod
    def compare(self, ids: Sequence[str] | None = None) -> Iterator[Compared]:
        """Yield all rows that have an old or a new vector, or those of them with `ids`, in batches, at one moment."""

    @abstractmethod
    def search(
        self, queries: np.ndarray, k: int, which: Which, where: str | None = None, metric: str | None = None
    ) -> Hits:
        """Search one column with queries (n, d), one after another, as a reader would: with the readers' settings and
        the index that has this metric, by default the first one. `where` is a filter in the store's language.
        """

    # --- cut-over -----------------------------------------------------------------------------------------------------

    @abstractmethod
    def cut_over(self, translate: Translate, job: dict[str, Any], max_rest: int, max_pause: float) -> CutOver:
        """Catch up the rest, make the new vectors those that readers see, and store the state of the job, in one step.

        If more than `max_rest` rows or `max_pause` seconds of waiting would remain, let go, catch up and try again;
        after some tries raise InputError. `keep_names` and `guard` of the job hold, also if they differ from those at
        the beginning. If a store cannot do it in one step, it checks at once that nothing came between, repairs, and
        reports.
        """

    @abstractmethod
    def roll_back(self, job: dict[str, Any], max_pause: float) -> RolledBack:
        """Make the old vectors those that readers see again, and store the state of the job, in one step."""

    @abstractmethod
    def clean_up(self) -> None:
        """Before a cut-over, or after a roll-back: remove all that the job has made, so that the table is as found.

        After a cut-over: remove the old vectors and all else that the job needs no more. It can be repeated.
        """

    @abstractmethod
    def written_since(self, limit: int) -> np.ndarray:
        """Return the vectors (n, d) that others wrote to the readers' column since the cut-over, at most `limit`."""
