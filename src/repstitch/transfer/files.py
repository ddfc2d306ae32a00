"""Read and write files of directions, probes or dictionaries. The kind is recognised by the names of the arrays.

A probe has the arrays `coef`, `intercept` and `classes`, with or without scikit-learn's trailing underscore, or
`weight` and `bias` like torch's nn.Linear, or is a scikit-learn model (.skops). A dictionary has `W_enc`, `b_enc`,
`W_dec` and `b_dec`, or two layers `encoder` and `decoder`. Directions are an array `directions` with one direction per
row, the only array of an .npy, or one named vector per direction.
"""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from repstitch.errors import InputError, one_line
from repstitch.files import check_carried_file, split_key
from repstitch.spaces import Space
from repstitch.transfer.formats import NOTES, OPENERS, SPACE, TRANSFER, open_arrays, write_arrays
from repstitch.transfer.kinds import Dictionary, Directions, Probe, Transferable
from repstitch.transfer.labels import as_text
from repstitch.transfer.settings import activation_of, check_sizes, read_settings, subtracts_b_dec, unknown_settings

log = logging.getLogger(__name__)

DIRECTIONS = "directions"
DICTIONARIES = {"W_enc", "W_dec", "encoder.weight", "decoder.weight"}
RESERVED = {"file", "allow_pickle", NOTES}  # np.savez and this module use these names, so no direction can have them
# Names of three conventions: ours, scikit-learn's and torch's, in this order for each array.
PROBE_NAMES = {
    "coef": ("coef", "coef_", "weight"),
    "intercept": ("intercept", "intercept_", "bias"),
    "classes": ("classes", "classes_", "classes"),
}
# For each of our names: the names that files use for the array, and whether it is transposed there.
DICTIONARY_NAMES = {
    "W_enc": (("W_enc", False), ("encoder.weight", True)),
    "b_enc": (("b_enc", False), ("encoder.bias", False), ("latent_bias", False)),
    "W_dec": (("W_dec", False), ("decoder.weight", True)),
    "b_dec": (("b_dec", False), ("decoder.bias", False), ("pre_bias", False), ("bias", False)),
    "threshold": (("threshold", False), ("log_threshold", False)),
}


@dataclass(frozen=True)
class Layout:
    """Names and dtypes of a file's arrays. The result is written with them, so that the same tools can read it.

    `names` maps our name of an array to its name in the file and whether it is transposed there. `dtypes` maps our name
    to the dtype in the file. If `apart` is true, each direction is a separate array.
    """

    names: Mapping[str, tuple[str, bool]] = field(default_factory=dict)
    dtypes: Mapping[str, np.dtype] = field(default_factory=dict)
    apart: bool = False


def read(
    path: str | os.PathLike,
    *,
    subtract_b_dec: bool | None = None,
    classes: Sequence[str] | None = None,
    directions: bool = False,
) -> tuple[Transferable, Layout]:
    """Read the directions, probe or dictionary in a file. Returns it and the file's layout.

    `file.pt:head` reads only the layer or array `head`. The other arguments state facts that the file does not.
    `subtract_b_dec` is whether a dictionary subtracts b_dec before it encodes; a config next to the file (cfg.json or
    config.json) may state it instead. `classes` are the class names of a probe's scores. `directions` reads arrays of
    any name as directions. Raises InputError on a file that cannot be read, has arrays or settings that cannot be
    transferred, or does not state what is needed.
    """
    location, part = split_key(str(path), OPENERS)
    file = Path(location)
    arrays, notes = open_arrays(file)
    try:
        space = Space.from_json(notes[SPACE]) if SPACE in notes else None
        arrays, prefix = _part(arrays, part, directions)
        names = json.loads(notes.get("names", "null"))
        by_name = names if names is not None and set(names) == set(arrays) else None  # `write` stored each separately
        if not directions and by_name is None and DICTIONARIES & set(arrays):
            _refuse_options(classes=classes)
            return _dictionary(arrays, read_settings(file, notes), subtract_b_dec, space, prefix)
        if not directions and by_name is None and set(PROBE_NAMES["coef"]) & set(arrays):
            _refuse_options(subtract_b_dec=subtract_b_dec)
            if unknown := unknown_settings(notes):
                log.warning("%s states %s, which a probe does not apply; check its scores.", file, ", ".join(unknown))
            return _probe(arrays, notes, classes, space, prefix)
        _refuse_options(subtract_b_dec=subtract_b_dec, classes=classes)
        return _directions(arrays, by_name, names, directions, space)
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    except Exception as error:  # metadata may have values of any type
        raise InputError(f"{file} cannot be read: {one_line(error)}") from None


