"""What is wrong with these pairs, before anything is trained."""

import logging
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from repstitch.embeddings.fingerprints import digests, row_fingerprints
from repstitch.embeddings.pairs import Pairs, repeated_pairs
from repstitch.embeddings.splitting import Split
from repstitch.errors import InputError

log = logging.getLogger(__name__)

LAGS = (-3, -2, -1, 0, 1, 2, 3)
BLOCKS, BLOCK_ROWS, LEAST_ROWS, FAR_SHIFTS = 4, 512, 40, 40
CLEAR, SEEN = 6.0, 4.0  # deviations of the null at which a lag is believed, and at which any relation is
NEAR_GAP, NEAR_SHARE, NEAR_FLOOR = 0.01, 0.02, 1e-5
ROUNDING = 1e-6
PROJECTED, TILE_ROWS, SAMPLE_ROWS = 64, 2048, 2048


@dataclass(frozen=True)
class Findings:
    """What should be known about some pairs: a plain line each, and a mask (n,) of held-out near duplicates."""

    notes: list[str] = field(default_factory=list)
    near: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool))


def check(pairs: Pairs, split: Split, output_norm: str = "unit") -> Findings:
    """Refuse pairs that cannot be learned from honestly; return (and log) what should only be known.

    Refused with InputError: a side that does not vary, an identical pair on both sides of the split, and rows that are
    shifted against one another. Rows are `pairs.X` and `pairs.Y` as they came; `output_norm` says whether the lengths
    of target rows are learned too ("none").
    """
    sides = {"source": pairs.X, "target": pairs.Y}
    refuse_constant(pairs.X, "source")
    refuse_constant(pairs.Y, "target", lengths=output_norm == "none")
    refuse_leaks(pairs, split)
    notes = [note for side, X in sides.items() for note in _side_notes(X, side, split.train)]
    if not refuse_shift(pairs):
        notes.append(
            "The pairs look unrelated: matched rows agree no more than rows far apart do. Check that both files hold "
            "the same items in the same order."
        )
    near = near_duplicates(pairs, split)
    held, name = (split.test, "test") if len(split.test) else (split.calibrate, "validation")
    if near[held].any():
        notes.append(
            f"{int(near[held].sum())} of {len(held)} {name} pairs nearly repeat a training pair in both spaces, so "
            "their scores lean on memory; keep such pairs together with --group."
        )
    for note in notes:
        log.warning("%s", note)
    return Findings(notes, near)


# --- one side ---------------------------------------------------------------------------------------------------------


def refuse_constant(X: np.ndarray, side: str, lengths: bool = False) -> None:
    """Raise InputError when all rows (n, d) are the same: in their directions, or with `lengths` as they are."""
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
    repeated = len(X) - len(set(digests(X)))
    if repeated:
        notes.append(f"{repeated} of {len(X)} {side} rows repeat another one.")
    if n < d:
        notes.append(
            f"{n} training pairs are fewer than the {d} dimensions of the {side}; the map will lean on shrinkage."
        )
    sample = X[train[np.linspace(0, n - 1, min(n, SAMPLE_ROWS)).astype(int)]]
    spread = _spread(sample)
    typical = float(np.median(spread[spread > 0])) if spread.any() else 0.0
    dead = int((spread <= 1e-4 * typical).sum())
    if dead:
        notes.append(f"{dead} of {d} {side} dimensions are constant or as good as; they carry nothing.")
    if spread.max() > 100 * typical > 0:
        notes.append(
            f"One {side} dimension varies {spread.max() / typical:.0f} times as much as the typical one and drowns the "
            "others; scale the dimensions alike before pairing."
        )
    values = _singular_values(sample)
    # A direction with a millionth of the largest variance is rounding: of float16 files, if of nothing else.
    rank, effective, most = int((values > 1e-3 * values[0]).sum()), effective_rank(values), min(len(sample) - 1, d)
    if rank < 0.9 * (most - dead) or effective < 0.1 * most:
        notes.append(
            f"The {side} rows span {rank} of at most {most} directions, with an effective rank of {effective:.1f}; "
            "what they do not hold cannot be translated."
        )
    return notes


def _spread(X: np.ndarray) -> np.ndarray:
    """Standard deviation (d,) of each dimension, relative to the largest entry: rows of any size fit float64."""
    return (X / max(float(np.abs(X).max()), 1e-300)).astype(np.float64).std(axis=0)


def _singular_values(X: np.ndarray) -> np.ndarray:
    """Singular values, descending, of the centred unit rows."""
    U = directions(X).astype(np.float64)
    U -= U.mean(0)
    small = torch.from_numpy(U @ U.T if len(U) < U.shape[1] else U.T @ U)
    return torch.linalg.eigvalsh(small).flip(0).clamp(min=0).sqrt().numpy()


def effective_rank(values: np.ndarray) -> float:
    """exp of the entropy of the singular values as shares of their sum: in [1, count], 0 where all are 0.

    Roy and Vetterli 2007, "The effective rank: a measure of effective dimensionality".
    """
    values = values[values > 0]
    shares = values / values.sum() if len(values) else values
    return float(np.exp(-(shares * np.log(shares)).sum())) if len(values) else 0.0


