"""A cache of neighbour graphs on disk, keyed by a hash of the rows, so that each space is searched only once."""

import hashlib
import logging
import os
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from repstitch.errors import InputError, one_line
from repstitch.files import written_whole
from repstitch.metrics.neighbours import Graph, graph

log = logging.getLogger(__name__)

FORMAT = 3  # version of the files and of the graphs; increase it when either changes, so that older files are not read
UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


def kept_graph(X: Tensor, k: int, name: str, folder: str | os.PathLike) -> Graph:
    """Return `graph(X, k, name)`, read from `folder` if it contains the graph for this `k` or a larger one.

    The name of a file is a hash of the bytes and the shape of the rows, so changed rows have another file. Files are
    written under a temporary name and renamed. If a file cannot be read, a warning is logged and the graph is computed
    again. Raises InputError as `graph` does, and if the folder cannot be written.
    """
    if not 1 <= k < len(X):
        return graph(X, k, name)  # raises InputError
    folder = _folder(folder)
    rows = _content(X)
    for size, path in sorted((_size(path), path) for path in folder.glob(f"{rows}.k*.npz")):
        if size >= k:
            try:
                return _read(path, len(X), size, k, X.device)
            except UNREADABLE as error:
                log.warning("%s cannot be read (%s); computing the graph of %s again.", path, one_line(error), name)
    computed = graph(X, k, name)
    _write(folder / f"{rows}.k{k}.npz", computed)
    return computed


def _folder(folder: str | os.PathLike) -> Path:
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"`cache` {folder} must be a writable folder: {one_line(error)}") from None
    return Path(folder)


def _content(X: Tensor) -> str:
    rows = np.ascontiguousarray(X.float().cpu().numpy())
    digest = hashlib.blake2b(repr((FORMAT, rows.shape)).encode(), digest_size=16)
    digest.update(rows.data)
    return digest.hexdigest()


def _size(path: Path) -> int:
    digits = path.suffixes[-2].removeprefix(".k")
    return int(digits) if digits.isdecimal() else 0


def _read(path: Path, n: int, size: int, k: int, device: torch.device) -> Graph:
    # Each array in the archive has a checksum, so a damaged file raises an error.
    with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
        parts = {key: archive[key] for key in ("neighbours", "similarities", "following", "mean", "tied")}
    shapes = {"neighbours": (n, size), "similarities": (n, size), "following": (n,), "mean": (n,)}
    if any(parts[key].shape != shape for key, shape in shapes.items()):
        raise ValueError("its arrays have unexpected shapes")
    neighbours, similarities, following, mean = (torch.from_numpy(parts[key]) for key in shapes)
    return Graph(neighbours.long(), similarities, following.long(), mean, int(parts["tied"])).first(k).to(device)


def _write(path: Path, computed: Graph) -> None:
    parts = {
        "neighbours": computed.neighbours.cpu().numpy().astype(np.int32),
        "similarities": computed.similarities.cpu().numpy(),
        "following": computed.following.cpu().numpy().astype(np.int32),
        "mean": computed.mean.cpu().numpy(),
        "tied": np.int64(computed.tied),
    }
    with written_whole(path, "cache") as temporary:
        np.savez(temporary, **parts)
