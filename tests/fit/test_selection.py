from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any, cast

import numpy as np
import pytest
import torch
from helpers.spaces import gaussian, rotated, shared_latent

from repstitch.errors import InputError
from repstitch.fit import selection as module
from repstitch.fit.closed_form import fit_procrustes
from repstitch.fit.objective import OBJECTIVES, TEMPERATURES, ValidationObjective
from repstitch.fit.recipe import Recipe
from repstitch.fit.selection import (
    CANONICAL,
    METHODS,
    PROCRUSTES,
    RIDGE,
    Candidate,
    Problem,
    climb,
    fit_closed,
    refit,
    select,
    tune_canonical,
    tune_procrustes,
    tune_ridge,
)
from repstitch.metrics.neighbour_lists import overlap
from repstitch.metrics.neighbours import knn, unit
from repstitch.metrics.retrieval import ranks
from repstitch.stitchers.maps import AffineMap, Map

CLOSED = ("ridge", "procrustes", "canonical")


def unit_tensors(*sides: np.ndarray) -> list[torch.Tensor]:
    return [unit(torch.from_numpy(side)) for side in sides]


def problem_of(X, Y, objective: str = "match", n_train: int = 200, **recipe) -> Problem:
    """Return the problem of these pairs. The first `n_train` rows are training rows, the others validation rows."""
    X, Y = unit_tensors(X, Y)
    validation = ValidationObjective(objective, X[n_train:], Y[n_train:], Y[:n_train])
    settings: dict[str, Any] = {"accelerator": "cpu"} | recipe
    return Problem(X[:n_train], Y[:n_train], validation, Recipe(**settings))


def shared_problem(objective: str = "match", **recipe) -> Problem:
    return problem_of(*shared_latent(300, rank=6, d_source=12, d_target=10, noise=0.5), objective, **recipe)


def linear(weight, bias=None) -> AffineMap:
    weight = torch.as_tensor(np.asarray(weight), dtype=torch.float32)
    return AffineMap(weight, torch.zeros(weight.shape[1]) if bias is None else torch.as_tensor(bias).float())


# --- the objective ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_prefers_the_true_map_to_a_wrong_one(objective):
    X, Y, R = rotated(300)
    validation = problem_of(X, Y, objective).objective
    true, noisy = linear(R), linear(R + 0.3 * gaussian(8, 8, 3))
    wrong = linear(gaussian(8, 8, 4))
    assert validation.score(true) == pytest.approx(1, abs=1e-3)
    assert validation.score(true) > validation.score(noisy) > validation.score(wrong)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_score_of_an_objective_is_the_mean_of_its_scores_per_row(objective):
    validation = shared_problem(objective).objective
    rows = validation.scores_per_row(linear(gaussian(12, 10)))
    assert rows.shape == (100,)
    assert rows.dtype == torch.float32
    assert validation.score(linear(gaussian(12, 10))) == pytest.approx(float(rows.mean()))


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.0])
def test_a_map_with_invalid_outputs_scores_minus_infinity(objective, bad):
    validation = shared_problem(objective).objective

    def broken(x):
        predicted = torch.ones(len(x), 10)
        predicted[3] = bad
        return predicted

    assert validation.scores_per_row(broken).tolist() == [-torch.inf] * 100
    assert validation.score(broken) == -torch.inf


def test_match_is_the_reciprocal_rank_among_targets_and_distractors():
    problem = shared_problem("match")
    map = linear(gaussian(12, 10))
    validation = problem.objective
    gallery = torch.cat([validation.Y, validation.distractors])
    assert len(gallery) == 300
    torch.testing.assert_close(validation.scores_per_row(map), 1 / ranks(map(validation.X), gallery))


@pytest.mark.parametrize(("use", "chance"), [("query", 10 / 299), ("corpus", 10 / 99)])
def test_neighbours_is_one_for_the_native_rows_and_at_chance_for_unrelated_rows(use, chance):
    validation = replace(shared_problem("neighbours").objective, use=use)
    assert validation.score(lambda x: validation.Y) == 1
    unrelated = torch.from_numpy(gaussian(100, 10, 9))
    assert validation.score(lambda x: unrelated) == pytest.approx(chance, abs=0.03)


