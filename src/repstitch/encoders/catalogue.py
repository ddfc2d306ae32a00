"""The catalogue of encoders: TOML cards that state how to load each encoder and describe the space of its vectors.

An `encoder` argument has one of these forms, tried in this order:

- `CARD.toml`, or `CARD.toml:NAME` if the file has several cards
- the name of a card in the catalogue
- `timm:MODEL`, `torchvision:MODEL` or `transformers:MODEL`, where MODEL may be a path
- a folder of a timm, transformers or Sentence Transformers model; its files show which
- a file of weights, together with `architecture`
- `timm/...` or `hf-hub:...`, a timm model on the Hugging Face Hub
- any other `owner/name`, a transformers model on the Hub
"""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

from repstitch.errors import InputError, NotFoundError
from repstitch.files import check_new, data_folder, read_json, read_toml, written_whole
from repstitch.names import MODALITIES, POOLINGS, ROLES
from repstitch.text import nearest


@dataclass(frozen=True)
class Card:
    """The card of an encoder: a `[[space]]` table of a TOML file. If a field is None, the checkpoint's setting is used.

    `encoder` is `library:model`. The library is `timm`, `torchvision`, `transformers`, or `api` for a model that only
    its provider runs; the vectors of such a model are read from files. `checkpoint` is a local file or folder with the
    weights, relative to the card or to `REPSTITCH_WEIGHTS`. Without it, the weights are downloaded from the Hub.
    `model_args` are passed to the model's constructor.

    Images are resized and cropped to `input_size` (channels, height, width) by timm's `crop_mode` and `crop_pct`. Their
    channels are put in the order `channels` and scaled to 0 .. `scale`. Then `mean` is subtracted and the result is
    divided by `std`; both are in that channel order.

    Texts are prefixed with the prompt of `role` in `prompts`, and truncated to `max_length` tokens. With `skip_first`,
    mean pooling leaves out the first token; with `skip_prompt`, pooling leaves out the tokens of the prompt. Several
    poolings joined by +, as in `cls+mean`, give their vectors one after the other. Vectors are cut to their first
    `truncate_dim` dimensions before they are normalised.

    `layer` counts blocks (stages of a convolutional network) from 1. Layer 0 is the input of the first block.

    The other fields are those of `Space`.
    """

    name: str
    encoder: str
    revision: str | None = None
    checkpoint: str | None = None
    model_args: dict = field(default_factory=dict, hash=False)
    dim: int | None = None
    modality: str | None = None
    pooling: str | None = None
    layer: int | None = None
    skip_first: bool = False
    skip_prompt: bool = False
    truncate_dim: int | None = None
    normalised: bool | None = None
    input_size: tuple | None = None
    interpolation: str | None = None
    crop_pct: float | int | None = None
    crop_mode: str | None = None
    channels: str = "RGB"
    scale: float | int = 1.0
    mean: tuple | None = None
    std: tuple | None = None
    max_length: int | None = None
    role: str = "none"
    prompts: dict = field(default_factory=dict, hash=False)
    family: str | None = None
    architecture: str | None = None
    objective: str | None = None
    training_data: str | None = None
    parameters: int | None = None

    def __post_init__(self):
        for key, kind in get_type_hints(type(self)).items():
            if not isinstance(getattr(self, key), kind):
                wanted = getattr(kind, "__name__", None) or str(kind)
                raise InputError(f"'{key}' of card {self.name!r} must be {wanted}; got {getattr(self, key)!r}.")
        for key, allowed in CHOICES.items():
            value = getattr(self, key)
            parts = value.split("+") if key == "pooling" and value else [value]
            if value is not None and not set(parts) <= set(allowed):
                raise InputError(
                    f"'{key}' of card {self.name!r} must be one of {', '.join(map(str, allowed))}; got {value!r}."
                )
        for key in ("max_length", "truncate_dim"):
            if getattr(self, key) is not None and getattr(self, key) < 1:
                raise InputError(f"'{key}' of card {self.name!r} must be at least 1; got {getattr(self, key)}.")
        unknown = set(self.prompts) - set(ROLES)
        if unknown:
            raise InputError(
                f"'prompts' of card {self.name!r} must have roles as keys ({', '.join(ROLES)}); got the keys {unknown}."
            )
        if self.input_size is not None and (
            len(self.input_size) != 3 or not all(isinstance(n, int) and n > 0 for n in self.input_size)
        ):
            raise InputError(
                f"'input_size' of card {self.name!r} must be [channels, height, width]; got {list(self.input_size)}."
            )

    @property
    def prompt(self) -> str | None:
        """The prompt of the card's role. Every text is prefixed with it."""
        return self.prompts.get(self.role)

    def to_dict(self) -> dict[str, Any]:
        """The fields that differ from their defaults, as plain TOML types."""
        stated = {f.name: getattr(self, f.name) for f in fields(self)}
        default = {f.name: f.default for f in fields(self)}
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in stated.items()
            if value is not None and value != {} and value != default[key]
        }


