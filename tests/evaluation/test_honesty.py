"""A cut of benchmarks/honesty.py: intervals contain the truth of new pools, and unrelated spaces are not called better.

The seeds are fixed, and the bounds are those of the benchmark minus two standard errors of so few maps and pools.
"""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "honesty.py"

paths = list(sys.path)
sys.path.insert(0, str(SCRIPT.parent))
honesty: Any = import_module("honesty")
sys.path[:] = paths

EFFORT = honesty.Effort(maps=3, pools=60, intervals=60, unrelated=3)
BY_NAME = {world.name: world for world in honesty.WORLDS}
UNRELATED = {world.name: world for world in honesty.UNRELATED}
OF_NEIGHBOURS = [
    f"{use}: {score}"
    for use in ("query", "corpus")
    for score in ("target overlap@10", "retention, overlap@10", "difference, overlap@10", "mrr", "recall@1")
]


@pytest.fixture(autouse=True)
def threads_as_before():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def cells(world: str, n: int, kind: str = "neighbours") -> dict[str, Any]:
    return {cell.score: cell for cell in honesty.coverage_cells(BY_NAME[world], n, EFFORT, kind)}


@pytest.mark.slow
@pytest.mark.parametrize("world", ["Gaussian", "heavy tails", "cone with hubs"])
def test_intervals_contain_the_truth_and_are_not_much_wider_than_needed(world):
    scored = cells(world, 100)
    for name in [*OF_NEIGHBOURS, "atlas: mutual_knn"]:
        assert scored[name].covered >= 0.88, scored[name]
        assert scored[name].width <= 1.5, scored[name]


@pytest.mark.slow
def test_intervals_by_relevance_contain_the_truth():
    for cell in cells("Gaussian", 100, "relevance").values():
        assert cell.covered >= 0.88, cell


@pytest.mark.slow
@pytest.mark.parametrize("shuffled", [False, True])
def test_unrelated_spaces_are_rarely_called_better_and_never_use(shuffled):
    counts = np.sum([honesty.unrelated_counts(world, 60, shuffled, EFFORT)[3:] for world in UNRELATED.values()], 0)
    verdicts, better, worse, use = counts
    assert verdicts == 120
    assert better <= 12
    assert better + worse <= 18
    assert use == 0


def test_a_cell_misses_its_bar_if_coverage_or_width_does():
    def cell(truth: float, covered: float, width: float, n: int = 100, score: str = "mrr") -> Any:
        return honesty.Cell("world", n, score, truth, covered, width)

    assert cell(0.5, 0.95, 1.1).meets
    assert not cell(0.5, 0.92, 1.1).meets
    assert cell(0.5, 0.92, 1.1, n=60).meets
    assert not cell(0.5, 0.995, 1.1).meets
    assert not cell(0.5, 0.95, 1.4).meets
    assert cell(0.98, 0.9, 2.0).meets
    assert not cell(0.98, 0.87, 2.0).meets
    assert not cell(0.0, 0.92, 1.1, score="query: difference, overlap@10").meets


def test_the_truth_of_a_pool_is_the_mean_of_the_others():
    values = honesty.Estimates(np.array([0.1, 0.2, 0.6]), np.array([[0.3, 0.5], [0.0, 0.1], [0.1, 0.2]]))
    assert values.truths == pytest.approx([0.4, 0.35, 0.15])
    assert values.covered == pytest.approx(2 / 3)
    assert values.half_width == pytest.approx(0.2 / 3)
