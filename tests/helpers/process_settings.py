"""The settings of this process that one test can change and another one can depend on."""

import logging
import os
import signal
import sys
from typing import Any, cast

import numpy as np
import torch

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGALRM)
# Environment variables set by pytest for each test, and by scikit-learn and torch when a module is first imported.
SET_BY_LIBRARIES = ("PYTEST_", "KMP_", "PYTORCH_", "TORCHINDUCTOR_")
BACKENDS: dict[str, Any] = {
    "all": torch.backends,
    "products on CUDA": torch.backends.cuda.matmul,
    "convolutions on CUDA": cast(Any, torch.backends.cudnn).conv,
    "products on the CPU": cast(Any, torch.backends.mkldnn).matmul,
}


def process_settings() -> dict[str, Any]:
    """Return the present settings by name; environment variables are called $NAME."""
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


def changed_settings(before: dict[str, Any]) -> list[str]:
    """Return the sorted names of the settings that differ from those in `before`."""
    after = process_settings()
    return sorted(name for name in before | after if before.get(name) != after.get(name))