def write(
    out: str | os.PathLike,
    transferable: Transferable,
    layout: Layout | None = None,
    notes: Mapping[str, Any] | None = None,
) -> Path:
    """Write directions (.safetensors, .npz, .npy), a probe or a dictionary (.safetensors, .npz) to a new file.

    A write that fails leaves no partial file, and an existing file is never overwritten. `layout` is the layout of the
    file that the original was read from. Names, classes, the space and the `notes`, which record how the result was
    made, are stored in the metadata of a .safetensors file or in the array `repstitch` of an .npz; an .npy has no
    metadata. Returns the path.
    """
    target, layout = check_carried_file(out, isinstance(transferable, Directions)), layout or Layout()
    if layout.apart and (target.suffix == ".npy" or RESERVED & set(getattr(transferable, "names", None) or ())):
        layout = Layout()  # one array with a direction per row
    arrays = {}
    for name, value in _arrays(transferable, layout).items():
        file_name, transposed = layout.names.get(name, (name, False))
        value = np.log(value) if file_name.endswith("log_threshold") else value
        arrays[file_name] = _typed(np.ascontiguousarray(value.T if transposed else value), layout.dtypes.get(name))
    metadata = _metadata(transferable, notes)
    if target.suffix == ".npy" and "names" in metadata:
        log.warning("An .npy cannot store the names of directions; write .safetensors or .npz to keep them.")
    write_arrays(target, arrays, metadata)
    return target


def _metadata(transferable: Transferable, notes: Mapping[str, Any] | None) -> dict[str, str]:
    metadata = {}
    for name in ("names", "classes"):
        if getattr(transferable, name, None) is not None:
            metadata[name] = json.dumps(getattr(transferable, name), ensure_ascii=False)
    if isinstance(transferable, Dictionary):
        metadata["subtract_b_dec"] = json.dumps(transferable.subtract_b_dec)
        metadata["activation"] = transferable.activation
        if transferable.k is not None:
            metadata["k"] = str(transferable.k)
    if transferable.space is not None:
        metadata[SPACE] = transferable.space.to_json()
    if notes:
        metadata[TRANSFER] = json.dumps(notes, ensure_ascii=False)
    return metadata


# --- convert named arrays to probes, dictionaries and directions ------------------------------------------------------


def _probe(arrays: dict, notes: Mapping, classes: Sequence[str] | None, space, prefix: str) -> tuple[Probe, Layout]:
    style = next(i for i, name in enumerate(PROBE_NAMES["coef"]) if name in arrays)
    names = {name: styles[style] for name, styles in PROBE_NAMES.items()}
    _refuse_unknown(arrays, set(names.values()), "a probe")
    fields = {name: arrays[file_name] for name, file_name in names.items() if file_name in arrays}
    coef = np.atleast_2d(fields["coef"])
    intercept = np.atleast_1d(fields.get("intercept", np.zeros(len(coef))))
    if intercept.shape == (1,) and not intercept.any():  # scikit-learn stores one 0 if no intercept is fitted
        intercept = np.zeros(len(coef))
    stored = fields.get("classes")
    if stored is None and "classes" in notes:
        stored = np.array(json.loads(notes["classes"]))
    if stored is not None:
        stored = [str(as_text(name)) for name in np.atleast_1d(stored).tolist()]
        if classes is not None and list(classes) != stored:
            raise InputError(
                f"`classes` differ from those stored in the file ({', '.join(stored)[:80]}); leave them out."
            )
        classes = stored
    layout = Layout(
        {name: (prefix + file_name, False) for name, file_name in names.items()},
        {name: array.dtype for name, array in fields.items()} | ({"intercept": coef.dtype} if len(fields) == 1 else {}),
    )
    return Probe(coef, intercept, None if classes is None else tuple(classes), space), layout


