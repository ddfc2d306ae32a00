"""Choose the PyTorch device for maps and for encoders."""

from typing import TYPE_CHECKING

from repstitch.errors import InputError, one_line

if TYPE_CHECKING:
    import torch

DEVICES = ("auto", "cpu", "cuda")


def pick_device(device: str = "auto", argument: str = "`device`") -> str:
    """Return the device on which maps are fitted and applied: "cpu" or "cuda".

    "auto" selects CUDA if PyTorch sees a CUDA device, else the CPU. `argument` is the name of the setting in error
    messages. Raises InputError on any other name, and on "cuda" if PyTorch sees no CUDA device.
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
    """Return the device on which an encoder runs. `device` is any PyTorch device name, such as "cuda:1" or "mps".

    "auto" selects CUDA if available, else Apple's MPS, else the CPU. Raises InputError if PyTorch cannot create a
    tensor on the device.
    """
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"`device` must be auto, cpu, cuda or mps, and available on this machine; got {device!r}: {one_line(error)}"
        ) from None
