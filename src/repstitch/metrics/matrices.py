"""The matrices that public metrics accept: NumPy, torch or nested lists, converted once to tensors."""

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from repstitch.errors import InputError

MatrixLike = Tensor | ArrayLike  # rows (n, d): a tensor, an array, or what NumPy makes an array of


def as_matrix(values: MatrixLike, name: str) -> Tensor:
    """The rows (n, d) as a floating-point tensor; `name` is what the message calls them.

    Floats keep their precision (long doubles become float64), integers and booleans become float64. A tensor of floats
    is returned as it is. Raises InputError on anything but a matrix of numbers.
    """
    matrix = values.detach() if isinstance(values, Tensor) else torch.from_numpy(_as_array(values, name))
    if matrix.ndim != 2:
        raise InputError(f"`{name}` must be a matrix (n, d), one row per item; got shape {tuple(matrix.shape)}.")
    if matrix.is_complex():
        raise InputError(f"`{name}` must hold real numbers; got {matrix.dtype}.")
    return matrix if matrix.is_floating_point() else matrix.double()


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
    try:
        array = np.asarray(values)
    except (ValueError, TypeError) as error:
        raise InputError(f"`{name}` must be a matrix of numbers (n, d): {' '.join(str(error).split())}") from None
    if array.dtype.kind not in "fiub":
        raise InputError(f"`{name}` must be a matrix of numbers (n, d); got {array.dtype}.")
    precise = array.dtype.newbyteorder("=") if array.dtype.kind == "f" and array.dtype.itemsize <= 8 else np.float64
    return np.require(array, precise, ("C", "W"))  # torch warns of arrays that cannot be written to
