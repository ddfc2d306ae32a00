"""Check pairs before training: constant sides, leaks across the split, shifted rows, near duplicates."""

import logging
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from repstitch.embeddings.cells import directions
from repstitch.embeddings.fingerprints import repeated_rows, row_fingerprints
from repstitch.embeddings.near_duplicates import find_near_duplicates
from repstitch.embeddings.pairs import Pairs, repeated_pairs
from repstitch.embeddings.splitting import Split
from repstitch.errors import InputError

log = logging.getLogger(__name__)

LAGS = (-3, -2, -1, 0, 1, 2, 3)
BLOCKS, BLOCK_ROWS, LEAST_ROWS, FAR_SHIFTS = 4, 512, 40, 40
# Robust deviations above the median far shift that prove a shift, or that the rows are related at all.
SHIFT_DEVIATIONS, RELATED_DEVIATIONS = 6.0, 4.0
ROUNDING = 1e-6
TILE_ROWS, SAMPLE_ROWS = 2048, 2048


@dataclass(frozen=True, eq=False)
class Findings:
    """The result of `check`: one sentence per problem, and a mask (n,) of the held-out near duplicates."""

    notes: list[str] = field(default_factory=list)
    near_duplicates: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool), repr=False)


def check(pairs: Pairs, split: Split, output_norm: str = "unit", folds: np.ndarray | None = None) -> Findings:
    """Refuse pairs that a map cannot be learned from or scored on; log and return the smaller problems.

    Raises InputError if one side does not vary, if an identical pair is in more than one part of the split, or if the
    two sides are shifted against each other. The rows must not be normalised yet. With `output_norm` "none" the map
    also learns the lengths of target rows, so target rows may differ in length only. With `folds` (n,), these are the
    parts, and general pairs (fold −1) are one more.
    """
    refuse_constant(pairs.X, "source")
    refuse_constant(pairs.Y, "target", lengths=output_norm == "none")
    refuse_leaks(pairs, split, folds)
    notes = _side_notes(pairs.X, "source", split.train) + _side_notes(pairs.Y, "target", split.train)
    if not refuse_shift(pairs):
        notes.append(
            "The pairs look unrelated: matched rows are no more alike than rows far apart. Check that both sides have "
            "the same items in the same order."
        )
    near_duplicates = find_near_duplicates(pairs, split.train) if folds is None else _near_other_folds(pairs, folds)
    held_out, name = (split.test, "test") if len(split.test) else (split.calibrate, "validation")
    n_near = int(near_duplicates[held_out].sum())
    if n_near:
        notes.append(
            f"{n_near} of {len(held_out)} {name} pairs nearly repeat a training pair in both spaces, so "
            "their scores partly measure memorisation; keep such pairs together with `group`."
        )
    for note in notes:
        log.warning("%s", note)
    return Findings(notes, near_duplicates)


def _near_other_folds(pairs: Pairs, folds: np.ndarray) -> np.ndarray:
    """Return a mask (n,) of the pairs of a fold that nearly repeat a general pair, or one of another fold."""
    near = find_near_duplicates(pairs, np.flatnonzero(folds < 0))
    in_folds = np.flatnonzero(folds >= 0)
    own_pairs, fold_of = pairs.take(in_folds), folds[in_folds]
    for fold in range(fold_of.max() + 1):
        near[in_folds] |= find_near_duplicates(own_pairs, np.flatnonzero(fold_of != fold))
    return near


# --- one side ---------------------------------------------------------------------------------------------------------


def refuse_constant(X: np.ndarray, side: str, lengths: bool = False) -> None:
    """Raise InputError if all rows (n, d) point in the same direction or, with `lengths`, if all rows are equal."""
    if np.array_equal(X, np.broadcast_to(X[0], X.shape)):
        raise InputError(
            f"The {side} rows must differ from one another; they are all the same. Check how they were embedded."
        )
    first = directions(X[:1])
    parts = range(0, 0 if lengths else len(X), TILE_ROWS)
    if not lengths and all(np.abs(directions(X[at : at + TILE_ROWS]) - first).max() <= ROUNDING for at in parts):
        raise InputError(
            f"The {side} rows must differ from one another at unit length; they all point the same way. Check how they "
            "were embedded."
        )


