"""Do intervals contain the truth, and are verdicts right? `python benchmarks/honesty.py` writes results/honesty.md.

Maps are trained on rows of a world (`worlds.py`) and scored on fresh pools of n rows. The truth of a score is its mean
over the other pools of the same map and size. `covered` is the share of intervals that contain the truth, `width` the
mean half-width of the intervals divided by 1.96 true standard deviations (1.645 for 90 %). Scores that are 1 by
definition are left out. `--quick` is a cut with few maps and pools, to check that everything runs.
"""

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from machine import header, markdown
from scipy.special import ndtr, ndtri
from tqdm import tqdm
from worlds import WORLDS, Source, Translate, World

from repstitch.evaluation.pool import TranslatedPairs, pool_of, scores_of_queries, scores_with_references, search_pool
from repstitch.evaluation.thresholds import Thresholds
from repstitch.evaluation.use_scores import Verdict
from repstitch.evaluation.verdict import compare_with_references, decide
from repstitch.fit.learning_curve import draw_curve
from repstitch.fit.objective import ValidationObjective
from repstitch.fit.selection import METHODS, Problem
from repstitch.metrics.alignment import METRICS
from repstitch.metrics.delete_one import WIDTH, Ratio, RowScores
from repstitch.metrics.neighbours import knn
from repstitch.metrics.retrieval import ndcg
from repstitch.names import USES

RESULTS = Path(__file__).parent / "results"
POOLS = (30, 60, 100, 250)
LARGE = 500
Compared = tuple[dict[str, dict[str, RowScores]], dict[str, float]]
POWER = 0.75  # of decided verdicts at a difference of three standard errors
EXTREME = 0.97  # a score above this, or below one minus this, is near its bound
UNRELATED = (
    World("Gaussian"),
    World("hubs", shift=1.5),
    World("clusters", latent="clusters"),
    World("heavy tails", latent="heavy tails"),
)


@dataclass(frozen=True)
class Effort:
    """How many maps and pools a table uses."""

    maps: int = 12
    pools: int = 201
    intervals: int = 100
    sizes: tuple[int, ...] = POOLS
    worlds: Sequence[World] = WORLDS
    unrelated: int = 10
    curves: int = 60


QUICK = Effort(2, 12, 12, (60, 100), WORLDS[:1], 2, 2)


def compare(pairs: TranslatedPairs) -> Iterator[tuple[str, dict[str, RowScores], Compared]]:
    """Yield each use with its retrieval scores, and its shares of true neighbours with references and chance."""
    pool = pool_of(pairs)
    for use in USES:
        searches = {"translated": search_pool(use, pool, pairs.translated)}
        yield use, scores_of_queries(searches["translated"], pool), scores_with_references(use, searches, pool)


def scores_of(pairs: TranslatedPairs) -> dict[str, RowScores]:
    """Return every score of both uses by name."""
    scores = {}
    for use, retrieval, (compared, _) in compare(pairs):
        scores |= {f"{use}: {name.replace('overlap', 'target overlap')}": rows for name, rows in retrieval.items()}
        for measure, rows in compared.items():
            name = measure if measure.startswith("overlap") else "shortlist"
            scores[f"{use}: retention, {name}"] = rows["translated"]  # full re-embedding has 1
            scores[f"{use}: difference, {name}"] = rows["translated"].minus(rows["keep_old"])
    return scores


def verdicts_of(pairs: TranslatedPairs) -> dict[str, Verdict]:
    """Return the verdict of each use."""
    verdicts = {}
    for use, _, (compared, chance) in compare(pairs):
        (first, first_scores), (second, second_scores) = (
            (measure, compare_with_references(rows)) for measure, rows in compared.items()
        )
        verdicts[use] = decide(first, first_scores, second, second_scores, Thresholds(), chance[second])
    return verdicts


@dataclass(frozen=True)
class Estimates:
    """The means of one score in many pools of the same map, and the intervals (pools, 2) of the first of them."""

    means: np.ndarray
    intervals: np.ndarray

    @property
    def truths(self) -> np.ndarray:
        """For each pool, the mean over the other pools."""
        return (self.means.sum() - self.means) / (len(self.means) - 1)

    @property
    def covered(self) -> float:
        low, high = self.intervals.T
        truths = self.truths[: len(low)]
        return float(((low <= truths) & (truths <= high)).mean())

    @property
    def half_width(self) -> float:
        return float(np.diff(self.intervals, axis=1).mean() / 2)


