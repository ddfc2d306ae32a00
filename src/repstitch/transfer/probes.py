"""Probes trained on a space, and concepts from two sets of examples."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from repstitch.errors import InputError
from repstitch.transfer.kinds import Directions, Probe

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
USUAL = 1e-2
STEPS = 500
TINY = 1e-12


def fit_probe(
    X: np.ndarray,
    y: np.ndarray,
    classes: Sequence[str],
    held: tuple[np.ndarray, np.ndarray],
    strengths: Sequence[float] = STRENGTHS,
) -> tuple[Probe, float]:
    """A logistic probe of rows X (n, d) for y (n,), positions in `classes`, and how strongly it may lean on the data.

    Multinomial logistic regression of scikit-learn on rows that are centred and brought to unit variance as a whole. Of
    the `strengths` (its C) the one that gives the `held` rows' classes the highest likelihood is taken; the search ends
    after two that are worse. The probe knows the classes that y has. Raises InputError on fewer than two of them. A
    single strength needs no held rows.
    """
    from sklearn.linear_model import LogisticRegression

    there = np.unique(y)
    if len(there) < 2:
        raise InputError(f"A probe needs rows of at least two classes; got {len(there)} in {len(y)} rows.")
    mean = X.mean(0, dtype=np.float64)
    spread = float(np.sqrt(np.square(X - mean).sum(1).mean() / X.shape[1]))
    if not spread > 0:
        raise InputError("A probe needs rows that differ; these are all the same.")
    known = np.isin(held[1], there)
    if not known.any() and len(strengths) > 1:
        raise InputError("A probe needs held-out rows of its classes, to choose how strongly to fit; there are none.")
    rows, unseen = (((side - mean) / spread).astype(np.float32) for side in (X, held[0][known]))
    basis = None
    if len(rows) < X.shape[1]:  # the penalty keeps weights in the span of the rows, so nothing is lost there
        basis = np.linalg.svd(rows, full_matrices=False)[2]
        rows, unseen = rows @ basis.T, unseen @ basis.T
    wanted = np.searchsorted(there, held[1][known])
    model = LogisticRegression(max_iter=STEPS, warm_start=True)
    best: tuple[float, float, Any, Any] | None = None
    worse = 0
    for strength in strengths:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # one that stops early is judged like any other
            model.set_params(C=strength).fit(rows, y)
        if len(strengths) == 1:
            best = 0.0, strength, model.coef_, model.intercept_
            break
        said = model.predict_proba(unseen)[np.arange(len(wanted)), wanted]
        score = float(np.log(np.maximum(said, TINY)).mean())
        if best is None or score > best[0]:
            best, worse = (score, strength, np.array(model.coef_), np.array(model.intercept_)), 0
        else:
            worse += 1
            if worse == 2:
                break
    assert best is not None
    _, strength, coef, intercept = best
    coef = (coef if basis is None else coef @ basis).astype(np.float64) / spread
    return Probe(coef, intercept - coef @ mean, tuple(str(classes[k]) for k in there)), strength


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
    if not np.linalg.norm(A.mean(0) - B.mean(0)) > 1e-12 * max(np.abs(A).max(), np.abs(B).max()):
        raise InputError("The two sets of examples have the same mean, so there is no direction between them.")
    if by not in BY:
        raise InputError(f"`by` must be one of {', '.join(BY)}; got {by!r}.")
    return BY[by](A, B, name)


def _by_means(A: np.ndarray, B: np.ndarray, name: str) -> Directions:
    return Directions((A.mean(0) - B.mean(0))[None], (name,))


def _by_classifier(A: np.ndarray, B: np.ndarray, name: str) -> Probe:
    """A fifth of each set chooses how strongly to fit, then all of both are fitted."""
    X, y = np.vstack([A, B]), np.r_[np.ones(len(A), dtype=int), np.zeros(len(B), dtype=int)]
    classes, random = (f"not {name}", name), np.random.default_rng(0)
    part = np.concatenate([random.permutation(len(rows)) < max(1, len(rows) // 5) for rows in (A, B)])
    chosen = fit_probe(X[~part], y[~part], classes, (X[part], y[part]))[1]
    return fit_probe(X, y, classes, (X, y), (chosen,))[0]


BY = {"means": _by_means, "classifier": _by_classifier}
