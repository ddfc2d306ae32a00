"""Directions, probes and dictionaries in files: told by the names that people give their arrays, and written in them.

A probe is `coef`, `intercept` and `classes`, with scikit-learn's underscores or without, or `weight` and `bias` as of
torch's nn.Linear, or a model of scikit-learn (.skops). A dictionary is `W_enc`, `b_enc`, `W_dec`, `b_dec`, or its two
layers `encoder` and `decoder`. Directions are the table `directions`, a bare array (.npy), or vectors by name.
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
from repstitch.files import check_carried_file
from repstitch.spaces import Space
from repstitch.transfer.formats import NOTES, OPENERS, open_arrays, write_arrays
from repstitch.transfer.kinds import Dictionary, Directions, Probe, Thing
from repstitch.transfer.labels import as_text

log = logging.getLogger(__name__)

SPACE, TRANSFER = "repstitch.space", "repstitch.transfer"
DIRECTIONS = "directions"
DICTIONARIES = {"W_enc", "W_dec", "encoder.weight", "decoder.weight"}
RESERVED = {"file", "allow_pickle", NOTES}  # names that an .npz cannot give to a direction of its own
# Each style's names, in one order of styles.
PROBE_NAMES = {
    "coef": ("coef", "coef_", "weight"),
    "intercept": ("intercept", "intercept_", "bias"),
    "classes": ("classes", "classes_", "classes"),
}
# Ours, what others call it, and whether theirs is the other way round.
DICTIONARY_NAMES = {
    "W_enc": (("W_enc", False), ("encoder.weight", True)),
    "b_enc": (("b_enc", False), ("encoder.bias", False), ("latent_bias", False)),
    "W_dec": (("W_dec", False), ("decoder.weight", True)),
    "b_dec": (("b_dec", False), ("decoder.bias", False), ("pre_bias", False), ("bias", False)),
    "threshold": (("threshold", False), ("log_threshold", False)),
}
# What SAELens and others state beside a checkpoint.
CONFIG = (
    "apply_b_dec_to_input", "normalize_activations", "rescale_acts_by_decoder_norm", "activation", "activation_fn",
    "activation_fn_str", "activation_fn_kwargs", "architecture", "k",
)  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """How a file names its arrays, so that what comes out can be read by whatever read what went in.

    `names` has the file's name of each of ours and whether it stands transposed there, `dtypes` each array's type by
    our name. `apart` says that each direction is an array of its own.
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
) -> tuple[Thing, Layout]:
    """What a file holds, told by the names in it, and how it names it.

    `file.pt:head` takes the layer `head`, or one array of that name, out of a file that holds several. What the file
    does not state is to be: `subtract_b_dec`, whether a dictionary subtracts b_dec before it encodes (a cfg.json beside
    it may say so too); `classes`, what a probe's scores speak for; `directions`, that arrays of other names than those
    known here are such. Raises InputError on what cannot be read or carried, and on what would have to be guessed.
    """
    location, part = _split(str(path))
    file = Path(location)
    arrays, notes = open_arrays(file)
    try:
        space = Space.from_json(notes[SPACE]) if SPACE in notes else None
        arrays, prefix = _part(arrays, part, directions)
        ours = json.loads(notes.get("names", "null"))
        by_name = ours if ours is not None and set(ours) == set(arrays) else None  # written by us, each apart
        if not directions and by_name is None and DICTIONARIES & set(arrays):
            _refuse_stated(classes=classes)
            beside = {} if "subtract_b_dec" in notes else _config(file)
            return _dictionary(arrays, beside | notes, subtract_b_dec, space, prefix)
        if not directions and by_name is None and set(PROBE_NAMES["coef"]) & set(arrays):
            _refuse_stated(subtract_b_dec=subtract_b_dec)
            return _probe(arrays, notes, classes, space, prefix)
        _refuse_stated(subtract_b_dec=subtract_b_dec, classes=classes)
        return _directions(arrays, by_name, ours, directions, space)
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    except Exception as error:  # metadata can hold anything in the place of anything
        raise InputError(f"{file} cannot be read: {one_line(error)}") from None