def directions(X: np.ndarray) -> np.ndarray:
    """Rows (n, d) at unit length, float32, whatever their size; rows of zeros stay zeros."""
    largest = np.abs(X).max(axis=1, keepdims=True)
    X = X / np.where(largest > 0, largest, 1).astype(np.float32)
    norms = np.linalg.norm(X, axis=1, keepdims=True)
    return X / np.where(norms > 0, norms, 1)


# --- both sides -------------------------------------------------------------------------------------------------------


def refuse_leaks(pairs: Pairs, split: Split) -> None:
    """Raise InputError when an identical pair lies on both sides of the split, for its score would be memory."""
    repeats = repeated_pairs(pairs)
    if not repeats.any():
        return
    side = np.full(len(pairs), "train", dtype=object)
    side[split.validation], side[split.test] = "validation", "test"
    where: dict[int, set] = {}
    for content, part in zip(row_fingerprints(pairs.X, pairs.Y), side, strict=True):
        where.setdefault(int(content), set()).add(part)
    leaks = sum(len(parts) > 1 for parts in where.values())
    if leaks:
        raise InputError(
            f"{leaks} identical pairs lie on both sides of the split, so held-out scores would be memory; "
            "leave repeats out with --drop-invalid, or keep them together with --group."
        )


def refuse_shift(pairs: Pairs) -> bool:
    """Whether matched rows are related at all; InputError when rows a few places apart match instead.

    Looks at up to four blocks of 512 neighbouring rows, in the order of the source. In each, a score of (X[i],
    Y[i + lag]) is taken for the lags −3 … 3 and for far shifts, which show what unrelated rows would score. A shift is
    refused when it stands six deviations above those, clear of the farthest of them, and at least twice as high as
    lag 0, in one block or in all together, so that a row missing halfway down is seen as well. Scores are of the
    differences between neighbouring rows: where rows are sorted (frames of a film, captions of one photo), the rows
    themselves agree at every small lag. With fewer than 40 rows nothing can be seen, and True is returned.
    """
    n = len(pairs)
    if n < LEAST_ROWS:
        return True
    rows = min(n, BLOCK_ROWS)
    starts = np.unique(np.linspace(0, n - rows, min(BLOCKS, -(-n // rows))).astype(int))
    whole, differences = [], []
    for at in starts:
        x, y = (torch.from_numpy(directions(X[at : at + rows])) for X in (pairs.X, pairs.Y))
        whole.append(lag_scores(x, y))
        differences.append(lag_scores(x.diff(dim=0), y.diff(dim=0)))
    together = torch.stack(differences).sum(0)
    blocks = [f"in rows {at} to {at + rows - 1}" for at in starts]
    for where, scores in zip(("throughout", *blocks), (together, *differences), strict=True):
        lag = _winning_lag(scores)
        if lag:
            paired = "ids of both files name" if pairs.by == "id" else "files hold"
            raise InputError(
                f"The pairs are shifted: {where}, source row i matches target row i {'+' if lag > 0 else '−'} "
                f"{abs(lag)} and not row i. Check that the {paired} the same items in the same order (a header line, "
                "or a row missing from one file)."
            )
    return any(bool((_deviations(scores) >= SEEN).any()) for scores in (together, torch.stack(whole).sum(0)))


def lag_scores(X: Tensor, Y: Tensor) -> Tensor:
    """How related (X[i], Y[i + lag]) are, for each of LAGS and then for up to 40 far shifts.

    X (n, d_source) and Y (n, d_target), rows matched; shifts go round. Higher is more related, about 0 by chance. The
    unbiased HSIC (Song et al. 2012) of both sides whitened, shrunk by the mean eigenvalue. O(n² (d + n)) time, O(n²)
    memory.
    """
    K, L = _whitened_kernel(X), _whitened_kernel(Y)
    n = len(K)
    K.fill_diagonal_(0)
    sums = K.sum(1)
    # U-centring (Székely and Rizzo 2014), after which the other kernel needs no centring of its own.
    K = K - (sums[:, None] + sums[None, :]) / (n - 2) + sums.sum() / ((n - 1) * (n - 2))
    K.fill_diagonal_(0)
    far = np.unique(np.linspace(8, n - 8, FAR_SHIFTS).astype(int))
    round_twice = L.repeat(2, 2)
    shifts = [int(lag) % n for lag in (*LAGS, *far)]
    scores = [float((K * round_twice[s : s + n, s : s + n]).sum()) for s in shifts]
    return torch.tensor(scores, dtype=torch.float64) / (n * (n - 3))


def _whitened_kernel(X: Tensor) -> Tensor:
    X = X.double() - X.double().mean(0)
    gram = X @ X.T
    shrink = gram.trace() / min(gram.shape[0], X.shape[1])
    if shrink <= 0:
        return torch.zeros_like(gram).float()
    factor = torch.linalg.cholesky(gram + shrink * torch.eye(len(gram), dtype=gram.dtype))
    return torch.cholesky_solve(gram, factor).float()


def _deviations(scores: Tensor, near: Tensor | None = None) -> Tensor:
    """The lags' scores (or `near`) in deviations from the far shifts'; by medians, since related rows may recur."""
    far = scores[len(LAGS) :]
    spread = 1.4826 * (far - far.median()).abs().median()
    return ((scores[: len(LAGS)] if near is None else near) - far.median()) / spread.clamp(min=1e-12)


def _winning_lag(scores: Tensor) -> int:
    """The lag other than 0 that clearly wins, else 0."""
    deviations = _deviations(scores)
    best = int(deviations.argmax())
    far = _deviations(scores, scores[len(LAGS) :]).abs().max()
    # In deviations and not in scores: differences of neighbours have a rhythm of their own, which scores at any shift.
    needed = max(CLEAR, 1.5 * float(far), 2 * float(deviations[LAGS.index(0)]))
    return LAGS[best] if deviations[best] >= needed else 0


def near_duplicates(pairs: Pairs, split: Split) -> np.ndarray:
    """A mask (n,) of the pairs held out of training that nearly repeat one and the same training pair in both spaces.

    Rows are compared by the cosine of their unit rows about the training mean, so that a cone does not make all rows
    alike. Near is a gap (one minus that cosine) of at most a fiftieth of the typical gap to the tenth nearest training
    row, so that crowded spaces do not make neighbours into duplicates, and at most 0.01; what lies within 0.00001 is
    near in any space. Exact and tiled: O(tile² + 64 n) memory beside the rows. Projections on 64 main directions of
    either side, which only bring rows nearer, leave out nearly all pairs at a sixteenth of the full products' cost for
    1,024 dimensions; only rows that are left are compared in full.
    """
    near = np.zeros(len(pairs), dtype=bool)
    held = np.setdiff1d(np.arange(len(pairs)), split.train)
    sides = [_Side.of(X, split.train, held) for X in (pairs.X, pairs.Y)]
    for at in range(0, len(held), TILE_ROWS):
        rows = held[at : at + TILE_ROWS]
        full = [side.centred(rows) for side in sides]
        short = [q @ side.basis for q, side in zip(full, sides, strict=True)]
        for start in range(0, len(split.train), TILE_ROWS):
            left = torch.ones(len(rows), len(split.train[start : start + TILE_ROWS]), dtype=torch.bool)
            for side, q in zip(sides, short, strict=True):
                left &= side.apart(q, side.projected[start : start + TILE_ROWS]) <= 2 * side.limit + 1e-6
            if not left.any():
                continue
            mine, theirs = left.any(1), left.any(0)
            for side, q in zip(sides, full, strict=True):
                against = side.centred(split.train[start : start + TILE_ROWS][theirs.numpy()])
                left[mine.nonzero(), theirs.nonzero().T] &= 1 - q[mine] @ against.T <= side.limit
            near[rows[left.any(1).numpy()]] = True
    return near


@dataclass(frozen=True)
class _Side:
    """One side of the pairs, ready to be compared: its training mean, main directions (d, 64) and limit of the gap."""

    X: np.ndarray
    mean: np.ndarray
    basis: Tensor
    projected: Tensor
    limit: float

    @classmethod
    def of(cls, X: np.ndarray, train: np.ndarray, held: np.ndarray) -> "_Side":
        mean = np.mean([directions(X[part]).mean(0) for part in np.array_split(train, -(-len(train) // TILE_ROWS))], 0)
        sample = cls(X, mean.astype(np.float32), torch.zeros(0), torch.zeros(0), 0.0)
        some = sample.centred(train[np.linspace(0, len(train) - 1, min(len(train), SAMPLE_ROWS)).astype(int)])
        # Any orthonormal basis is exact; one near the main directions leaves most pairs out (Halko et al. 2011).
        guess = torch.randn(some.shape[1], min(PROJECTED, *some.shape), generator=torch.Generator().manual_seed(0))
        basis = torch.linalg.qr(some.T @ (some @ guess)).Q
        parts = np.array_split(train, -(-len(train) // TILE_ROWS))
        projected = torch.cat([sample.centred(part) @ basis for part in parts])
        asked = sample.centred(held[np.linspace(0, len(held) - 1, min(len(held), 256)).astype(int)])
        k = min(10, len(train))
        tops = torch.cat([(asked @ sample.centred(part).T).topk(min(k, len(part)), dim=1).values for part in parts], 1)
        typical = float((1 - tops.topk(k, dim=1).values[:, -1]).median())
        return cls(X, sample.mean, basis, projected, min(max(NEAR_SHARE * typical, NEAR_FLOOR), NEAR_GAP))

    def centred(self, rows: np.ndarray) -> Tensor:
        """These rows as unit rows about the training mean, again at unit length (m, d)."""
        U = directions(self.X[rows]) - self.mean
        return torch.from_numpy(U / np.maximum(np.linalg.norm(U, axis=1, keepdims=True), 1e-12))

    @staticmethod
    def apart(a: Tensor, b: Tensor) -> Tensor:
        """Squared distances (n, m)."""
        return a.square().sum(1)[:, None] + b.square().sum(1)[None, :] - 2 * a @ b.T
