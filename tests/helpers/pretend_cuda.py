"""A pretended CUDA device, for machines without one: its tensors report `cuda:0` and are computed on the CPU.

It raises the errors of a real device: on operations on tensors of two devices, and when NumPy reads a tensor without a
copy to the CPU. It counts the operations that make the program wait for the device. Results equal those of the CPU bit
for bit. Gradients cannot be computed on it, because PyTorch's autograd engine calls the CUDA driver.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

CUDA = torch.device("cuda:0")
aten = torch.ops.aten
COPIES = {"aten::_to_copy", "aten::copy_"}
INDEXED = {"aten::index", "aten::index_put_", "aten::index_put", "aten::_index_put_impl_"}
# Operations that return only when the device has finished all work queued before them.
WAITS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::_unique2", "aten::unique_dim", "aten::equal",
         "aten::masked_select", "aten::is_nonzero", "aten::bincount", "aten::unique_consecutive"}  # fmt: skip


class OnDevice(torch.Tensor):
    """A tensor that reports `cuda:0` as its device. The CPU tensor `inner` has its values."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore[reportAssignmentType]
    inner: torch.Tensor  # pyright: ignore[reportIncompatibleMethodOverride]

    @staticmethod
    def __new__(cls, inner: torch.Tensor):
        with torch.inference_mode(False):  # otherwise views of tensors from outside would be refused
            wrapper = torch.Tensor._make_wrapper_subclass(  # pyright: ignore[reportAttributeAccessIssue]
                cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
                device=CUDA,
            )  # fmt: skip
        wrapper.inner = inner
        return wrapper

    def __repr__(self, **_: Any) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        return f"OnDevice({tuple(self.shape)}, {self.dtype})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.inner.detach().clone().__reduce_ex__(protocol)

    def numpy(self, **_: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")

    def tolist(self) -> Any:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise RuntimeError("A tensor of the pretended device was used outside `pretend_cuda`.")


def _does_not_block(args: tuple, kwargs: dict[str, Any]) -> bool:
    return bool(kwargs.get("non_blocking") or (len(args) > 2 and args[2]))


class Stream:
    """A stream that computes immediately, but completes non-blocking copies to the CPU only when it is synchronised."""

    def __init__(self, *_: Any, **__: Any):
        self.device, self.cuda_stream = CUDA, 0
        self.copies: list[tuple[torch.Tensor, torch.Tensor]] = []

    def copy_later(self, into: torch.Tensor, values: torch.Tensor) -> None:
        """Copy `values` to `into` when the stream is synchronised. Until then `into` keeps its old values."""
        self.copies.append((into, values.clone()))

    def synchronize(self) -> None:
        for into, values in self.copies:
            into.copy_(values)
        self.copies.clear()

    def is_capturing(self) -> bool:
        return False

    def wait_stream(self, other: Any) -> None:
        """Do nothing, because other streams compute immediately."""


class Pretend(TorchDispatchMode):
    """Computes the operations on device tensors, and counts by name in `waits` those that wait for the device."""

    def __init__(self):
        super().__init__()
        self.waits: Counter[str] = Counter()
        self.stream = Stream()

    @contextlib.contextmanager
    def on_stream(self, stream: Stream) -> Iterator[None]:
        before, self.stream = self.stream, stream
        yield
        self.stream = before

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = function._schema.name.replace("aten::to", "aten::_to_copy")
        kwargs.pop("pin_memory", None)
        leaves, _ = tree_flatten((args, kwargs))
        ours = [leaf for leaf in leaves if isinstance(leaf, OnDevice)]
        devices = [leaf for leaf in leaves if isinstance(leaf, torch.device)]
        if not ours and not any(device.type == "cuda" for device in devices):
            return function(*args, **kwargs)
        self._check(name, args, leaves)
        self._count_wait(name, args, kwargs, devices)
        if name == "aten::copy_" and not isinstance(args[0], OnDevice) and _does_not_block(args, kwargs):
            self.stream.copy_later(args[0], args[1].inner)
            return args[0]
        wrappers = {id(leaf.inner): leaf for leaf in ours}
        result = function(*tree_map(_inner, args), **tree_map(_inner, kwargs))
        if any(device.type == "cpu" for device in devices) or (
            name == "aten::copy_" and not isinstance(args[0], OnDevice)
        ):
            return result

        def wrap(value: Any) -> Any:
            if not isinstance(value, torch.Tensor) or isinstance(value, OnDevice):
                return value
            return wrappers[id(value)] if id(value) in wrappers else OnDevice(value)

        leaves, form = tree_flatten(result)
        return tree_unflatten([wrap(leaf) for leaf in leaves], form)

    def _check(self, name: str, args: tuple, leaves: list[Any]) -> None:
        """Raise on CPU tensors mixed with device tensors, except in copies, as scalars and as index positions."""
        if name in COPIES:
            return
        if name in INDEXED and isinstance(args[0], OnDevice):
            leaves = list(args[2:])
        elsewhere = [t for t in leaves if isinstance(t, torch.Tensor) and not isinstance(t, OnDevice) and t.ndim]
        if elsewhere and any(isinstance(leaf, OnDevice) for leaf in tree_flatten(args)[0]):
            shapes = [tuple(t.shape) for t in elsewhere]
            raise RuntimeError(f"Expected all tensors to be on the same device; {name} has some on the CPU: {shapes}.")

    def _count_wait(self, name: str, args: tuple, kwargs: dict[str, Any], devices: list[torch.device]) -> None:
        if name in WAITS:
            self.waits[name] += 1
        elif name == "aten::_to_copy" and isinstance(args[0], OnDevice):
            if any(device.type == "cpu" for device in devices) and not kwargs.get("non_blocking"):
                self.waits[name] += 1
        elif name == "aten::copy_" and isinstance(args[1], OnDevice) and not isinstance(args[0], OnDevice):
            if not _does_not_block(args, kwargs):
                self.waits[name] += 1
        elif (
            name.startswith(("aten::index", "aten::_index_put")) and len(args) > 1 and isinstance(args[1], list | tuple)
        ) and any(isinstance(i, torch.Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1]):
            self.waits[f"{name} by a mask"] += 1


class Calls(TorchFunctionMode):
    """Replaces the Python calls that would call the CUDA driver before they reach `Pretend`."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        first = args[0] if args else None
        if isinstance(first, OnDevice):
            if function in SCALARS and first.numel() == 1:
                return SCALARS[function](aten._local_scalar_dense(first))
            if function is torch.Tensor.__getitem__:
                return _get(first, args[1])
            if function is torch.Tensor.__setitem__:
                return _set(first, args[1], args[2])
            if function in (torch.nonzero, torch.Tensor.nonzero):
                places = aten.nonzero(first)
                return aten.unbind(places, 1) if kwargs.get("as_tuple") else places
            if function is torch.Tensor.new_tensor:
                return torch.tensor(args[1], dtype=kwargs.get("dtype", first.dtype)).to(CUDA)
            if function.__name__ in ("__matmul__", "matmul") and first.ndim == 1 and args[1].ndim == 2:
                return aten.select(
                    aten.mm(aten.unsqueeze(first, 0), args[1]), 0, 0
                )  # otherwise PyTorch would use `squeeze_`
        if function is torch.Tensor.pin_memory:
            return first
        if function in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            return function(*args, **{**kwargs, "device": None}).to(kwargs["device"])
        if function is torch.Tensor.to:
            args, kwargs = tree_map(_numbered, (args, kwargs))
        elif function is torch.Tensor.cuda:
            return first.to(CUDA)  # pyright: ignore[reportOptionalMemberAccess]
        try:
            return function(*args, **kwargs)
        except torch.AcceleratorError:
            name = function.__name__
            result = getattr(aten, name)(*args, **kwargs)
            form = getattr(torch.return_types, name, None)
            return result if form is None else form(result)


def _numbered(value: Any) -> Any:
    """Replace `cuda`, whose index PyTorch would request from the driver, by `cuda:0`. Return other values unchanged."""
    is_cuda = value == "cuda" if isinstance(value, str) else isinstance(value, torch.device) and value.type == "cuda"
    return CUDA if is_cuda else value


def _get(tensor: torch.Tensor, index: Any) -> torch.Tensor:
    """Compute `tensor[index]` with operations that reach `Pretend`."""
    plain, positions = _split(tensor, index)
    return plain if not positions else aten.index(plain, positions)


def _set(tensor: torch.Tensor, index: Any, value: Any) -> None:
    plain, positions = _split(tensor, index)
    if not isinstance(value, torch.Tensor):
        value = torch.full((), value, dtype=tensor.dtype, device=CUDA)
    if positions:
        aten.index_put_(plain, positions, value.to(tensor.dtype))
    else:
        aten.copy_(plain, value)


def _split(tensor: torch.Tensor, index: Any) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
    """Return the view selected by the slices, integers, None and ellipsis of an index, and the other index tensors."""
    parts = list(index) if isinstance(index, tuple) else [index]
    if any(part is ... for part in parts):
        at = next(i for i, part in enumerate(parts) if part is ...)
        used = sum(part.ndim if _is_mask(part) else 1 for part in parts if part is not None and part is not ...)
        parts[at : at + 1] = [slice(None)] * (tensor.ndim - used)
    positions: list[torch.Tensor | None] = []
    dim = 0
    for part in parts:
        if part is None:
            tensor = aten.unsqueeze(tensor, dim)
        elif isinstance(part, slice):
            if part != slice(None):
                start, stop, step = part.indices(tensor.shape[dim])
                tensor = aten.slice(tensor, dim, start, max(start, stop), step)
        elif isinstance(part, int):
            tensor = aten.select(tensor, dim, part)
            continue
        else:
            part = torch.as_tensor(part)
            positions += [None] * (dim - len(positions)) + [part]
            if _is_mask(part):
                dim += part.ndim
                continue
        dim += 1
    return tensor, positions


def _is_mask(part: Any) -> bool:
    return isinstance(part, torch.Tensor) and part.dtype == torch.bool


SCALARS = {
    torch.Tensor.item: lambda value: value,
    torch.Tensor.__float__: float,
    torch.Tensor.__int__: int,
    torch.Tensor.__index__: int,
    torch.Tensor.__bool__: bool,
}


def _inner(value: Any) -> Any:
    if isinstance(value, torch.device):
        return torch.device("cpu")
    return value.inner if isinstance(value, OnDevice) else value


@contextlib.contextmanager
def pretend_cuda() -> Iterator[Pretend]:
    """Make PyTorch see one CUDA device inside the block. Yields the mode that counts waits."""
    state, pretended = torch.zeros(1, dtype=torch.uint8), Pretend()
    replaced = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda _: None,
        "get_device_name": lambda *_: "a pretended device",
        "get_device_capability": lambda *_: (9, 0),
        "synchronize": lambda *_: None,
        "empty_cache": lambda: None,
        "get_rng_state": lambda *_: state,
        "get_rng_state_all": lambda: [state],
        "set_rng_state": lambda *_: None,
        "set_rng_state_all": lambda *_: None,
        "manual_seed_all": lambda *_: None,
        "mem_get_info": lambda *_: (2**24, 2**34),
        "memory_reserved": lambda *_: 2**22,
        "memory_allocated": lambda *_: 2**21,
        "Stream": Stream,
        "is_current_stream_capturing": lambda: False,  # called by the optimisers of torch 2.11
        "current_stream": lambda *_: pretended.stream,
        "default_stream": lambda *_: pretended.stream,
        "stream": pretended.on_stream,
    }
    with contextlib.ExitStack() as stack:
        for name, value in replaced.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        for name in ("device_count", "synchronize", "current_stream", "is_available"):
            stack.enter_context(mock.patch.object(torch.accelerator, name, replaced[name]))
        stack.enter_context(mock.patch.object(torch.accelerator, "current_device_index", return_value=0))
        # Moving a module must replace its parameters, because a CPU tensor cannot become an `OnDevice` tensor in place.
        overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, overwrites)
        stack.enter_context(Calls())
        yield stack.enter_context(pretended)