def _dictionary(
    arrays: dict, settings: Mapping, subtract_b_dec: bool | None, space, prefix: str
) -> tuple[Dictionary, Layout]:
    fields: dict[str, np.ndarray] = {}
    names: dict[str, tuple[str, bool]] = {}
    for name, alternatives in DICTIONARY_NAMES.items():
        taken = {file_name for file_name, _ in names.values()}
        for file_name, transposed in alternatives:
            if file_name in arrays and file_name not in taken:
                value = np.exp(arrays[file_name]) if file_name == "log_threshold" else arrays[file_name]
                names[name], fields[name] = (file_name, transposed), value.T if transposed else value
                break
    for needed in ("W_enc", "W_dec"):
        if needed not in fields:
            raise InputError(f"A dictionary needs both W_enc and W_dec; {needed} is missing.")
    _refuse_unknown(arrays, {file_name for file_name, _ in names.values()}, "a dictionary")
    d, m = fields["W_enc"].shape if fields["W_enc"].ndim == 2 else (0, 0)
    check_sizes(settings, d, m)
    activation, k = activation_of(settings, "threshold" in fields)
    dictionary = Dictionary(
        fields["W_enc"],
        fields.get("b_enc", np.zeros(m)),
        fields["W_dec"],
        fields.get("b_dec", np.zeros(d)),
        subtracts_b_dec(settings, subtract_b_dec),
        activation,
        fields.get("threshold"),
        k,
        space,
    )
    default = arrays[names["W_enc"][0]].dtype
    dtypes = {name: arrays[names[name][0]].dtype if name in names else default for name in DICTIONARY_NAMES}
    for bias, weight in (("b_enc", "W_enc"), ("b_dec", "W_dec")):  # a missing bias is named like the weight
        layer = names[weight][0].removesuffix(".weight")
        names.setdefault(bias, (bias if layer == weight else f"{layer}.bias", False))
    prefixed = {name: (prefix + file_name, transposed) for name, (file_name, transposed) in names.items()}
    return dictionary, Layout(prefixed, dtypes)


def _directions(
    arrays: dict, by_name: list[str] | None, names: list[str] | None, any_name: bool, space
) -> tuple[Directions, Layout]:
    """Build directions from one matrix or from named vectors; with `any_name`, from arrays of any name."""
    flat = {name: array.reshape(-1) if array.shape[:-1] in ((), (1,)) else array for name, array in arrays.items()}
    vectors = len({array.shape for array in flat.values()}) == 1 and all(array.ndim == 1 for array in flat.values())
    if by_name is None and DIRECTIONS in arrays and set(arrays) <= {DIRECTIONS, "names"}:
        values = arrays[DIRECTIONS]
        names = arrays["names"].tolist() if "names" in arrays else names
        layout = Layout(dtypes={DIRECTIONS: values.dtype})
    elif (any_name or by_name) and vectors:
        names = by_name or list(flat)
        values = np.stack([flat[name] for name in names])
        layout = Layout(dtypes={name: array.dtype for name, array in arrays.items()}, apart=True)
    elif any_name and len(arrays) == 1:
        ((name, values),) = arrays.items()
        names, layout = None, Layout({DIRECTIONS: (name, False)}, {DIRECTIONS: values.dtype})
    elif any_name:
        raise InputError(
            f"Directions must be one matrix, or named vectors of one width; the file contains {_listed(arrays)}."
        )
    else:
        raise InputError(
            f"The file contains {_listed(arrays)}, which is neither a probe (coef, intercept) nor a dictionary (W_enc, "
            "b_enc, W_dec, b_dec); pass `directions` if it contains one matrix of directions, or named vectors."
        )
    return Directions(np.atleast_2d(values), None if names is None else tuple(map(str, names)), space), layout


