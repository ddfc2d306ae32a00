import numpy as np
import pytest
import torch
from helpers.spaces import gaussian

from repstitch.errors import InputError
from repstitch.stitchers.maps import FORMS, AffineMap, Map, ResidualMLP, form_of, map_from_tensors


def affine(d_source=5, d_target=4, seed=0, dtype=torch.float32) -> AffineMap:
    random = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=random, dtype=dtype)  # noqa: E731
    return AffineMap(draw(d_source, d_target), draw(d_target))


def mlp(d_source=5, d_target=4, width=7, seed=0, dtype=torch.float32) -> ResidualMLP:
    random = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=random, dtype=dtype)  # noqa: E731
    return ResidualMLP(
        draw(d_source, d_target), draw(d_target), draw(d_source, width), draw(width), draw(width, d_target)
    )


MAKE = {"affine": affine, "residual_mlp": mlp}


def test_every_form_is_tested():
    assert set(MAKE) == set(FORMS)


def test_an_affine_map_returns_rows_times_weight_plus_bias():
    map, X = affine(), gaussian(6, 5)
    np.testing.assert_allclose(map(X), X @ map.weight.numpy() + map.bias.numpy(), rtol=1e-5, atol=1e-5)


def test_a_residual_mlp_returns_its_affine_part_plus_the_residual():
    map, x = mlp(), torch.from_numpy(gaussian(6, 5))
    hidden = x @ map.hidden_weight + map.hidden_bias
    gelu = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    torch.testing.assert_close(map(x), x @ map.weight + map.bias + gelu @ map.out_weight)


@pytest.mark.parametrize(
    ("first", "second"), [("affine", "affine"), ("affine", "residual_mlp"), ("residual_mlp", "affine")]
)
def test_a_merged_map_equals_the_two_maps_in_turn(first, second):
    a = MAKE[first](5, 4, seed=1, dtype=torch.float64)
    b = MAKE[second](4, 3, seed=2, dtype=torch.float64)
    x = torch.randn(20, 5, dtype=torch.float64)
    both = a.then(b)
    assert (both.d_source, both.d_target) == (5, 3)
    assert form_of(both) == ("residual_mlp" if "residual_mlp" in (first, second) else "affine")
    torch.testing.assert_close(both(x), b(a(x)), rtol=1e-10, atol=1e-10)


def test_two_mlps_cannot_be_merged():
    with pytest.raises(InputError, match="`other` must be affine to be merged with an MLP"):
        mlp(5, 4).then(mlp(4, 3))


@pytest.mark.parametrize("first", MAKE)
def test_maps_of_different_dimensions_cannot_be_merged(first):
    with pytest.raises(InputError, match="`other` must take the 4 dimensions that the first map returns; got 5"):
        MAKE[first](5, 4).then(affine(5, 3))