def write(
    out: str | os.PathLike, thing: Thing, layout: Layout | None = None, notes: Mapping[str, Any] | None = None
) -> Path:
    """Write a thing as .safetensors, .npz or (directions) .npy; it appears whole or not at all, nothing is overwritten.

    `layout` is that of the file it was read from. Names, classes, the space, and `notes` on how it was made stand in
    the metadata of .safetensors and in the array `repstitch` of .npz; an .npy has none.
    """
    target, layout = check_carried_file(out, isinstance(thing, Directions)), layout or Layout()
    if layout.apart and (target.suffix == ".npy" or RESERVED & set(getattr(thing, "names", None) or ())):
        layout = Layout()  # in one table
    arrays = {}
    for name, value in _arrays(thing, layout).items():
        theirs, turned = layout.names.get(name, (name, False))
        value = np.log(value) if theirs.endswith("log_threshold") else value
        arrays[theirs] = _typed(np.ascontiguousarray(value.T if turned else value), layout.dtypes.get(name))
    about = {}
    for name in ("names", "classes"):
        if getattr(thing, name, None) is not None:
            about[name] = json.dumps(getattr(thing, name), ensure_ascii=False)
    if isinstance(thing, Dictionary):
        about |= {"subtract_b_dec": json.dumps(thing.subtract_b_dec), "activation": thing.activation}
        about |= {} if thing.k is None else {"k": str(thing.k)}
    if thing.space is not None:
        about[SPACE] = thing.space.to_json()
    if notes:
        about[TRANSFER] = json.dumps(notes, ensure_ascii=False)
    if target.suffix == ".npy" and "names" in about:
        log.warning("An .npy has no place for the directions' names; write .safetensors or .npz to keep them.")
    write_arrays(target, arrays, about)
    return target


# --- what the names say -----------------------------------------------------------------------------------------------


def _probe(arrays: dict, notes: Mapping, given: Sequence[str] | None, space, prefix: str) -> tuple[Probe, Layout]:
    style = next(i for i, name in enumerate(PROBE_NAMES["coef"]) if name in arrays)
    names = {ours: styles[style] for ours, styles in PROBE_NAMES.items()}
    _refuse_unknown(arrays, set(names.values()), "a probe")
    held = {ours: arrays[theirs] for ours, theirs in names.items() if theirs in arrays}
    coef = np.atleast_2d(held["coef"])
    intercept = np.atleast_1d(held.get("intercept", np.zeros(len(coef))))
    if intercept.shape == (1,) and not intercept.any():  # what scikit-learn keeps where no intercept is fitted
        intercept = np.zeros(len(coef))
    stated = held.get("classes")
    if stated is None and "classes" in notes:
        stated = np.array(json.loads(notes["classes"]))
    if stated is not None:
        stated = [str(as_text(one)) for one in np.atleast_1d(stated).tolist()]
        if given is not None and list(given) != stated:
            raise InputError(f"`classes` are stated in the file already ({', '.join(stated)[:80]}).")
    classes = stated if stated is not None else given
    layout = Layout(
        {ours: (prefix + theirs, False) for ours, theirs in names.items()},
        {ours: array.dtype for ours, array in held.items()} | ({"intercept": coef.dtype} if len(held) == 1 else {}),
    )
    return Probe(coef, intercept, None if classes is None else tuple(classes), space), layout