def from_dict(table: dict[str, Any], subject: str = "A card") -> Card:
    """Return the card of one `[[space]]` table.

    A table with `architecture` but no `encoder` describes the timm model of that name. Messages call the card
    `subject`. Raises InputError if a field is unknown, has the wrong type, or has a value that is not allowed.
    """
    allowed = [f.name for f in fields(Card)]
    unknown = sorted(set(table) - set(allowed))
    if unknown:
        raise InputError(f"{subject} has the unknown field '{unknown[0]}'; allowed fields are {', '.join(allowed)}.")
    if "encoder" not in table and isinstance(table.get("architecture"), str):
        table = table | {"encoder": f"timm:{table['architecture']}"}
    if "name" not in table or "encoder" not in table:
        raise InputError(f"{subject} must state 'name' and 'encoder' (library:model) or 'architecture' (a timm model).")
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in table.items()}
    return Card(**values)


def read(path: str | os.PathLike) -> dict[str, Card]:
    """Read the cards of a TOML file, by name. A relative `checkpoint` is looked up first in the folder of the file."""
    path = Path(path)
    try:
        tables = read_toml(path)
    except (OSError, ValueError) as error:
        raise InputError(f"The card file {path} cannot be read: {error}") from None
    spaces = tables.get("space")
    if set(tables) != {"space"} or not isinstance(spaces, list):
        raise InputError(
            f"The card file {path} must contain [[space]] tables and nothing else; got {', '.join(tables)}."
        )
    cards: dict[str, Card] = {}
    for table in spaces:
        card = from_dict(_with_checkpoint(table, path.parent), f"A card of {path}")
        if card.name in cards:
            raise InputError(f"The card file {path} has two cards named {card.name!r}; names must be unique.")
        cards[card.name] = card
    return cards


