"""Open and write files of named arrays, without running code that a file may contain."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from repstitch.errors import InputError, one_line
from repstitch.files import check_new, written_whole
from repstitch.spaces import SPACE_KEY

NOTES = "repstitch"  # the array of an .npz that stores the metadata
SPACE, TRANSFER = SPACE_KEY.decode(), "repstitch.transfer"  # keys of the metadata
UNSAFE = (".pkl", ".pickle", ".joblib", ".sav")
# scikit-learn models whose scores are exactly rows @ coef_.T + intercept_.
LINEAR_MODELS = (
    "LogisticRegression", "LogisticRegressionCV", "LinearSVC", "LinearSVR", "Ridge", "RidgeCV", "RidgeClassifier",
    "RidgeClassifierCV", "LinearRegression", "Lasso", "LassoCV", "ElasticNet", "ElasticNetCV", "SGDClassifier",
    "SGDRegressor", "Perceptron", "PassiveAggressiveClassifier", "LinearDiscriminantAnalysis",
)  # fmt: skip


def open_arrays(file: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return a file's arrays by name and its metadata. Raises InputError on files that are unreadable or run code."""
    if file.suffix not in OPENERS:
        unsafe = " Pickle files can run code when opened, so they are never read." if file.suffix in UNSAFE else ""
        raise InputError(f"{file.name} must end in one of {', '.join(OPENERS)}.{unsafe}")
    if not file.is_file():
        raise InputError(
            f"There is no file {file}; pass a file of directions, a probe or a dictionary ({', '.join(OPENERS)})."
        )
    try:
        arrays, notes = OPENERS[file.suffix](file)
        for name, array in arrays.items():
            if not isinstance(name, str) or not isinstance(array, np.ndarray):
                raise InputError(f"it must contain named arrays; {name!r} is {type(array).__name__}.")
        return arrays, dict(notes)
    except ImportError:
        raise
    except Exception as error:  # safetensors, skops, torch and zipfile each raise different errors
        raise InputError(f"{file} cannot be read: {one_line(error)}") from None


def write_arrays(target: Path, arrays: Mapping[str, np.ndarray], notes: Mapping[str, str]) -> None:
    """Write arrays and metadata to a new file (.npy: one array without metadata). A failed write leaves no file."""
    with written_whole(target) as path:
        if target.suffix == ".safetensors":
            from safetensors.numpy import save as to_safetensors

            numbers = {k: v for k, v in arrays.items() if v.dtype.kind != "U"}
            path.write_bytes(to_safetensors(numbers, dict(notes)))  # `save_file` ignores the umask
        elif target.suffix == ".npz":
            named: dict[str, Any] = {**arrays, NOTES: np.array(json.dumps(dict(notes), ensure_ascii=False))}
            np.savez(path, **named)
        else:
            np.save(path, next(iter(arrays.values())), allow_pickle=False)
        check_new(target)  # another process may have created it meanwhile


def _open_safetensors(file: Path):
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:  # as torch tensors, because NumPy has no bfloat16
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        return {name: _numbers(tensor) for name, tensor in tensors.items()}, opened.metadata() or {}


def _open_npz(file: Path):
    with np.load(file, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    notes = json.loads(str(arrays.pop(NOTES))) if NOTES in arrays else {}
    if not isinstance(notes, dict):
        raise InputError(f"its array {NOTES!r} must contain a JSON object.")
    return arrays, notes


def _open_npy(file: Path):
    return {"directions": np.load(file, allow_pickle=False)}, {}


def _open_torch(file: Path):
    import torch

    loaded = torch.load(file, map_location="cpu", weights_only=True)
    checkpoint: dict = loaded if isinstance(loaded, dict) and "state_dict" in loaded else {"state_dict": loaded}
    tensors = checkpoint.pop("state_dict")
    tensors = tensors if isinstance(tensors, dict) else {"directions": tensors}
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            raise InputError(
                f"it must contain a state dict, that is, named tensors; {name!r} is {type(tensor).__name__}."
            )
    return {name: _numbers(tensor) for name, tensor in tensors.items()}, {"checkpoint": checkpoint}


def _numbers(tensor) -> np.ndarray:
    import torch

    detached = tensor.detach()
    return (detached.float() if detached.dtype == torch.bfloat16 else detached).numpy()


def _open_skops(file: Path):
    """Open a linear scikit-learn model, alone or after a StandardScaler. Only types that skops trusts are created."""
    from skops.io import load

    model = load(file, trusted=[])
    steps = [step for _, step in model.steps] if hasattr(model, "steps") else [model]
    steps = [step for step in steps if step not in (None, "passthrough")]
    scaler = steps[0] if len(steps) == 2 and type(steps[0]).__name__ == "StandardScaler" else None
    if len(steps) != 1 + (scaler is not None) or type(steps[-1]).__name__ not in LINEAR_MODELS:
        names = ", ".join(type(step).__name__ for step in steps)
        raise InputError(f"it must contain a linear model, alone or after a StandardScaler; it contains {names}.")
    last: Any = steps[-1]
    coef = np.atleast_2d(np.asarray(last.coef_, dtype=np.float64))
    intercept = np.broadcast_to(np.asarray(last.intercept_, dtype=np.float64), (len(coef),))
    if scaler is not None:
        coef = coef / scaler.scale_ if scaler.with_std else coef
        intercept = intercept - coef @ scaler.mean_ if scaler.with_mean else intercept
    arrays = {"coef": coef, "intercept": intercept}
    return (arrays | {"classes": np.asarray(last.classes_)} if hasattr(last, "classes_") else arrays), {}


OPENERS = {
    ".npz": _open_npz,
    ".safetensors": _open_safetensors,
    ".npy": _open_npy,
    ".pt": _open_torch,
    ".pth": _open_torch,
    ".skops": _open_skops,
}
