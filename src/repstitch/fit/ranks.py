"""The ranks of processes that share one fit, and what only rank 0 does."""

import torch


def rank() -> int:
    """This process's number among those that share a fit; 0 where there is only one."""
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def from_first_rank(value):
    """Rank 0's value on every rank of a fit that several processes share; the value itself in any other."""
    if not torch.distributed.is_initialized():
        return value
    box = [value]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


def leave_to_first_rank() -> None:
    """End the processes that rank 0 launched to share a fit; only rank 0 goes on after it."""
    if rank():
        raise SystemExit(0)
