"""Public metrics accept two matched matrices as arrays, tensors or lists; anything else is a one-line error."""

import warnings

import numpy as np
import pytest
import torch
from helpers.spaces import gaussian, shared_latent

import repstitch.metrics
from repstitch.errors import InputError
from repstitch.metrics import METRICS, hubness, knn, mrr, ndcg, ranks, recall, relevant_recall
from repstitch.metrics.matrices import as_matrix

METRIC_NAMES = tuple(METRICS)  # each metric is also a function of `repstitch.metrics` with this name


def function_of(name: str):
    return getattr(repstitch.metrics, name)


@pytest.mark.parametrize("name", METRIC_NAMES)
def test_arrays_lists_and_tensors_give_the_same_score(name):
    X, Y = (side.astype(np.float64) for side in shared_latent(60))
    expected = METRICS[name](torch.from_numpy(X), torch.from_numpy(Y))
    assert isinstance(expected, float)
    for metric in (METRICS[name], function_of(name)):
        for sides in ((X, Y), (X.tolist(), Y.tolist()), (torch.from_numpy(X), Y), (torch.from_numpy(X).tolist(), Y)):
            assert metric(*sides) == expected
        assert metric(X.astype(np.float32), Y.astype(np.float32)) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", METRIC_NAMES)
def test_a_metric_refuses_anything_but_two_matched_matrices(name):
    X, Y = shared_latent(60)
    for metric in (METRICS[name], function_of(name)):
        with pytest.raises(InputError, match=r"^`X` and `Y` must have the same number of rows, .*; got 60 and 59\.$"):
            metric(X, Y[1:])
        with pytest.raises(InputError, match=r"^`Y` must be a matrix \(n, d\), one row per item; got shape \(60,\)\.$"):
            metric(X, Y[:, 0])
        with pytest.raises(
            InputError, match=r"^`X` must be a matrix \(n, d\), one row per item; got shape \(1, 60, 12"
        ):
            metric(X[None], Y)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([[1.0, 2.0], [3.0]], r"`rows` must be a matrix of numbers \(n, d\): .*inhomogeneous"),
        ([["a", "b"]], r"`rows` must be a matrix of numbers \(n, d\); got <U1"),
        ("file.npy", r"`rows` must be a matrix of numbers \(n, d\); got <U8"),
        (None, r"`rows` must be a matrix of numbers \(n, d\); got object"),
        (np.ones((3, 2), dtype=complex), r"`rows` must be a matrix of numbers \(n, d\); got complex128"),
        (torch.ones(3, 2, dtype=torch.complex64), "`rows` must contain real numbers; got torch.complex64"),
        (3.0, r"`rows` must be a matrix \(n, d\), one row per item; got shape \(\)"),
        (np.ma.masked_array(np.ones((3, 2))), "^`rows` must not be a masked array, .*; remove the masked rows first.$"),
        ([torch.ones(2, requires_grad=True)], r"`rows` must be a matrix of numbers \(n, d\): Can't call numpy"),
    ],
)
def test_anything_but_a_matrix_of_numbers_is_refused(values, message):
    with pytest.raises(InputError, match=message):
        as_matrix(values, "rows")


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f4", "longdouble", "i4", "u2", "u8", "bool"])
def test_numbers_keep_their_value_and_floats_their_precision(dtype):
    values = (np.arange(12).reshape(4, 3) % 5).astype(dtype)
    matrix = as_matrix(values, "rows")
    np.testing.assert_array_equal(matrix.numpy(), values.astype(np.float64))
    kept = {"f2": torch.float16, "f4": torch.float32, ">f4": torch.float32}
    assert matrix.dtype == kept.get(dtype, torch.float64)


def test_a_float_tensor_is_not_copied_and_an_integer_tensor_is_converted():
    rows = torch.ones(4, 3, dtype=torch.bfloat16)
    assert as_matrix(rows, "rows").data_ptr() == rows.data_ptr()
    assert as_matrix(torch.ones(4, 3, dtype=torch.int32), "rows").dtype == torch.float64
    assert not as_matrix(torch.ones(4, 3, requires_grad=True), "rows").requires_grad


