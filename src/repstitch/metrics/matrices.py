"""The matrices and positions that public metrics accept: NumPy, torch or lists, converted once to tensors."""

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from repstitch.arguments import check_unmasked
from repstitch.errors import InputError, one_line

MatrixLike = Tensor | ArrayLike  # rows (n, d): a tensor, an array, or what NumPy makes an array of


def as_matrix(values: MatrixLike, name: str) -> Tensor:
    """The rows (n, d) as a floating-point tensor; `name` is what the message calls them.

    Floats keep their precision (long doubles become float64), integers and booleans become float64. A tensor of floats
    is returned as it is. Raises InputError on anything but a matrix of numbers, and on a masked array.
    """
    matrix = values.detach() if isinstance(values, Tensor) else torch.from_numpy(_as_array(values, name))
    if matrix.ndim != 2:
        raise InputError(f"`{name}` must be a matrix (n, d), one row per item; got shape {tuple(matrix.shape)}.")
    if matrix.is_complex():
        raise InputError(f"`{name}` must hold real numbers; got {matrix.dtype}.")
    return matrix if matrix.is_floating_point() else matrix.double()


def as_positions(values: Tensor | ArrayLike, name: str, lists: bool = False) -> Tensor:
    """Ranks or positions as a tensor of integers; floats are converted where they are whole.

    `lists` asks for the shape (n, k). Raises InputError on anything but whole numbers; `name` is what the message calls
    the values.
    """
    if not isinstance(values, Tensor):
        array = _plain_array(values, name, "whole numbers")
        values = torch.from_numpy(array.astype({"f": np.float64, "b": np.bool_}.get(array.dtype.kind, np.int64)))
    if values.dtype == torch.bool or values.is_complex():
        raise InputError(f"`{name}` must be whole numbers; got {values.dtype}.")
    integers = values.detach().long()
    if values.is_floating_point() and not bool((integers == values).all()):
        raise InputError(f"`{name}` must be whole numbers; some of these are not.")
    if lists and integers.ndim != 2:
        raise InputError(f"`{name}` must be lists (n, k), one a query; got shape {tuple(integers.shape)}.")
    return integers


def matched_matrices(X: MatrixLike, Y: MatrixLike, least: int) -> tuple[Tensor, Tensor]:
    """Rows X (n, d_x) and Y (n, d_y) as tensors; InputError unless both have as many, and at least `least`."""
    x, y = as_matrix(X, "X"), as_matrix(Y, "Y")
    check_rows(len(x), len(y), least)
    return x, y


def check_rows(n: int, m: int, least: int) -> None:
    """Refuse rows that do not match or are too few."""
    if n != m or n < least:
        raise InputError(f"`X` and `Y` must have as many rows, at least {least}; got {n} and {m}.")


def _as_array(values: ArrayLike, name: str) -> np.ndarray:
    array = _plain_array(values, name, "a matrix of numbers (n, d)")
    precise = array.dtype.newbyteorder("=") if array.dtype.kind == "f" and array.dtype.itemsize <= 8 else np.float64
    return np.require(array, precise, ("C", "W"))  # torch warns of arrays that cannot be written to


def _plain_array(values: ArrayLike, name: str, expected: str) -> np.ndarray:
    """The values as an array of numbers; InputError, which says what was `expected`, where they are something else."""
    check_unmasked(values, f"`{name}`")
    try:
        array = np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"`{name}` must be {expected}: {one_line(error)}") from None
    if array.dtype.kind not in "fiub":
        raise InputError(f"`{name}` must be {expected}; got {array.dtype}.")
    return array
