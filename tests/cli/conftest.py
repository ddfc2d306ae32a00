from pathlib import Path

import numpy as np
import pytest
from helpers.command_line import D_SOURCE, D_TARGET, FAST, N
from helpers.spaces import affine_image, card, names

from repstitch.cli.main import main
from repstitch.embeddings.rows import Embeddings
from repstitch.embeddings.writing import write


@pytest.fixture(scope="session")
def shelf(tmp_path_factory) -> Path:
    """Create two Parquet files with cards, their bare arrays, and a stitcher trained on them."""
    folder = tmp_path_factory.mktemp("shelf")
    X, Y, _, _ = affine_image(N, D_SOURCE, D_TARGET, noise=0.2)
    for name, rows, dim in (("old", X, D_SOURCE), ("new", Y, D_TARGET)):
        write(folder / f"{name}.parquet", Embeddings(rows, card(name, dim), names(N)))
        np.save(folder / f"{name}.npy", rows)
    files = ("--source", str(folder / "old.parquet"), "--target", str(folder / "new.parquet"))
    assert main(["train", *files, "--out", str(folder / "stitchers" / "old-new"), *FAST]) == 0
    return folder


@pytest.fixture
def files(shelf) -> list[str]:
    return ["--source", str(shelf / "old.parquet"), "--target", str(shelf / "new.parquet")]


@pytest.fixture
def stitcher(shelf) -> str:
    return str(shelf / "stitchers" / "old-new")
