"""The state of a migration, which is stored with the new column so that any machine can go on."""

from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import repstitch
from repstitch.bulk.settings import JobSettings
from repstitch.errors import InputError, one_line
from repstitch.mixing.placement import Placement
from repstitch.spaces import SPACE_KEY, Space, adopt
from repstitch.stitchers.stitcher import Stitcher
from repstitch.stores.store import Facts, Migration, Store

PLAIN_FORMAT, FORMAT_VERSION = 1, 2  # earlier releases would write other vectors to a job with a placement
DAMAGED = "The state of the job on this column is damaged"
FILLING, FILLED, INDEXED, INCOMPLETE, VERIFIED, CUT_OVER, ROLLED_BACK = (
    "filling",
    "filled",
    "indexed",
    "incomplete",  # all rows are right, but no search question was asked
    "verified",
    "cut over",
    "rolled back",
)


@dataclass(frozen=True)
class Job:
    """A migration and how far it has come.

    Args:
        migration: What is done to the table.
        phase: `filling`, `filled`, `indexed`, `incomplete`, `verified`, `cut over` or `rolled back`.
        source: The card of the old space.
        verification: The result of the last verification, as JSON, with the stamp of the index that it was made with.
        guard: Whether writers must state the new space after the cut-over.
        placement: How translated rows, native rows and queries are written.
        started: When the job began, in ISO 8601.
    """

    migration: Migration
    phase: str
    source: dict[str, Any]
    verification: dict[str, Any] | None = None
    guard: bool = False
    placement: Placement = field(default_factory=Placement)
    started: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def to_dict(self) -> dict[str, Any]:
        """Return the job as JSON types."""
        return {
            "format_version": PLAIN_FORMAT if self.placement.is_plain else FORMAT_VERSION,
            "repstitch": repstitch.__version__,
            "phase": self.phase,
            "stitcher": self.migration.version,
            "source": self.source,
            "target": Space.from_json(self.migration.space).to_dict(),
            "dim": self.migration.dim,
            "new": self.migration.new,
            "old": self.migration.old,
            "keep_names": self.migration.keep_names,
            "view": self.migration.view,
            "layout": self.migration.layout,
            "guard": self.guard,
            "verification": self.verification,
            "started": self.started,
            **({} if self.placement.is_plain else {"placement": asdict(self.placement)}),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Job":
        """Read a job. Raises InputError if a newer release has written it, or if it is damaged."""
        if not isinstance(values, dict):
            raise InputError(f"{DAMAGED}; clean up and begin anew.")
        if values.get("format_version") not in (PLAIN_FORMAT, FORMAT_VERSION):
            raise InputError(
                f"The job on this column has format {values.get('format_version')!r}, and this release reads formats "
                f"{PLAIN_FORMAT} and {FORMAT_VERSION}; use the release that began the job ({values.get('repstitch')})."
            )
        try:
            migration = Migration(
                dim=values["dim"],
                version=values["stitcher"],
                space=Space.from_dict(values["target"]).to_json(),
                new=values["new"],
                old=values["old"],
                keep_names=values["keep_names"],
                view=values["view"],
                layout=values["layout"],
            )
            Space.from_dict(values["source"])
            if values["phase"] not in ADVICE:
                raise KeyError("phase")
            rest = {name: values[name] for name in ("phase", "source", "verification", "guard", "started")}
            return cls(migration, placement=Placement(**values.get("placement", {})), **rest)
        except (InputError, KeyError, TypeError) as error:
            raise InputError(f"{DAMAGED} ({one_line(error)}); clean up and begin anew.") from None

    def at(self, phase: str, **changes: Any) -> "Job":
        """Return the job in another phase."""
        return replace(self, phase=phase, **changes)


def new_job(store: Store, stitcher: Stitcher, settings: JobSettings) -> Job:
    """Return the job that moves a column with a stitcher.

    Raises InputError if the column is not in the stitcher's source space.
    """
    facts = store.facts()
    if facts.n_rows == facts.n_without_vector:
        raise InputError(f"{store.address.label} has no rows with a vector; there is nothing to move.")
    if settings.guard and not store.capabilities.writers_guard:
        raise InputError(f"`guard` is not possible in {store.address.scheme}; leave it out.")
    if facts.dim != stitcher.source.dim:
        raise InputError(
            f"The stitcher translates {stitcher.source.dim} dimensions, and column {store.vector} has {facts.dim}; "
            "pass a stitcher whose source is the space of the column."
        )
    card = (store.rows().schema.metadata or {}).get(SPACE_KEY)
    if card is not None:
        adopt(Space.from_json(card), True, stitcher.source, f"Column {store.vector}", opposite=stitcher.target)
    placement = placement_for(facts, stitcher, settings.translated_length)
    space = placement.space(stitcher.target)
    is_equal = stitcher.source.dim == space.dim
    migration = Migration(
        dim=space.dim,
        version=stitcher.version,
        space=space.to_json(),
        new=settings.new_vector or f"{store.vector}_new",
        old=settings.old_vector or f"{store.vector}_old",
        keep_names=settings.keep_names or (is_equal and not settings.swap_equal and settings.view is None),
        view=settings.view,
        layout=settings.layout,
    )
    if len({migration.new, migration.old, store.vector}) < 3:
        raise InputError("`new_vector` and `old_vector` must be two other names than that of the column.")
    return Job(migration, FILLING, stitcher.source.to_dict(), guard=settings.guard, placement=placement)


def placement_for(facts: Facts, stitcher: Stitcher, length: float | None) -> Placement:
    """Return how vectors are written, if translated rows have a `length`.

    Only a search by inner product ranks by it without a further coordinate. A product quantiser divides the dimensions
    into parts, so it gets a further part.
    """
    if length is None or length == 1:
        return Placement()
    if stitcher.output_norm != "unit":
        raise InputError(
            "`translated_length` requires translations of length 1; train a stitcher with `output_norm` unit."
        )
    if facts.indexes and all(index.metric == "dot" for index in facts.indexes):
        return Placement(length)
    parts = [facts.dim // index.settings.get("num_sub_vectors", facts.dim) for index in facts.indexes]
    return Placement(length, max([1, *parts]))


def job_of(store: Store) -> Job | None:
    """Return the job on the column of a store, or None if there is none."""
    stored = store.job()
    return None if stored is None else Job.from_dict(stored)


def required_job(store: Store, *phases: str) -> Job:
    """Return the job on a column. Raises InputError if there is none, or if it is in none of the phases."""
    job = job_of(store)
    if job is None:
        raise InputError(f"There is no migration of {store.address.label}; begin one with `repstitch migrate run`.")
    if phases and job.phase not in phases:
        raise InputError(f"The migration of {store.address.label} is {job.phase}. {ADVICE[job.phase]}")
    return job


def check_stitcher(job: Job, stitcher: Stitcher) -> None:
    """Raise InputError unless a stitcher is the one of a job."""
    if stitcher.version != job.migration.version:
        raise InputError(
            f"The migration uses stitcher version {job.migration.version}, and the stitcher that was passed has "
            f"version {stitcher.version}; pass the first, or clean up and begin anew."
        )


ADVICE = {
    FILLING: "Finish it with `repstitch migrate run`.",
    FILLED: "Finish it with `repstitch migrate run`.",
    INCOMPLETE: "Verify it by search with `repstitch migrate verify --target Y`, or cut over with `repstitch migrate "
    "cutover --without-search`.",
    INDEXED: "Verify it with `repstitch migrate verify`.",
    VERIFIED: "Cut over with `repstitch migrate cutover`.",
    CUT_OVER: "Go back with `repstitch migrate rollback`, or end it with `repstitch migrate cleanup`.",
    ROLLED_BACK: "Continue it with `repstitch migrate run`, or end it with `repstitch migrate cleanup`.",
}
