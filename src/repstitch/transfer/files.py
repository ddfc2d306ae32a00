"""Directions, probes and dictionaries as files: what people have is read, and written back in the same names.

Read are .npz and .safetensors (probes as `coef`, `intercept`, `classes`, also with scikit-learn's underscores, or a
`weight` and `bias` as of torch's nn.Linear; dictionaries as `W_enc`, `b_enc`, `W_dec`, `b_dec` or `encoder.weight` …;
directions as one table, or one vector a name), .npy (directions), .pt and .pth (tensors only), and .skops
(scikit-learn's linear models). Nothing that runs code when it is opened.
"""

import json
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from repstitch.embeddings import check_new
from repstitch.errors import InputError, one_line
from repstitch.spaces import Space
from repstitch.transfer.kinds import Dictionary, Directions, Probe, Thing

READABLE = (".npz", ".safetensors", ".npy", ".pt", ".pth", ".skops")
WRITABLE = (".safetensors", ".npz", ".npy")
SPACE, TRANSFER = "repstitch.space", "repstitch.transfer"
PROBE_NAMES = {"coef": ("coef", "coef_", "weight"), "intercept": ("intercept", "intercept_", "bias")}  # by style
# Ours, what others call it, and whether theirs is the other way round.
DICTIONARY_NAMES = {
    "W_enc": (("W_enc", False), ("encoder.weight", True)),
    "b_enc": (("b_enc", False), ("encoder.bias", False), ("latent_bias", False)),
    "W_dec": (("W_dec", False), ("decoder.weight", True)),
    "b_dec": (("b_dec", False), ("decoder.bias", False), ("pre_bias", False), ("bias", False)),
    "threshold": (("threshold", False), ("log_threshold", False)),
}


@dataclass(frozen=True)
class Layout:
    """How a file names its arrays, so that what comes out can be read by whatever read what went in.

    `names` has the file's name of each of ours and whether it stands transposed there, `dtypes` each array's type by
    our name, `also` what is written beside them unchanged.
    """

    names: Mapping[str, tuple[str, bool]] = field(default_factory=dict)
    dtypes: Mapping[str, str] = field(default_factory=dict)
    also: Mapping[str, str] = field(default_factory=dict)


def read(
    path: str | os.PathLike,
    *,
    subtract_b_dec: bool | None = None,
    classes: Sequence[str] | None = None,
) -> tuple[Thing, Layout]:
    """What a file holds, told by the names in it, and how it names it.

    `file.pt:head` takes the layer `head` of a file that holds several. `subtract_b_dec` states whether a dictionary
    subtracts b_dec before it encodes, where neither the file nor a cfg.json beside it does; `classes` what a probe's
    scores speak for, where the file does not. Raises InputError on anything that cannot be carried, or would be
    guessed.
    """
    location, part = _split(str(path))
    file = Path(location)
    if file.suffix not in READABLE:
        unsafe = " Pickles run code when opened, so they are never read." if file.suffix in UNSAFE else ""
        raise InputError(f"{file.name} must be one of {', '.join(READABLE)}.{unsafe}")
    if not file.is_file():
        raise InputError(f"There is no file {file}; give a probe, directions or a dictionary ({', '.join(READABLE)}).")
    try:
        arrays, notes = OPENERS[file.suffix](file)
    except InputError:
        raise
    except Exception as error:  # safetensors, skops, torch and zipfile each have errors of their own
        raise InputError(f"{file} cannot be read: {one_line(error)}") from None
    space = Space.from_json(notes[SPACE]) if SPACE in notes else None
    if part is not None:
        arrays = {name.removeprefix(part + "."): value for name, value in arrays.items() if name.startswith(part + ".")}
        if not arrays:
            raise InputError(f"{file} has no part {part!r}.")
    try:
        arrays = _without_prefix(arrays)
        if any(name in arrays for name in ("W_enc", "W_dec", "encoder.weight", "decoder.weight")):
            return _dictionary(arrays, notes | _config(file), subtract_b_dec, space)
        if subtract_b_dec is not None:
            raise InputError(f"`subtract_b_dec` is of dictionaries, and {file.name} holds none.")
        if any(name in arrays for name in PROBE_NAMES["coef"]):
            return _probe(arrays, notes, classes, space)
        if classes is not None:
            raise InputError(f"`classes` are a probe's, and {file.name} holds none.")
        return _directions(arrays, notes, space)
    except InputError as error:
        raise InputError(f"{file}: {error}") from None


