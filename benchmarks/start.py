"""Measure CPU seconds, wall seconds and peak memory of each command as a whole process, start-up included.

    python benchmarks/start.py                       this checkout
    python benchmarks/start.py --against PATH        also another checkout, such as a worktree of an older commit

Commands run on the files that `make demo` writes to demo/, or on random vectors of the same shapes if there are none.
The commands take turns for several rounds, and the table shows medians. A bad argument should cost less than a second.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from machine import header, markdown

ROOT = Path(__file__).parents[1]
ROWS, D_SOURCE, D_TARGET = 898, 512, 384
COMMANDS = {
    "--help": "--help",
    "bad `--out`": "train --source {old} --target {new} --out {taken}",
    "bad `--split`": "train --source {old} --target {new} --out {out} --split half",
    "missing file": "align {old} nowhere.parquet",
    "train --method canonical": "train --source {old} --target {new} --out {out} --method canonical --device cpu",
    "score": "score {stitcher} --source {old} --target {new}",
    "translate": "translate {stitcher} {old} --out {out}.parquet --device cpu",
    "align": "align {old} {new} --device cpu",
    "show": "show {stitcher}",
    "list": "list --stitchers {folder}",
}


def run(source: Path, words: list[str]) -> tuple[float, float, float]:
    """Run one command. Return its CPU seconds, wall seconds and peak megabytes."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "repstitch", *words],
        env=os.environ | {"PYTHONPATH": str(source / "src")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, _, usage = os.wait4(process.pid, 0)
    return usage.ru_utime + usage.ru_stime, time.perf_counter() - began, usage.ru_maxrss / 1024


def make_files(folder: Path) -> tuple[Path, Path]:
    """Write two files of random paired vectors with the shapes of the demo, and return their paths."""
    random = np.random.default_rng(0)
    shared = random.standard_normal((ROWS, 32))
    paths = []
    for name, dim in (("old", D_SOURCE), ("new", D_TARGET)):
        rows = shared @ random.standard_normal((32, dim)) + 0.3 * random.standard_normal((ROWS, dim))
        paths.append(folder / f"{name}.npz")
        np.savez(paths[-1], **{name: rows.astype(np.float32), "ids": np.arange(ROWS).astype(str)})
    return paths[0], paths[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--against", type=Path, metavar="PATH", help="another checkout to compare with")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "start.md")
    args = parser.parse_args()
    demo = [ROOT / "demo" / f"test_{name}.trained.parquet" for name in ("resnet", "convnext")]
    sources = {"before": args.against.resolve(), "now": ROOT} if args.against else {"now": ROOT}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        old, new = demo if all(path.is_file() for path in demo) else make_files(folder)
        stitcher = folder / "stitchers" / "old-new"
        run(ROOT, f"train --source {old} --target {new} --out {stitcher} --method canonical --device cpu".split())
        measured: dict[tuple[str, str], list] = {}
        for turn in range(args.rounds):
            for name, line in COMMANDS.items():
                for which, source in sources.items():
                    out = folder / f"{which}-{turn}-{abs(hash(name))}"
                    paths = {"old": old, "new": new, "stitcher": stitcher, "folder": stitcher.parent, "out": out}
                    words = line.format(**paths, taken=stitcher).split()
                    measured.setdefault((name, which), []).append(run(source, words))
    medians = {key: [statistics.median(column) for column in zip(*runs, strict=True)] for key, runs in measured.items()}
    titles = [f"{figure}, {which}" for figure in ("CPU s", "wall s", "MB") for which in sources]
    rows = [
        [name, *(f"{medians[name, which][at]:.{(2, 2, 0)[at]}f}" for at in range(3) for which in sources)]
        for name in COMMANDS
    ]
    files = "the demo's files" if old == demo[0] else f"{ROWS} random pairs, {D_SOURCE} to {D_TARGET} dimensions"
    text = header("What commands cost", "python benchmarks/start.py" + (" --against PATH" if args.against else ""))
    text += f"\nMedians of {args.rounds} runs each, alternating, on {files}.\n\n{markdown(['command', *titles], rows)}"
    args.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
