"""Conversion of the arguments of public metrics (NumPy arrays, torch tensors or lists) to tensors."""

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from repstitch.arguments import check_unmasked
from repstitch.errors import InputError, one_line

MatrixLike = Tensor | ArrayLike  # rows (n, d): a tensor, an array, or anything that NumPy converts to one


def as_matrix(values: MatrixLike, name: str) -> Tensor:
    """Return rows (n, d) as a floating-point tensor. `name` is the argument in error messages.

    Floats keep their precision (long doubles become float64); integers and booleans become float64. A float tensor is
    not copied. Raises InputError on anything but a matrix of real numbers, and on a masked array.
    """
    matrix = values.detach() if isinstance(values, Tensor) else torch.from_numpy(_as_array(values, name))
    if matrix.ndim != 2:
        raise InputError(f"`{name}` must be a matrix (n, d), one row per item; got shape {tuple(matrix.shape)}.")
    if matrix.is_complex():
        raise InputError(f"`{name}` must contain real numbers; got {matrix.dtype}.")
    return matrix if matrix.is_floating_point() else matrix.double()


def as_positions(values: Tensor | ArrayLike, name: str, lists: bool = False) -> Tensor:
    """Return ranks or positions as an integer tensor. Floats are accepted if they are whole numbers.

    `name` is the argument in error messages. Raises InputError on anything but whole numbers and, if `lists` is True,
    on any shape but (n, k).
    """
    if not isinstance(values, Tensor):
        array = _plain_array(values, name, "whole numbers")
        values = torch.from_numpy(array.astype({"f": np.float64, "b": np.bool_}.get(array.dtype.kind, np.int64)))
    if values.dtype == torch.bool or values.is_complex():
        raise InputError(f"`{name}` must be whole numbers; got {values.dtype}.")
    integers = values.detach().long()
    if values.is_floating_point() and not bool((integers == values).all()):
        raise InputError(f"`{name}` must be whole numbers; some have a fraction or are not finite.")
    if lists and integers.ndim != 2:
        raise InputError(f"`{name}` must be lists (n, k), one per query; got shape {tuple(integers.shape)}.")
    return integers


def matched_matrices(X: MatrixLike, Y: MatrixLike, least: int) -> tuple[Tensor, Tensor]:
    """Return matched rows X (n, d_x) and Y (n, d_y) as tensors.

    Raises InputError unless both have the same number of rows, and at least `least`.
    """
    x, y = as_matrix(X, "X"), as_matrix(Y, "Y")
    check_rows(len(x), len(y), least)
    return x, y


def check_rows(n: int, m: int, least: int) -> None:
    """Raise InputError unless the numbers of rows n and m are equal and at least `least`."""
    if n != m or n < least:
        raise InputError(f"`X` and `Y` must have the same number of rows, at least {least}; got {n} and {m}.")


def _as_array(values: ArrayLike, name: str) -> np.ndarray:
    array = _plain_array(values, name, "a matrix of numbers (n, d)")
    precise = array.dtype.newbyteorder("=") if array.dtype.kind == "f" and array.dtype.itemsize <= 8 else np.float64
    return np.require(array, precise, ("C", "W"))  # torch warns about read-only arrays


def _plain_array(values: ArrayLike, name: str, expected: str) -> np.ndarray:
    """Return the values as an array of numbers. `expected` describes valid values in the error message."""
    check_unmasked(values, f"`{name}`")
    try:
        array = np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"`{name}` must be {expected}: {one_line(error)}") from None
    if array.dtype.kind not in "fiub":
        raise InputError(f"`{name}` must be {expected}; got {array.dtype}.")
    return array
