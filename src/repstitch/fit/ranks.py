"""Ranks of the processes that share a fit, and helpers for work that only rank 0 does."""

import torch


def rank() -> int:
    """Return the rank of this process among those that share a fit; 0 if there is only one."""
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def from_first_rank(value):
    """Return rank 0's value on every rank if several processes share a fit; otherwise return `value`."""
    if not torch.distributed.is_initialized():
        return value
    box = [value]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


def leave_to_first_rank() -> None:
    """End the processes that rank 0 launched to share a fit, so that only rank 0 continues."""
    if rank():
        raise SystemExit(0)
