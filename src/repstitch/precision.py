"""The precision of float32 matrix products: full for everything but training steps and translations.

A program may let PyTorch round the factors of float32 products to fewer bits (TF32 or bfloat16), which is faster on
some devices. Training steps and translations follow the program's setting, and so does the confidence that the service
returns with them. The sums that maps are solved from, scores, neighbours and all other confidence are computed in full
float32.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch

# By backend: `torch.get_float32_matmul_precision` raises where a program has set the backends one by one.
_BACKENDS: tuple[Any, ...] = (torch.backends.cuda.matmul, cast(Any, torch.backends.mkldnn).matmul)
_lock = threading.Lock()
_inside = 0
_found: list[str] = []


@contextmanager
def exact_products() -> Iterator[None]:
    """Compute products in full float32 inside, whatever precision the program has set; also as a decorator.

    PyTorch's setting belongs to the whole process: while one thread is inside, products of other threads are exact too.
    The program's setting returns when the last thread leaves.
    """
    global _inside, _found
    with _lock:
        if not _inside:
            _found = [backend.fp32_precision for backend in _BACKENDS]
            _set(["ieee"] * len(_BACKENDS))
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                _set(_found)


def _set(precisions: list[str]) -> None:
    for backend, precision in zip(_BACKENDS, precisions, strict=True):
        backend.fp32_precision = precision
