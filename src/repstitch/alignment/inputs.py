"""Read the spaces that a caller passes, match their rows, and scale rows to unit length."""

import os
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from repstitch.embeddings.matching import MatchedSpaces, match
from repstitch.embeddings.normalising import normalise
from repstitch.embeddings.reading import read, read_argument
from repstitch.embeddings.rows import Embeddings, EmbeddingsLike
from repstitch.errors import InputError

Spaces = Mapping[str, EmbeddingsLike] | Sequence[EmbeddingsLike] | MatchedSpaces


def read_matched(spaces: Spaces, drop_invalid: bool = False) -> MatchedSpaces:
    """Read the spaces and keep the items that all of them have.

    `spaces` can be anything that `atlas` accepts. Raises InputError as `match` does.
    """
    if isinstance(spaces, MatchedSpaces):
        return spaces
    if isinstance(spaces, Mapping):
        return match([read_argument(f"`{name}`", source, space=name) for name, source in spaces.items()], drop_invalid)
    if isinstance(spaces, str | os.PathLike | Embeddings | np.ndarray | Tensor):
        raise InputError(
            "`embeddings` must be a list of at least two spaces, or a mapping from names to them; got one space."
        )
    return match([read_named(source, f"space{i}") for i, source in enumerate(spaces)], drop_invalid)


def read_named(source: EmbeddingsLike, name: str) -> Embeddings:
    """Read a path, `Embeddings` or an array. `name` becomes the name of an array's space; the others have a name."""
    has_name = isinstance(source, str | os.PathLike | Embeddings)
    return read(source) if has_name else read_argument(f"`{name}`", source, space=name)


def unit_rows(matched: MatchedSpaces) -> list[Tensor]:
    """Return the rows of each space scaled to unit length, (n, d) float32."""
    return [
        normalise(torch.from_numpy(np.require(X, requirements=("C", "W"))), "unit", name)
        for X, name in zip(matched.rows, matched.names, strict=True)
    ]