def _dictionary(arrays: dict, notes: Mapping, given: bool | None, space, prefix: str) -> tuple[Dictionary, Layout]:
    found: dict[str, np.ndarray] = {}
    names: dict[str, tuple[str, bool]] = {}
    for ours, others in DICTIONARY_NAMES.items():
        taken = {theirs for theirs, _ in names.values()}
        for theirs, turned in others:
            if theirs in arrays and theirs not in taken:
                value = np.exp(arrays[theirs]) if theirs == "log_threshold" else arrays[theirs]
                names[ours], found[ours] = (theirs, turned), value.T if turned else value
                break
    for needed in ("W_enc", "W_dec"):
        if needed not in found:
            raise InputError(f"A dictionary has both W_enc and W_dec; {needed} is missing.")
    _refuse_unknown(arrays, {theirs for theirs, _ in names.values()}, "a dictionary")
    for step, off in (("normalize_activations", "none"), ("rescale_acts_by_decoder_norm", False)):
        if notes.get(step, off) != off:
            raise InputError(
                f"Its cfg.json has another step ({step}: {notes[step]}); fold that into the weights first."
            )
    d, m = found["W_enc"].shape if found["W_enc"].ndim == 2 else (0, 0)
    activation, k = _activation(notes, "threshold" in found)
    thing = Dictionary(
        found["W_enc"],
        found.get("b_enc", np.zeros(m)),
        found["W_dec"],
        found.get("b_dec", np.zeros(d)),
        _subtracts(notes, given),
        activation,
        found.get("threshold"),
        k,
        space,
    )
    usual = arrays[names["W_enc"][0]].dtype
    dtypes = {ours: arrays[names[ours][0]].dtype if ours in names else usual for ours in DICTIONARY_NAMES}
    for bias, weight in (("b_enc", "W_enc"), ("b_dec", "W_dec")):  # what was not there gets a name of the same style
        layer = names[weight][0].removesuffix(".weight")
        names.setdefault(bias, (bias if layer == weight else f"{layer}.bias", False))
    return thing, Layout({ours: (prefix + theirs, turned) for ours, (theirs, turned) in names.items()}, dtypes)


def _subtracts(notes: Mapping, given: bool | None) -> bool:
    """Whether b_dec is subtracted before encoding. It must be stated even where b_dec is 0: what is carried has one."""
    stated = next((notes[name] for name in ("subtract_b_dec", "apply_b_dec_to_input") if name in notes), None)
    stated = json.loads(stated.lower()) if isinstance(stated, str) else stated
    if stated not in (None, True, False):
        raise InputError(f"What it says of subtracting b_dec must be true or false; got {stated!r}.")
    if stated is None and given is None:
        raise InputError(
            "It is not stated whether b_dec is subtracted before encoding; say --subtract-b-dec or --no-subtract-b-dec."
        )
    if stated is not None and given is not None and bool(stated) != given:
        raise InputError(f"`subtract_b_dec` is stated as {str(bool(stated)).lower()} with the file already.")
    return bool(given if stated is None else stated)


def _activation(notes: Mapping, threshold: bool) -> tuple[str, int | None]:
    """The activation that a config states, by its architecture where that decides, and topk's k; relu unless stated."""
    architecture = str(notes.get("architecture", "standard"))
    functions = {str(notes[name]) for name in ("activation", "activation_fn", "activation_fn_str") if name in notes}
    functions = {{"identity": "none"}.get(name, name) for name in functions}
    if architecture == "standard":
        stated = functions or ({"jumprelu"} if threshold else {"relu"})
    else:
        stated = {architecture} | (functions - {"relu"})
    if len(stated) > 1 or (threshold and stated != {"jumprelu"}):
        told = sorted(stated | ({"a threshold"} if threshold else set()))
        raise InputError(f"What it says of its activation contradicts itself: {', '.join(told)}.")
    (activation,) = stated
    arguments = notes.get("activation_fn_kwargs") or {}
    k = (arguments.get("k") if isinstance(arguments, dict) else None) or notes.get("k")
    return activation, int(k) if activation == "topk" and k is not None else None


def _directions(
    arrays: dict, by_name: list[str] | None, names: list[str] | None, stated: bool, space
) -> tuple[Directions, Layout]:
    flat = {name: array.reshape(-1) if array.shape[:-1] in ((), (1,)) else array for name, array in arrays.items()}
    vectors = len({array.shape for array in flat.values()}) == 1 and all(array.ndim == 1 for array in flat.values())
    if by_name is None and DIRECTIONS in arrays and set(arrays) <= {DIRECTIONS, "names"}:
        values = arrays[DIRECTIONS]
        names = arrays["names"].tolist() if "names" in arrays else names
        layout = Layout(dtypes={DIRECTIONS: values.dtype})
    elif (stated or by_name) and vectors:
        names = by_name or list(flat)
        values = np.stack([flat[name] for name in names])
        layout = Layout(dtypes={name: array.dtype for name, array in arrays.items()}, apart=True)
    elif stated and len(arrays) == 1:
        ((name, values),) = arrays.items()
        names, layout = None, Layout({DIRECTIONS: (name, False)}, {DIRECTIONS: values.dtype})
    elif stated:
        raise InputError(f"Directions are one table, or vectors of one width by name; it holds {_listed(arrays)}.")
    else:
        raise InputError(
            f"It holds {_listed(arrays)}, which is no probe (coef, intercept) and no dictionary (W_enc, b_enc, W_dec, "
            "b_dec); say --directions if it is one table of directions, or vectors by name."
        )
    return Directions(np.atleast_2d(values), None if names is None else tuple(map(str, names)), space), layout


