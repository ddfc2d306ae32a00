"""The learning curve: score against number of training pairs, carried on to twice as many."""

from dataclasses import replace

import numpy as np
import torch

from repstitch.errors import InputError
from repstitch.fit.select import METHODS, Problem
from repstitch.names import OBJECTIVES

SHARES = {16: 3, 8: 3, 4: 3, 2: 2, 1: 1}  # one over the share of the pairs, and how many draws of it
LEAST_PAIRS, LEAST_SUBSET = 80, 20
RATES = np.linspace(0.05, 1.5, 30)
RESAMPLES = 300
WORTH = 0.01


def draw_curve(problem: Problem, method: str = "canonical", keys=None, seed: int = 0) -> dict:
    """Scores of `method` fitted to 1/16, 1/8 … all of the training pairs, and what twice as many should reach.

    `keys` (n,) int64 are hashes of the pairs' ids or groups: subsets are nested, depend on these alone, and keep equal
    keys together. Every fit is tuned anew for the problem's objective and scored on its validation rows against one
    gallery, so points compare. The curve s(n) = a − b·n^−c is fitted to the mean at each size (Hestness et al. 2017,
    "Deep Learning Scaling is Predictable, Empirically"); intervals are 90 % percentiles over refits to resampled
    validation rows and draws, and know nothing of a curve that bends elsewhere. Returns plain JSON types: `sizes`,
    `scores` (each objective and recall@1, one list of draws a size), `curve` (a, b, c), `doubled`, `verdict`.

    Raises InputError on fewer than 80 training pairs.
    """
    n = len(problem.X)
    check_enough(n)
    keys = np.arange(n) if keys is None else np.asarray(keys)
    judges = {name: replace(problem.judge, objective=name) for name in OBJECTIVES}
    objective = problem.judge.objective
    sizes, scores, rows = [], {name: [] for name in (*OBJECTIVES, "recall@1")}, []
    for parts, draws in SHARES.items():
        if n // parts < LEAST_SUBSET:
            continue
        sizes.append(n // parts)
        rows.append([])
        for draw in range(draws):
            some = torch.from_numpy(nested_order(keys, seed + draw)[: n // parts]).to(problem.X.device)
            map = METHODS[method](replace(problem, X=problem.X[some], Y=problem.Y[some])).map
            found = {name: judge.rows(map).double().numpy() for name, judge in judges.items()}
            found["recall@1"] = (found["match"] >= 1).astype(float)
            rows[-1].append(found[objective])
            for name, lists in scores.items():
                if not draw:
                    lists.append([])
                lists[-1].append(float(found[name].mean()))
    curve, doubled = extrapolate(sizes, rows, seed)
    return {
        "method": method,
        "objective": objective,
        "validation_rows": len(problem.judge.X),
        "sizes": sizes,
        "scores": scores,
        "curve": curve,
        "doubled": doubled,
        "verdict": verdict(objective, n, doubled),
    }


def check_enough(n: int) -> None:
    """Raise InputError when `n` training pairs are too few to draw a curve through."""
    if n < LEAST_PAIRS:
        raise InputError(f"`learning_curve` needs at least {LEAST_PAIRS} training pairs; got {n}. Leave it out.")


def nested_order(keys: np.ndarray, draw: int) -> np.ndarray:
    """An order (n,) of the pairs whose beginnings are nested random subsets: by their hashed keys, equal keys together."""
    odd = np.random.default_rng(draw).integers(0, 2**63, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    mixed = keys.astype(np.int64).view(np.uint64) * odd
    mixed ^= mixed >> np.uint64(32)
    return np.argsort(mixed * odd, kind="stable")


def extrapolate(sizes: list[int], rows: list[list[np.ndarray]], seed: int = 0) -> tuple[dict, dict]:
    """The curve through the mean scores, and the expected score at twice the last size with its intervals.

    `rows` holds, for each size, one array (m,) of validation rows' scores a draw.
    """
    random = np.random.default_rng(seed)
    means = np.array([np.mean([draw.mean() for draw in draws]) for draws in rows])
    at = np.array([*sizes, 2 * sizes[-1]], dtype=float)
    a, b, c = fit_power(at[:-1], means)
    ends = []
    for _ in range(RESAMPLES):
        drawn = random.integers(len(rows[0][0]), size=len(rows[0][0]))
        points = [
            np.mean([draws[i][drawn].mean() for i in random.integers(len(draws), size=len(draws))]) for draws in rows
        ]
        a_, b_, c_ = fit_power(at[:-1], np.array(points))
        ends.append(a_ - b_ * at[-2:] ** -c_)
    last, twice = (float(v) for v in a - b * at[-2:] ** -c)
    ends = np.array(ends)
    low, high = np.quantile(ends[:, 1], (0.05, 0.95))
    least, most = np.quantile(ends[:, 1] - ends[:, 0], (0.05, 0.95))
    doubled = {
        "pairs": int(at[-1]),
        "now": last,
        "expected": twice,
        "interval": [float(low), float(high)],
        "gain_interval": [float(least), float(most)],
    }
    return {"a": float(a), "b": float(b), "c": float(c)}, doubled


def fit_power(sizes: np.ndarray, scores: np.ndarray) -> tuple[float, float, float]:
    """a, b ≥ 0 and c of the curve a − b·n^−c with a ≤ 1 that is nearest to these scores, by least squares."""
    x = sizes[None, :] ** -RATES[:, None]
    centred = x - x.mean(1, keepdims=True)
    b = np.maximum(-(centred * (scores - scores.mean())).sum(1) / (centred**2).sum(1), 0)
    a = scores.mean() + b * x.mean(1)
    over = a > 1  # no score is above 1: through that ceiling instead
    b = np.where(over, (x * (1 - scores)).sum(1) / (x**2).sum(1), b)
    a = np.where(over, 1.0, a)
    errors = ((a[:, None] - b[:, None] * x - scores) ** 2).sum(1)
    best = int(errors.argmin())
    return float(a[best]), float(b[best]), float(RATES[best])


def verdict(objective: str, n: int, doubled: dict) -> str:
    """One line: what twice the pairs should bring, and whether that pays (a point or more, and not by chance)."""
    least, most = doubled["gain_interval"]
    gain = doubled["expected"] - doubled["now"]
    if gain >= WORTH and least > 0:
        end = "more pairs would pay"
    elif most < WORTH:
        end = "more pairs would not pay"
    else:
        end = "whether more pairs would pay cannot be told from these"
    low, high = doubled["interval"]
    return (
        f"doubling the {n} training pairs is expected to raise {objective} from {doubled['now']:.3f} to "
        f"{doubled['expected']:.3f} ({low:.3f} to {high:.3f}); {end}."
    )
