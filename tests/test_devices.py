"""Code for machines with an accelerator, tested without one: tensors on the meta device have a device but no data."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from repstitch.devices import pick_device
from repstitch.errors import InputError
from repstitch.fit.lightning_modules import Refiner
from repstitch.fit.recipe import Recipe


def test_a_refiner_is_on_the_device_of_its_initial_map():
    def on_device(*shape: int) -> torch.Tensor:
        return torch.ones(shape, dtype=torch.float64, device="meta")

    start: Any = SimpleNamespace(weight=on_device(4, 3), bias=on_device(3), d_source=4, d_target=3)
    decomposition: Any = SimpleNamespace(
        x_values=on_device(4), x_vectors=on_device(4, 4), moments=SimpleNamespace(x_mean=on_device(4))
    )
    refiner = Refiner(start, decomposition, Recipe(width=2))
    assert {tensor.device.type for tensor in refiner.state_dict().values()} == {"meta"}


def test_cuda_is_refused_without_a_cuda_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == "cpu"
    with pytest.raises(InputError, match="`device` is cuda but PyTorch sees no CUDA device"):
        pick_device("cuda")
