"""A cache of neighbour graphs on disk, by the content of their rows, so that no space is searched twice."""

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

FORMAT = 2  # of the files and of the graphs: raise it when either changes, so that older files are not read
UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


def kept_graph(X: Tensor, k: int, name: str, folder: str | os.PathLike) -> Graph:
    """`graph(X, k, name)`, read from `folder` if it was computed before for this `k` or a larger one.

    A file is named by a hash of the rows' bytes and shape, so changed rows have another file. It appears by rename. A
    file that cannot be read is computed again, with a warning. Raises InputError as `graph` does, and where the folder
    cannot be written.
    """
    if not 1 <= k < len(X):
        return graph(X, k, name)  # raises
    folder = _folder(folder)
    rows = _content(X)
    for size, path in sorted((_size(path), path) for path in folder.glob(f"{rows}.k*.npz")):
        if size >= k:
            try:
                return _read(path, len(X), size, k, X.device)
            except UNREADABLE as error:
                log.warning("%s cannot be read (%s); the graph of %s is computed again.", path, one_line(error), name)
    computed = graph(X, k, name)
    _write(folder / f"{rows}.k{k}.npz", computed)
    return computed


def _folder(folder: str | os.PathLike) -> Path:
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"`cache` {folder} must be a folder that can be written: {one_line(error)}") from None
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
    with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:  # each array has a checksum
        parts = {key: archive[key] for key in ("neighbours", "similarities", "mean", "tied")}
    shapes = {"neighbours": (n, size), "similarities": (n, size), "mean": (n,)}
    if any(parts[key].shape != shape for key, shape in shapes.items()):
        raise ValueError("it holds another graph")
    neighbours, similarities, mean = (torch.from_numpy(parts[key]) for key in shapes)
    return Graph(neighbours.long(), similarities, mean, int(parts["tied"])).first(k).to(device)


def _write(path: Path, computed: Graph) -> None:
    parts = {
        "neighbours": computed.neighbours.cpu().numpy().astype(np.int32),
        "similarities": computed.similarities.cpu().numpy(),
        "mean": computed.mean.cpu().numpy(),
        "tied": np.int64(computed.tied),
    }
    with written_whole(path, "cache") as temporary:
        np.savez(temporary, **parts)
