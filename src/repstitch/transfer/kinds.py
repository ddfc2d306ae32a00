"""What is carried: directions (vectors), probes (covectors) and dictionaries (both), as float64 NumPy arrays."""

from dataclasses import dataclass, field

import numpy as np

from repstitch.errors import InputError
from repstitch.spaces import Space

ACTIVATIONS = ("relu", "jumprelu", "topk", "none")


@dataclass(frozen=True)
class Directions:
    """Vectors `values` (k, d) of a space: concept directions, steering vectors; a difference of points, no point
    itself.

    `names` (k,) where they have some; `space` where it is known which one they are of.
    """

    values: np.ndarray
    names: tuple[str, ...] | None = None
    space: Space | None = None

    def __post_init__(self):
        _hold(self, values=("values", (None, None)))
        zero = ~self.values.any(axis=1)
        if zero.any():
            raise InputError(f"`values` must be directions; row {int(zero.argmax())} holds only zeros.")
        _check_names(self.names, len(self.values), "names")
        _check_space(self.space, self.dim)

    @property
    def dim(self) -> int:
        return self.values.shape[1]


@dataclass(frozen=True)
class Probe:
    """A linear probe: scores `x @ coef.T + intercept` of rows x (n, d), with `coef` (k, d) and `intercept` (k,).

    With k ≥ 2 the `classes` (k,) are what each score speaks for, the highest wins; with k = 1 they are two, the second
    where the score is above 0 (as in scikit-learn). Without classes the scores are just numbers, as of a regression.
    """

    coef: np.ndarray
    intercept: np.ndarray
    classes: tuple[str, ...] | None = None
    space: Space | None = None

    def __post_init__(self):
        _hold(self, coef=("coef", (None, None)))
        _hold(self, intercept=("intercept", (len(self.coef),)))
        if self.classes is not None:
            wanted = 2 if len(self.coef) == 1 else len(self.coef)
            _check_names(self.classes, wanted, "classes")
        _check_space(self.space, self.dim)

    @property
    def dim(self) -> int:
        return self.coef.shape[1]

    def scores(self, X: np.ndarray) -> np.ndarray:
        """Scores (n, k) of rows (n, d)."""
        return np.asarray(X, dtype=np.float64) @ self.coef.T + self.intercept

    def class_scores(self, X: np.ndarray) -> np.ndarray:
        """Scores (n, n_classes), one column a class also where there is only one row of `coef`; the highest wins."""
        scores = self.scores(X)
        return (
            np.hstack([np.zeros_like(scores), scores]) if self.classes is not None and len(self.coef) == 1 else scores
        )


@dataclass(frozen=True)
class Dictionary:
    """A sparse autoencoder: `W_enc` (d, m), `b_enc` (m,), `W_dec` (m, d), `b_dec` (d,).

    Features are act((x − b_dec) @ W_enc + b_enc), without the subtraction where `subtract_b_dec` is false; rows come
    back as features @ W_dec + b_dec. `activation` is relu, jumprelu (with `threshold` (m,), up to which a feature is
    0), topk (the `k` largest, not below 0) or none.
    """

    W_enc: np.ndarray
    b_enc: np.ndarray
    W_dec: np.ndarray
    b_dec: np.ndarray
    subtract_b_dec: bool
    activation: str = "relu"
    threshold: np.ndarray | None = None
    k: int | None = None
    space: Space | None = field(default=None)

    def __post_init__(self):
        _hold(self, W_enc=("W_enc", (None, None)))
        d, m = self.W_enc.shape
        _hold(self, W_dec=("W_dec", (m, d)), b_enc=("b_enc", (m,)), b_dec=("b_dec", (d,)))
        if self.activation not in ACTIVATIONS:
            raise InputError(f"`activation` must be one of {', '.join(ACTIVATIONS)}; got {self.activation!r}.")
        if (self.activation == "jumprelu") != (self.threshold is not None):
            raise InputError("A dictionary has a `threshold` if and only if its activation is jumprelu.")
        if self.threshold is not None:
            _hold(self, threshold=("threshold", (m,)))
        if self.activation == "topk" and not (isinstance(self.k, int) and 1 <= self.k <= m):
            raise InputError(f"`k` of a topk dictionary must be from 1 to its {m} features; got {self.k!r}.")
        _check_space(self.space, d)

    @property
    def dim(self) -> int:
        return self.W_enc.shape[0]

    def encode(self, X: np.ndarray) -> np.ndarray:
        """Features (n, m) of rows (n, d)."""
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
        """Rows (n, d) of features (n, m)."""
        return features @ self.W_dec + self.b_dec


Thing = Directions | Probe | Dictionary


def name_of(thing: Thing) -> str:
    """What to call it in a sentence."""
    if isinstance(thing, Directions):
        return "1 direction" if len(thing.values) == 1 else f"{len(thing.values)} directions"
    if isinstance(thing, Probe):
        return f"a probe of {len(thing.classes)} classes" if thing.classes else f"a probe of {len(thing.coef)} scores"
    subtracts = "b_dec subtracted" if thing.subtract_b_dec else "b_dec not subtracted"
    return f"a dictionary of {thing.W_enc.shape[1]} features ({thing.activation}, {subtracts} before encoding)"


def _hold(thing, **arrays: tuple[str, tuple[int | None, ...]]) -> None:
    """Keep these fields as finite float64 arrays of the wanted shape, of which None is any size from 1."""
    for name, (what, wanted) in arrays.items():
        given = np.asarray(getattr(thing, name))
        if given.dtype.kind not in "fiu":
            raise InputError(f"`{what}` must hold numbers; got {given.dtype}.")
        array = given.astype(np.float64)
        sizes = zip(array.shape, wanted, strict=False)
        if array.ndim != len(wanted) or not all(n and w in (None, n) for n, w in sizes):
            said = ", ".join("n" if w is None else str(w) for w in wanted)
            raise InputError(f"`{what}` must have the shape ({said}); got {array.shape}.")
        if not np.isfinite(array).all():
            raise InputError(f"`{what}` must be finite; it holds NaN or Inf.")
        object.__setattr__(thing, name, array)


def _check_names(names: tuple[str, ...] | None, wanted: int, what: str) -> None:
    if names is not None and (len(names) != wanted or len(set(names)) < wanted):
        raise InputError(f"`{what}` must be {wanted} different names; got {len(names)}: {', '.join(names)[:80]}.")


def _check_space(space: Space | None, dim: int) -> None:
    if space is not None and space.dim != dim:
        raise InputError(f"What is of space {space.name!r} must have its {space.dim} dimensions; got {dim}.")