def write(out: str | os.PathLike, thing: Thing, layout: Layout | None = None, notes: Mapping[str, Any] | None = None):
    """Write a thing as .safetensors, .npz or (directions) .npy; it appears whole or not at all, nothing is overwritten.

    `layout` is that of the file it was read from. The space, and `notes` on how it was made, stand in the metadata of
    .safetensors and in the array `repstitch` of .npz.
    """
    target, layout = check_out(out, thing), layout or Layout()
    arrays = {}
    for name, value in _arrays(thing).items():
        theirs, turned = layout.names.get(name, (name, False))
        value = np.log(value) if theirs == "log_threshold" else value
        arrays[theirs] = np.ascontiguousarray(value.T if turned else value).astype(layout.dtypes.get(name, "float32"))
    about = {**layout.also, **_labels(thing)}
    if isinstance(thing, Dictionary):
        about |= {"subtract_b_dec": json.dumps(thing.subtract_b_dec), "activation": thing.activation}
        about |= {} if thing.k is None else {"k": str(thing.k)}
    if thing.space is not None:
        about[SPACE] = thing.space.to_json()
    if notes:
        about[TRANSFER] = json.dumps(notes, ensure_ascii=False)
    temporary = target.parent / f".{target.stem}.{uuid.uuid4().hex[:8]}{target.suffix}"
    try:
        if target.suffix == ".safetensors":
            from safetensors.numpy import save_file

            save_file(arrays, temporary, metadata=about)
        elif target.suffix == ".npz":
            named = {"classes": np.array(thing.classes)} if isinstance(thing, Probe) and thing.classes else {}
            np.savez(temporary, allow_pickle=False, **arrays, **named, repstitch=np.array(json.dumps(about)))
        else:
            np.save(temporary, arrays["directions"], allow_pickle=False)
        os.rename(temporary, check_out(out, thing))
    except OSError as error:
        raise InputError(f"`out` {target} cannot be written: {one_line(error)}") from None
    finally:
        temporary.unlink(missing_ok=True)
    return target


def check_out(out: str | os.PathLike, thing: Thing | None = None) -> Path:
    """The path of a file that may be written: a known ending, not there yet, in a folder that exists."""
    suffix = Path(out).suffix
    if suffix not in WRITABLE or (suffix == ".npy" and thing is not None and not isinstance(thing, Directions)):
        raise InputError(f"`out` must end in .safetensors or .npz (directions also in .npy); got {Path(out).name!r}.")
    return check_new(out)


# --- what the names say -----------------------------------------------------------------------------------------------


def _probe(arrays: dict, notes: Mapping[str, str], given: Sequence[str] | None, space) -> tuple[Probe, Layout]:
    names = {ours: next((name for name in theirs if name in arrays), None) for ours, theirs in PROBE_NAMES.items()}
    known = {*names.values(), "classes", "classes_"}
    _refuse_unknown(arrays, known, "a probe")
    coef = np.atleast_2d(arrays[names["coef"]])
    bias = names["intercept"]
    intercept = np.zeros(len(coef)) if bias is None else np.atleast_1d(arrays[bias])
    if intercept.shape == (1,) and not intercept.any():  # what scikit-learn keeps where no intercept is fitted
        intercept = np.zeros(len(coef))
    held = next((arrays[name] for name in ("classes", "classes_") if name in arrays), None)
    if held is None and "classes" in notes:
        held = json.loads(notes["classes"])
    stated = given if held is None else held
    classes = None if stated is None else tuple(str(name) for name in stated)
    style = PROBE_NAMES["coef"].index(str(names["coef"]))
    layout = Layout(
        {ours: (theirs[style], False) for ours, theirs in PROBE_NAMES.items()},
        {ours: str(arrays[theirs].dtype) for ours, theirs in names.items() if theirs is not None},
    )
    if given is not None and held is not None and tuple(map(str, held)) != tuple(given):
        raise InputError(f"`classes` are stated in the file already ({', '.join(map(str, held))[:80]}).")
    return Probe(coef, intercept, classes, space), layout


