"""Bring rows to unit length, and refuse rows that have no direction."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from repstitch.errors import InputError

SMALLEST_NORM = 1e-15  # below it the squares lose their digits in float32


def norms_are_valid(norms: Iterable[Tensor]) -> bool:
    """Whether these norms prove that their rows are finite and have a direction. NaN fails every comparison."""
    for of_rows in norms:
        if of_rows.numel() == 1:  # two calls into torch would cost as much as the rest
            least = largest = of_rows.item()
        elif of_rows.numel():
            least, largest = (float(bound) for bound in torch.aminmax(of_rows))
        else:
            continue
        if not SMALLEST_NORM < least <= largest < math.inf:
            return False
    return True


def row_norms(rows: Tensor) -> Tensor:
    """The lengths (n, 1) of rows (n, d), in float32."""
    return torch.linalg.vector_norm(rows if rows.dtype == torch.float32 else rows.float(), dim=-1, keepdim=True)


def _rows_where(mask: Tensor) -> str:
    at = torch.nonzero(mask.reshape(-1)).reshape(-1).tolist()
    return f"{len(at)} of {mask.numel()} rows (first: row {at[0]})"


def normalise(rows: Tensor, how: str, what: str = "rows") -> Tensor:
    """Rows at unit length ("unit") or as they are ("none"); NaN, Inf and zero rows are refused, never passed on."""
    norms = row_norms(rows)
    if not norms_are_valid((norms,)):  # one pass in the common case: a norm in range proves that its row is valid
        finite = torch.isfinite(rows).all(dim=-1, keepdim=True)
        if not bool(finite.all()):
            raise InputError(f"{what} must be finite; {_rows_where(~finite)} hold NaN or Inf.")
        largest = rows.abs().amax(dim=-1, keepdim=True)
        if how == "unit" and bool((largest == 0).any()):
            raise InputError(f"{what} must have a direction; {_rows_where(largest == 0)} hold only zeros.")
        if how == "unit":  # finite, but too large or small to square in float32
            rows = rows / largest
            norms = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return rows / norms if how == "unit" else rows