@dataclass(frozen=True)
class Cell:
    """Coverage and width of one score in one world and pool size, over several maps."""

    world: str
    n: int
    score: str
    truth: float
    covered: float
    width: float
    level: float = 0.95

    @property
    def meets(self) -> bool:
        """Whether the bars are met. A share near 0 or 1 has only a bar of coverage."""
        if self.level != 0.95:
            return 0.87 <= self.covered <= 0.97
        if "difference" not in self.score and not 1 - EXTREME <= self.truth <= EXTREME:
            return self.covered >= 0.88
        least = 0.925 if self.n >= 100 else 0.9
        return least <= self.covered <= 0.99 and 0.9 <= self.width <= 1.35

    def row(self) -> list[str]:
        return [self.world, str(self.n), self.score, *(f"{v:.3f}" for v in (self.truth, self.covered, self.width))]


def cell_of(
    world: str, n: int, score: str, maps: Iterable[Estimates], level: float = 0.95, quantile: float = 1.96
) -> Cell:
    maps = list(maps)
    spread = quantile * sum(one.means.std(ddof=1) for one in maps)
    width = sum(one.half_width for one in maps) / spread if spread else float("nan")
    truth, covered = (
        float(np.mean([value(one) for one in maps])) for value in (lambda e: e.means.mean(), lambda e: e.covered)
    )
    return Cell(world, n, score, truth, covered, width, level)


def estimates(pools: Iterable[Mapping[str, RowScores | Ratio]], intervals: int) -> dict[str, Estimates]:
    """Collect the mean of each score over pools, and the intervals of the first pools. Known scores are left out."""
    means, bounds = defaultdict(list), defaultdict(list)
    for number, scores in enumerate(pools):
        for name, rows in scores.items():
            if isinstance(rows, Ratio) or rows.lowest < rows.highest:
                means[name].append(rows.mean)
                if number < intervals:
                    bounds[name].append(rows.interval())
    return {name: Estimates(np.array(means[name]), np.array(bounds[name])) for name in means}


@dataclass(frozen=True, eq=False)
class AtlasPair(RowScores):
    """The score of a pair of an atlas, and the interval of 2.1 of its standard errors on either side."""

    error: float = 0.0

    def interval(self) -> list[float]:
        return [self.mean - WIDTH * self.error, self.mean + WIDTH * self.error]


def atlas_pair(pairs: TranslatedPairs) -> AtlasPair:
    metric = METRICS["mutual_knn"]
    score, error = metric.scores([metric.prepare(rows, 10) for rows in (pairs.source, pairs.target)], [(0, 1)])
    return AtlasPair(score, error=float(error[0]))


def scored_pool(source: Source, translate: Translate, n: int) -> dict[str, RowScores]:
    pairs = source.pool(translate, n)
    return scores_of(pairs) | {"atlas: mutual_knn": atlas_pair(pairs)}


def judged_queries(source: Source, translate: Translate, documents: int = 400) -> Callable[[int], dict]:
    """Return a function that scores n new queries by relevance, with fixed documents.

    Relevant are the five documents with the largest cosine of the latent rows, with grades 5 to 1.
    """
    latent = source.latent(documents)
    old, new = source.seen(latent)
    gallery = torch.from_numpy(latent)

    def score(n: int) -> dict[str, RowScores | Ratio]:
        asked = source.latent(n)
        relevant = knn(torch.from_numpy(asked), gallery, 5)
        grades = [{int(row): 5.0 - at for at, row in enumerate(rows)} for rows in relevant.tolist()]
        old_queries, new_queries = source.seen(asked)
        keep_old, ceiling = (
            RowScores(ndcg(knn(*search, 10), grades).numpy()) for search in ((old_queries, old), (new_queries, new))
        )
        scores: dict[str, RowScores | Ratio] = {}
        for use, search in (("query", (translate(old_queries), new)), ("corpus", (new_queries, translate(old)))):
            gains = RowScores(ndcg(knn(*search, 10), grades).numpy())
            scores |= {
                f"relevance, {use}: nDCG@10": gains,
                f"relevance, {use}: difference, nDCG@10": gains.minus(keep_old),
                f"relevance, {use}: retention, nDCG@10": gains.over(ceiling),
            }
        return scores

    return score


