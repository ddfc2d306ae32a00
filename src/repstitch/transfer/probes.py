"""Probes trained on a space, and concepts from two sets of examples."""

import warnings
from collections.abc import Sequence

import numpy as np

from repstitch.errors import InputError
from repstitch.names import CONCEPTS
from repstitch.transfer.kinds import Directions, Probe

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
STEPS = 500


def fit_probe(
    X: np.ndarray,
    y: np.ndarray,
    classes: Sequence[str],
    held: tuple[np.ndarray, np.ndarray],
    strengths: Sequence[float] = STRENGTHS,
) -> tuple[Probe, float]:
    """A logistic probe of rows X (n, d) for y (n,), positions in `classes`, and how strongly it may lean on the data.

    Multinomial logistic regression of scikit-learn on rows that are centred and brought to unit variance as a whole. Of
    the `strengths` (its C) the one with the highest accuracy on the `held` rows and their classes is taken, the smaller
    of equals; the search ends after two that are worse. The probe knows the classes that y has. Raises InputError on
    fewer than two of them.
    """
    from sklearn.linear_model import LogisticRegression

    there = np.unique(y)
    if len(there) < 2:
        raise InputError(f"A probe needs rows of at least two classes; got {len(there)} in {len(y)} rows.")
    mean = X.mean(0, dtype=np.float64)
    spread = float(np.sqrt(np.square(X - mean).sum(1).mean() / X.shape[1]))
    if not spread > 0:
        raise InputError("A probe needs rows that differ; these are all the same.")
    standard = lambda rows: ((rows - mean) / spread).astype(np.float32)  # noqa: E731
    rows, unseen, wanted = standard(X), standard(held[0]), held[1]
    best: tuple[float, float, LogisticRegression] | None = None
    worse = 0
    for strength in strengths:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # one that stops early is judged like any other
            model = LogisticRegression(C=strength, max_iter=STEPS).fit(rows, y)
        score = float((model.predict(unseen) == wanted).mean()) if len(strengths) > 1 else 0.0
        if best is None or score > best[0]:
            best, worse = (score, strength, model), 0
        else:
            worse += score < best[0]
            if worse == 2:
                break
    assert best is not None
    return _probe(best[2], there, classes, mean, spread), best[1]


def _probe(model, there: np.ndarray, classes: Sequence[str], mean: np.ndarray, spread: float) -> Probe:
    """scikit-learn's model of standardised rows as a probe of rows as they are."""
    coef = np.asarray(model.coef_, dtype=np.float64) / spread
    return Probe(coef, np.asarray(model.intercept_) - coef @ mean, tuple(str(classes[k]) for k in there))


def concept(positive: np.ndarray, negative: np.ndarray, by: str = "means", name: str = "concept") -> Directions | Probe:
    """A concept from rows that show it (n, d) and rows that do not (m, d).

    By `means` it is the difference of their means, a vector: the way to go for more of the concept (a steering vector;
    the pattern of Haufe et al. 2014). By `classifier` it is the normal of a logistic classifier between them, the
    concept activation vector of Kim et al. 2018: a covector, which tells the two apart and must be carried as the probe
    it is. Raises InputError on sets of other widths, on fewer than two rows in either, and on means that are the same.
    """
    A, B = (np.asarray(rows, dtype=np.float64) for rows in (positive, negative))
    if A.ndim != 2 or B.ndim != 2 or A.shape[1] != B.shape[1] or min(len(A), len(B)) < 2:
        raise InputError(
            f"`positive` and `negative` must be at least two rows each, of one width; got {A.shape} and {B.shape}."
        )
    if by == "means":
        difference = A.mean(0) - B.mean(0)
        if not np.linalg.norm(difference) > 1e-12 * max(np.abs(A).max(), np.abs(B).max()):
            raise InputError("The two sets of examples have the same mean, so there is no direction between them.")
        return Directions(difference[None], (name,))
    if by != "classifier":
        raise InputError(f"`by` must be one of {', '.join(CONCEPTS)}; got {by!r}.")
    X, y = np.vstack([A, B]), np.r_[np.ones(len(A), dtype=int), np.zeros(len(B), dtype=int)]
    part = np.random.default_rng(0).permutation(len(X)) % 5 == 0  # a fifth chooses how strongly to fit
    if len(np.unique(y[~part])) < 2 or len(np.unique(y[part])) < 2:
        part[:] = False
    chosen = fit_probe(X[~part], y[~part], (f"not {name}", name), (X[part], y[part]))[1] if part.any() else 1.0
    return fit_probe(X, y, (f"not {name}", name), (X, y), (chosen,))[0]
