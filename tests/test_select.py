from dataclasses import replace
from itertools import product
from typing import Any, cast

import numpy as np
import pytest
import torch
from helpers import gaussian, rotated, shared_latent

from repstitch.errors import InputError
from repstitch.fit import select as module
from repstitch.fit.closed_form import canonical, canonical_map, fit_procrustes, ridge_path
from repstitch.fit.contrastive import Recipe
from repstitch.fit.judge import OBJECTIVES, TEMPERATURES, Judge
from repstitch.fit.select import (
    METHODS,
    PENALTIES,
    POWERS,
    SHRINK_X,
    SHRINK_Y,
    Candidate,
    Problem,
    refit,
    select,
    tune_canonical,
    tune_procrustes,
    tune_ridge,
)
from repstitch.maps import AffineMap, Map
from repstitch.metrics.neighbours import unit
from repstitch.metrics.retrieval import ranks

CLOSED = ("ridge", "procrustes", "canonical")


def unit_tensors(*sides: np.ndarray) -> list[torch.Tensor]:
    return [unit(torch.from_numpy(side)) for side in sides]


def problem_of(X, Y, objective: str = "match", n_train: int = 200, **recipe) -> Problem:
    """The first rows train, the others are judged on."""
    X, Y = unit_tensors(X, Y)
    judge = Judge(objective, X[n_train:], Y[n_train:], Y[:n_train])
    settings: dict[str, Any] = {"accelerator": "cpu"} | recipe
    return Problem(X[:n_train], Y[:n_train], judge, Recipe(**settings))


def shared_problem(objective: str = "match", **recipe) -> Problem:
    return problem_of(*shared_latent(300, rank=6, d_source=12, d_target=10, noise=0.5), objective, **recipe)


def affine(weight, bias=None) -> AffineMap:
    weight = torch.as_tensor(np.asarray(weight), dtype=torch.float32)
    return AffineMap(weight, torch.zeros(weight.shape[1]) if bias is None else torch.as_tensor(bias).float())


# --- the judge --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_prefers_the_true_map_to_a_wrong_one(objective):
    X, Y, R = rotated(300)
    judge = problem_of(X, Y, objective).judge
    true, noisy = affine(R), affine(R + 0.3 * gaussian(8, 8, 3))
    wrong = affine(gaussian(8, 8, 4))
    assert judge.score(true) == pytest.approx(1, abs=1e-3)
    assert judge.score(true) > judge.score(noisy) > judge.score(wrong)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_judge_scores_every_row_and_their_mean(objective):
    judge = shared_problem(objective).judge
    rows = judge.rows(affine(gaussian(12, 10)))
    assert rows.shape == (100,)
    assert rows.dtype == torch.float32
    assert judge.score(affine(gaussian(12, 10))) == pytest.approx(float(rows.mean()))


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.0])
def test_a_map_that_broke_scores_minus_infinity(objective, bad):
    judge = shared_problem(objective).judge

    def broken(x):
        predicted = torch.ones(len(x), 10)
        predicted[3] = bad
        return predicted

    assert judge.rows(broken).tolist() == [-torch.inf] * 100
    assert judge.score(broken) == -torch.inf


def test_match_is_the_reciprocal_rank_among_targets_and_distractors():
    problem = shared_problem("match")
    map = affine(gaussian(12, 10))
    judge = problem.judge
    gallery = torch.cat([judge.Y, judge.distractors])
    assert len(gallery) == 300
    torch.testing.assert_close(judge.rows(map), 1 / ranks(map(judge.X), gallery))


def test_neighbours_is_one_for_the_native_rows_and_chance_for_unrelated_ones():
    problem = shared_problem("neighbours")
    judge = problem.judge
    assert judge.score(lambda x: judge.Y) == 1
    unrelated = torch.from_numpy(gaussian(100, 10, 9))
    assert judge.score(lambda x: unrelated) == pytest.approx(10 / 299, abs=0.03)