def test_neighbours_is_judged_by_either_use_or_by_the_mean_of_both():
    problem = shared_problem("neighbours")
    map = linear(gaussian(12, 10))
    by_use = {use: replace(problem.objective, use=use) for use in ("query", "corpus", "both")}
    scores = {use: objective.scores_per_row(map) for use, objective in by_use.items()}
    torch.testing.assert_close(scores["both"], (scores["query"] + scores["corpus"]) / 2)
    validation = problem.objective
    native = knn(validation.Y, validation.Y, 10, exclude_self=True)
    torch.testing.assert_close(
        scores["corpus"], overlap(knn(validation.Y, map(validation.X), 10, exclude_self=True), native).float()
    )
    for use, objective in by_use.items():
        rows = objective.row_scores(map)
        np.testing.assert_allclose(rows.values, scores[use].numpy(), atol=1e-6)
        assert rows.variance() > 0


def test_the_mean_score_without_a_row_is_that_of_a_pool_without_it_for_both_uses():
    X, Y = unit_tensors(*shared_latent(60, rank=4, d_source=8, d_target=6, noise=0.5))
    map = linear(gaussian(8, 6))
    objective = ValidationObjective("neighbours", X[:30], Y[:30], Y[30:])
    without = objective.row_scores(map).means_without()
    for left_out in (0, 7, 29):
        rows = torch.arange(30) != left_out
        smaller = ValidationObjective("neighbours", X[:30][rows], Y[:30][rows], Y[30:])
        assert without[left_out] == pytest.approx(smaller.score(map))


def test_weights_of_validation_rows_weigh_their_scores():
    problem = shared_problem("neighbours")
    map, weights = linear(gaussian(12, 10)), torch.linspace(0.1, 2, 100)
    objective = replace(problem.objective, weights=weights)
    expected = float((objective.scores_per_row(map) * weights).sum() / weights.sum())
    assert objective.score(map) == pytest.approx(expected, rel=1e-5)
    assert replace(problem, objective=objective).candidate("ridge", {}, map).score == pytest.approx(expected, rel=1e-5)


def test_the_mean_score_of_reconstruction_is_r2():
    validation = shared_problem("reconstruction").objective
    map = linear(0.1 * gaussian(12, 10))
    residual = (map(validation.X) - validation.Y).square().sum()
    total = (validation.Y - validation.Y.mean(0)).square().sum()
    assert validation.score(map) == pytest.approx(float(1 - residual / total), rel=1e-4)
    assert validation.score(linear(np.zeros((12, 10)), validation.Y.mean(0).numpy())) == pytest.approx(0, abs=1e-5)


def test_a_more_accurate_map_has_a_lower_temperature():
    X, Y, R = rotated(300, d=32)
    validation = problem_of(X, Y).objective
    sharp, blunt = linear(R), linear(R + 0.3 * gaussian(32, 32, 3))
    assert (
        validation.temperature(sharp)
        < validation.temperature(blunt)
        < validation.temperature(linear(gaussian(32, 32, 4)))
    )
    assert validation.temperature(sharp) in TEMPERATURES


def test_an_unknown_objective_is_refused():
    rows = torch.ones(3, 2)
    with pytest.raises(InputError, match="`objective` must be one of match, neighbours, reconstruction; got 'cosine'"):
        ValidationObjective("cosine", rows, rows, rows)


# --- the best of each method ------------------------------------------------------------------------------------------


LATTICE: dict[str, tuple] = {"a": (0, 1, 2, 3, 4, 5), "b": (None, 0.5, 2.0), "c": (False, True)}
SOMEWHERE = {"a": 2, "b": 0.5, "c": False}


def climbed(height: Callable[..., float], starts=(SOMEWHERE,), axes=LATTICE) -> tuple[Candidate, list[tuple]]:
    """Return the end of a climb and the positions it fitted, in order. `height` is the score of a position."""
    visited = []

    def fit(settings: dict) -> Candidate:
        position = tuple(values.index(settings[name]) for name, values in axes.items())
        visited.append(position)
        return Candidate("fake", settings, cast(Map, None), torch.tensor([float(height(*position))]))

    return climb(axes, starts, fit), visited


PEAKS = list(product(range(6), range(3), range(2)))


@pytest.mark.parametrize("start", [{"a": 0, "b": None, "c": True}, SOMEWHERE, {"a": 5, "b": 2.0, "c": False}], ids=str)
def test_a_climb_reaches_the_only_peak_from_any_start_and_fits_nothing_twice(start):
    for peak in PEAKS:
        best, visited = climbed(lambda *at, peak=peak: -sum(abs(i - j) for i, j in zip(at, peak, strict=True)), [start])
        assert tuple(LATTICE[name].index(best.settings[name]) for name in LATTICE) == peak
        assert len(set(visited)) == len(visited)


