"""The workers of a parallel run compute with one thread each, and every test leaves the process as it was.

Workers take tests in an order that differs between runs and machines. If one test leaves a setting of the process
changed, another one can fail in some orders only.
"""

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # set before NumPy or torch starts its threads
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, "1")

import logging
from collections.abc import Iterator

import pytest
from helpers.process_settings import changed_settings, process_settings

from repstitch import redaction


@pytest.fixture(autouse=True)
def no_test_hides_the_secrets_of_another() -> Iterator[None]:
    redaction._secrets.clear()
    yield
    redaction._secrets.clear()


@pytest.fixture(autouse=True)
def every_test_leaves_the_process_as_it_was() -> Iterator[None]:
    before, logger = process_settings(), logging.getLogger("repstitch")
    logger.setLevel(logging.NOTSET)  # commands set it, in tests and in fixtures of whole modules
    yield
    logger.setLevel(logging.NOTSET)
    changed = changed_settings(before)
    assert not changed, f"the test must restore these settings of the process: {', '.join(changed)}"