def coverage_cells(world: World, n: int, effort: Effort, kind: str) -> list[Cell]:
    """Return the cells of one world and one pool size: of neighbours, or of relevance judgements."""
    torch.set_num_threads(1)
    by_score = defaultdict(list)
    for number in range(effort.maps):
        source = world.drawn(np.random.default_rng((number, n)))
        translate = source.trained()
        judge = judged_queries(source, translate)
        one = judge if kind == "relevance" else lambda rows: scored_pool(source, translate, rows)  # noqa: B023
        for name, values in estimates((one(n) for _ in range(effort.pools)), effort.intervals).items():
            by_score[name].append(values)
    return [cell_of(world.name, n, name, maps) for name, maps in by_score.items()]


def curve_cells(world: World, objective: str, effort: Effort) -> list[Cell]:
    """Return the cell of the learning curve's interval of the score at twice the pairs (90 %)."""
    torch.set_num_threads(1)
    n, validation = 640, 150
    source = world.drawn(np.random.default_rng(5))

    def problem(pairs: int) -> Problem:
        X, Y = source.pairs(validation + pairs)
        held_out = ValidationObjective(objective, X[:validation], Y[:validation], Y[validation : validation + n])
        return Problem(X[validation:], Y[validation:], held_out)

    doubled = [problem(2 * n) for _ in range(3 * effort.curves)]
    scores = np.array([METHODS["ridge"](one).score for one in doubled])
    curves = [draw_curve(problem(n), "ridge", seed=seed)["doubled"]["interval"] for seed in range(effort.curves)]
    low, high = np.array(curves).T
    truth = float(scores.mean())
    covered = float(((low <= truth) & (truth <= high)).mean())
    width = float((high - low).mean() / 2 / 1.645 / scores.std(ddof=1))
    return [Cell(world.name, validation, f"learning curve: {objective}", truth, covered, width, 0.9)]


def unrelated_counts(world: World, n: int, shuffled: bool, effort: Effort) -> list:
    """Return the numbers of verdicts on unrelated spaces: all, better, worse, and `use` or `probably use`."""
    torch.set_num_threads(1)
    source_world = world if shuffled else replace(world, related=False)
    counts = np.zeros(4, dtype=int)
    for number in range(effort.unrelated):
        source = source_world.drawn(np.random.default_rng((number, n, int(shuffled))))
        translate = source.trained(shuffled=shuffled)
        for _ in range(5):
            for verdict in verdicts_of(source.pool(translate, n, shuffled=shuffled)).values():
                low, high = verdict.numbers["over_keep_old"]
                word = str(verdict)
                counts += [1, low > 0, high < 0, word in ("use", "probably use")]
    return [world.name, "shuffled pairs" if shuffled else "independent rows", n, *map(int, counts)]


