"""The precision of float32 matrix products: full wherever a score depends on them.

A program may let PyTorch round the factors of float32 products to fewer bits (TF32 or bfloat16), which is faster on
some devices. Encoders, training steps and translations follow the program's setting, and so does the confidence that
the service returns with its translations. PyTorch's own default on CUDA is full float32 in matrix products and TF32 in
the convolutions of image encoders. The sums that maps are solved from, scores, neighbours and all other
confidence are computed in full float32.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch

from repstitch.errors import InputError

_BACKENDS: tuple[Any, ...] = (torch.backends.cuda.matmul, cast(Any, torch.backends.mkldnn).matmul)


@dataclass(frozen=True)
class _Setting:
    """PyTorch's setting: as a whole (None where a program has set the backends one by one), and of each backend."""

    whole: str | None
    by_backend: tuple[str, ...]

    @classmethod
    def current(cls) -> "_Setting":
        return cls(_whole(), tuple(map(_own, _BACKENDS)))

    def restore(self) -> None:
        if self.whole is not None:
            torch.set_float32_matmul_precision(self.whole)
        for backend, precision in zip(_BACKENDS, self.by_backend, strict=True):
            backend.fp32_precision = precision


def _is_exact() -> bool:
    return all(backend.fp32_precision in ("ieee", "none") for backend in _BACKENDS)  # "none": nothing was ever set


def _whole() -> str | None:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None


def _own(backend: Any) -> str:
    """A backend's own setting: "none" where what it reports is that of all backends."""
    reported = backend.fp32_precision
    backend.fp32_precision = "none"
    if backend.fp32_precision == reported:
        return "none"
    backend.fp32_precision = reported
    return reported


_lock = threading.Lock()
_inside = 0
_outside: _Setting | None = None


@contextmanager
def exact_products() -> Iterator[None]:
    """Compute products in full float32 inside, whatever precision the program has set; also as a decorator.

    PyTorch's setting belongs to the whole process: while one thread is inside, products of other threads are exact too,
    and a setting that another thread changes meanwhile is lost. The program's setting returns when the last thread
    leaves.
    """
    global _inside, _outside
    with _lock:
        if not _inside:
            _outside = None if _is_exact() else _Setting.current()
            if _outside is not None:
                torch.set_float32_matmul_precision("highest")
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside and _outside is not None:
                _outside.restore()


def check_set_as_a_whole() -> None:
    """Raise InputError where a program has set the precision backend by backend, which Lightning fails on with CUDA."""
    if _whole() is None:
        raise InputError(
            "PyTorch's float32 precision is set for single backends, which refinement on CUDA cannot read; set it with "
            "`torch.set_float32_matmul_precision`."
        )