def test_reconstruction_averages_to_r2():
    judge = shared_problem("reconstruction").judge
    map = affine(0.1 * gaussian(12, 10))
    residual = (map(judge.X) - judge.Y).square().sum()
    total = (judge.Y - judge.Y.mean(0)).square().sum()
    assert judge.score(map) == pytest.approx(float(1 - residual / total), rel=1e-4)
    assert judge.score(affine(np.zeros((12, 10)), judge.Y.mean(0).numpy())) == pytest.approx(0, abs=1e-5)


def test_a_sharper_map_has_a_lower_temperature():
    X, Y, R = rotated(300, d=32)
    judge = problem_of(X, Y).judge
    sharp, blunt = affine(R), affine(R + 0.3 * gaussian(32, 32, 3))
    assert judge.temperature(sharp) < judge.temperature(blunt) < judge.temperature(affine(gaussian(32, 32, 4)))
    assert judge.temperature(sharp) in TEMPERATURES


def test_an_unknown_objective_is_refused():
    rows = torch.ones(3, 2)
    with pytest.raises(InputError, match="`objective` must be one of match, neighbours, reconstruction; got 'cosine'"):
        Judge("cosine", rows, rows, rows)


# --- the best of each method ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_ridge_is_tuned_to_the_best_of_its_grid(objective):
    problem = shared_problem(objective)
    every = [
        problem.judge.score(map)
        for match_variance in (False, True)
        for map in ridge_path(problem.decomposition, PENALTIES, match_variance)
    ]
    best = tune_ridge(problem)
    assert best.score == pytest.approx(max(every))
    assert problem.judge.score(best.map) == pytest.approx(best.score)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_procrustes_is_tuned_to_the_best_of_its_grid(objective):
    problem = shared_problem(objective)
    every = [problem.judge.score(fit_procrustes(problem.decomposition.moments, centred)) for centred in (True, False)]
    assert tune_procrustes(problem).score == pytest.approx(max(every))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_canonical_is_tuned_to_the_best_of_its_grid_and_cut_only_where_that_costs_nothing(objective):
    problem = shared_problem(objective)
    every = {
        (shrinks, power): problem.judge.score(
            canonical_map(canonical(problem.decomposition, *shrinks), power, cut=False)
        )
        for shrinks, power in product(product(SHRINK_X, SHRINK_Y), POWERS)
    }
    best = tune_canonical(problem)
    assert best.score >= max(every.values()) - 1e-6
    s = best.settings
    assert every[(s["shrink_x"], s["shrink_y"]), s["power"]] == pytest.approx(max(every.values()))


def test_reconstruction_does_not_ask_for_the_variance_back_where_noise_is_all_there_is_to_add():
    problem = problem_of(*shared_latent(300, rank=3, noise=2.0), "reconstruction")
    assert tune_ridge(problem).settings["match_variance"] is False


def test_retrieval_prefers_the_variance_back_where_least_squares_shrinks_to_the_mean():
    X, Y = shared_latent(600, rank=20, d_source=40, d_target=40, noise=3.0)
    problem = problem_of(X, Y, "match", n_train=300)
    assert tune_canonical(problem).settings["power"] < 1
    assert tune_canonical(problem).score > tune_ridge(problem).score


# --- auto -------------------------------------------------------------------------------------------------------------


class FakeProblem:
    """Stands in for a problem whose candidates are known beforehand."""


def choose(monkeypatch, method: str = "auto", **rows) -> tuple[str, list[str]]:
    """The method chosen among candidates with these validation scores, and all that were tried."""
    made = {
        name: Candidate(name, {}, cast(Map, None), torch.as_tensor(score, dtype=torch.float32))
        for name, score in rows.items()
    }
    monkeypatch.setattr(module, "METHODS", {name: lambda _, c=c: c for name, c in made.items()})
    chosen, tried = select(cast(Any, FakeProblem()), method)
    return chosen.method, [c.method for c in tried]


def test_auto_takes_the_best_where_it_leads_clearly(monkeypatch):
    assert choose(monkeypatch, simple=[0.1] * 50, middle=[0.5] * 50, last=[0.9] * 50)[0] == "last"
    assert choose(monkeypatch, simple=[0.9] * 50, middle=[0.5] * 50, last=[0.1] * 50)[0] == "simple"