def _side_notes(X: np.ndarray, side: str, train: np.ndarray) -> list[str]:
    n, d = len(train), X.shape[1]
    notes = []
    repeated = int(repeated_rows(X).sum())
    if repeated:
        notes.append(f"{repeated} of {len(X)} {side} rows repeat another row.")
    if n < d:
        notes.append(
            f"{n} training pairs are fewer than the {d} dimensions of the {side}; the map depends on regularisation."
        )
    sample = X[train[_spread_out(n, SAMPLE_ROWS)]]
    spread = _spread(sample)
    typical = float(np.median(spread[spread > 0])) if spread.any() else 0.0
    dead = int((spread <= 1e-4 * typical).sum())
    if dead:
        notes.append(f"{dead} of {d} {side} dimensions are constant or nearly so; they contain no information.")
    if spread.max() > 100 * typical > 0:
        notes.append(
            f"One {side} dimension varies {spread.max() / typical:.0f} times as much as the typical one and dominates "
            "the others; rescale the dimensions before pairing."
        )
    values = _singular_values(sample)
    # A direction with less than a millionth of the largest variance may be rounding error, for example of float16.
    rank, effective, most = int((values > 1e-3 * values[0]).sum()), effective_rank(values), min(len(sample) - 1, d)
    if rank < 0.9 * (most - dead) or effective < 0.1 * most:
        notes.append(
            f"The {side} rows span {rank} of at most {most} directions, with an effective rank of {effective:.1f}; "
            "information that these rows lack cannot be translated."
        )
    return notes


def _spread(X: np.ndarray) -> np.ndarray:
    """Standard deviation (d,) of each dimension, after division by the largest entry, which prevents overflow."""
    return (X / max(float(np.abs(X).max()), 1e-300)).astype(np.float64).std(axis=0)


def _singular_values(X: np.ndarray) -> np.ndarray:
    """Singular values, descending, of the centred unit rows."""
    U = directions(X).astype(np.float64)
    U -= U.mean(0)
    small = torch.from_numpy(U @ U.T if len(U) < U.shape[1] else U.T @ U)
    return torch.linalg.eigvalsh(small).flip(0).clamp(min=0).sqrt().numpy()


def effective_rank(values: np.ndarray) -> float:
    """Return the effective rank: exp of the entropy of the singular values divided by their sum.

    It is from 1 to the number of values, and 0 if all values are 0. Roy and Vetterli 2007, "The effective rank: a
    measure of effective dimensionality".
    """
    values = values[values > 0]
    shares = values / values.sum() if len(values) else values
    return float(np.exp(-(shares * np.log(shares)).sum())) if len(values) else 0.0


# --- both sides -------------------------------------------------------------------------------------------------------


def refuse_leaks(pairs: Pairs, split: Split, folds: np.ndarray | None = None) -> None:
    """Raise InputError if an identical pair is in several parts of the split: its score would measure memorisation.

    With `folds` (n,), these are the parts.
    """
    if not repeated_pairs(pairs).any():
        return
    part_of_pair = np.full(len(pairs), "train", dtype=object)
    part_of_pair[split.validation], part_of_pair[split.test] = "validation", "test"
    if folds is not None:
        part_of_pair[:] = folds
    parts_of_content: dict[int, set] = {}
    for content, part in zip(row_fingerprints(pairs.X, pairs.Y), part_of_pair, strict=True):
        parts_of_content.setdefault(int(content), set()).add(part)
    leaks = sum(len(parts) > 1 for parts in parts_of_content.values())
    if leaks:
        raise InputError(
            f"{leaks} identical pairs are in more than one part of the split, so held-out scores would measure "
            "memorisation; leave repeats out with `drop_invalid`, or keep them together with `group`."
        )


