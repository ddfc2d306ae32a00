"""The card of an embedding space, and the check that rows are in the space that a stitcher expects."""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from repstitch.errors import InputError
from repstitch.names import MODALITIES, ROLES
from repstitch.text import is_deeper

log = logging.getLogger(__name__)

SPACE_KEY = b"repstitch.space"  # the key of a card in the metadata of a file, of a schema or of a column
NAME_LENGTH = 256
MAX_DEPTH = 16
IDENTITY = ("encoder", "revision", "dim", "pooling", "layer", "normalised")


@dataclass(frozen=True)
class Space:
    """The card of an embedding space, which describes the encoder that produced its vectors.

    The identity of a space is `encoder`, `revision`, `dim`, `pooling`, `layer` and `normalised`. A field that is None
    is not stated and conflicts with nothing. The other fields are recorded and reported.

    Args:
        name: The name for people and requests: 1 to 256 printable characters without slashes and `->`, not starting
            with a dot.
        dim: Number of dimensions, at least 1.
        encoder: Library and checkpoint of the encoder, as `library:model`.
        revision: Revision of the checkpoint.
        pooling: How one vector is made of the tokens or patches of an item, such as `mean` or `cls`.
        layer: Number of the block whose output is used, counted from 1; 0 is the input of the first block.
        normalised: Whether the vectors have unit length.
        modality: `image`, `text` or `other`.
        role: `query` or `document` for an encoder that embeds them differently, else `none`.
        prompt: Text that the encoder puts before each text.
        family: Model family. This and the remaining fields describe the lineage of the encoder, which studies of
            convergence control for.
        architecture: Architecture of the encoder.
        objective: Training objective of the encoder.
        training_data: Data on which the encoder was trained.
        parameters: Number of parameters of the encoder.

    Raises:
        InputError: If `name`, `dim`, `modality`, `role` or `parameters` is invalid.
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
            or not 0 < len(self.name) <= NAME_LENGTH
            or not self.name.isprintable()  # others, such as halves of surrogate pairs, cannot be sent or logged
            or any(c in self.name for c in "/\\")
            or self.name.startswith(".")
            or "->" in self.name  # separates the two names of a pair
        ):
            shown = self.name[:NAME_LENGTH] if isinstance(self.name, str) else self.name
            raise InputError(
                f"'name' of a space must be text without slashes, unprintable characters or '->', of 1 to "
                f"{NAME_LENGTH} characters, and must not start with a dot; got {shown!r}."
            )
        if type(self.dim) is not int or self.dim < 1:
            raise InputError(f"'dim' of space {self.name!r} must be a positive whole number; got {self.dim!r}.")
        if self.parameters is not None and (type(self.parameters) is not int or self.parameters < 0):
            raise InputError(
                f"'parameters' of space {self.name!r} must be a whole number of at least 0; got {self.parameters!r}."
            )
        if self.modality not in MODALITIES:
            raise InputError(
                f"'modality' of space {self.name!r} must be one of {', '.join(MODALITIES)}; got {self.modality!r}."
            )
        if self.role not in ROLES:
            raise InputError(f"'role' of space {self.name!r} must be one of {', '.join(ROLES)}; got {self.role!r}.")

    def to_dict(self) -> dict:
        """Return the card as plain JSON types, without the fields that are not stated."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    @classmethod
    def from_dict(cls, card: Mapping) -> "Space":
        """Create a space from a card.

        Args:
            card: The fields by name, as `to_dict` returns them.

        Returns:
            The space.

        Raises:
            InputError: If a field is invalid or unknown, or if `name` or `dim` is missing. A card of a newer release is
                therefore never read in part.
        """
        allowed = {field.name for field in fields(cls)}
        unknown = sorted(set(card) - allowed)
        if unknown:
            raise InputError(
                f"A space card has the unknown field '{unknown[0]}'; allowed fields are {', '.join(sorted(allowed))}."
            )
        if "name" not in card or "dim" not in card:
            raise InputError("A space card must have at least the fields 'name' and 'dim'.")
        return cls(**card)

    def to_json(self) -> str:
        """Return the card as JSON text, with sorted keys."""
        return json.dumps(self.to_dict(), sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> "Space":
        """Create a space from the JSON text of a card.

        Args:
            text: A JSON object, as `to_json` returns it.

        Returns:
            The space.

        Raises:
            InputError: If the text is not a JSON object, or if `from_dict` rejects the card.
        """
        try:
            card = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"The space card must be JSON: {error}.") from None
        if not isinstance(card, dict):
            raise InputError(f"The space card must be a JSON object; got {type(card).__name__}.")
        if is_deeper(card, MAX_DEPTH):
            raise InputError("The space card must be nested less deeply.")
        return cls.from_dict(card)

    def conflict(self, other: "Space") -> str | None:
        """Compare the identities of two spaces.

        If one of the two spaces does not state its encoder, their names must be equal too.

        Args:
            other: The space to compare with.

        Returns:
            A description of the first field that both state and in which they differ, or None if the two can be the
            same space.
        """
        if (self.encoder is None or other.encoder is None) and self.name != other.name:
            return f"name {self.name!r} against {other.name!r}"
        for field in IDENTITY:
            mine, theirs = getattr(self, field), getattr(other, field)
            if mine is not None and theirs is not None and mine != theirs:
                return f"{field} {mine!r} against {theirs!r}"
        return None


def adopt(stated: Space, declared: bool, expected: Space, subject: str, opposite: Space | None = None) -> Space:
    """Check that rows can be in the space `expected`, and return it. Raises InputError if they cannot.

    `stated` is the space that is attached to the rows. If `declared` is True, a card or the caller has stated it, and
    it must agree with `expected`. Otherwise it was guessed from the name of the file; rows of the right dimension are
    then assumed to be in `expected`, with a warning. `subject` names the rows in messages. `opposite` is the space on
    the other side of the stitcher; the error message mentions it if the rows look like rows of that space.
    """
    backwards = ""
    if opposite is not None:
        named_so = stated.name == opposite.name != expected.name
        dim_says_so = not declared and stated.dim == opposite.dim and (stated.dim != expected.dim or named_so)
        card_says_so = declared and stated.conflict(expected) and not stated.conflict(opposite)
        if dim_says_so or card_says_so:
            backwards = (
                f" These look like rows of {opposite.name!r}, the other side of the stitcher, which translates in one "
                "direction only; train a stitcher for the other direction."
            )
    if stated.dim != expected.dim:
        raise InputError(
            f"{subject} must have {expected.dim} dimensions, like space {expected.name!r}; got {stated.dim}."
            + (backwards or " Embed the rows with the encoder of that space.")
        )
    if declared:
        difference = stated.conflict(expected)
        if difference:
            raise InputError(
                f"{subject} must be in space {expected.name!r}, but its card states another identity ({difference})."
                + (backwards or " Use a stitcher trained for the space of the rows, or correct the card.")
            )
        if stated.role != expected.role:
            log.warning(
                "%s has role %s, but the stitcher was trained on rows with role %s.",
                subject,
                stated.role,
                expected.role,
            )
    elif backwards:
        raise InputError(f"{subject} must be in space {expected.name!r}; got {stated.name!r}." + backwards)
    elif stated.name != expected.name:
        log.warning("%s has no space card; assuming space %s because the dimension matches.", subject, expected.name)
    return expected