def test_read_only_and_strided_arrays_are_converted_without_a_warning():
    values = gaussian(6, 4)
    values.setflags(write=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for view in (values, values.T, values[::-2]):
            np.testing.assert_array_equal(as_matrix(view, "rows").numpy(), view)


def test_retrieval_metrics_accept_arrays():
    X, Y = shared_latent(40, d_source=8, d_target=8)
    x, y = torch.from_numpy(X), torch.from_numpy(Y)
    positions, lists = ranks(X, Y), knn(X, Y, 5)
    assert torch.equal(positions, ranks(x, y))
    assert torch.equal(lists, knn(x, y, 5))
    assert recall(positions.numpy(), 3) == recall(positions.tolist(), 3) == recall(positions, 3)
    assert mrr(positions.numpy()) == mrr(positions)
    assert hubness(lists.numpy(), 40) == hubness(lists, 40)
    grades = [{int(row[1]): 1.0, 39: 2.0} for row in lists]
    assert torch.equal(ndcg(lists.numpy(), grades, 3), ndcg(lists, grades, 3))
    assert torch.equal(relevant_recall(lists.tolist(), grades), relevant_recall(lists, grades))
    with pytest.raises(InputError, match="`gallery` must be a matrix"):
        ranks(X, Y[0])
    with pytest.raises(InputError, match="`queries` must be a matrix"):
        knn(X[0], Y)
    with pytest.raises(InputError, match=r"^`queries` and `gallery` must have .*; got \(40, 8\) and \(40, 7\)\.$"):
        knn(X, Y[:, 1:])
    with pytest.raises(InputError, match=r"`k` must be a whole number; got 2.5"):
        knn(X, Y, 2.5)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="must have a row for every query; got 40 queries and 39 gallery rows"):
        knn(X, Y[1:], 5, exclude_self=True)


GRADES = [{0: 1.0, 2: 2.0}, {1: 1.0}]
SCORES = {
    "ranks": (mrr, lambda ranks: recall(ranks, 1)),
    "neighbours": (lambda lists: hubness(lists, 4),),
    "retrieved": (lambda lists: ndcg(lists, GRADES, 2).tolist(), lambda lists: relevant_recall(lists, GRADES).tolist()),
}


@pytest.mark.parametrize("dtype", ["i1", ">i4", ">i8", "u8", "f4", ">f8", "longdouble"])
def test_positions_of_any_numeric_type_give_the_same_scores(dtype):
    lists = np.array([[1, 2], [2, 3]])
    for scores in SCORES.values():
        for score in scores:
            assert score(lists.astype(dtype)) == score(torch.from_numpy(lists)) == score(torch.tensor(lists).double())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([[1.5, 2.0]] * 2, "some have a fraction or are not finite"),
        (torch.tensor([[1.0, torch.nan]] * 2), "some have a fraction or are not finite"),
        (np.array([[1.0, np.inf]] * 2), "some have a fraction or are not finite"),
        ([["a", "b"]] * 2, "got <U1"),
        (np.array([[True, False]] * 2), "got torch.bool"),
        (torch.ones(2, 2, dtype=torch.complex64), "got torch.complex64"),
        ([[1], [2, 3]], None),
    ],
)
def test_positions_that_are_not_whole_numbers_are_refused(values, message):
    for name, scores in SCORES.items():
        for score in scores:
            with pytest.raises(
                InputError, match=f"^`{name}` must be whole numbers(; {message}\\.|: .*inhomogeneous.*)$"
            ):
                score(values)


def test_masked_positions_wrong_shapes_and_positions_outside_the_gallery_are_refused():
    with pytest.raises(InputError, match="`ranks` must not be a masked array"):
        mrr(np.ma.masked_array([1, 2], [True, False]))
    with pytest.raises(InputError, match=r"`retrieved` must be lists \(n, k\), one per query; got shape \(2,\)"):
        ndcg([1, 2], GRADES)
    for lists in ([[0, 4]], [[-1, 0]]):
        with pytest.raises(InputError, match="`neighbours` must be positions of gallery rows, from 0 to 3; got"):
            hubness(lists, 4)
