import json
from typing import Any

import numpy as np
import pytest
import torch
from helpers.spaces import affine_image, names, shared_latent, unrelated

from repstitch.errors import InputError
from repstitch.fit.learning_curve import check_enough, draw_curve, extrapolate, fit_power, nested_order, verdict
from repstitch.fit.objective import ValidationObjective
from repstitch.fit.selection import Problem
from repstitch.names import OBJECTIVES

SIZES = [50, 100, 200, 400, 800]


def problem(X: np.ndarray, Y: np.ndarray, objective: str = "match", validation: int = 60) -> Problem:
    x, y = torch.from_numpy(X), torch.from_numpy(Y)
    return Problem(
        x[validation:],
        y[validation:],
        ValidationObjective(objective, x[:validation], y[:validation], y[validation:]),
    )


def rows_of(means, draws: int = 2, m: int = 400, noise: float = 0.0) -> list[list[np.ndarray]]:
    random = np.random.default_rng(0)
    return [[mean + noise * random.standard_normal(m) for _ in range(draws)] for mean in means]


@pytest.mark.parametrize(("a", "b", "c"), [(0.9, 3.0, 0.5), (0.6, 5.0, 1.0), (1.0, 1.0, 0.25)])
def test_the_parameters_of_a_power_law_are_recovered(a, b, c):
    at = np.array(SIZES, dtype=float)
    parameters = fit_power(at, a - b * at**-c)
    assert parameters == pytest.approx((a, b, c), rel=1e-6)


@pytest.mark.parametrize(("a", "b", "c"), [(0.9, 3.0, 0.5), (0.6, 5.0, 1.0)])
def test_the_score_at_twice_the_pairs_is_predicted(a, b, c):
    means = a - b * np.array(SIZES, dtype=float) ** -c
    _, doubled = extrapolate(SIZES, rows_of(means, noise=0.05))
    truth = a - b * 1600.0**-c
    assert doubled["pairs"] == 1600
    assert doubled["expected"] == pytest.approx(truth, abs=0.01)
    assert doubled["interval"][0] < truth < doubled["interval"][1]


def test_the_fit_weights_each_size_by_its_number_of_pairs():
    at, means = np.array(SIZES, dtype=float), np.array([0.1, 0.45, 0.48, 0.6, 0.62])
    a, b, c = fit_power(at, means)

    def misfit(a: float, b: float) -> float:
        return float((at * (a - b * at**-c - means) ** 2).sum())

    for step in (-1e-3, 1e-3):
        assert misfit(a, b) < min(misfit(a + step, b), misfit(a, b * (1 + step)))


def test_predicted_scores_are_at_most_one():
    _, doubled = extrapolate(SIZES, rows_of([0.2, 0.4, 0.6, 0.8, 0.99]))
    assert doubled["expected"] <= 1
    assert doubled["interval"][1] <= 1


def test_a_poor_fit_of_the_power_law_widens_the_interval():
    smooth = 0.9 - 3 * np.array(SIZES, dtype=float) ** -0.5
    bent = smooth - np.array([0, 0, 0, 0, 0.05])
    widths = [np.diff(extrapolate(SIZES, rows_of(means, noise=0.01))[1]["interval"])[0] for means in (smooth, bent)]
    assert widths[1] > widths[0] + 0.05


@pytest.mark.parametrize(
    ("now", "expected", "gains", "end"),
    [
        (0.6, 0.65, [0.03, 0.07], "more pairs would help."),
        (0.6, 0.602, [0.0, 0.005], "more pairs would not help."),
        (0.6, 0.65, [0.0, 0.1], "these scores do not show whether more pairs would help."),
        (0.6, 0.605, [0.001, 0.03], "these scores do not show whether more pairs would help."),
    ],
)
def test_the_verdict_follows_the_gain_and_its_interval(now, expected, gains, end):
    line = verdict("match", 800, {"now": now, "expected": expected, "interval": [0.5, 0.7], "gain_interval": gains})
    assert line.startswith(f"doubling the 800 training pairs is expected to raise match from {now:.3f} to")
    assert line.endswith(end)


def test_subsets_are_nested_and_depend_on_the_keys_alone():
    keys = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, 300)
    order = nested_order(keys, 1)
    assert sorted(order) == list(range(300))
    shuffled = np.random.default_rng(1).permutation(300)
    np.testing.assert_array_equal(keys[shuffled][nested_order(keys[shuffled], 1)], keys[order])
    assert not np.array_equal(nested_order(keys, 2), order)
    assert abs(np.corrcoef(order, np.arange(300))[0, 1]) < 0.2


