"""The spaces that a caller gives: read, matched, checked, and brought to unit length."""

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
    """The items that all spaces have. See `atlas` for what `spaces` can be, `match` for what is refused."""
    if isinstance(spaces, MatchedSpaces):
        return spaces
    if isinstance(spaces, Mapping):
        return match([read_argument(f"`{name}`", source, space=name) for name, source in spaces.items()], drop_invalid)
    if isinstance(spaces, str | os.PathLike | Embeddings | np.ndarray | Tensor):
        raise InputError("`embeddings` must hold at least two spaces, as a list or by name; got a single one.")
    return match([read_named(source, f"space{i}") for i, source in enumerate(spaces)], drop_invalid)


def read_named(source: EmbeddingsLike, name: str) -> Embeddings:
    """The embeddings of a path or of `Embeddings` with the name they have; those of an array as `name`."""
    has_name = isinstance(source, str | os.PathLike | Embeddings)
    return read(source) if has_name else read_argument(f"`{name}`", source, space=name)


def unit_rows(matched: MatchedSpaces) -> list[Tensor]:
    """Each space's rows at unit length, (n, d) float32."""
    return [
        normalise(torch.from_numpy(np.require(X, requirements=("C", "W"))), "unit", name)
        for X, name in zip(matched.rows, matched.names, strict=True)
    ]