def _listed(arrays: Mapping) -> str:
    """The first six names, for messages."""
    return ", ".join(sorted(arrays)[:6]) or "nothing"


def _arrays(transferable: Transferable, layout: Layout) -> dict[str, np.ndarray]:
    """Return the arrays to write, by our names."""
    if isinstance(transferable, Directions):
        if layout.apart and transferable.names is not None:
            return dict(zip(transferable.names, transferable.values, strict=True))
        return {DIRECTIONS: transferable.values}
    if isinstance(transferable, Probe):
        classes = {} if transferable.classes is None else {"classes": np.array(transferable.classes)}
        return {"coef": transferable.coef, "intercept": transferable.intercept} | classes
    fields = {name: getattr(transferable, name) for name in DICTIONARY_NAMES}
    return {name: value for name, value in fields.items() if value is not None}


def _typed(value: np.ndarray, dtype: np.dtype | None) -> np.ndarray:
    """Convert an array to its original dtype, or to float32 if that is an integer dtype or the values overflow it."""
    if value.dtype.kind == "U":
        whole = dtype is not None and dtype.kind in "iu"
        return value.astype(dtype) if whole else value
    dtype = np.dtype(np.float32) if dtype is None or dtype.kind != "f" else dtype
    with np.errstate(over="ignore"):
        narrow = value.astype(dtype)
    return narrow if np.isfinite(narrow).all() else value.astype(np.float32)


def _refuse_options(**options) -> None:
    """Raise InputError on options that do not apply to this kind of file."""
    kinds = {"subtract_b_dec": "a dictionary", "classes": "a probe"}
    for name, value in options.items():
        if value is not None and value is not False:
            raise InputError(
                f"`{name}` applies only to {kinds[name]}, and the file contains something else; leave it out."
            )


def _refuse_unknown(arrays: Mapping, allowed: set, kind: str) -> None:
    unknown = sorted(set(arrays) - allowed)
    if unknown:
        raise InputError(
            f"The file of {kind} has an array {unknown[0]!r} that is not recognised; allowed names are "
            f"{', '.join(sorted(allowed))}."
        )


def _part(arrays: dict, part: str | None, directions: bool) -> tuple[dict, str]:
    """Select one layer or array, or all. Returns arrays by name without a state dict's prefix, and that prefix."""
    if part is not None and part in arrays:
        if not directions:
            raise InputError(f"{part!r} is a single array; pass `directions` if its rows are directions.")
        return {part: arrays[part]}, ""
    if part is not None:
        layer = {name: array for name, array in arrays.items() if name.startswith(part + ".")}
        if not layer:
            raise InputError(f"The file has no layer or array {part!r}; it contains {', '.join(sorted(arrays)[:6])}.")
        return {name.removeprefix(part + "."): array for name, array in layer.items()}, part + "."
    recognised = {name for names in PROBE_NAMES.values() for name in names}
    recognised |= {name for names in DICTIONARY_NAMES.values() for name, _ in names}
    stripped, prefix = arrays, ""
    while stripped and not recognised & set(stripped):
        heads = {name.partition(".")[0] for name in stripped}
        if len(heads) > 1 or not all("." in name for name in stripped):
            layers = sorted(name.removesuffix(".weight") for name in arrays if name.endswith(".weight"))
            if layers:
                raise InputError(f"The file contains several layers; name one after a colon: {', '.join(layers[:6])}.")
            return arrays, ""
        prefix += f"{heads.pop()}."
        stripped = {name.partition(".")[2]: value for name, value in stripped.items()}
    return stripped, prefix
