from itertools import product

import numpy as np
import pytest
import torch
from helpers.spaces import affine_image, gaussian, rotated, rotation, shared_latent, unrelated

from repstitch.errors import InputError
from repstitch.fit.closed_form import (
    FITS,
    affine,
    canonical,
    decompose,
    fit_canonical,
    fit_procrustes,
    fit_ridge,
    ridge_weight,
)
from repstitch.metrics.moments import moments


def normal_equations(X, Y, penalty: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Return the weight and bias of ridge in float64 NumPy, by the formula in the docstring of `fit_ridge`."""
    X, Y = X.astype(np.float64), Y.astype(np.float64)
    u, v = X - X.mean(0), Y - Y.mean(0)
    C = u.T @ u / len(X)
    W = np.linalg.solve(C + penalty * np.trace(C) / len(C) * np.eye(len(C)), u.T @ v / len(X))
    return W, Y.mean(0) - X.mean(0) @ W


def assert_map(map, weight, bias, tolerance: float = 1e-4):
    np.testing.assert_allclose(map.weight, weight, atol=tolerance, rtol=tolerance)
    np.testing.assert_allclose(map.bias, bias, atol=tolerance, rtol=tolerance)


def trace_of_prediction(map, X) -> float:
    return float(np.trace(np.cov(map(X).T.astype(np.float64), bias=True)))


# --- ridge ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("penalty", [0.0, 1e-7, 1e-4, 1e-2, 1.0, 100.0])
def test_ridge_solves_its_normal_equations(penalty):
    X, Y, _, _ = affine_image(noise=0.5)
    X = X * np.linspace(0.3, 3, 8, dtype="float32") + 2
    assert_map(fit_ridge(moments((X, Y)), penalty), *normal_equations(X, Y, penalty))


def test_ridge_without_penalty_is_least_squares():
    X, Y, _, _ = affine_image(noise=0.5)
    solution = np.linalg.lstsq(np.c_[X, np.ones(len(X))].astype(np.float64), Y.astype(np.float64), rcond=None)[0]
    assert_map(fit_ridge(moments((X, Y)), 0.0), solution[:-1], solution[-1])


def test_ridge_without_penalty_is_the_minimum_norm_solution_for_a_rank_deficient_source():
    X, Y, _, _ = affine_image(noise=0.5)
    X = (X @ rotation(8)[:, :5] @ gaussian(5, 12, 3)).astype("float32")
    u, v = X - X.mean(0), Y - Y.mean(0)
    shortest = np.linalg.pinv(u.astype(np.float64), rcond=1e-5) @ v
    np.testing.assert_allclose(fit_ridge(moments((X, Y)), 0.0).weight, shortest, atol=1e-4)


def test_ridge_recovers_an_exact_affine_map():
    X, Y, W, b = affine_image()
    assert_map(fit_ridge(moments((X, Y)), 0.0), W, b)
    assert_map(fit_ridge(moments((X, Y)), 1e-6), W, b)


def test_ridge_with_a_large_penalty_predicts_the_constant_mean():
    X, Y, _, _ = affine_image(noise=0.5)
    for penalty in (1e9, np.inf):
        map = fit_ridge(moments((X, Y)), penalty)
        np.testing.assert_allclose(map(X), np.broadcast_to(Y.mean(0), Y.shape), atol=1e-5)


def test_ridge_predicts_less_variance_with_a_larger_penalty():
    X, Y, _, _ = affine_image(noise=0.5)
    m = moments((X, Y))
    spread = [trace_of_prediction(fit_ridge(m, penalty), X) for penalty in (0, 1e-2, 0.1, 1, 10)]
    assert spread == sorted(spread, reverse=True)


@pytest.mark.parametrize("gain", [None, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("penalty", [0.0, 1e-8, 1e-5, 1e-3, 0.1, 10.0])
def test_ridge_weights_from_a_shared_decomposition_equal_those_of_fit_ridge(gain, penalty):
    m = moments(shared_latent())
    alone = fit_ridge(m, penalty, gain)
    assert_map(affine(m, ridge_weight(decompose(m), penalty), gain), alone.weight, alone.bias, 1e-5)


def test_ridge_needs_no_target_moments_unless_there_is_a_gain():
    X, Y = shared_latent()
    without = fit_ridge(moments((X, Y), yy=False), 0.1)
    assert_map(without, *normal_equations(X, Y, 0.1))
    with pytest.raises(InputError, match="computed without `yy`"):
        fit_ridge(moments((X, Y), yy=False), 0.1, gain=1.0)


def test_a_negative_penalty_is_refused():
    d = decompose(moments(shared_latent()))
    with pytest.raises(InputError, match=r"`penalty` must not be negative; got -0.1"):
        fit_ridge(d.moments, -0.1)
    with pytest.raises(InputError, match=r"`penalty` must not be negative; got -0.1"):
        ridge_weight(d, -0.1)


# --- procrustes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("scaled", [True, False])
def test_procrustes_recovers_a_rotation(centred, scaled):
    X, Y, R = rotated()
    map = fit_procrustes(moments((X, Y)), centred, scaled)
    assert_map(map, R, np.zeros(8), 1e-5)


def test_centred_procrustes_recovers_rotation_translation_and_scale():
    X, Y, R = rotated()
    shift = np.arange(8, dtype="float32")
    map = fit_procrustes(moments((X + 5, 2.5 * Y + shift)))
    assert_map(map, 2.5 * R, shift - 5 * np.ones(8) @ (2.5 * R), 1e-4)
    np.testing.assert_allclose(map(X + 5), 2.5 * Y + shift, atol=1e-4)


def test_procrustes_about_the_origin_has_no_bias_for_any_means():
    X, _, R = rotated()
    map = fit_procrustes(moments((X + 1, 3 * (X + 1) @ R)), centred=False)
    assert not map.bias.any()
    assert_map(map, 3 * R, np.zeros(8), 1e-4)


@pytest.mark.parametrize(("d_source", "d_target"), [(5, 9), (9, 5), (6, 6), (1, 4), (4, 1)])
@pytest.mark.parametrize("centred", [True, False])
def test_unscaled_procrustes_is_semi_orthogonal(d_source, d_target, centred):
    W = fit_procrustes(moments(shared_latent(d_source=d_source, d_target=d_target)), centred, scaled=False).weight
    small = W.T @ W if d_source >= d_target else W @ W.T
    torch.testing.assert_close(small, torch.eye(len(small)), atol=1e-5, rtol=0)


def test_the_inverse_of_unscaled_procrustes_is_its_transpose():
    X, Y = shared_latent(d_source=7, d_target=7)
    there = fit_procrustes(moments((X, Y)), scaled=False)
    back = fit_procrustes(moments((Y, X)), scaled=False)
    torch.testing.assert_close(back.weight, there.weight.T, atol=1e-5, rtol=0)
    np.testing.assert_allclose(back(there(X)), X, atol=1e-4)


def test_procrustes_keeps_distances_up_to_its_scale():
    X, Y = shared_latent(d_source=5, d_target=9)
    map = fit_procrustes(moments((X, Y)))
    scale = torch.linalg.svdvals(map.weight)
    torch.testing.assert_close(scale, scale[:1].expand(5))
    before = np.linalg.norm(X[:50, None] - X[None, :50], axis=2)
    after = np.linalg.norm(map(X)[:50, None] - map(X)[None, :50], axis=2)
    np.testing.assert_allclose(after, before * float(scale[0]), atol=1e-4)


def test_the_scale_of_procrustes_is_the_least_squares_one():
    X, Y = shared_latent(d_source=6, d_target=6)
    plain, scaled = (fit_procrustes(moments((X, Y)), scaled=scaled).weight.numpy() for scaled in (False, True))
    u, v = X - X.mean(0), Y - Y.mean(0)
    best = np.sum((u @ plain) * v) / np.sum((u @ plain) ** 2)
    np.testing.assert_allclose(scaled, best * plain, rtol=1e-4, atol=1e-6)


def test_no_rotation_fits_better_than_procrustes():
    X, Y = shared_latent(d_source=6, d_target=6)

    def error(W: np.ndarray) -> float:
        return float(np.square((X - X.mean(0)) @ W - (Y - Y.mean(0))).sum())

    best = fit_procrustes(moments((X, Y)), scaled=False).weight.numpy()
    assert all(error(best) < error(best @ rotation(6, seed)) for seed in range(20))


# --- canonical --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shrink_x", [0.0, 1e-3, 0.1, 1.0])
@pytest.mark.parametrize("shrink_y", [0.0, 1e-3, 10.0, None])
def test_canonical_at_power_one_equals_ridge_for_any_shrinkage_of_the_target(shrink_x, shrink_y):
    m = moments(shared_latent(d_source=12, d_target=7))
    ridge = fit_ridge(m, shrink_x)
    map = fit_canonical(m, shrink_x, shrink_y, power=1.0, cut=False, gain=None)
    assert_map(map, ridge.weight, ridge.bias, 1e-5)


@pytest.mark.parametrize(("d_source", "d_target"), [(9, 6), (6, 6)])
def test_canonical_at_power_zero_restores_the_full_variance_of_every_direction(d_source, d_target):
    X, Y = shared_latent(d_source=d_source, d_target=d_target, noise=1.0)
    map = fit_canonical(moments((X, Y)), 0.0, 0.0, power=0.0, cut=False, gain=None)
    np.testing.assert_allclose(np.cov(map(X).T), np.cov(Y.T), atol=1e-4)


def test_canonical_with_a_cut_restores_the_variance_of_the_kept_directions_only():
    X, Y = shared_latent(2000, rank=2, d_source=8, d_target=6, noise=0.3)
    shared = canonical(decompose(moments((X, Y))), 0.0, 0.0)
    assert shared.rank == 2
    map = affine(shared.decomposition.moments, shared.weight(power=0.0, cut=True))
    d = shared.decomposition
    whiten = d.y_vectors / d.y_values.sqrt()
    seen = whiten.T @ torch.from_numpy(np.cov(map(X).T.astype(np.float64), bias=True)) @ whiten
    kept = shared.Vh[:2].T @ shared.Vh[:2]
    torch.testing.assert_close(seen, kept, atol=1e-3, rtol=0)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("shrink_y", [0.5, 3.0])
def test_an_unwhitened_target_is_the_limit_of_increasing_shrinkage(power, cut, shrink_y):
    m = moments(shared_latent(d_source=9, d_target=6))
    limit = fit_canonical(m, 0.1, None, power, cut, gain=1.0)
    near, nearer = (fit_canonical(m, 0.1, shrink_y * size, power, cut, gain=1.0) for size in (1e2, 1e5))
    assert_map(nearer, limit.weight, limit.bias)
    far = (near.weight - limit.weight).norm()
    assert (nearer.weight - limit.weight).norm() <= 0.01 * far + 1e-5


@pytest.mark.parametrize("cut", [False, True])
def test_an_unwhitened_target_at_power_zero_gives_a_rotation_of_the_whitened_source(cut):
    X, Y = shared_latent(2000, rank=2, d_source=6, d_target=9, noise=0.3)
    shared = canonical(decompose(moments((X, Y))), 0.0, None)
    predicted = (X - X.mean(0)).astype(np.float64) @ shared.weight(0.0, cut).numpy()
    values = np.linalg.eigvalsh(np.cov(predicted.T, bias=True))
    np.testing.assert_allclose(values[::-1], [1] * (2 if cut else 6) + [0] * (7 if cut else 3), atol=1e-4)


@pytest.mark.parametrize("gain", [0.25, 1.0, 3.0])
@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("shrink_y", [1.0, None])
def test_a_gain_sets_the_spread_of_the_prediction_relative_to_the_target(gain, power, cut, shrink_y):
    X, Y = shared_latent()
    map = fit_canonical(moments((X, Y)), 0.1, shrink_y, power, cut, gain)
    assert trace_of_prediction(map, X) == pytest.approx(gain**2 * np.trace(np.cov(Y.T, bias=True)), rel=1e-4)
    np.testing.assert_allclose(map(X).mean(0), Y.mean(0), atol=1e-4)


@pytest.mark.parametrize("gain", [0.25, 1.0, 3.0])
def test_a_gain_sets_the_spread_of_ridge_and_procrustes(gain):
    X, Y = shared_latent()
    m = moments((X, Y))
    for map in (fit_ridge(m, 0.5, gain), *(fit_procrustes(m, scaled=scaled, gain=gain) for scaled in (True, False))):
        assert trace_of_prediction(map, X) == pytest.approx(gain**2 * np.trace(np.cov(Y.T, bias=True)), rel=1e-4)
        np.testing.assert_allclose(map(X).mean(0), Y.mean(0), atol=1e-4)


@pytest.mark.parametrize("fit", [fit_ridge, fit_procrustes, fit_canonical])
def test_a_gain_changes_only_the_scale_of_the_weights(fit):
    m = moments(shared_latent())
    plain, doubled = fit(m, gain=None).weight, fit(m, gain=2.0).weight
    torch.testing.assert_close(doubled / doubled.norm(), plain / plain.norm())


@pytest.mark.parametrize("gain", [0.0, -1.0, float("inf"), float("nan")])
def test_a_gain_that_is_not_positive_is_refused(gain):
    with pytest.raises(InputError, match="`gain` must be a positive number, or None for the map's own scale; got "):
        fit_ridge(moments(shared_latent()), gain=gain)


def test_a_gain_without_centring_is_refused():
    with pytest.raises(InputError, match="`gain` requires `centred`"):
        fit_procrustes(moments(shared_latent()), centred=False, gain=1.0)


def test_the_canonical_correlations_equal_those_of_whitened_spaces():
    X, Y = shared_latent(d_source=6, d_target=4)
    u, v = (np.linalg.qr(side - side.mean(0))[0] for side in (X.astype(np.float64), Y.astype(np.float64)))
    expected = np.linalg.svd(u.T @ v, compute_uv=False)
    correlations = canonical(decompose(moments((X, Y))), 0.0, 0.0).correlations
    np.testing.assert_allclose(correlations, expected, atol=1e-5)


def test_correlations_ignore_an_invertible_map_of_either_space():
    X, Y = shared_latent(d_source=6, d_target=4)

    def mix(d: int) -> np.ndarray:
        return rotation(d, 5) * np.linspace(0.5, 2, d) @ rotation(d, 6)

    moved = (X @ mix(6) + 3).astype("float32"), (Y @ mix(4) - 2).astype("float32")
    before, after = (canonical(decompose(moments(sides)), 0.0, 0.0).correlations for sides in ((X, Y), moved))
    torch.testing.assert_close(before, after, atol=1e-4, rtol=0)


def spaces_with_spectrum(n, d_source, d_target, decay: float, seed: int):
    X, Y = unrelated(n, d_source, d_target, seed)
    return X * np.arange(1, d_source + 1) ** -decay, Y * np.arange(1, d_target + 1) ** -decay


@pytest.mark.parametrize(
    ("n", "d_source", "d_target"), [(200, 8, 6), (60, 5, 5), (300, 2, 30), (500, 4, 60), (300, 40, 20), (60, 100, 20)]
)
@pytest.mark.parametrize("shrinks", [(0.0, 0.0), (1e-3, 0.1), (0.1, 1.0), (0.1, None)])
def test_unrelated_spaces_stay_below_the_null_edge_in_95_of_100_draws(n, d_source, d_target, shrinks):
    below = 0
    for draw in range(60):
        sides = spaces_with_spectrum(n, d_source, d_target, decay=float(draw % 2), seed=draw)
        shared = canonical(decompose(moments(sides)), *shrinks)
        below += float(shared.correlations[0]) <= shared.null_edge
    assert below >= 0.95 * 60


@pytest.mark.parametrize("shrinks", [(0.0, 0.0), (1e-3, 0.1), (0.1, 1.0), (1.0, 10.0), (0.1, None)])
@pytest.mark.parametrize("rank", [1, 3])
def test_exactly_the_shared_directions_are_above_the_null_edge(shrinks, rank):
    above = [
        canonical(decompose(moments(shared_latent(600, rank, 12, 10, noise=0.5, seed=seed))), *shrinks).rank
        for seed in range(10)
    ]
    assert above == [rank] * 10


def test_the_rank_of_unrelated_spaces_is_one():
    shared = canonical(decompose(moments(unrelated(100, 60, 50))), 0.01, 0.01)
    assert (shared.rank, shared.null_edge) == (1, 1.0)
    assert torch.isfinite(shared.weight(0.5)).all()


@pytest.mark.parametrize("power", [-0.1, 1.1, float("nan")])
def test_a_power_outside_zero_to_one_is_refused(power):
    with pytest.raises(InputError, match="`power` must be from 0 to 1; got"):
        fit_canonical(moments(shared_latent()), power=power)


def test_a_negative_shrinkage_is_refused():
    d = decompose(moments(shared_latent()))
    for shrinks in ((-1e-3, 0.1), (0.1, -1e-3)):
        with pytest.raises(InputError, match=r"`penalty` must not be negative; got -0.001"):
            canonical(d, *shrinks)


# --- hard cases, for all methods --------------------------------------------------------------------------------------


def rank_deficient(n=200):
    X, Y = shared_latent(n)
    return X[:, [0, 0, 1, 1, 2]], Y[:, [0, 1, 0, 1]]


def constant_column(n=200):
    X, Y = shared_latent(n)
    X[:, 3], Y[:, 2] = 0.1, -7.0
    return X, Y


def unbalanced(n=200):
    X, Y = shared_latent(n)
    return X * np.geomspace(1e-6, 1e6, 12, dtype="float32"), Y * np.geomspace(1e6, 1e-6, 10, dtype="float32")


HARD = {
    "more dimensions than rows": lambda: shared_latent(30, d_source=80, d_target=50),
    "two rows": lambda: (gaussian(2, 6), gaussian(2, 5, 1)),
    "rank-deficient sides": rank_deficient,
    "a constant column": constant_column,
    "float16": lambda: tuple(side.astype("float16") for side in shared_latent()),
    "scales from 1e-6 to 1e6": unbalanced,
    "everything tiny": lambda: tuple(side * np.float32(1e-6) for side in shared_latent()),
    "everything huge": lambda: tuple(side * np.float32(1e6) for side in shared_latent()),
    "far from the origin": lambda: tuple(side + np.float32(1e4) for side in shared_latent()),
    "unrelated": unrelated,
    "one dimension a side": lambda: unrelated(100, 1, 1),
}


@pytest.mark.parametrize("name", HARD)
def test_every_closed_form_is_finite_on_hard_spaces(name):
    X, Y = HARD[name]()
    d = decompose(moments((X, Y)))
    m = d.moments
    maps = [fit_ridge(m, p, v) for p, v in product((0.0, 1e-5, 1.0), (None, 1.0))]
    maps += [fit_procrustes(m, c, s) for c, s in product((False, True), repeat=2)]
    for shrinks in ((0.0, 0.0), (1e-3, 0.1), (1.0, 10.0), (1e-3, None)):
        shared = canonical(d, *shrinks)
        maps += [affine(m, shared.weight(p, c), 1.0) for p, c in product((0.0, 0.5, 1.0), (False, True))]
    size = np.abs(Y.astype(np.float64)).max()
    for map in maps:
        out = map(np.asarray(X, dtype=np.float32))
        assert np.isfinite(out).all()
        assert np.abs(out).max() <= 100 * size


def test_scaling_a_whole_space_changes_only_the_scale_of_the_weights():
    X, Y = shared_latent()
    for fit in (fit_ridge, fit_procrustes, fit_canonical):
        plain = fit(moments((X, Y)))
        for a, b in ((1e-6, 1e6), (1e6, 1e-6)):
            scaled = fit(moments((X * np.float32(a), Y * np.float32(b))))
            np.testing.assert_allclose(scaled.weight * (a / b), plain.weight, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("value", [0.1, 0.0, 1e4 / 3, -7.0, 1e-6 / 3])
@pytest.mark.parametrize("n", [7, 97, 100, 20_000])
def test_sides_whose_rows_are_all_the_same_are_refused(value, n):
    same, varied = np.full((n, 5), value, dtype="float32"), gaussian(n, 3)
    as_source, as_target = moments((same, varied)), moments((varied, same))
    for fit in (decompose, fit_procrustes, fit_canonical, fit_ridge):
        with pytest.raises(InputError, match="The source rows must differ from one another; they are all the same"):
            fit(as_source)
    for fit in (decompose, fit_procrustes, fit_canonical):
        with pytest.raises(InputError, match="The target rows must differ from one another; they are all the same"):
            fit(as_target)


def test_a_gain_is_refused_for_a_weight_that_ignores_its_input():
    with pytest.raises(InputError, match="gives the same output for every row, so its variance cannot be matched"):
        affine(moments(shared_latent()), torch.zeros(12, 10, dtype=torch.float64), gain=1.0)


@pytest.mark.parametrize("method", FITS)
def test_every_fit_returns_a_float32_map_from_the_source_mean_to_the_target_mean(method):
    X, Y = shared_latent()
    map = FITS[method](moments((torch.from_numpy(X) + 1, torch.from_numpy(Y) - 2)))
    assert {tensor.dtype for tensor in map.tensors().values()} == {torch.float32}
    np.testing.assert_allclose(map((X + 1).mean(0)), (Y - 2).mean(0), atol=1e-4)
