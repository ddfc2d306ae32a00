"""The card of an embedding space: its identity, and the checks that rows are in the space they are used for."""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from repstitch.errors import InputError
from repstitch.names import MODALITIES, ROLES

log = logging.getLogger(__name__)

IDENTITY = ("encoder", "revision", "dim", "pooling", "layer", "normalised")


@dataclass(frozen=True)
class Space:
    """The geometry that one encoder's vectors live in.

    `name` is what people and requests call it; `encoder` (library and checkpoint), `revision`, `dim`, `pooling`,
    `layer` and `normalised` are its identity. `None` means "not stated" and conflicts with nothing. The other fields
    are recorded and reported: modality, role and prompt, and the lineage that studies of convergence control for.
    """

    name: str
    dim: int
    encoder: str | None = None
    revision: str | None = None
    pooling: str | None = None
    layer: int | None = None
    normalised: bool | None = None
    modality: str = "other"
    role: str = "none"
    prompt: str | None = None
    family: str | None = None
    architecture: str | None = None
    objective: str | None = None
    training_data: str | None = None
    parameters: int | None = None

    def __post_init__(self):
        if (
            not isinstance(self.name, str)
            or not self.name
            or any(c in self.name for c in "/\\\n\r\0")
            or self.name.startswith(".")
            or "->" in self.name  # separates the two names of a pair
        ):
            raise InputError(f"'name' of a space must be a plain word without slashes; got {self.name!r}.")
        if type(self.dim) is not int or self.dim < 1:
            raise InputError(f"'dim' of space {self.name!r} must be a positive whole number; got {self.dim!r}.")
        if self.parameters is not None and (type(self.parameters) is not int or self.parameters < 0):
            raise InputError(
                f"'parameters' of space {self.name!r} must be a whole number, not negative; got {self.parameters!r}."
            )
        if self.modality not in MODALITIES:
            raise InputError(
                f"'modality' of space {self.name!r} must be one of {', '.join(MODALITIES)}; got {self.modality!r}."
            )
        if self.role not in ROLES:
            raise InputError(f"'role' of space {self.name!r} must be one of {', '.join(ROLES)}; got {self.role!r}.")

    def to_dict(self) -> dict:
        """The card as plain JSON types, without the fields that are not stated."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    @classmethod
    def from_dict(cls, card: Mapping) -> "Space":
        """Read a card; unknown fields are refused, so that a newer card is never half understood."""
        allowed = {field.name for field in fields(cls)}
        unknown = sorted(set(card) - allowed)
        if unknown:
            raise InputError(
                f"A space card holds the unknown field '{unknown[0]}'; known are {', '.join(sorted(allowed))}."
            )
        if "name" not in card or "dim" not in card:
            raise InputError("A space card must state at least 'name' and 'dim'.")
        return cls(**card)

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> "Space":
        try:
            card = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"The space card is not JSON: {error}.") from None
        if not isinstance(card, dict):
            raise InputError(f"The space card must be a JSON object; got {type(card).__name__}.")
        return cls.from_dict(card)

    def conflict(self, other: "Space") -> str | None:
        """The first stated field in which the two identities differ, in words; None when they can be the same."""
        if (self.encoder is None or other.encoder is None) and self.name != other.name:
            return f"name {self.name!r} against {other.name!r}"
        for field in IDENTITY:
            mine, theirs = getattr(self, field), getattr(other, field)
            if mine is not None and theirs is not None and mine != theirs:
                return f"{field} {mine!r} against {theirs!r}"
        return None


def adopt(stated: Space, declared: bool, expected: Space, subject: str, opposite: Space | None = None) -> Space:
    """Check that rows can be in the space `expected`, and return it. Raises InputError where they cannot.

    `stated` is the space that came with the rows. `declared` is True where a card or the caller states it; it must then
    agree with `expected`. Otherwise it was guessed from the file's name, and rows of the right dimension are taken to
    be in `expected`, with a warning. `subject` is what messages call the rows. `opposite` is the other side of the
    stitcher; an error says so where the rows look like rows of that side.
    """
    backwards = ""
    if opposite is not None:
        named_so = stated.name == opposite.name != expected.name
        dim_says_so = not declared and stated.dim == opposite.dim and (stated.dim != expected.dim or named_so)
        card_says_so = declared and stated.conflict(expected) and not stated.conflict(opposite)
        if dim_says_so or card_says_so:
            backwards = (
                f" These look like rows of {opposite.name!r}, the other side: a stitcher works one way only, "
                "so train one for the other direction."
            )
    if stated.dim != expected.dim:
        raise InputError(
            f"{subject} must have {expected.dim} dimensions, those of space {expected.name!r}; got {stated.dim}."
            + (backwards or " Embed the rows with that space's encoder.")
        )
    if declared:
        difference = stated.conflict(expected)
        if difference:
            raise InputError(
                f"{subject} must be in space {expected.name!r}, but its card says another identity ({difference})."
                + (backwards or " Use a stitcher trained for that space, or correct the card.")
            )
        if stated.role != expected.role:
            log.warning(
                "%s has role %s where the stitcher was trained on %s rows.", subject, stated.role, expected.role
            )
    elif backwards:
        raise InputError(f"{subject} must be in space {expected.name!r}; it is called {stated.name!r}." + backwards)
    elif stated.name != expected.name:
        log.warning("%s carries no space card; taken to be in %s because the dimension fits.", subject, expected.name)
    return expected
