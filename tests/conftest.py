"""Workers that run beside each other compute with one thread each, and every test leaves the process as it was.

The workers of a parallel run take tests in an order that differs between runs and machines. A setting of the process
that one test leaves changed makes another one fail in some orders only.
"""

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # set before NumPy or torch starts its threads
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, "1")

import logging
import signal
import sys
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import pytest
import torch

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGALRM)
SET_BY_LIBRARIES = ("PYTEST_", "KMP_")  # environment variables: by pytest for each test, by scikit-learn when imported
BACKENDS: dict[str, Any] = {
    "all": torch.backends,
    "products on CUDA": torch.backends.cuda.matmul,
    "convolutions on CUDA": cast(Any, torch.backends.cudnn).conv,
    "products on the CPU": cast(Any, torch.backends.mkldnn).matmul,
}


def process_settings() -> dict[str, Any]:
    """Return the settings of this process that one test can change and another one can depend on."""
    os.umask(umask := os.umask(0))
    return {
        "working folder": os.getcwd(),
        "umask": umask,
        "signal handlers": [signal.getsignal(number) for number in SIGNALS],
        "import path": list(sys.path),
        "disabled log level": logging.root.manager.disable,
        "NumPy's handling of errors": np.geterr(),
        "torch's default type": torch.get_default_dtype(),
        "torch's number of threads": torch.get_num_threads(),
        "torch's gradients": torch.is_grad_enabled(),
        "torch's deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        **{f"torch's precision of {name}": backend.fp32_precision for name, backend in BACKENDS.items()},
        **{f"${name}": value for name, value in os.environ.items() if not name.startswith(SET_BY_LIBRARIES)},
    }


@pytest.fixture(autouse=True)
def every_test_leaves_the_process_as_it_was() -> Iterator[None]:
    before, logger = process_settings(), logging.getLogger("repstitch")
    level = logger.level
    yield
    logger.setLevel(level)  # commands set it, and end with their process
    after = process_settings()
    changed = sorted(name for name in before | after if before.get(name) != after.get(name))
    assert not changed, f"this test left changed: {', '.join(changed)}"