def refuse_shift(pairs: Pairs) -> bool:
    """Raise InputError if rows a few positions apart match better than rows at the same position.

    Returns whether the rows are related at all. Up to four blocks of 512 neighbouring rows are compared, in the order
    of the source. In each block, (X[i], Y[i + lag]) is scored for the lags −3 … 3 and for far shifts, which show the
    scores of unrelated rows. Scores are expressed in robust standard deviations above the median far shift. A lag other
    than 0 is refused if its score is at least 6, at least 1.5 times that of any far shift and at least twice that of
    lag 0, in one block or in the sum of all blocks. A row that is missing halfway down is therefore detected too. The
    scores compare differences between neighbouring rows, because sorted rows (frames of a film, captions of one photo)
    agree at every small lag. Fewer than 40 rows are too few to compare; True is returned for them.
    """
    n = len(pairs)
    if n < LEAST_ROWS:
        return True
    rows = min(n, BLOCK_ROWS)
    starts = np.unique(np.linspace(0, n - rows, min(BLOCKS, -(-n // rows))).astype(int))
    of_rows, of_differences = [], []
    for at in starts:
        x, y = (torch.from_numpy(directions(X[at : at + rows])) for X in (pairs.X, pairs.Y))
        of_rows.append(lag_scores(x, y))
        of_differences.append(lag_scores(x.diff(dim=0), y.diff(dim=0)))
    total = torch.stack(of_differences).sum(0)
    blocks = [f"in rows {at} to {at + rows - 1}" for at in starts]
    for place, scores in zip(("throughout", *blocks), (total, *of_differences), strict=True):
        lag = _winning_lag(scores)
        if lag:
            paired = "ids of both files refer to" if pairs.by == "id" else "files contain"
            raise InputError(
                f"The pairs are shifted: {place}, source row i matches target row i {'+' if lag > 0 else '−'} "
                f"{abs(lag)} and not row i. Check that the {paired} the same items in the same order (common causes: a "
                "header line, or a row missing from one file)."
            )
    totals = (total, torch.stack(of_rows).sum(0))
    return any(bool((_deviations(scores, _lags(scores)) >= RELATED_DEVIATIONS).any()) for scores in totals)


def lag_scores(X: Tensor, Y: Tensor) -> Tensor:
    """Score how related (X[i], Y[i + lag]) are, for each lag in LAGS and then for up to 40 far shifts.

    X (n, d_source) and Y (n, d_target) have matched rows; shifts are circular. Higher is more related; unrelated rows
    score about 0. The score is the unbiased HSIC (Song et al. 2012) of both sides after whitening, with the mean
    eigenvalue as shrinkage. O(n² (d + n)) time, O(n²) memory.
    """
    K, L = _whitened_kernel(X), _whitened_kernel(Y)
    n = len(K)
    K.fill_diagonal_(0)
    sums = K.sum(1)
    # After U-centring (Székely and Rizzo 2014) of this kernel, the other one needs no centring.
    K = K - (sums[:, None] + sums[None, :]) / (n - 2) + sums.sum() / ((n - 1) * (n - 2))
    K.fill_diagonal_(0)
    far = np.unique(np.linspace(8, n - 8, FAR_SHIFTS).astype(int))
    wrapped = L.repeat(2, 2)
    shifts = [int(lag) % n for lag in (*LAGS, *far)]
    scores = [float((K * wrapped[s : s + n, s : s + n]).sum()) for s in shifts]
    return torch.tensor(scores, dtype=torch.float64) / (n * (n - 3))


def _whitened_kernel(X: Tensor) -> Tensor:
    X = X.double() - X.double().mean(0)
    gram = X @ X.T
    shrink = gram.trace() / min(gram.shape[0], X.shape[1])
    if shrink <= 0:
        return torch.zeros_like(gram).float()
    factor = torch.linalg.cholesky(gram + shrink * torch.eye(len(gram), dtype=gram.dtype))
    return torch.cholesky_solve(gram, factor).float()


def _lags(scores: Tensor) -> Tensor:
    """Return the scores of the lags in LAGS, which come first in the result of `lag_scores`."""
    return scores[: len(LAGS)]


def _far_shifts(scores: Tensor) -> Tensor:
    return scores[len(LAGS) :]


def _deviations(scores: Tensor, some: Tensor) -> Tensor:
    """Convert the scores `some` to robust standard deviations above the median of the far shifts.

    The spread is based on medians too, because related rows may recur at some of the far shifts.
    """
    far = _far_shifts(scores)
    spread = 1.4826 * (far - far.median()).abs().median()
    return (some - far.median()) / spread.clamp(min=1e-12)


def _winning_lag(scores: Tensor) -> int:
    """Return the lag other than 0 whose score is clearly the highest, or 0 if there is none."""
    deviations = _deviations(scores, _lags(scores))
    best = int(deviations.argmax())
    highest_far = float(_deviations(scores, _far_shifts(scores)).abs().max())
    # Deviations are compared, not scores, because periodic differences between neighbours raise every shift's score.
    needed = max(SHIFT_DEVIATIONS, 1.5 * highest_far, 2 * float(deviations[LAGS.index(0)]))
    return LAGS[best] if deviations[best] >= needed else 0


def _spread_out(n: int, most: int) -> np.ndarray:
    """Return at most `most` evenly spaced positions out of `n`."""
    return np.linspace(0, n - 1, min(n, most)).astype(int)
