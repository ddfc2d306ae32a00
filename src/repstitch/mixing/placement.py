"""How vectors are written to one index of native and translated rows, so that a search ranks both kinds rightly."""

from dataclasses import dataclass, replace

import numpy as np

from repstitch.errors import InputError
from repstitch.spaces import NAME_LENGTH, Space

SUFFIX = " with length"  # of the name of a space whose vectors have further coordinates


@dataclass(frozen=True)
class Placement:
    """How translated rows, native rows and queries are written to an index.

    A search must rank by the inner product of the query with native rows of length 1 and translated rows of `length`.
    A search by cosine or L2 does so if all rows have the same length, max(1, `length`), which a further coordinate
    completes. It is 0 in queries.

    Args:
        length: The length of translated rows; native rows and queries have length 1. `MixedIndex.best_length` finds it.
        extra: The number of further coordinates: 0 for a search by inner product, 1 for a search by cosine or L2, more
            if the dimensions must stay divisible. All but the first are 0.

    Raises:
        InputError: If `length` is not positive, or `extra` is negative.
    """

    length: float = 1.0
    extra: int = 0

    def __post_init__(self):
        if not 0 < self.length < np.inf:
            raise InputError(f"`length` must be a positive number; got {self.length}.")
        if self.extra < 0:
            raise InputError(f"`extra` must be at least 0; got {self.extra}.")

    @property
    def is_plain(self) -> bool:
        """Whether translated rows are written as they are."""
        return self == Placement()

    def space(self, space: Space) -> Space:
        """Return the card of the vectors as they are written, whose space is another one with further coordinates."""
        if self.is_plain:
            return space
        name = space.name if not self.extra else space.name[: NAME_LENGTH - len(SUFFIX)] + SUFFIX
        return replace(space, name=name, dim=space.dim + self.extra, normalised=None)

    def translated(self, rows: np.ndarray) -> np.ndarray:
        """Return translated rows (n, d) of unit length as they are written (n, d + extra). NaN stays NaN."""
        return self._completed(rows if self.length == 1 else rows * np.float32(self.length), self.length)

    def native(self, rows: np.ndarray) -> np.ndarray:
        """Return native rows (n, d), scaled to unit length unless this is plain, as they are written (n, d + extra)."""
        return self._completed(self._scaled(rows), 1.0)

    def queries(self, rows: np.ndarray) -> np.ndarray:
        """Return native queries (n, d), scaled to unit length unless this is plain, as they search (n, d + extra)."""
        rows = self._scaled(rows)
        return np.hstack([rows, np.zeros((len(rows), self.extra), rows.dtype)])

    def without_extra(self, rows: np.ndarray) -> np.ndarray:
        """Return written rows (n, d + extra) without the further coordinates (n, d)."""
        return rows[:, : rows.shape[1] - self.extra]

    def __str__(self) -> str:
        """Say how an application writes and searches."""
        if self.is_plain:
            return "Native rows and queries are written as the model returns them."
        sentence = f"Translated rows have length {self.length:g}; scale native rows and queries to length 1"
        if not self.extra:
            return f"{sentence}, and search by inner product."
        last = self._last(1.0)
        numbers = f"{self.extra} numbers" if self.extra > 1 else "a number"
        zeros = f"{self.extra} zeros" if self.extra > 1 else "0"
        rows = zeros if not last else f"{last:.6g}" + (f" and {self.extra - 1} zeros" if self.extra > 1 else "")
        return f"{sentence}, and append {numbers}: to native rows {rows}, to queries {zeros}."

    def _scaled(self, rows: np.ndarray) -> np.ndarray:
        rows = np.asarray(rows, np.float32)
        return rows if self.is_plain else rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)

    def _completed(self, rows: np.ndarray, length: float) -> np.ndarray:
        """Return rows (n, d) of a length with their further coordinates (n, d + extra)."""
        if not self.extra:
            return rows
        more = np.zeros((len(rows), self.extra), rows.dtype)
        more[:, 0] = self._last(length) + 0 * rows[:, 0]  # NaN stays NaN
        return np.hstack([rows, more])

    def _last(self, length: float) -> float:
        """Return the coordinate that completes rows of a length."""
        return max(0.0, max(1.0, self.length) ** 2 - length**2) ** 0.5
