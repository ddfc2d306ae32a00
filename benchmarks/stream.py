"""Translate a large Parquet file beside plain loops: `python benchmarks/stream.py`. Writes results/stream.md.

Every run is a process of its own, and the jobs take turns, so that other load affects all of them. The plain loops read
a batch, multiply it and write it, as somebody would who needs neither ids that are checked nor runs that continue: with
Parquet's default settings, and without the dictionary and the statistics of vectors, which cost time for nothing.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from machine import header, markdown, peak_mb

RESULT = Path(__file__).parent / "results" / "stream.md"
DIM, BATCH_ROWS, SMALL = 384, 8_192, 1_000
DEFAULT, LEAN = "plain loop", "plain loop, no dictionary"
OURS = ("translate", "translate, confidence", "translate, a column of text")
MOST_MB, LEAST_RATE, MOST_HASHING = 150, 0.9, 0.03


def write_input(path: Path, n: int) -> None:
    """Write n rows with whole numbers as ids and a column of text, in row groups of a usual size."""
    random = np.random.default_rng(0)
    dictionary: Any = {"use_dictionary": ["text"]}
    with pq.ParquetWriter(path, schema_of(DIM, ("text", pa.string())), **dictionary) as writer:
        for start in range(0, n, 100_000):
            rows = min(100_000, n - start)
            lists = lists_of(random.standard_normal((rows, DIM), dtype=np.float32))
            texts = pa.array([f"a title, {i}" for i in range(start, start + rows)])
            writer.write_table(pa.table([pa.array(range(start, start + rows)), lists, texts], schema=writer.schema))


def schema_of(dim: int, *further: tuple[str, pa.DataType]) -> pa.Schema:
    return pa.schema([("id", pa.int64()), ("vector", pa.list_(pa.float32(), dim)), *further])


def lists_of(vectors: np.ndarray) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])


def train(folder: Path) -> None:
    import repstitch as rs

    random = np.random.default_rng(1)
    X = random.standard_normal((3_000, DIM), dtype=np.float32)
    Y = X @ np.linalg.qr(random.standard_normal((DIM, DIM)))[0].astype(np.float32)
    Y += np.float32(0.3) * random.standard_normal(Y.shape, dtype=np.float32)
    rs.train(X, Y, method="ridge").save(folder)


def by_plain_loop(stitcher: Path, source: Path, out: Path, lean: bool) -> None:
    weights = np.random.default_rng(0).standard_normal((DIM, DIM), dtype=np.float32)
    offset = np.zeros(DIM, dtype=np.float32)
    options: Any = {"use_dictionary": ["id"], "write_statistics": ["id"]} if lean else {}
    with pq.ParquetWriter(out, schema_of(DIM), **options) as writer:
        for batch in pq.ParquetFile(source).iter_batches(BATCH_ROWS, columns=["id", "vector"]):
            vectors = batch.column("vector").flatten().to_numpy().reshape(-1, DIM) @ weights + offset
            writer.write_batch(pa.record_batch([batch.column("id"), lists_of(vectors)], schema=writer.schema))


def by_translate(stitcher: Path, source: Path, out: Path, job: str) -> None:
    import repstitch as rs

    columns = ["text"] if job.endswith("text") else []
    rs.translate_file(rs.load(stitcher), source, out, confidence="confidence" in job, columns=columns)


def run_job(job: str, stitcher: Path, source: Path, out: Path) -> None:
    """Run a job in this process, and print its seconds, CPU seconds and peak memory in MB, without those of imports."""
    import repstitch.workflows.translating as _loaded  # noqa: F401

    began, cpu = time.perf_counter(), time.process_time()
    if job in (DEFAULT, LEAN):
        by_plain_loop(stitcher, source, out, job == LEAN)
    else:
        by_translate(stitcher, source, out, job)
    print(time.perf_counter() - began, time.process_time() - cpu, peak_mb())


def measured(job: str, folder: Path, source: str) -> list[float]:
    out = folder / "out.parquet"
    command = [sys.executable, __file__, "--job", job, "--folder", str(folder), "--source", source]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    out.unlink()
    return [float(value) for value in done.stdout.split()]


def share_of_hashing(folder: Path) -> dict[str, float]:
    """Return the CPU time of the hashes of the input, as a share of that of the whole translation in one process."""
    from repstitch.embeddings.reading import scan
    from repstitch.workflows import translating

    shares = {}
    for job in (OURS[0], OURS[2]):
        columns = ["text"] if job.endswith("text") else ()
        batches = list(scan(folder / "part.parquet", columns=columns).batches(BATCH_ROWS))
        began = time.process_time()
        for batch in batches:
            translating._input_hash(batch)
        hashing = time.process_time() - began
        del batches
        shares[job] = hashing / measured(job, folder, "part.parquet")[1]
    return shares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=900_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--source", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        run_job(args.job, args.folder / "stitcher", args.folder / args.source, args.folder / "out.parquet")
        return
    jobs = (DEFAULT, LEAN, *OURS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train(folder / "stitcher")
        for source, n in (("small.parquet", SMALL), ("part.parquet", 100_000), ("large.parquet", args.rows)):
            write_input(folder / source, n)
        small = {job: measured(job, folder, "small.parquet") for job in jobs}
        runs = [{job: measured(job, folder, "large.parquet") for job in jobs} for _ in range(args.rounds)]
        shares = share_of_hashing(folder)
    rows, bars = [], []
    for job in jobs:
        seconds, cpu, peak = (statistics.median(run[job][i] for run in runs) for i in range(3))
        rates = [statistics.median(run[base][0] / run[job][0] for run in runs) for base in (DEFAULT, LEAN)]
        growth = peak - small[job][2]
        rows.append(
            [job, f"{args.rows / seconds:,.0f}", *(f"{rate:.2f}x" for rate in rates), f"{cpu:.1f}", f"{growth:.0f}"]
        )
        if job in OURS[:2]:
            bars.append([f"rows/s, {job}", f"{rates[0]:.2f}x", f"≥ {LEAST_RATE}x", rates[0] >= LEAST_RATE])
            bars.append([f"MB above {SMALL:,} rows, {job}", f"{growth:.0f}", f"≤ {MOST_MB}", growth <= MOST_MB])
    for job, share in shares.items():
        bars.append([f"CPU of the hashes, {job}", f"{share:.1%}", f"≤ {MOST_HASHING:.0%}", share <= MOST_HASHING])
    met = [[*bar[:-1], "yes" if bar[-1] else "**no**"] for bar in bars]
    text = header("Translating a file", "python benchmarks/stream.py", ("pyarrow",))
    text += (
        f"\n{args.rows:,} rows of {DIM} dimensions, float32, Parquet; medians of {args.rounds} rounds.\n\n## Bars\n\n"
    )
    text += markdown(["what", "measured", "bar", "met"], met)
    text += "\n## Jobs\n\n"
    columns = ["job", "rows/s", f"x {DEFAULT}", f"x {LEAN}", "CPU s", f"MB above {SMALL:,} rows"]
    text += markdown(columns, rows)
    print(text)
    RESULT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
