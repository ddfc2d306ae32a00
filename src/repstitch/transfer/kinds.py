"""The objects that can be transferred: directions (vectors), probes (covectors), dictionaries (both); all float64."""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from repstitch.errors import InputError
from repstitch.spaces import Space

ACTIVATIONS = ("relu", "jumprelu", "topk", "none")


@dataclass(frozen=True, eq=False, repr=False)
class Directions:
    """Directions of a space, such as concept directions or steering vectors: the rows of `values` (k, d).

    A direction is the difference of two points, not a point. `names` (k,) and `space` are optional.
    """

    values: np.ndarray
    names: tuple[str, ...] | None = None
    space: Space | None = None

    def __post_init__(self):
        _set_array(self, "values", (None, None))
        zero = ~self.values.any(axis=1)
        if zero.any():
            raise InputError(f"Directions must not be zero; row {int(zero.argmax())} contains only zeros.")
        _check_names(self.names, len(self.values), "names")
        _check_space(self.space, self.dim)

    def __repr__(self) -> str:
        return _short(self, f"{len(self.values)} vectors")

    @property
    def dim(self) -> int:
        return self.values.shape[1]


@dataclass(frozen=True, eq=False, repr=False)
class Probe:
    """A linear probe: it scores rows x (n, d) as `x @ coef.T + intercept`, with `coef` (k, d) and `intercept` (k,).

    With k ≥ 2, each score belongs to one of the `classes` (k,), and the class with the highest score is predicted. With
    k = 1 there are two classes, and the second is predicted if the score is above 0 (as in scikit-learn). Without
    classes, the scores are plain numbers, as in a regression.
    """

    coef: np.ndarray
    intercept: np.ndarray
    classes: tuple[str, ...] | None = None
    space: Space | None = None

    def __post_init__(self):
        _set_array(self, "coef", (None, None))
        _set_array(self, "intercept", (len(self.coef),))
        if self.classes is not None:
            _check_names(self.classes, 2 if len(self.coef) == 1 else len(self.coef), "classes")
        _check_space(self.space, self.dim)

    def __repr__(self) -> str:
        return _short(self, f"{len(self.classes)} classes" if self.classes else f"{len(self.coef)} scores")

    @property
    def dim(self) -> int:
        return self.coef.shape[1]

    def scores(self, X: np.ndarray) -> np.ndarray:
        """Return the scores (n, k) of rows (n, d)."""
        return np.asarray(X, dtype=np.float64) @ self.coef.T + self.intercept

    def class_scores(self, X: np.ndarray) -> np.ndarray:
        """Return scores (n, n_classes) with one column per class, also if `coef` has only one row."""
        scores = self.scores(X)
        if self.classes is None or len(self.coef) > 1:
            return scores
        return np.hstack([np.zeros_like(scores), scores])


