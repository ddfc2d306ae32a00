import numpy as np
import pytest
import torch
from helpers.contexts import linear, mlp, stitcher, unit
from helpers.spaces import gaussian

from repstitch.errors import InputError
from repstitch.stitchers.maps import AffineMap
from repstitch.transfer.linear import affine_part, jacobian, linearise

MAPS = {"affine": AffineMap(*(t.float() for t in (linear(6, 4).map.weight, linear(6, 4).map.bias))), "mlp": mlp()}
NORMS = ("unit", "none")


def by_autograd(made, rows: np.ndarray) -> np.ndarray:
    """Return the Jacobian (d_source, d_target) of the whole translation by autograd, averaged over the rows."""
    map = made.map.to(dtype=torch.float64)

    def normalised(x, how):
        return x / x.norm() if how == "unit" else x

    def translation(x):
        return normalised(map(normalised(x, made.input_norm)), made.output_norm)

    each = [torch.func.jacrev(translation)(row).T for row in torch.from_numpy(rows).double()]
    return torch.stack(each).mean(0).numpy()


@pytest.mark.parametrize("form", list(MAPS))
@pytest.mark.parametrize("input_norm", NORMS)
@pytest.mark.parametrize("output_norm", NORMS)
@pytest.mark.parametrize("n", [1, 7])
def test_the_weight_is_the_mean_jacobian_of_the_whole_translation(form, input_norm, output_norm, n):
    made = stitcher(MAPS[form], input_norm=input_norm, output_norm=output_norm)
    rows = 3 * gaussian(n, 6, 4)
    np.testing.assert_allclose(jacobian(made, rows).weight, by_autograd(made, rows), atol=1e-9)


@pytest.mark.parametrize("form", list(MAPS))
def test_the_batch_size_does_not_change_the_jacobian(form, monkeypatch):
    from repstitch.transfer import linear as room

    made, rows = stitcher(MAPS[form]), gaussian(11, 6)
    whole = jacobian(made, rows)
    monkeypatch.setattr(room, "BATCH_ROWS", 3)
    np.testing.assert_allclose(jacobian(made, rows).weight, whole.weight, atol=1e-12)
    np.testing.assert_allclose(jacobian(made, rows).bias, whole.bias, atol=1e-12)


def test_the_jacobian_at_one_point_is_the_first_order_expansion_there():
    made, point = stitcher(MAPS["mlp"]), gaussian(1, 6)[0]
    tangent = jacobian(made, point)
    here = made.translate(point.astype(np.float64))
    np.testing.assert_allclose(point @ tangent.weight + tangent.bias, here, atol=1e-6)
    step = 1e-3 * gaussian(1, 6, 8)[0]
    off = made.translate((point + step).astype(np.float64)) - (point + step) @ tangent.weight - tangent.bias
    assert np.abs(off).max() < 1e-2 * np.linalg.norm(step)


def test_the_linearisation_maps_the_mean_row_to_the_mean_translation():
    made, rows = stitcher(MAPS["mlp"]), gaussian(40, 6)
    tangent = jacobian(made, rows)
    np.testing.assert_allclose(rows.mean(0) @ tangent.weight + tangent.bias, made.translate(rows).mean(0), atol=1e-5)


def test_without_normalisation_the_jacobian_of_an_affine_map_is_the_map():
    made = stitcher(MAPS["affine"], input_norm="none", output_norm="none")
    tangent, exact = jacobian(made, gaussian(5, 6)), affine_part(made.map)
    np.testing.assert_allclose(tangent.weight, exact.weight, atol=1e-12)
    np.testing.assert_allclose(tangent.bias, exact.bias, atol=1e-12)


def test_an_affine_map_is_used_exactly_unless_a_tangent_is_requested():
    made, rows = stitcher(MAPS["affine"]), gaussian(5, 6)
    np.testing.assert_array_equal(linearise(made, rows).weight, made.map.weight.double().numpy())
    tangent = linearise(made, rows, tangent=True)
    np.testing.assert_allclose(tangent.weight, jacobian(made, unit(rows)).weight, atol=1e-6)
    assert "Jacobian averaged over 5 rows" in tangent.description
    assert "exact affine map" in linearise(made).description


def test_an_mlp_is_linearised_by_its_jacobian_and_the_description_states_it():
    tangent = linearise(stitcher(MAPS["mlp"]), gaussian(1, 6))
    assert "Jacobian at one point" in tangent.description
    assert "a linear approximation, valid near such rows" in tangent.description


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: linearise(stitcher(MAPS["mlp"])), "An MLP is not a single matrix, so its Jacobian at rows"),
        (
            lambda: linearise(stitcher(MAPS["affine"]), None, True),
            "A Jacobian is taken at rows of the stitcher's source",
        ),
        (lambda: jacobian(stitcher(MAPS["mlp"]), gaussian(3, 5)), r"`rows` must be \(n, 6\) or \(6,\)"),
        (lambda: jacobian(stitcher(MAPS["mlp"]), np.zeros((2, 6))), "contain only zeros"),
        (lambda: linearise(stitcher(MAPS["mlp"]), np.full((2, 6), np.nan)), "contain NaN or Inf"),
    ],
)
def test_a_linearisation_without_usable_rows_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
