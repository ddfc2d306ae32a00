"""Move a table whose process is killed again and again, and check what others see after each kill.

The module is run as a program, because it forks: `python -m helpers.interrupting FOLDER WORLD`. It prints the number of
kills of each stage. The parent imports all modules, so that children start fast, and uses none of them.
"""

import importlib
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

N, D, E = 400, 16, 24
ANEW = np.arange(0, N, 5)  # rows that are embedded anew
MODULES = ("torch", "helpers.migrations", "helpers.worlds", "repstitch.bulk.finishing", "repstitch.bulk.verification")
PLACES = {
    "lancedb": [
        ("lance", "LanceDataset", name)
        for name in (
            "commit",
            "add_columns",
            "update_field_metadata",
            "alter_columns",
            "merge_insert",
            "create_index",
            "drop_columns",
            "optimize",
        )
    ],
    "parquet": [("os", "", name) for name in ("rename", "replace", "unlink", "rmdir", "fsync")],
    "postgresql": [("psycopg", "Cursor", "execute"), ("psycopg", "Cursor", "copy")],
}


def child(work: Callable[[], object]) -> int:
    """Do something in a forked process, and return its exit status: negative if it was killed."""
    pid = os.fork()
    if not pid:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill_at(point: int, name: str) -> None:
    """Kill this process before its n-th call that changes the store if `point` is 2 n, after it if it is 2 n + 1."""
    calls = 0

    def counting(call: Callable) -> Callable:
        def counted(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if point == 2 * calls:
                os.kill(os.getpid(), signal.SIGKILL)
            result = call(*args, **kwargs)
            if point == 2 * calls + 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return counted

    for module, class_name, function in PLACES[name.split()[0]]:
        place = importlib.import_module(module)
        place = getattr(place, class_name) if class_name else place
        original = place.__dict__.get(function)
        if isinstance(original, staticmethod):
            setattr(place, function, staticmethod(counting(original.__func__)))
        elif callable(original):
            setattr(place, function, counting(original))


def stage(name: str, folder: Path, options: dict[str, Any]) -> None:
    """Bring a migration to the end of a stage, wherever an earlier process was killed."""
    from helpers.migrations import opened, settings_of, stitcher_of
    from repstitch.bulk.finishing import clean_up, cut_over, roll_back
    from repstitch.bulk.job import CUT_OVER, ROLLED_BACK, job_of
    from repstitch.bulk.native_rows import open_native
    from repstitch.bulk.running import run
    from repstitch.bulk.verification import verify

    stitcher, settings = stitcher_of(D, E), settings_of(**options, index_recall=0.5)
    address = (folder / "address").read_text()
    with opened(address) as store:
        job = job_of(store)
        phase = None if job is None else job.phase
        if name in ("run", "run again"):
            run(store, stitcher, settings)
        elif name == "embed anew":
            settings = settings_of(**options, reembed=native_file(folder))
            run(store, stitcher, settings, open_native(store, stitcher, settings))
            assert store.states() == {"native": len(ANEW), "translated": N - len(ANEW)}
        elif name.startswith("verify"):
            _, result = verify(store, stitcher, settings, None)
            assert result["rows"]["passed"], result["rows"]
        elif name in ("cut over", "cut over again") and phase != CUT_OVER:
            cut_over(store, stitcher, settings, without_search=True)
        elif name == "roll back" and phase != ROLLED_BACK:
            roll_back(store, settings)
        elif name == "clean up":
            clean_up(store)


def native_file(folder: Path) -> str:
    """Write native vectors of some rows to a file in a folder, if they are not there yet, and return its path."""
    from helpers.spaces import card
    from repstitch.embeddings.rows import Embeddings
    from repstitch.embeddings.writing import write

    path = folder / "native.parquet"
    if not path.exists():
        write(path, Embeddings(new_vectors()[ANEW], card("new", E), ANEW))
    return str(path)


def new_vectors() -> np.ndarray:
    """Return what the new column must contain in the end: translations, and native vectors of some rows."""
    from helpers.migrations import stitcher_of
    from helpers.spaces import gaussian

    rows = stitcher_of(D, E).translate(gaussian(N, D, 1))
    rows[ANEW] += 0.1 * gaussian(len(ANEW), E, 2)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def check_readers(world: Any, dims: tuple[int, ...]) -> None:
    """Check that readers see every row, with vectors of one space."""
    from helpers.spaces import gaussian

    rows = world.read()
    if not rows and world.name == "parquet":  # it declares that its cut-over is not one step
        return
    assert sorted(rows) == list(range(N)), f"{len(rows)} rows"
    seen = {len(vector) for _, vector in rows.values()}
    assert len(seen) == 1, seen
    assert seen <= set(dims), seen
    expected = gaussian(N, D, 1) if seen == {D} else new_vectors()
    np.testing.assert_allclose(np.stack([rows[i][1] for i in range(N)]), expected, atol=1e-5)


STAGES = {
    "run": (D,),
    "verify": (D,),
    "embed anew": (D,),
    "verify anew": (D,),
    "cut over": (D, E),
    "roll back": (D, E),
    "run again": (D,),
    "verify again": (D,),
    "cut over again": (D, E),
    "clean up": (E,),
}


def main(folder: Path, name: str) -> None:
    warnings.filterwarnings("ignore", message=".*fork")
    for module in MODULES:
        importlib.import_module(module)
    place: Any = folder

    def world_of() -> Any:
        from helpers.worlds import WORLDS

        return WORLDS[name](place)

    def create() -> None:
        from helpers.spaces import gaussian

        world = world_of()
        address = world.create(list(range(N)), gaussian(N, D, 1), index=True)
        (folder / "address").write_text(address)

    if name.startswith("postgresql"):
        from helpers.postgresql_server import new_database

        place = new_database()
    assert child(create) == 0
    options = {"layout": "column"} if name == "postgresql column" else {}
    options |= {"layout": "side", "view": "docs_current"} if name == "postgresql side table" else {}
    for stage_name, dims in STAGES.items():
        look = partial(check_after, world_of, dims)
        kills, point = 0, 2
        while (status := child(partial(work, point, name, stage_name, folder, options))) == -signal.SIGKILL:
            kills += 1
            assert child(look) == 0, f"after kill {kills} of {stage_name}"
            point += max(1, point // 3)
        assert status == 0, f"{stage_name} failed after {kills} kills"
        assert child(look) == 0, f"after {stage_name}"
        print(f"{stage_name}: {kills}", flush=True)


def work(point: int, world: str, stage_name: str, folder: Path, options: dict[str, Any]) -> None:
    kill_at(point, world)
    stage(stage_name, folder, options)


def check_after(world_of: Callable[[], Any], dims: tuple[int, ...]) -> None:
    check_readers(world_of(), dims)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