@pytest.mark.parametrize(("sign", "corner"), [(1, (5, 2.0, True)), (-1, (0, None, False))])
def test_a_climb_stops_at_the_ends_of_the_axes(sign, corner):
    best, _ = climbed(lambda a, b, c: sign * (a + b + c))
    assert tuple(best.settings.values()) == corner


def test_a_climb_fits_a_small_part_of_a_large_grid():
    axes = {name: tuple(range(20)) for name in "abcd"}
    best, visited = climbed(lambda *at: -sum((i - 12) ** 2 for i in at), [dict.fromkeys("abcd", 10)], axes)
    assert best.settings == dict.fromkeys("abcd", 12)
    assert len(visited) < 100


def test_a_climb_ends_at_a_local_maximum_no_worse_than_its_best_start():
    for seed in range(20):
        heights = np.random.default_rng(seed).random((6, 3, 2))
        starts = [{"a": a, "b": b, "c": False} for a, b in ((0, None), (3, 0.5), (5, 2.0))]
        best, _ = climbed(lambda *at, h=heights: h[at], starts)
        assert best.score >= max(heights[0, 0, 0], heights[3, 1, 0], heights[5, 2, 0]) - 1e-6
        a, b, c = (LATTICE[name].index(best.settings[name]) for name in LATTICE)
        around = [*heights[max(0, a - 1) : a + 2, b, c], *heights[a, max(0, b - 1) : b + 2, c], *heights[a, b]]
        assert best.score == pytest.approx(max(around))


def test_a_climb_records_the_score_of_every_setting_it_fitted():
    best, visited = climbed(lambda a, b, c: a - 2 * b + c)
    assert [tuple(LATTICE[name].index(s[name]) for name in LATTICE) for s, _ in best.tried] == visited
    assert (best.settings, best.score) in best.tried
    assert best.score == max(score for _, score in best.tried)


def test_a_climb_stays_at_the_first_start_if_all_scores_are_equal_infinite_or_nan():
    starts = [{"a": 4, "b": 0.5, "c": True}, SOMEWHERE]
    for flat in (1.0, -np.inf, np.nan):
        assert climbed(lambda *_, flat=flat: flat, starts)[0].settings == starts[0]


def test_a_climb_along_axes_of_one_value_returns_its_start():
    best, visited = climbed(lambda *_: 1.0, [{"a": 1}], {"a": (1,)})
    assert (best.settings, visited) == ({"a": 1}, [(0,)])


TUNED = {
    "ridge": (tune_ridge, RIDGE),
    "procrustes": (tune_procrustes, PROCRUSTES),
    "canonical": (tune_canonical, CANONICAL),
}


def neighbours_of(settings: dict, axes: dict[str, tuple]) -> list[dict]:
    """Return the settings that differ in one value, by one step along its axis."""
    steps = ((name, axes[name].index(settings[name]) + step) for name in axes for step in (-1, 1))
    return [settings | {name: axes[name][at]} for name, at in steps if 0 <= at < len(axes[name])]


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("method", TUNED)
def test_no_single_step_on_the_grid_improves_a_tuned_closed_form(method, objective):
    problem = shared_problem(objective)
    tune, axes = TUNED[method]
    best = tune(problem)
    neighbours = [] if best.settings.get("centred") is False else neighbours_of(best.settings, axes)
    scores = [problem.objective.score(fit_closed(problem.decomposition, method, s)) for s in neighbours]
    assert best.score >= max(scores, default=0) - 1e-6
    assert problem.objective.score(best.map) == pytest.approx(best.score)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("method", TUNED)