def _with_checkpoint(table: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the table. If its `checkpoint` exists in the folder, it is replaced by its path there."""
    checkpoint = table.get("checkpoint")
    if isinstance(checkpoint, str) and (folder / checkpoint).exists():
        return table | {"checkpoint": str(folder / checkpoint)}
    return table


def write(path: str | os.PathLike, cards: Iterable[Card]) -> None:
    """Write cards to a new TOML file, from which `read` returns equal cards. An existing file is never overwritten."""
    text = "\n".join(
        "[[space]]\n" + "".join(f"{key} = {_toml(value)}\n" for key, value in card.to_dict().items()) for card in cards
    )
    target = check_new(path, "path")
    with written_whole(target, argument=None) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    return json.dumps(value, ensure_ascii=False)  # JSON and TOML write strings, numbers and booleans alike


def cards() -> dict[str, Card]:
    """Return all cards of the package, by name."""
    catalogue: dict[str, Card] = {}
    for path in sorted(data_folder("spaces").glob("*.toml")):
        for name, card in read(path).items():
            if name in catalogue:
                raise InputError(f"The catalogue has two cards named {name!r}, one in {path}; names must be unique.")
            catalogue[name] = card
    return catalogue


def find(name: str) -> Card:
    """Return the card `name` of the catalogue. Raises NotFoundError, which lists similar names, if there is none."""
    catalogue = cards()
    if name not in catalogue:
        raise NotFoundError(f"There is no card {name!r} in the catalogue. Nearest: {_nearest(name, catalogue)}.")
    return catalogue[name]


def _nearest(name: str, names: Iterable[str]) -> str:
    return ", ".join(nearest(name, names) or sorted(names)[:5])


def weights(card: Card) -> Path:
    """Return the path of the card's `checkpoint`. Raises InputError if it does not exist."""
    checkpoint = Path(card.checkpoint or "")
    extra = os.environ.get("REPSTITCH_WEIGHTS")
    for path in [checkpoint] + ([Path(extra) / checkpoint] if extra else []):
        if card.checkpoint and path.exists():
            return path
    raise InputError(
        f"'checkpoint' of card {card.name!r} must be an existing file or folder; there is no {card.checkpoint}"
        + (f", and none in {extra}" if extra else "")
        + ". Pass its path as `checkpoint`, or set REPSTITCH_WEIGHTS to its folder."
    )


def resolve(
    encoder: str,
    *,
    checkpoint: str | os.PathLike | None = None,
    architecture: str | None = None,
    prompt: str | None = None,
    normalise: bool | None = None,
    input_size: int | None = None,
    **settings: Any,
) -> Card:
    """Return the card of `encoder`, with some of its fields replaced by the other arguments.

    The module docstring lists the forms of `encoder`. `checkpoint` replaces the weights. `architecture` names the timm
    model that a file of weights belongs to. `prompt` replaces the prompt of the role, `normalise` the field
    `normalised`. `input_size` is the side of a square image in pixels. `settings` are fields of `Card`: name, pooling,
    layer, role, skip_first, max_length, modality, model_args.
    """
    card = _find_card(str(encoder), architecture)
    if architecture is not None and card.encoder != f"timm:{architecture}":
        raise InputError(
            f"`architecture` requires an `encoder` that is a file of weights; {encoder} is {card.encoder}. Omit it."
        )
    changes = {key: value for key, value in settings.items() if value is not None}
    if not card.encoder.startswith("transformers:") and changes.get("modality", modality(card)) != modality(card):
        raise InputError(f"`modality` of {encoder} must be {modality(card)}; got {changes['modality']}.")
    unknown = sorted(set(changes) - SETTINGS)
    if unknown:
        similar = nearest(unknown[0], RESOLVE_PARAMETERS)
        advice = (
            f"did you mean '{similar[0]}'?" if similar else f"the settings are {', '.join(sorted(RESOLVE_PARAMETERS))}."
        )
        raise InputError(f"'{unknown[0]}' is not a setting of an encoder; {advice}")
    if normalise is not None:
        changes["normalised"] = normalise
    if checkpoint is not None:
        changes |= {"checkpoint": str(checkpoint), "revision": None}
    if input_size is not None:
        changes["input_size"] = (card.input_size[0] if card.input_size else 3, input_size, input_size)
    if prompt is not None:
        changes["prompts"] = {changes.get("role", card.role): prompt}
    if any(changes.get(key, getattr(card, key)) != getattr(card, key) for key in SHAPING):
        changes["dim"] = None  # the card states the dimension for its own settings only
    return replace(card, **changes)


def _find_card(encoder: str, architecture: str | None) -> Card:
    head, colon, tail = encoder.rpartition(":")
    for path, name in ((encoder, None), (head, tail)):
        if path.endswith(".toml"):
            return _card_of_file(path, name)
    catalogue = cards()
    if encoder in catalogue:
        return catalogue[encoder]
    library, colon, model = encoder.partition(":")
    if colon and library in LIBRARIES:
        if not Path(model).exists():
            return Card(_plain_name(model), encoder)
        kind = "image" if library == "transformers" and _reads_only_images(Path(model)) else None
        return Card(_plain_name(model), f"{library}:{_plain_name(model)}", checkpoint=model, modality=kind)
    path = Path(encoder)
    if path.is_dir():
        library = _library_of(path)
        kind = "image" if library == "transformers" and _reads_only_images(path) else None
        return Card(_plain_name(encoder), f"{library}:{_plain_name(encoder)}", checkpoint=encoder, modality=kind)
    if path.is_file():
        if not architecture:
            raise InputError(
                f"`encoder` {encoder} is a file of weights, so `architecture` must name the timm model of the weights; "
                "got None. Pass `architecture`, or a card."
            )
        return Card(path.name.split(".")[0], f"timm:{architecture}", checkpoint=encoder)
    if encoder.startswith(("timm/", "hf-hub:")):
        return Card(_plain_name(encoder), f"timm:{encoder.removeprefix('hf-hub:')}")
    if encoder.count("/") == 1 and path.suffix not in WEIGHTS and encoder[0] not in "./~":
        return Card(_plain_name(encoder), f"transformers:{encoder}")
    raise InputError(
        f"`encoder` must be a card, a local folder or file of weights, a name in the catalogue, timm:MODEL, "
        f"torchvision:MODEL, transformers:MODEL or an owner/name on the Hub; got {encoder!r}. Nearest: "
        f"{_nearest(encoder, catalogue)}."
    )


def _card_of_file(path: str, name: str | None) -> Card:
    in_file = read(path)
    if name is None and len(in_file) == 1:
        return next(iter(in_file.values()))
    if name not in in_file:
        raise InputError(
            f"`encoder` must name a card of {path} as {path}:NAME; the names are {', '.join(in_file)}; got {name}."
        )
    return in_file[name]


def _plain_name(model: str) -> str:
    """Return a name for the space: the last part of a path or Hub id."""
    return Path(model.rstrip("/")).resolve().name if Path(model).exists() else model.rpartition("/")[2]


def _library_of(folder: Path) -> str:
    """Return the library of the model in a folder, timm or transformers, by its files and its config.json."""
    if (folder / "modules.json").is_file() or (folder / "adapter_config.json").is_file():
        return "transformers"
    try:
        config = read_json(folder / "config.json")
    except (OSError, ValueError) as error:
        raise InputError(f"`encoder` {folder} must be the folder of a model, with a config.json; {error}") from None
    if "architecture" in config:
        return "timm"
    if "model_type" in config:
        return "transformers"
    raise InputError(
        f"`encoder` {folder} must have a config.json with 'architecture' (timm) or 'model_type' (transformers)."
    )


def _reads_only_images(folder: Path) -> bool:
    """Return whether the folder of a transformers model has settings for images and no tokenizer."""
    names = {path.name for path in (*folder.glob("*"), *folder.glob("*/*"))}
    return not any(name.startswith(TOKENIZERS) for name in names) and bool(names & {*IMAGE_SETTINGS})


def modality(card: Card) -> str:
    """Return the modality of the items that the encoder embeds."""
    return card.modality or ("text" if card.encoder.startswith(("transformers:", "api:")) else "image")


LIBRARIES = ("timm", "torchvision", "transformers", "api")
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
TOKENIZERS = ("tokenizer", "vocab", "spiece", "sentencepiece")
IMAGE_SETTINGS = ("preprocessor_config.json", "processor_config.json")
SETTINGS = {"name", "pooling", "layer", "role", "skip_first", "max_length", "modality", "model_args"}
RESOLVE_PARAMETERS = SETTINGS | {"checkpoint", "architecture", "prompt", "normalise", "input_size"}
SHAPING = ("pooling", "layer", "model_args")
CHOICES = {
    "pooling": POOLINGS,
    "modality": MODALITIES,
    "role": ROLES,
    "channels": ("RGB", "BGR"),
    "crop_mode": ("center", "squash", "border"),
    "interpolation": ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"),
}