def test_auto_takes_the_simpler_within_one_standard_error_of_the_paired_difference(monkeypatch):
    random = np.random.default_rng(0)
    base = random.random(100)
    gain = random.standard_normal(100)
    gain = (gain - gain.mean()) / gain.std(ddof=1)  # mean 0, standard error 0.1
    assert choose(monkeypatch, simple=base, last=base + gain + 0.09)[0] == "simple"
    assert choose(monkeypatch, simple=base, last=base + gain + 0.11)[0] == "last"


def test_auto_pairs_the_rows_so_a_small_but_steady_lead_wins(monkeypatch):
    base = np.random.default_rng(0).random(100)
    assert choose(monkeypatch, simple=base, last=base + 0.01)[0] == "last"


def test_auto_takes_the_first_of_equals_and_of_all_that_are_close_enough(monkeypatch):
    base = np.random.default_rng(0).random(100)
    assert choose(monkeypatch, simple=base, middle=base, last=base)[0] == "simple"
    assert choose(monkeypatch, simple=base - 0.5, middle=base, last=base)[0] == "middle"


def test_auto_never_takes_a_map_that_broke(monkeypatch):
    broken = [-np.inf] * 50
    good = np.random.default_rng(0).random(50)
    assert choose(monkeypatch, simple=broken, last=good)[0] == "last"
    assert choose(monkeypatch, simple=good, last=broken)[0] == "simple"


def test_a_named_method_is_the_only_one_tried(monkeypatch):
    assert choose(monkeypatch, "middle", simple=[1.0] * 9, middle=[0.1] * 9) == ("middle", ["middle"])
    assert choose(monkeypatch, "auto", simple=[1.0] * 9, middle=[0.1] * 9) == ("simple", ["simple", "middle"])


def test_an_unknown_method_is_refused():
    with pytest.raises(InputError, match="`method` must be one of ridge, procrustes, canonical, linear, mlp or auto"):
        select(shared_problem(), "lstsq")


def test_among_the_closed_forms_a_linear_world_is_given_to_a_simple_one(monkeypatch):
    monkeypatch.setattr(module, "METHODS", {name: METHODS[name] for name in CLOSED})
    X, Y, _ = rotated(300)
    chosen, tried = select(problem_of(X, Y))
    assert chosen.method in ("ridge", "procrustes")
    assert [c.method for c in tried] == list(CLOSED)
    assert all(c.score == pytest.approx(1) for c in tried)


# --- refit ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", CLOSED)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_refitting_on_the_same_rows_gives_the_same_closed_form(method, objective):
    problem = shared_problem(objective)
    chosen, _ = select(problem, method)
    again = refit(chosen, problem.X, problem.Y, problem)
    for name, tensor in chosen.map.tensors().items():
        assert torch.equal(again.tensors()[name], tensor)


@pytest.mark.parametrize("method", CLOSED)
def test_refitting_on_more_rows_is_fitting_them_with_the_same_settings(method):
    problem = shared_problem()
    chosen, _ = select(problem, method)
    X, Y = (torch.cat(sides) for sides in ((problem.X, problem.judge.X), (problem.Y, problem.judge.Y)))
    again = refit(chosen, X, Y, problem)
    assert not torch.equal(again.weight, chosen.map.weight)
    on_all = replace(problem, X=X, Y=Y)
    assert torch.equal(refit(chosen, X, Y, on_all).weight, again.weight)


@pytest.mark.parametrize("method", ["linear", "mlp"])
def test_a_refined_map_is_never_worse_than_its_start_and_refits_from_its_settings(method):
    problem = shared_problem(epochs=2, temperatures=(1.0,), batch_size=64)
    start = tune_canonical(problem)
    refined, _ = select(problem, method)
    assert refined.score >= start.score
    assert refined.settings["start"] == start.settings
    again = refit(refined, problem.X, problem.Y, problem)
    assert (again.d_source, again.d_target) == (12, 10)
    assert torch.isfinite(again(problem.X)).all()