def test_the_tried_settings_include_the_best_one_and_none_with_a_higher_score(method, objective):
    best = TUNED[method][0](shared_problem(objective))
    assert (best.settings, best.score) in best.tried
    assert best.score == max(score for _, score in best.tried)
    assert len({str(settings) for settings, _ in best.tried}) == len(best.tried) > 1


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("method", TUNED)
def test_fitting_the_settings_of_a_tuned_closed_form_gives_the_same_map(method, objective):
    problem = shared_problem(objective)
    best = TUNED[method][0](problem)
    again = fit_closed(problem.decomposition, method, best.settings)
    for name, tensor in best.map.tensors().items():
        torch.testing.assert_close(again.tensors()[name], tensor, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("method", TUNED)
def test_fitting_each_tried_setting_again_gives_the_recorded_score(method):
    problem = shared_problem("reconstruction")
    for settings, score in TUNED[method][0](problem).tried:
        assert problem.objective.score(fit_closed(problem.decomposition, method, settings)) == pytest.approx(
            score, rel=1e-5
        )


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_procrustes_is_tried_with_and_without_centring(objective):
    problem = shared_problem(objective)
    whole = problem.decomposition.moments
    scores = [problem.objective.score(fit_procrustes(whole, centred)) for centred in (True, False)]
    assert tune_procrustes(problem).score >= max(scores) - 1e-6


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_refinement_starts_from_the_better_of_canonical_and_procrustes(objective):
    for sides in (shared_latent(300, rank=6, noise=0.5), rotated(40, d=24)[:2]):
        problem = problem_of(*sides, objective, n_train=len(sides[0]) * 2 // 3)
        closed = tune_canonical(problem), tune_procrustes(problem)
        assert problem.start.score == max(c.score for c in closed)
        assert problem.start.method in ("canonical", "procrustes")


def test_the_reconstruction_objective_selects_no_gain_of_one_or_more():
    problem = problem_of(*shared_latent(300, rank=3, noise=2.0), "reconstruction")
    gain = tune_ridge(problem).settings["gain"]
    assert gain is None or gain < 1


@pytest.mark.parametrize("method", CLOSED)
def test_the_true_map_is_selected_even_if_all_settings_have_a_perfect_score(method):
    X, Y, R = rotated(300)
    weight = select(problem_of(X, Y), method)[0].map.weight
    torch.testing.assert_close(weight, torch.from_numpy(R).float(), atol=0.05, rtol=0)


def test_match_selects_a_map_that_restores_variance_over_one_that_shrinks_to_the_mean():
    X, Y = shared_latent(600, rank=20, d_source=40, d_target=40, noise=3.0)
    problem = problem_of(X, Y, "match", n_train=300)
    assert tune_canonical(problem).settings["power"] < 1
    assert tune_canonical(problem).score > tune_ridge(problem).score


def test_a_climb_skips_settings_without_a_map_and_raises_the_error_if_none_gives_one():
    def fit(settings: dict) -> Candidate:
        if settings["a"] in refused:
            raise InputError(f"no map at {settings['a']}")
        return Candidate("ridge", settings, cast(Map, None), torch.tensor([float(settings["a"])]))

    refused = {2}
    best = climb({"a": (0, 1, 2, 3)}, [{"a": 2}, {"a": 0}], fit)
    assert best.settings == {"a": 1}
    assert [s["a"] for s, _ in best.tried] == [0, 1]
    refused = {0, 1, 2, 3}
    with pytest.raises(InputError, match="no map at 3"):
        climb({"a": (0, 1, 2, 3)}, [{"a": 3}], fit)


@pytest.mark.parametrize("method", CLOSED)
def test_gains_above_one_are_not_tried_if_translations_keep_their_lengths(method):
    problem = shared_problem("match")
    assert any((s["gain"] or 0) > 1 for s, _ in METHODS[method](problem).tried)
    kept = METHODS[method](replace(problem, keep_lengths=True))
    assert all((s["gain"] or 0) <= 1 for s, _ in kept.tried)


# --- auto -------------------------------------------------------------------------------------------------------------


class FakeProblem:
    """A placeholder for a problem, for tests that replace all methods by fixed candidates."""

    folds = None


def choose(monkeypatch, method: str = "auto", **rows) -> tuple[str, list[str]]:
    """Return the method selected among candidates with these validation scores, and all methods that were tried."""
    made = {
        name: Candidate(name, {}, cast(Map, None), torch.as_tensor(score, dtype=torch.float32))
        for name, score in rows.items()
    }
    monkeypatch.setattr(module, "METHODS", {name: lambda _, c=c: c for name, c in made.items()})
    chosen, tried = select(cast(Any, FakeProblem()), method)
    return chosen.method, [c.method for c in tried]


def test_auto_selects_the_best_method_if_its_lead_is_clear(monkeypatch):
    assert choose(monkeypatch, canonical=[0.1] * 50, linear=[0.5] * 50, mlp=[0.9] * 50)[0] == "mlp"
    assert choose(monkeypatch, canonical=[0.9] * 50, linear=[0.5] * 50, mlp=[0.1] * 50)[0] == "canonical"


def test_auto_selects_the_simpler_method_within_one_standard_error_of_the_paired_difference(monkeypatch):
    random = np.random.default_rng(0)
    base = random.random(100)
    gain = random.standard_normal(100)
    gain = (gain - gain.mean()) / gain.std(ddof=1)  # mean 0, standard error 0.1
    assert choose(monkeypatch, canonical=base, mlp=base + gain + 0.09)[0] == "canonical"
    assert choose(monkeypatch, canonical=base, mlp=base + gain + 0.11)[0] == "mlp"


def test_auto_compares_paired_rows_so_a_small_constant_lead_wins(monkeypatch):
    base = np.random.default_rng(0).random(100)
    assert choose(monkeypatch, canonical=base, mlp=base + 0.01)[0] == "mlp"


def test_auto_selects_the_simplest_of_methods_with_equal_or_close_scores(monkeypatch):
    base = np.random.default_rng(0).random(100)
    assert choose(monkeypatch, canonical=base, linear=base, mlp=base)[0] == "canonical"
    assert choose(monkeypatch, canonical=base - 0.5, linear=base, mlp=base)[0] == "linear"


def test_auto_selects_the_best_of_the_closed_forms_even_if_the_scores_are_close(monkeypatch):
    base = np.random.default_rng(0).random(100)
    better = base.copy()
    better[0] += 0.1
    assert choose(monkeypatch, ridge=base, procrustes=base, canonical=better)[0] == "canonical"
    assert choose(monkeypatch, ridge=better, canonical=base, linear=base + 1e-3 * base)[0] == "ridge"


def test_auto_never_selects_a_map_with_invalid_outputs(monkeypatch):
    broken = [-np.inf] * 50
    good = np.random.default_rng(0).random(50)
    assert choose(monkeypatch, canonical=broken, mlp=good)[0] == "mlp"
    assert choose(monkeypatch, canonical=good, mlp=broken)[0] == "canonical"


def test_an_error_is_raised_if_every_map_has_invalid_outputs(monkeypatch):
    with pytest.raises(InputError, match="No method gives a map that can translate the validation rows"):
        choose(monkeypatch, ridge=[-np.inf] * 50, linear=[-np.inf] * 50)


def test_a_named_method_is_the_only_one_tried(monkeypatch):
    assert choose(monkeypatch, "linear", canonical=[1.0] * 9, linear=[0.1] * 9) == ("linear", ["linear"])
    assert choose(monkeypatch, "auto", canonical=[1.0] * 9, linear=[0.1] * 9) == ("canonical", ["canonical", "linear"])


def test_an_unknown_method_is_refused():
    with pytest.raises(InputError, match="`method` must be one of ridge, procrustes, canonical, linear, mlp or auto"):
        select(shared_problem(), "lstsq")


def test_a_rotation_is_fitted_by_one_of_the_simpler_closed_forms(monkeypatch):
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
    again = refit(chosen, problem)
    for name, tensor in chosen.map.tensors().items():
        torch.testing.assert_close(again.tensors()[name], tensor, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("method", CLOSED)
def test_refitting_on_more_rows_gives_a_different_map_of_the_same_settings(method):
    problem = shared_problem()
    chosen, _ = select(problem, method)
    X, Y = (torch.cat(sides) for sides in ((problem.X, problem.objective.X), (problem.Y, problem.objective.Y)))
    again = refit(chosen, replace(problem, X=X, Y=Y))
    assert not torch.equal(again.weight, chosen.map.weight)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("method", ["linear", "mlp"])
def test_a_refined_map_is_no_worse_than_its_start_and_can_be_refitted_from_its_settings(method, objective):
    problem = shared_problem(objective, epochs=2, temperatures=(1.5,), batch_size=64, learning_rate=0.02)
    start = problem.start
    refined, _ = select(problem, method)
    assert refined.score >= start.score
    assert refined.settings["start"] == {"method": start.method} | start.settings
    assert refined.tried == ((refined.settings, refined.score),)
    again = refit(refined, problem)
    for name, tensor in refined.map.tensors().items():
        torch.testing.assert_close(again.tensors()[name], tensor, atol=1e-5, rtol=1e-5)


def test_a_refit_trains_the_epochs_in_its_settings_without_early_stopping():
    problem = shared_problem(epochs=3, batch_size=64, learning_rate=0.02)
    refined, _ = select(problem, "linear")
    start, one, two = (
        refit(replace(refined, settings=refined.settings | {"epoch": epoch}), problem).weight for epoch in (0, 1, 2)
    )
    assert 0.2 * (two - start).norm() < (one - start).norm() < 0.9 * (two - start).norm()


def test_a_refit_of_a_map_refined_from_procrustes_starts_from_procrustes():
    problem = shared_problem(epochs=1, learning_rate=0.02, batch_size=64)
    turned = tune_procrustes(problem)
    problem.__dict__["start"] = turned
    refined, _ = select(problem, "linear")
    unrefined = replace(refined, settings=refined.settings | {"epoch": 0})
    again = refit(unrefined, problem)
    torch.testing.assert_close(again.weight, turned.map.weight, rtol=1e-6, atol=1e-7)