def _dictionary(arrays: dict, notes: dict, given: bool | None, space) -> tuple[Dictionary, Layout]:
    found: dict[str, np.ndarray] = {}
    names: dict[str, tuple[str, bool]] = {}
    for ours, others in DICTIONARY_NAMES.items():
        for theirs, turned in others:
            if theirs in arrays and theirs not in (name for name, _ in names.values()):
                names[ours] = theirs, turned
                value = np.exp(arrays[theirs]) if theirs == "log_threshold" else arrays[theirs]
                found[ours] = value.T if turned else value
                break
    for needed in ("W_enc", "W_dec"):
        if needed not in found:
            raise InputError(f"A dictionary has both W_enc and W_dec; {needed} is missing.")
    _refuse_unknown(arrays, {theirs for theirs, _ in names.values()}, "a dictionary")
    if notes.get("normalize_activations", "none") not in ("none", None):
        raise InputError(
            f"Its cfg.json normalises rows first ({notes['normalize_activations']}); fold that into the weights."
        )
    d, m = found["W_enc"].shape if found["W_enc"].ndim == 2 else (0, 0)
    subtract = next((notes[name] for name in ("subtract_b_dec", "apply_b_dec_to_input") if name in notes), None)
    subtract = json.loads(subtract) if isinstance(subtract, str) else subtract
    if subtract is not None and given is not None and bool(subtract) != given:
        raise InputError(f"`subtract_b_dec` is stated as {str(bool(subtract)).lower()} with the file already.")
    subtract = given if subtract is None else bool(subtract)
    if subtract is None and "b_dec" in found and found["b_dec"].any():
        raise InputError(
            "It is not stated whether b_dec is subtracted before encoding; say --subtract-b-dec or --no-subtract-b-dec."
        )
    k = notes.get("k") or (notes.get("activation_fn_kwargs") or {}).get("k")
    activation = str(notes.get("activation") or notes.get("activation_fn") or notes.get("architecture") or "relu")
    activation = {"standard": "relu", "identity": "none"}.get(activation, activation)
    if "threshold" in found:
        activation = "jumprelu"
    thing = Dictionary(
        found["W_enc"],
        found.get("b_enc", np.zeros(m)),
        found["W_dec"],
        found.get("b_dec", np.zeros(d)),
        bool(subtract),
        activation,
        found.get("threshold"),
        None if k is None else int(k),
        space,
    )
    dtypes = {ours: str(arrays[theirs].dtype) for ours, (theirs, _) in names.items()}
    return thing, Layout(names, dtypes)


def _directions(arrays: dict, notes: Mapping[str, str], space) -> tuple[Directions, Layout]:
    names = json.loads(notes["names"]) if "names" in notes else None
    if "names" in arrays and len(arrays) > 1:
        names = [str(name) for name in arrays.pop("names")]
    if len(arrays) == 1:
        (values,) = arrays.values()
        dtype = {"directions": str(values.dtype)}
        made = Directions(np.atleast_2d(values), None if names is None else tuple(names), space)
        return made, Layout({"directions": ("directions", False)}, dtype)
    shapes = {value.shape for value in arrays.values()}
    if len(shapes) != 1 or len(next(iter(shapes))) != 1:
        raise InputError(
            f"It holds {', '.join(sorted(arrays)[:6])}, which is no probe (coef, intercept), no dictionary (W_enc, "
            "b_enc, W_dec, b_dec) and no directions (one table, or vectors of one width)."
        )
    dtype = {"directions": str(next(iter(arrays.values())).dtype)}
    return Directions(np.stack(list(arrays.values())), tuple(arrays), space), Layout(dtypes=dtype)


def _arrays(thing: Thing) -> dict[str, np.ndarray]:
    if isinstance(thing, Directions):
        return {"directions": thing.values}
    if isinstance(thing, Probe):
        return {"coef": thing.coef, "intercept": thing.intercept}
    held = {name: getattr(thing, name) for name in DICTIONARY_NAMES}
    return {name: value for name, value in held.items() if value is not None}


def _labels(thing: Thing) -> dict[str, str]:
    """Names and classes as JSON, for no tensor holds text."""
    if isinstance(thing, Directions) and thing.names is not None:
        return {"names": json.dumps(thing.names, ensure_ascii=False)}
    if isinstance(thing, Probe) and thing.classes is not None:
        return {"classes": json.dumps(thing.classes, ensure_ascii=False)}
    return {}


def _refuse_unknown(arrays: Mapping, known: set, what: str) -> None:
    unknown = sorted(set(arrays) - known)
    if unknown:
        raise InputError(
            f"As {what} it cannot be carried, for what is {unknown[0]!r} in it? Known here are "
            f"{', '.join(sorted(name for name in known if name))}."
        )


