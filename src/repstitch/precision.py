"""Precision of float32 matrix products: compute fits and scores in full float32, whatever the program has set.

A program may let PyTorch round the factors of float32 products to fewer bits (TF32 or bfloat16), which is faster on
some devices. Encoders, training steps and translations follow the program's setting. So does the confidence that the
service returns with its translations. By default, PyTorch on CUDA uses full float32 in matrix products and TF32 in
convolutions, which image encoders contain. The sums that maps are solved from, scores, neighbours and confidence
outside the service are always computed in full float32.
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
    """PyTorch's precision setting.

    `whole` is the global setting, or None if the program has set the backends one by one. `by_backend` has the setting
    of each backend.
    """

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
    return all(backend.fp32_precision in ("ieee", "none") for backend in _BACKENDS)  # "none": never set


def _whole() -> str | None:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None


def _own(backend: Any) -> str:
    """Return the setting of one backend, or "none" if the backend follows the global setting."""
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
    """Compute products in full float32 inside this context, whatever the program has set. Also works as a decorator.

    PyTorch's setting is global to the process. While one thread is inside the context, products of other threads are
    exact too, and a setting that another thread changes in the meantime is lost. The program's setting is restored when
    the last thread leaves.
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
    """Raise InputError if the program has set the precision of single backends, which makes Lightning fail on CUDA."""
    if _whole() is None:
        raise InputError(
            "PyTorch's float32 precision must be set for all backends at once to train on CUDA; call "
            "`torch.set_float32_matmul_precision`."
        )
