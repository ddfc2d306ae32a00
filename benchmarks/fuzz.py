"""Run the fuzz tests with many malformed requests and folders, and write a table of the requests and the responses."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from machine import header, markdown

ROOT = Path(__file__).resolve().parent.parent
TESTS = ("tests/wire/test_fuzz_wire.py", "tests/server/test_fuzz_http.py", "tests/server/test_fuzz_folders.py")
RESULT = ROOT / "benchmarks/results/fuzz.md"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, help="seed of an earlier run, to repeat it (default: a new one)")
    args = parser.parse_args()
    seed = int.from_bytes(os.urandom(4)) if args.seed is None else args.seed
    print(f"Seed {seed}.", flush=True)
    seconds, failed, counts = {}, False, Counter()
    for test in TESTS:
        began = time.perf_counter()
        code, counted = run(test, args.cases, seed)
        seconds[test], failed = time.perf_counter() - began, failed or code != 0
        counts |= {(test, *key): count for key, count in counted.items()}
    text = report(args.cases, seed, failed, counts, seconds)
    print(text)
    if not failed:
        RESULT.write_text(text)
    return int(failed)


def run(test: str, cases: int, seed: int) -> tuple[int, Counter]:
    """Run one test file. Return its exit status and the number of cases by route, kind of request and HTTP status."""
    with tempfile.TemporaryDirectory() as folder:
        tally = Path(folder) / "tally"
        settings = {"CASES": str(cases), "SEED": str(seed), "TALLY": str(tally)}
        env = os.environ | {f"REPSTITCH_FUZZ_{name}": value for name, value in settings.items()}
        code = subprocess.run([sys.executable, "-m", "pytest", "-q", test], cwd=ROOT, env=env).returncode
        counts = Counter()
        for line in tally.read_text().splitlines() if tally.exists() else ():
            *key, count = json.loads(line)
            counts[tuple(key)] += count
    return code, counts


def report(cases: int, seed: int, failed: bool, counts: Counter, seconds: dict[str, float]) -> str:
    statuses = sorted({status for *_, status in counts if status})
    rows, phases = Counter(), Counter()
    for (test, route, what, status), count in counts.items():
        if test == TESTS[1] and route != "HTTP":
            phases[what.removesuffix("_testing")] += count
            what = "what the document allows and not"
        rows[Path(test).name, route, what, status] += count
    table = []
    for key in sorted({key[:3] for key in rows}):
        table.append(
            [*key, sum(rows[*key, status] for status in (0, *statuses)), *(rows[*key, s] or "" for s in statuses)]
        )
    ended = "Something failed; see above." if failed else "Findings: 0."
    spent = ", ".join(f"{Path(test).name} {value:.0f} s" for test, value in seconds.items())
    return (
        header("Fuzzing", f"python benchmarks/fuzz.py --cases {cases} --seed {seed}", PACKAGES)
        + f"\n{ended} {sum(counts.values()):,} cases ({spent}). No answer was 5xx. Every 200 of `test_fuzz_wire.py`, "
        "which calls the application in its own process, was compared with a second reading of the same body; every "
        "answer of `test_fuzz_http.py`, which runs schemathesis against a service in a process of its own, with the "
        f"OpenAPI document ({', '.join(f'{what} {count:,}' for what, count in sorted(phases.items()))}). Of confidence "
        "only the shape and that it is finite were looked at, of scores only that they were given to those who should "
        "have them, and spoiled HTTP only had to leave the service well. Beside each spoiled folder of "
        "`test_fuzz_folders.py` (200: loaded, 422: refused) the other stitchers were served, listed and reloaded.\n\n"
        + markdown(["test", "route", "sent", "cases", *map(str, statuses)], table)
    )


PACKAGES = ("hypothesis", "schemathesis", "pyarrow", "orjson", "starlette")

if __name__ == "__main__":
    sys.exit(main())
