"""The check around every test notices each setting of the process that a test leaves changed."""

import logging
import os
import signal

import numpy as np
import pytest
import torch
from helpers.process_settings import changed_settings, process_settings

LOGS = logging.root.manager
SETTINGS = {
    "$REPSTITCH_LEFT": lambda patch, _: patch.setenv("REPSTITCH_LEFT", os.environ.get("REPSTITCH_LEFT", "") + "1"),
    "working folder": lambda patch, folder: patch.chdir(folder),
    "import path": lambda patch, folder: patch.syspath_prepend(folder),
    "disabled log level": lambda patch, _: patch.setattr(LOGS, "disable", LOGS.disable + 1),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_changed_by_monkeypatch_is_noticed_until_it_is_undone(name, tmp_path):
    before = process_settings()
    with pytest.MonkeyPatch.context() as patch:
        SETTINGS[name](patch, tmp_path)
        assert changed_settings(before) == [name]
    assert changed_settings(before) == []


def test_settings_of_the_system_and_of_numpy_are_noticed():
    before = process_settings()
    umask, handler = os.umask(before["umask"] ^ 0o070), signal.signal(signal.SIGALRM, lambda *_: None)
    try:
        with np.errstate(divide="raise"):
            assert changed_settings(before) == ["NumPy's handling of errors", "signal handlers", "umask"]
    finally:
        os.umask(umask)
        signal.signal(signal.SIGALRM, handler)
    assert changed_settings(before) == []


def test_the_precision_of_products_is_noticed_even_if_it_is_set_to_its_usual_value():
    """PyTorch then gives each backend a precision of its own, so a later global setting has no effect."""
    before = process_settings()
    torch.set_float32_matmul_precision("highest")
    try:
        products = [f"torch's precision of products on {device}" for device in ("CUDA", "the CPU")]
        assert changed_settings(before) == products
    finally:
        for backend in (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul):  # pyright: ignore[reportAttributeAccessIssue]
            backend.fp32_precision = "none"
    assert changed_settings(before) == []
