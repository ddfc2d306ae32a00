"""Run the command line in this process, and write input files for it."""

import json
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.spaces import names
from repstitch.cli.main import main
from repstitch.embeddings.reading import read
from repstitch.embeddings.rows import Embeddings
from repstitch.embeddings.writing import write

PROGRESS = re.compile(r"\d%\|")
FAST = ("--method", "ridge", "--device", "cpu")
D_SOURCE, D_TARGET, N = 6, 4, 120


def run(capsys, *argv) -> tuple[int, str, list[str]]:
    """Return the exit status, the text on stdout, and the lines on stderr, which include log lines as on a terminal.

    Progress bars, which appear only after a second, are left out.
    """
    capsys.readouterr()
    root, package = logging.getLogger(), logging.getLogger("repstitch")
    handlers, level = root.handlers[:], package.level
    root.handlers.clear()
    try:
        status = main([str(part) for part in argv])
    finally:
        root.handlers[:] = handlers
        package.setLevel(level)
    out, err = capsys.readouterr()
    return status, out, [line for line in err.splitlines() if line.strip() and not PROGRESS.search(line)]


def result(capsys, *argv) -> dict[str, Any]:
    """Run with `--json`, check that it prints one line of strict JSON, and return the parsed object."""
    status, out, _ = run(capsys, *argv, "--json")
    assert status == 0
    assert out.count("\n") == 1
    return json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def bad_files(where: Path, shelf: Path, what: str) -> tuple[Path, Path]:
    """Write a source and a target that cannot be used for training to `where`, and return their paths."""
    old, new = (read(shelf / f"{name}.parquet") for name in ("old", "new"))
    x, y = where / "x.parquet", where / "y.parquet"
    vectors = old.vectors.copy()
    if what in ("NaN", "Inf", "zero"):
        vectors[5] = {"NaN": np.nan, "Inf": np.inf, "zero": 0}[what]
    ids = {"other ids": names(N, "other"), "twice the id": np.array(["item0", *names(N - 1)], dtype=object)}
    few = 12 if what == "few pairs" else N
    write(x, Embeddings(vectors[:few], old.space, ids.get(what, old.ids)[:few]))  # type: ignore[index]
    write(y, new)
    if what == "no file":
        x.unlink()
    if what == "torn file":
        x.write_bytes(x.read_bytes()[:-20])
    if what == "text file":
        x.write_text("hello")
    return x, y


TRAIN_REFUSALS = {
    "NaN": "1 with source NaN or Inf (first: id 'item5'). Leave them out with `--drop-invalid`.",
    "Inf": "1 with source NaN or Inf (first: id 'item5')",
    "zero": "1 with source all zeros (first: id 'item5')",
    "other ids": "No id is in both files",
    "twice the id": "Ids must be unique; repeated ids in the source: 1 (first: 'item0')",
    "few pairs": "At least 20 pairs are needed; got 12",
    "no file": "There is no file",
    "torn file": "cannot be read as embeddings",
    "text file": "cannot be read as embeddings",
}