def _without_prefix(arrays: dict) -> dict:
    """A state dict without what a model with one such part puts before each name: `head.weight` is `weight`."""
    known = {name for names in PROBE_NAMES.values() for name in names}
    known |= {theirs for names in DICTIONARY_NAMES.values() for theirs, _ in names}
    bare = arrays
    while bare and not known & set(bare):
        heads = {name.partition(".")[0] for name in bare}
        if len(heads) > 1 or not all("." in name for name in bare):
            layers = sorted(name.removesuffix(".weight") for name in arrays if name.endswith(".weight"))
            if layers:
                raise InputError(f"It holds several layers; name one after a colon: {', '.join(layers[:6])}.")
            return arrays
        bare = {name.partition(".")[2]: value for name, value in bare.items()}
    return bare


def _split(path: str) -> tuple[str, str | None]:
    head, colon, tail = path.rpartition(":")
    return (head, tail) if colon and Path(head).suffix in READABLE else (path, None)


# --- the formats ------------------------------------------------------------------------------------------------------


def _config(file: Path) -> dict:
    """What SAELens and others state beside a checkpoint."""
    beside = file.with_name("cfg.json")
    if not beside.is_file():
        return {}
    try:
        held = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{beside} cannot be read: {one_line(error)}") from None
    if not isinstance(held, dict):
        raise InputError(f"{beside} must hold a JSON object.")
    return {name: held[name] for name in CONFIG if held.get(name) is not None}


def _open_safetensors(file: Path):
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:  # torch, for NumPy has no bfloat16
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        return {name: _numbers(tensor) for name, tensor in tensors.items()}, dict(opened.metadata() or {})


def _open_npz(file: Path):
    with np.load(file, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    notes = json.loads(str(arrays.pop("repstitch"))) if "repstitch" in arrays else {}
    return arrays, notes


def _open_npy(file: Path):
    return {"directions": np.load(file, allow_pickle=False)}, {}


def _open_torch(file: Path):
    import torch

    held = torch.load(file, map_location="cpu", weights_only=True)
    held = held.get("state_dict", held) if isinstance(held, dict) else {"directions": held}
    if not all(isinstance(value, torch.Tensor) for value in held.values()):
        raise InputError(f"{file} must hold tensors by name, a state dict.")
    return {name: _numbers(tensor) for name, tensor in held.items()}, {}


def _numbers(tensor) -> np.ndarray:
    import torch

    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor.detach()).numpy()


def _open_skops(file: Path):
    """A scikit-learn linear model, alone or after a StandardScaler; only types that skops trusts are made."""
    from skops.io import load

    model = load(file, trusted=[])
    steps = [step for _, step in model.steps] if hasattr(model, "steps") else [model]
    steps = [step for step in steps if step not in (None, "passthrough")]
    scaler = steps[0] if len(steps) == 2 and type(steps[0]).__name__ == "StandardScaler" else None
    if not steps or len(steps) > 1 + (scaler is not None) or not hasattr(steps[-1], "coef_"):
        names = ", ".join(type(step).__name__ for step in steps)
        raise InputError(f"{file} must hold a linear model, at most after a StandardScaler; it holds {names}.")
    last = steps[-1]
    coef = np.atleast_2d(np.asarray(last.coef_, dtype=np.float64))
    intercept = np.broadcast_to(np.asarray(last.intercept_, dtype=np.float64), (len(coef),))
    if scaler is not None:
        coef = coef / (scaler.scale_ if scaler.with_std else 1.0)
        intercept = intercept - (coef @ scaler.mean_ if scaler.with_mean else 0.0)
    arrays = {"coef": coef, "intercept": intercept}
    return (arrays | {"classes": np.asarray(last.classes_)} if hasattr(last, "classes_") else arrays), {}


CONFIG = (
    "apply_b_dec_to_input", "normalize_activations", "activation", "activation_fn", "activation_fn_kwargs",
    "architecture", "k",
)  # fmt: skip
UNSAFE = (".pkl", ".pickle", ".joblib", ".sav")
OPENERS = {
    ".npz": _open_npz,
    ".safetensors": _open_safetensors,
    ".npy": _open_npy,
    ".pt": _open_torch,
    ".pth": _open_torch,
    ".skops": _open_skops,
}
