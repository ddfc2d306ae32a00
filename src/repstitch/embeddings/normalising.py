"""Normalise rows to unit length, and reject rows that are not finite or contain only zeros."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from repstitch.errors import InputError

SMALLEST_NORM = 1e-15  # the squares of smaller norms lose precision in float32


def norms_are_valid(norms: Iterable[Tensor]) -> bool:
    """Return whether all norms are finite and not too small, which proves that their rows can be normalised.

    A norm of NaN fails the comparison, so it needs no separate check.
    """
    for row_lengths in norms:
        if row_lengths.numel() == 1:  # for a single norm, `aminmax` would cost as much as the rest
            least = largest = row_lengths.item()
        elif row_lengths.numel():
            least, largest = (float(bound) for bound in torch.aminmax(row_lengths))
        else:
            continue
        if not SMALLEST_NORM < least <= largest < math.inf:
            return False
    return True


def row_norms(rows: Tensor) -> Tensor:
    """Return the lengths (n, 1) of rows (n, d), in float32."""
    return torch.linalg.vector_norm(rows if rows.dtype == torch.float32 else rows.float(), dim=-1, keepdim=True)


def normalise(rows: Tensor, norm: str, subject: str = "rows") -> Tensor:
    """Return the rows at unit length (`norm` "unit") or unchanged ("none").

    Raises InputError on rows with NaN or Inf and, with "unit", on rows of zeros. The message calls the rows `subject`.
    """
    norms = row_norms(rows)
    # In the common case this check is enough, because a norm in range proves that its row is valid.
    if not norms_are_valid((norms,)):
        finite = torch.isfinite(rows).all(dim=-1, keepdim=True)
        if not bool(finite.all()):
            raise InputError(f"{subject} must be finite; {_count_rows(~finite)} contain NaN or Inf.")
        largest = rows.abs().amax(dim=-1, keepdim=True)
        if norm == "unit" and bool((largest == 0).any()):
            raise InputError(f"{subject} must have a direction; {_count_rows(largest == 0)} contain only zeros.")
        if norm == "unit":  # finite, but too large or small to square in float32
            rows = rows / largest
            norms = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return rows / norms if norm == "unit" else rows


def cosines(X: Tensor, Y: Tensor) -> Tensor:
    """Return the cosine (n,) of each row of X (n, d) with the same row of Y (n, d), whatever their lengths.

    The cosine with a row of zeros is 0.
    """
    # PyTorch takes norms below 1e-8 for zero. A scaling by a power of two changes no digit.
    X, Y = (torch.ldexp(rows, -torch.frexp(rows.abs().amax(dim=-1, keepdim=True)).exponent) for rows in (X, Y))
    return torch.nn.functional.cosine_similarity(X, Y)


def _count_rows(mask: Tensor) -> str:
    positions = torch.nonzero(mask.reshape(-1)).reshape(-1).tolist()
    return f"{len(positions)} of {mask.numel()} rows (first: row {positions[0]})"
