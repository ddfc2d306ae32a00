import numpy as np
import pytest
import torch
from helpers.spaces import gaussian

from repstitch.embeddings.normalising import normalise, norms_are_valid
from repstitch.errors import InputError
from repstitch.stitchers.maps import AffineMap, Map, ResidualMLP
from repstitch.stitchers.pipeline import Pipeline


def affine(d_in: int, d_out: int, seed: int) -> AffineMap:
    random = torch.Generator().manual_seed(seed)
    return AffineMap(torch.randn(d_in, d_out, generator=random), torch.randn(d_out, generator=random))


def mlp(d_in: int, d_out: int, seed: int, width: int = 5) -> ResidualMLP:
    random = torch.Generator().manual_seed(seed)
    shapes = ((d_in, d_out), (d_out,), (d_in, width), (width,), (width, d_out))
    return ResidualMLP(*(torch.randn(*shape, generator=random) for shape in shapes))


FORMS = {"affine": affine, "mlp": mlp}


def step_by_step(norms: tuple[str, ...], maps: tuple[Map, ...], rows: np.ndarray) -> np.ndarray:
    """Compute the translation of a pipeline step by step in float64."""
    x = rows.astype(np.float64)
    for how, map in zip(norms, (*maps, None), strict=True):
        x = x / np.linalg.norm(x, axis=1, keepdims=True) if how == "unit" else x
        if map is not None:
            x = map.to(dtype=torch.float64)(torch.from_numpy(x)).numpy()
    return x


@pytest.mark.parametrize("norms", [("unit", "unit"), ("none", "unit"), ("unit", "none"), ("none", "none")])
@pytest.mark.parametrize("form", FORMS)
def test_a_pipeline_equals_its_steps_in_turn(norms, form):
    maps, rows = (FORMS[form](6, 4, seed=1),), gaussian(9, 6)
    pipeline = Pipeline(norms, maps)
    output = pipeline(torch.from_numpy(rows))
    assert np.allclose(output.translated, step_by_step(norms, maps, rows), atol=1e-5)
    assert torch.equal(output.raw, maps[0](output.inputs))


@pytest.mark.parametrize("between", [("unit", "unit"), ("none", "unit"), ("unit", "none"), ("none", "none")])
@pytest.mark.parametrize("first", FORMS)
@pytest.mark.parametrize("second", FORMS)
def test_two_joined_pipelines_equal_the_two_in_turn(between, first, second):
    a = Pipeline(("unit", between[0]), (FORMS[first](6, 4, seed=1),))
    b = Pipeline((between[1], "unit"), (FORMS[second](4, 7, seed=2),))
    rows = torch.from_numpy(gaussian(9, 6))
    in_turn = b(a(rows).translated).translated
    assert torch.allclose(a.then(b)(rows).translated, in_turn, atol=1e-5)


def test_two_maps_are_merged_only_if_there_is_no_normalisation_between_them():
    a, b = Pipeline(("unit", "none"), (affine(6, 4, 1),)), Pipeline(("none", "unit"), (affine(4, 7, 2),))
    assert len(a.then(b).maps) == 1
    assert len(Pipeline(("unit", "unit"), a.maps).then(b).maps) == 2
    assert len(a.then(Pipeline(("unit", "unit"), b.maps)).maps) == 2
    two_mlps = Pipeline(("unit", "none"), (mlp(6, 4, 1),)).then(Pipeline(("none", "unit"), (mlp(4, 7, 2),)))
    assert len(two_mlps.maps) == 2


def test_joining_three_pipelines_is_associative():
    parts = [Pipeline(("unit", "none"), (affine(5, 5, seed),)) for seed in range(3)]
    rows = torch.from_numpy(gaussian(4, 5))
    left = parts[0].then(parts[1]).then(parts[2])(rows).translated
    right = parts[0].then(parts[1].then(parts[2]))(rows).translated
    assert torch.allclose(left, right, atol=1e-4)


def test_pipelines_of_different_dimensions_cannot_be_joined():
    with pytest.raises(InputError, match="`other` must take 4 dimensions; got 5"):
        Pipeline(("unit", "unit"), (affine(6, 4, 1),)).then(Pipeline(("unit", "unit"), (affine(5, 4, 1),)))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([np.nan] * 6, "X must be finite; 1 of 3 rows"),
        ([np.inf, 0, 0, 0, 0, 0], "X must be finite"),
        ([0] * 6, "X must have a direction; 1 of 3 rows"),
    ],
)
def test_rows_that_cannot_be_translated_are_refused(row, message):
    rows = gaussian(3, 6)
    rows[1] = row
    with pytest.raises(InputError, match=message):
        Pipeline(("unit", "unit"), (affine(6, 4, 1),))(torch.from_numpy(rows))


def test_a_translation_that_is_all_zeros_is_refused():
    zero_map = AffineMap(torch.zeros(6, 4), torch.zeros(4))
    with pytest.raises(InputError, match="the translation must have a direction"):
        Pipeline(("unit", "unit"), (zero_map,))(torch.from_numpy(gaussian(3, 6)))


@pytest.mark.parametrize("output_norm", ["unit", "none"])
@pytest.mark.parametrize("scale", [1e-30, 1e-19, 1e-16, 1.0, 1e25, 1e38])
def test_very_small_and_very_large_rows_have_the_same_translation(scale, output_norm):
    pipeline, rows = Pipeline(("unit", output_norm), (affine(6, 4, 1),)), gaussian(3, 6)
    rows /= np.abs(rows).max()
    expected = pipeline(torch.from_numpy(rows)).translated
    assert torch.allclose(pipeline(torch.from_numpy(rows * np.float32(scale))).translated, expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_in_half_precision_give_nearly_the_same_translation(dtype):
    pipeline, rows = Pipeline(("unit", "unit"), (affine(64, 48, 1),)), torch.from_numpy(gaussian(20, 64))
    exact, near = pipeline(rows).translated, pipeline.to(dtype=dtype)(rows).translated
    assert near.dtype == torch.float32
    assert not torch.equal(exact, near)
    assert (exact * near).sum(1).min() > 0.999


def test_no_rows_give_no_rows():
    assert Pipeline(("unit", "unit"), (affine(6, 4, 1),))(torch.empty(0, 6)).translated.shape == (0, 4)


def test_norms_are_valid_if_they_are_finite_and_not_too_small():
    assert norms_are_valid([torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0]])])
    for bad in (0.0, 1e-16, float("inf"), float("nan")):
        assert not norms_are_valid([torch.tensor([[bad]])])
        assert not norms_are_valid([torch.tensor([[1.0], [bad]])])


def test_normalise_refuses_rows_that_are_not_finite():
    with pytest.raises(InputError, match="rows must be finite"):
        normalise(torch.tensor([[float("nan"), 1.0]]), "none")
