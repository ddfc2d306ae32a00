"""What a machine with an accelerator needs, proved without one: the meta device holds no numbers, only places."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from repstitch.devices import pick_device
from repstitch.errors import InputError
from repstitch.fit.lightning_modules import Refiner
from repstitch.fit.recipe import Recipe


def test_all_of_a_refiner_lies_where_its_start_does():
    def on_device(*shape: int) -> torch.Tensor:
        return torch.ones(shape, dtype=torch.float64, device="meta")

    start: Any = SimpleNamespace(weight=on_device(4, 3), bias=on_device(3), d_source=4, d_target=3)
    decomposition: Any = SimpleNamespace(
        x_values=on_device(4), x_vectors=on_device(4, 4), moments=SimpleNamespace(x_mean=on_device(4))
    )
    refiner = Refiner(start, decomposition, Recipe(width=2))
    assert {tensor.device.type for tensor in refiner.state_dict().values()} == {"meta"}


def test_cuda_is_refused_where_there_is_none(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == "cpu"
    with pytest.raises(InputError, match="`device` is cuda but PyTorch sees no CUDA device"):
        pick_device("cuda")
