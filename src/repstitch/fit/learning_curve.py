"""The learning curve: the score as a function of the number of training pairs, extrapolated to twice the number."""

from dataclasses import replace

import numpy as np
import torch

from repstitch.errors import InputError
from repstitch.fit.selection import METHODS, Problem
from repstitch.metrics.resample import interval
from repstitch.names import OBJECTIVES
from repstitch.text import ends, num

SHARES = {16: 3, 8: 3, 4: 3, 2: 2, 1: 1}  # subsets of 1/16, 1/8 … of the pairs, and the number of draws of each
LEAST_PAIRS, LEAST_SUBSET = 80, 20
RATES = np.linspace(0.05, 1.5, 30)
RESAMPLES = 300
WORTH = 0.01


def draw_curve(problem: Problem, method: str = "canonical", keys: np.ndarray | None = None, seed: int = 0) -> dict:
    """Score `method` fitted to 1/16, 1/8 … all of the training pairs, and extrapolate the score to twice as many pairs.

    `keys` (n,) int64 are hashes of the pairs' ids or groups. Subsets are nested, depend only on the keys and the seed,
    and keep equal keys together. Every fit is tuned anew for the problem's objective and scored on the same validation
    rows against the same gallery, so the sizes can be compared. The curve s(n) = a − b·n^−c is fitted to the mean score
    of each size (Hestness et al. 2017, "Deep Learning Scaling is Predictable, Empirically"). Intervals are 90 %
    percentile intervals over curves fitted to resampled validation rows and draws, widened by the error with which the
    smaller sizes alone predict the largest. Before resampling, the scores of the rows are spread as far as the mean
    varies between sets of rows (`metrics.delete_one`). Returns plain JSON types: `sizes`, `scores` (each objective and
    recall@1, with one list of draws per size), `curve` (a, b, c), `doubled` and `verdict`.

    Raises InputError on fewer than 80 training pairs.
    """
    n = len(problem.X)
    check_enough(n)
    keys = np.arange(n) if keys is None else np.asarray(keys)
    objectives = {name: replace(problem.objective, name=name) for name in OBJECTIVES}
    objective = problem.objective.name
    sizes, scores, rows = [], {name: [] for name in (*OBJECTIVES, "recall@1")}, []
    for parts, draws in SHARES.items():
        if n // parts < LEAST_SUBSET:
            continue
        sizes.append(n // parts)
        rows.append([])
        for draw in range(draws):
            subset = torch.from_numpy(nested_order(keys, seed + draw)[: n // parts]).to(problem.X.device)
            weights = None if problem.weights is None else problem.weights[subset]
            part = replace(problem, X=problem.X[subset], Y=problem.Y[subset], weights=weights)
            map = METHODS[method](part).map
            row_scores = {
                name: scorer.scores_per_row(map).double().cpu().numpy() for name, scorer in objectives.items()
            }
            row_scores["recall@1"] = (row_scores["match"] >= 1).astype(float)
            rows[-1].append(objectives[objective].row_scores(map).as_independent())
            for name, lists in scores.items():
                if not draw:
                    lists.append([])
                lists[-1].append(float(row_scores[name].mean()))
    curve, doubled = extrapolate(sizes, rows, seed)
    return {
        "method": method,
        "objective": objective,
        "validation_rows": len(problem.objective.X),
        "sizes": sizes,
        "scores": scores,
        "curve": curve,
        "doubled": doubled,
        "verdict": verdict(objective, n, doubled),
    }


def check_enough(n: int) -> None:
    """Raise InputError if `n` training pairs are too few for a learning curve."""
    if n < LEAST_PAIRS:
        raise InputError(f"`learning_curve` needs at least {LEAST_PAIRS} training pairs; got {n}. Omit it.")


def nested_order(keys: np.ndarray, draw: int) -> np.ndarray:
    """Return an order (n,) of the pairs whose prefixes are random subsets: by hashed key, equal keys together."""
    odd = np.random.default_rng(draw).integers(0, 2**63, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    mixed = keys.astype(np.int64).view(np.uint64) * odd
    mixed ^= mixed >> np.uint64(32)
    return np.argsort(mixed * odd, kind="stable")


def extrapolate(sizes: list[int], rows: list[list[np.ndarray]], seed: int = 0) -> tuple[dict, dict]:
    """Fit the curve to the mean scores, and predict the score at twice the last size, with intervals.

    `rows` has a list for each size, with one array (m,) of the scores of the validation rows per draw. The expected
    score is the last mean score plus the gain of the curve from there. `missed` is the last mean score minus its
    prediction from the smaller sizes alone.
    """
    random = np.random.default_rng(seed)
    at = np.array(sizes, dtype=float)
    means = np.array([np.mean([draw.mean() for draw in draws]) for draws in rows])
    missed = float(means[-1] - means[-2] - _gain(at[:-1], means[:-1]))
    resampled = []
    for _ in range(RESAMPLES):
        drawn = random.integers(len(rows[0][0]), size=len(rows[0][0]))
        points = [
            np.mean([draws[i][drawn].mean() for i in random.integers(len(draws), size=len(draws))]) for draws in rows
        ]
        resampled.append((points[-1], _gain(at, np.array(points))))
    last, gains = np.array(resampled).T
    bounded = means.min() >= 0 and means.max() <= 1  # R² may be below 0
    low, high = interval(last + gains, 0.9, n=len(rows[0][0]) if bounded else None)
    least, most = np.quantile(gains, (0.05, 0.95))
    doubled = {
        "pairs": 2 * sizes[-1],
        "now": float(means[-1]),
        "expected": min(1.0, float(means[-1] + _gain(at, means))),
        "interval": [low - abs(missed), min(1.0, high + abs(missed))],
        "gain_interval": [max(0.0, float(least) - abs(missed)), float(most) + abs(missed)],
        "missed": missed,
    }
    return dict(zip("abc", fit_power(at, means), strict=True)), doubled


def _gain(sizes: np.ndarray, scores: np.ndarray) -> float:
    """Return the gain of the curve through these scores from the last size to twice that size."""
    _, b, c = fit_power(sizes, scores)
    return b * float(sizes[-1]) ** -c * (1 - 2**-c)


def fit_power(sizes: np.ndarray, scores: np.ndarray) -> tuple[float, float, float]:
    """Return a ≤ 1, b ≥ 0 and c of the curve a − b·n^−c that fits these scores best, by weighted least squares.

    The weight of a size is its number of pairs, because small sizes say little about the end of the curve.
    """
    w = sizes / sizes.sum()
    x = sizes[None, :] ** -RATES[:, None]
    x_mean, mean = x @ w, float(scores @ w)
    centred = x - x_mean[:, None]
    b = np.maximum(-(centred * (scores - mean)) @ w / (centred**2 @ w), 0)
    a = mean + b * x_mean
    over = a > 1  # no score is above 1, so these curves are fitted again with a = 1
    b = np.where(over, (x * (1 - scores)) @ w / (x**2 @ w), b)
    a = np.where(over, 1.0, a)
    best = int((((a[:, None] - b[:, None] * x - scores) ** 2) @ w).argmin())
    return float(a[best]), float(b[best]), float(RATES[best])


def verdict(objective: str, n: int, doubled: dict) -> str:
    """Return one sentence: the expected gain from twice the pairs, and whether more would help (by at least 0.01)."""
    least, most = doubled["gain_interval"]
    gain = doubled["expected"] - doubled["now"]
    if gain >= WORTH and least > 0:
        end = "more pairs would help"
    elif most < WORTH:
        end = "more pairs would not help"
    else:
        end = "these scores do not show whether more pairs would help"
    now, expected = num(doubled["now"]), num(doubled["expected"])
    change = f"leave {objective} at {now}" if now == expected else f"raise {objective} from {now} to {expected}"
    interval = " to ".join(ends(*doubled["interval"]))
    return f"doubling the {n} training pairs is expected to {change} ({interval}); {end}."