def test_rows_with_equal_keys_stay_together():
    keys = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, 60)[np.arange(300) % 60]
    ordered = keys[nested_order(keys, 3)]
    assert (ordered[1:] != ordered[:-1]).sum() == 59


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("method", ["ridge", "canonical"])
def test_a_curve_is_plain_json_with_every_score_at_every_size(objective, method):
    X, Y = shared_latent(460, rank=6, d_source=16, d_target=14, noise=0.3)
    curve = draw_curve(problem(X, Y, objective), method)
    assert json.loads(json.dumps(curve, allow_nan=False)) == curve
    assert curve["sizes"] == [25, 50, 100, 200, 400]
    assert set(curve["scores"]) == {*OBJECTIVES, "recall@1"}
    assert [len(draws) for draws in curve["scores"]["recall@1"]] == [3, 3, 3, 2, 1]
    assert curve["scores"][objective][-1][0] == pytest.approx(curve["doubled"]["now"])
    assert (curve["method"], curve["objective"]) == (method, objective)


def test_more_pairs_raise_the_score_if_pairs_are_few_compared_with_dimensions():
    X, Y, _, _ = affine_image(260, 64, 48, noise=16.0)
    curve = draw_curve(problem(X, Y, validation=100))
    assert np.mean(curve["scores"]["match"][-1]) > np.mean(curve["scores"]["match"][0]) + 0.1
    assert curve["doubled"]["expected"] > curve["doubled"]["now"] + 0.01


def test_more_pairs_do_not_pay_if_the_map_is_already_accurate():
    X, Y, _, _ = affine_image(860, 6, 6, noise=0.01)
    assert draw_curve(problem(X, Y))["verdict"].endswith("more pairs would not help.")


def test_the_predicted_score_of_unrelated_spaces_stays_low():
    curve = draw_curve(problem(*unrelated(860)))
    assert curve["doubled"]["expected"] < 0.1


def test_too_few_pairs_for_a_curve_are_refused():
    with pytest.raises(InputError, match="`learning_curve` needs at least 80 training pairs; got 79"):
        check_enough(79)
    X, Y = shared_latent(100)
    with pytest.raises(InputError, match="got 40"):
        draw_curve(problem(X, Y))


@pytest.mark.parametrize("grouped", [False, True])
def test_training_stores_the_learning_curve_in_the_scorecard(grouped):
    from repstitch.workflows.training import train

    X, Y = shared_latent(300)
    group = names(300)[np.arange(300) // 3] if grouped else None
    options: dict[str, Any] = {
        "method": "ridge",
        "source_space": "old",
        "target_space": "new",
        "device": "cpu",
        "group": group,
    }
    plain, drawn = train(X, Y, **options), train(X, Y, learning_curve=True, **options)
    assert "learning_curve" not in plain.scorecard
    curve = drawn.scorecard.learning_curve
    assert curve is not None
    assert curve.sizes[-1] == drawn.provenance["pairs"]["train"]
    assert curve.to_dict()["method"] == "ridge"
    assert torch.equal(plain.map.weight, drawn.map.weight)


def test_too_few_pairs_for_a_curve_are_refused_by_train():
    from repstitch.workflows.training import train

    X, Y = shared_latent(60)
    with pytest.raises(InputError, match="`learning_curve` needs at least 80 training pairs"):
        train(X, Y, method="ridge", source_space="old", target_space="new", device="cpu", learning_curve=True)


def test_the_command_line_plots_the_learning_curve(tmp_path, capsys):
    from repstitch.cli.main import main

    X, Y = shared_latent(200)
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", Y)
    command = ["train", "--source", f"{tmp_path}/x.npy", "--target", f"{tmp_path}/y.npy", "--method", "ridge"]
    assert main([*command, "--out", f"{tmp_path}/s", "--learning-curve", f"{tmp_path}/curve.png"]) == 0
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert "doubling the" in capsys.readouterr().out
    assert main([*command, "--out", f"{tmp_path}/t", "--learning-curve", f"{tmp_path}/curve.jpg"]) == 2
    assert "`--learning-curve` must end in .png" in capsys.readouterr().err
    (tmp_path / "folder.png").mkdir()
    assert main([*command, "--out", f"{tmp_path}/t", "--learning-curve", f"{tmp_path}/folder.png"]) == 2
    assert "`--learning-curve` must be a file" in capsys.readouterr().err
    assert not (tmp_path / "t").exists()