@pytest.mark.parametrize("form", MAKE)
def test_numpy_in_gives_numpy_float32_out(form):
    map, X = MAKE[form](), gaussian(6, 5)
    for dtype in (np.float16, np.float32, np.float64):
        out = map(X.astype(dtype))
        assert isinstance(out, np.ndarray)
        assert (out.dtype, out.shape) == (np.float32, (6, 4))
        np.testing.assert_allclose(out, map(X), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("form", MAKE)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_torch_in_gives_torch_out_in_the_dtype_of_the_weights(form, dtype):
    map, x = MAKE[form](), torch.from_numpy(gaussian(6, 5))
    out = map(x.to(dtype))
    assert (out.dtype, out.shape) == (torch.float32, (6, 4))
    torch.testing.assert_close(out, map(x.to(dtype).float()))


@pytest.mark.parametrize("form", MAKE)
def test_a_single_vector_is_mapped_like_a_row(form):
    map, X = MAKE[form](), gaussian(6, 5)
    assert map(X[0]).shape == (4,)
    np.testing.assert_allclose(map(X[0]), map(X)[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(map(torch.from_numpy(X[0])), map(torch.from_numpy(X))[0], rtol=1e-5, atol=1e-5)


def test_the_memory_order_of_the_rows_does_not_matter():
    map, X = affine(), gaussian(6, 5)
    for same in (np.asfortranarray(X), np.repeat(X, 2, axis=0)[::2], X[::-1][::-1]):
        np.testing.assert_allclose(map(same), map(X), rtol=1e-6, atol=1e-6)


def test_no_rows_give_no_rows():
    assert affine()(np.zeros((0, 5), dtype=np.float32)).shape == (0, 4)


@pytest.mark.parametrize("shape", [(6, 4), (4,), (), (2, 3, 5)])
def test_rows_of_another_width_are_refused(shape):
    with pytest.raises(InputError, match=r"`x` must be \(n, 5\) or \(5,\)"):
        affine()(np.zeros(shape, dtype=np.float32))
    with pytest.raises(InputError, match=r"`x` must be \(n, 5\) or \(5,\)"):
        mlp()(torch.zeros(shape))


@pytest.mark.parametrize("form", MAKE)
def test_a_map_can_be_rebuilt_from_its_tensors(form):
    map = MAKE[form]()
    rebuilt = map_from_tensors(form_of(map), {name: tensor.clone() for name, tensor in map.tensors().items()})
    assert type(rebuilt) is type(map)
    for name, tensor in map.tensors().items():
        assert torch.equal(rebuilt.tensors()[name], tensor)


def test_a_map_is_rebuilt_in_float32():
    map = affine(dtype=torch.float64)
    assert map_from_tensors("affine", map.tensors()).weight.dtype == torch.float32


def test_to_changes_the_dtype_of_every_tensor():
    assert {t.dtype for t in mlp().to(dtype=torch.float64).tensors().values()} == {torch.float64}


@pytest.mark.parametrize("form", MAKE)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_map_that_is_not_finite_is_refused(form, bad):
    tensors = MAKE[form]().tensors()
    for name in tensors:
        broken = tensors[name].clone()
        broken.view(-1)[0] = bad
        with pytest.raises(InputError, match=f"`{name}` of a map must be finite"):
            map_from_tensors(form, tensors | {name: broken})


def test_an_unknown_form_and_missing_or_extra_tensors_are_refused():
    tensors = affine().tensors()
    with pytest.raises(InputError, match="`form` of a map must be one of affine, residual_mlp; got 'rbf'"):
        map_from_tensors("rbf", tensors)
    with pytest.raises(InputError, match=r"form 'affine' must have the tensors \['bias', 'weight'\]; got \['weight'\]"):
        map_from_tensors("affine", {"weight": tensors["weight"]})
    with pytest.raises(InputError, match="form 'affine' must have the tensors"):
        map_from_tensors("affine", mlp().tensors())


@pytest.mark.parametrize(
    ("weight", "bias"), [((5, 4), (5,)), ((5,), (5,)), ((5, 4), (4, 1)), ((5, 4), ()), ((2, 5, 4), (4,))]
)
def test_a_weight_and_a_bias_of_wrong_shapes_are_refused(weight, bias):
    with pytest.raises(InputError, match=r"`weight` must be \(d_source, d_target\) and `bias` \(d_target,\)"):
        AffineMap(torch.zeros(weight), torch.zeros(bias))


@pytest.mark.parametrize(
    ("hidden_weight", "hidden_bias", "out_weight"),
    [((4, 7), (7,), (7, 4)), ((5, 7), (6,), (7, 4)), ((5, 7), (7,), (7, 5)), ((5,), (7,), (7, 4)), ((), (), (7, 4))],
)
def test_a_residual_with_tensors_of_wrong_shapes_is_refused(hidden_weight, hidden_bias, out_weight):
    with pytest.raises(InputError, match="`hidden_weight`, `hidden_bias` and `out_weight` must be"):
        ResidualMLP(
            torch.zeros(5, 4), torch.zeros(4), *(torch.zeros(s) for s in (hidden_weight, hidden_bias, out_weight))
        )


def test_the_base_class_cannot_be_called():
    base = Map(torch.zeros(5, 4), torch.zeros(4))
    with pytest.raises(TypeError, match="use AffineMap or ResidualMLP"):
        base(torch.zeros(2, 5))


def test_a_row_that_is_read_only_is_mapped_without_a_warning():
    map, rows = affine(), gaussian(3, 5)
    expected = map(rows)
    rows.flags.writeable = False
    np.testing.assert_array_equal(map(rows), expected)