def power_points(world: World, n: int, effort: Effort) -> list[list]:
    """Return, for each use, the share of decided verdicts where the true difference is three true standard errors.

    Noise is added to the translations until the difference has about that size. The share at three is that of a normal
    distribution function that is fitted to the levels.
    """
    torch.set_num_threads(1)
    points = defaultdict(list)
    for lost in np.geomspace(0.25, 5, 13):
        means, decided = defaultdict(list), defaultdict(list)
        for number in range(max(2, effort.maps // 3)):
            source = world.drawn(np.random.default_rng((number, n, 9)))
            translate = source.trained()
            for _ in range(max(12, effort.pools // 4)):
                for use, verdict in verdicts_of(source.pool(translate, n, float(lost))).items():
                    low, high = verdict.numbers["over_keep_old"]
                    means[use, number].append(verdict.numbers["score"] - verdict.numbers["keep_old"])
                    decided[use, number].append(low > 0 or high < 0)
        for key, values in means.items():
            points[key[0]].append((np.mean(values) / np.std(values, ddof=1), np.mean(decided[key])))
    rows = []
    for use, pairs in points.items():
        for sign, side in ((1, "better"), (-1, "worse")):
            near = sorted((ratio * sign, share) for ratio, share in pairs if 1.5 < ratio * sign < 5)
            if len(near) > 3:
                ratios, shares = np.array(near).T
                at_three = np.polyfit(ratios - 3, ndtri(shares.clip(0.01, 0.99)), 1)[1]
                rows.append([world.name, n, use, side, len(near), float(ndtr(at_three))])
    return rows


def power_table(rows: Sequence[list]) -> str:
    reached = sum(row[-1] >= POWER for row in rows)
    text = "The share of verdicts that are not `undecided` at a true difference of three standard errors. "
    text += f"Noise is added to translations to get there. {reached} of {len(rows)} cells reach {POWER}.\n\n"
    shown = [[*row[:-1], f"{row[-1]:.2f}", "yes" if row[-1] >= POWER else "**no**"] for row in rows]
    return text + markdown(["world", "n", "use", "translation is", "points", "decided", f"≥ {POWER}"], shown)


def run(jobs: Sequence[tuple], workers: int) -> list:
    """Run each (function, *arguments) in its own process and return all results in order."""
    with ProcessPoolExecutor(workers, mp_context=get_context("forkserver")) as executor:
        futures = [executor.submit(*job) for job in jobs]
        return [future.result() for future in tqdm(futures, desc=jobs[0][0].__name__)]


def coverage_table(cells: Sequence[Cell]) -> str:
    """Return a summary by score, then every cell that misses a bar."""
    columns = ["score", "cells", "covered, least", "mean", "most", "width, least", "mean", "most", "miss a bar"]
    rows = []
    for score in dict.fromkeys(cell.score for cell in cells):
        of_score = [cell for cell in cells if cell.score == score]
        covered, width = ([getattr(cell, name) for cell in of_score] for name in ("covered", "width"))
        figures = [f"{v:.3f}" for v in (min(covered), np.mean(covered), max(covered))]
        figures += [f"{v:.2f}" for v in (np.nanmin(width), np.nanmean(width), np.nanmax(width))]
        rows.append([score, len(of_score), *figures, sum(not cell.meets for cell in of_score)])
    missed = [cell.row() for cell in cells if not cell.meets]
    text = markdown(columns, rows)
    text += f"\n{len(cells) - len(missed)} of {len(cells)} cells meet their bars. The others:\n\n"
    return text + markdown(["world", "n", "score", "truth", "covered", "width"], missed)


def unrelated_table(rows: Sequence[list]) -> str:
    total = [sum(row[i] for row in rows) for i in range(3, 7)]
    shown = [[*row[:4], *(f"{100 * count / row[3]:.1f} %" for count in row[4:])] for row in rows]
    shown.append(["all", "", "", total[0], *(f"{100 * count / total[0]:.1f} %" for count in total[1:])])
    return markdown(["world", "pairs", "n", "verdicts", "better", "worse", "`use`, `probably use`"], shown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few maps and pools; prints, writes nothing")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    effort = QUICK if args.quick else Effort()
    pools = [(LARGE, effort.worlds[:5:2]), *((n, effort.worlds) for n in sorted(effort.sizes, reverse=True))]
    neighbours = run(
        [(coverage_cells, w, n, effort, "neighbours") for n, worlds in pools for w in worlds], args.workers
    )
    relevance = run(
        [(coverage_cells, w, n, effort, "relevance") for n in effort.sizes[1:3] for w in effort.worlds], args.workers
    )
    curves = run(
        [(curve_cells, w, o, effort) for w in effort.worlds[::2] for o in ("match", "neighbours")], args.workers
    )
    unrelated = run(
        [
            (unrelated_counts, w, n, shuffled, effort)
            for n in (600, 250, 60)
            for w in UNRELATED
            for shuffled in (False, True)
        ],
        args.workers,
    )
    power = run([(power_points, w, n, effort) for n in (250, 100) for w in effort.worlds[:6:2]], args.workers)
    cells = [cell for group in (*neighbours, *relevance, *curves) for cell in group]
    text = header("Honesty of intervals and verdicts", "python benchmarks/honesty.py")
    text += f"\n## Coverage\n\n{effort.maps} maps a world, {effort.pools} pools a map, {effort.intervals} of them with "
    text += f"intervals.\n\n{coverage_table(cells)}"
    text += f"\n## Verdicts on unrelated spaces\n\n{unrelated_table(unrelated)}"
    text += f"\n## Power\n\n{power_table([row for rows in power for row in rows])}"
    print(text)
    if not args.quick:
        (RESULTS / "honesty.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