def _listed(arrays: Mapping) -> str:
    return ", ".join(sorted(arrays)[:6]) or "nothing"


def _arrays(thing: Thing, layout: Layout) -> dict[str, np.ndarray]:
    """What is written, by our names."""
    if isinstance(thing, Directions):
        if layout.apart and thing.names is not None:
            return dict(zip(thing.names, thing.values, strict=True))
        return {DIRECTIONS: thing.values}
    if isinstance(thing, Probe):
        classes = {} if thing.classes is None else {"classes": np.array(thing.classes)}
        return {"coef": thing.coef, "intercept": thing.intercept} | classes
    held = {name: getattr(thing, name) for name in DICTIONARY_NAMES}
    return {name: value for name, value in held.items() if value is not None}


def _typed(value: np.ndarray, dtype: np.dtype | None) -> np.ndarray:
    """In the type it had, where that can hold it: numbers that were whole are not any more, and float16 ends at
    65504."""
    if value.dtype.kind == "U":
        whole = dtype is not None and dtype.kind in "iu"
        return value.astype(dtype) if whole else value
    dtype = np.dtype(np.float32) if dtype is None or dtype.kind != "f" else dtype
    with np.errstate(over="ignore"):
        narrow = value.astype(dtype)
    return narrow if np.isfinite(narrow).all() else value.astype(np.float32)


def _refuse_stated(**stated) -> None:
    of = {"subtract_b_dec": "a dictionary", "classes": "a probe", "directions": "arrays of other names"}
    for name, value in stated.items():
        if value is not None and value is not False:
            raise InputError(f"`{name}` is said of {of[name]}, and it holds something else.")


def _refuse_unknown(arrays: Mapping, known: set, what: str) -> None:
    unknown = sorted(set(arrays) - known)
    if unknown:
        raise InputError(
            f"As {what} it cannot be carried, for what is {unknown[0]!r} in it? Known here are "
            f"{', '.join(sorted(known))}."
        )


def _part(arrays: dict, part: str | None, directions: bool) -> tuple[dict, str]:
    """The arrays of one part, without what a state dict puts before their names; and that prefix."""
    if part is not None and part in arrays:
        if not directions:
            raise InputError(f"{part!r} is one array of it; say --directions if that is what it holds.")
        return {part: arrays[part]}, ""
    if part is not None:
        held = {name: array for name, array in arrays.items() if name.startswith(part + ".")}
        if not held:
            raise InputError(f"It has no part {part!r}; it holds {', '.join(sorted(arrays)[:6])}.")
        return {name.removeprefix(part + "."): array for name, array in held.items()}, part + "."
    known = {name for names in PROBE_NAMES.values() for name in names}
    known |= {theirs for names in DICTIONARY_NAMES.values() for theirs, _ in names}
    bare, prefix = arrays, ""
    while bare and not known & set(bare):
        heads = {name.partition(".")[0] for name in bare}
        if len(heads) > 1 or not all("." in name for name in bare):
            layers = sorted(name.removesuffix(".weight") for name in arrays if name.endswith(".weight"))
            if layers:
                raise InputError(f"It holds several layers; name one after a colon: {', '.join(layers[:6])}.")
            return arrays, ""
        prefix += f"{heads.pop()}."
        bare = {name.partition(".")[2]: value for name, value in bare.items()}
    return bare, prefix


def _split(path: str) -> tuple[str, str | None]:
    head, colon, tail = path.rpartition(":")
    return (head, tail) if colon and Path(head).suffix in OPENERS else (path, None)


def _config(file: Path) -> dict:
    beside = file.with_name("cfg.json")
    if not beside.is_file():
        return {}
    try:
        held = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{beside.name} cannot be read: {one_line(error)}") from None
    if not isinstance(held, dict):
        raise InputError(f"{beside.name} must hold a JSON object.")
    return {name: held[name] for name in CONFIG if held.get(name) is not None}