@dataclass(frozen=True, eq=False, repr=False)
class Dictionary:
    """A sparse autoencoder: `W_enc` (d, m), `b_enc` (m,), `W_dec` (m, d), `b_dec` (d,).

    Features are act((x − b_dec) @ W_enc + b_enc); b_dec is not subtracted if `subtract_b_dec` is false. Decoded rows
    are features @ W_dec + b_dec. `activation` is relu, jumprelu (relu, with features set to 0 unless they exceed
    `threshold` (m,)), topk (relu, keeping the `k` largest features of each row) or none.
    """

    W_enc: np.ndarray
    b_enc: np.ndarray
    W_dec: np.ndarray
    b_dec: np.ndarray
    subtract_b_dec: bool
    activation: str = "relu"
    threshold: np.ndarray | None = None
    k: int | None = None
    space: Space | None = None

    def __post_init__(self):
        _set_array(self, "W_enc", (None, None))
        d, m = self.W_enc.shape
        _set_array(self, "W_dec", (m, d))
        _set_array(self, "b_enc", (m,))
        _set_array(self, "b_dec", (d,))
        if self.activation not in ACTIVATIONS:
            raise InputError(f"`activation` must be one of {', '.join(ACTIVATIONS)}; got {self.activation!r}.")
        if (self.activation == "jumprelu") != (self.threshold is not None):
            raise InputError(
                "A dictionary must have a `threshold` if its `activation` is jumprelu, and none otherwise."
            )
        if self.threshold is not None:
            _set_array(self, "threshold", (m,))
        if self.activation == "topk" and not (isinstance(self.k, int) and 1 <= self.k <= m):
            raise InputError(
                f"`k` of a topk dictionary must be between 1 and its number of features ({m}); got {self.k!r}."
            )
        _check_space(self.space, d)

    def __repr__(self) -> str:
        return _short(self, f"{self.W_enc.shape[1]} features, {self.activation}")

    @property
    def dim(self) -> int:
        return self.W_enc.shape[0]

    def encode(self, X: np.ndarray) -> np.ndarray:
        """Return the features (n, m) of rows (n, d)."""
        X = np.asarray(X, dtype=np.float64)
        pre = (X - self.b_dec if self.subtract_b_dec else X) @ self.W_enc + self.b_enc
        if self.activation == "none":
            return pre
        features = np.maximum(pre, 0.0)
        if self.activation == "jumprelu":
            return np.where(pre > self.threshold, features, 0.0)
        if self.activation == "topk" and self.k is not None:
            kept = np.argpartition(-pre, self.k - 1, axis=1)[:, : self.k]
            only = np.zeros_like(features)
            np.put_along_axis(only, kept, np.take_along_axis(features, kept, axis=1), axis=1)
            return only
        return features

    def decode(self, features: np.ndarray) -> np.ndarray:
        """Return the decoded rows (n, d) of features (n, m)."""
        return features @ self.W_dec + self.b_dec


Transferable = Directions | Probe | Dictionary
Kind = TypeVar("Kind", bound=Transferable)


def describe(transferable: Transferable) -> str:
    """Describe the kind and size of a transferable, for messages and reports."""
    if isinstance(transferable, Directions):
        count = len(transferable.values)
        return "1 direction" if count == 1 else f"{count} directions"
    if isinstance(transferable, Probe):
        classes = transferable.classes
        return f"a probe of {len(classes)} classes" if classes else f"a probe of {len(transferable.coef)} scores"
    subtracts = "b_dec subtracted" if transferable.subtract_b_dec else "b_dec not subtracted"
    features = transferable.W_enc.shape[1]
    return f"a dictionary of {features} features ({transferable.activation}, {subtracts} before encoding)"


def _short(transferable: Transferable, size: str) -> str:
    space = f", space={transferable.space.name!r}" if transferable.space else ""
    return f"{type(transferable).__name__}({size}, {transferable.dim} dimensions{space})"


def _set_array(transferable: Transferable, name: str, shape: tuple[int | None, ...]) -> None:
    """Check a field and store it as a finite float64 array of this shape; None stands for any size of at least 1."""
    values = np.asarray(getattr(transferable, name))
    if values.dtype.kind not in "fiu":
        raise InputError(f"`{name}` must contain numbers; got {values.dtype}.")
    array = values.astype(np.float64)
    sizes = zip(array.shape, shape, strict=False)
    if array.ndim != len(shape) or not all(size and wanted in (None, size) for size, wanted in sizes):
        expected = ", ".join("n" if wanted is None else str(wanted) for wanted in shape)
        raise InputError(f"`{name}` must have the shape ({expected}); got {array.shape}.")
    if not np.isfinite(array).all():
        raise InputError(f"`{name}` must be finite; it contains NaN or Inf.")
    object.__setattr__(transferable, name, array)


def _check_names(names: tuple[str, ...] | None, count: int, argument: str) -> None:
    if names is not None and (len(names) != count or len(set(names)) < count):
        raise InputError(f"`{argument}` must be {count} different names; got {len(names)}: {', '.join(names)[:80]}.")


def _check_space(space: Space | None, dim: int) -> None:
    if space is not None and space.dim != dim:
        raise InputError(f"The arrays must have the {space.dim} dimensions of space {space.name!r}; got {dim}.")
