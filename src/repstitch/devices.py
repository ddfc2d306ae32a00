"""Which device tensors live on: the one place that asks PyTorch what the machine has."""

from typing import TYPE_CHECKING

from repstitch.errors import InputError, one_line

if TYPE_CHECKING:
    import torch

DEVICES = ("auto", "cpu", "cuda")


def pick_device(device: str = "auto", argument: str = "`device`") -> str:
    """The device that maps are fitted and applied on: "cpu" or "cuda".

    "auto" takes CUDA where PyTorch sees a CUDA device. `argument` is what the message calls the setting. Raises
    InputError on another name, and on "cuda" where there is none.
    """
    if device not in DEVICES:
        raise InputError(f"{argument} must be auto, cpu or cuda; got {device!r}.")
    if device == "cpu":
        return device
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if device == "cuda":
        raise InputError(
            f"{argument} is cuda but PyTorch sees no CUDA device; use cpu, or install a CUDA build of torch."
        )
    return "cpu"


def open_device(device: str = "auto") -> "torch.device":
    """The device that an encoder runs on: any that PyTorch knows by name, such as "cuda:1" or "mps".

    "auto" takes CUDA, then Apple's MPS, then the CPU. Raises InputError where a tensor cannot be placed there.
    """
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"`device` must be auto, cpu, cuda or mps, and be here; got {device!r}: {one_line(error)}"
        ) from None
