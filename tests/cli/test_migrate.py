"""`repstitch migrate` from the plan to the end, and what it refuses."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.command_line import result, run
from helpers.lance_world import LanceWorld
from helpers.migrations import stitcher_of
from helpers.postgresql_world import PostgresColumnWorld
from helpers.spaces import card, gaussian, names

from repstitch.bulk import running
from repstitch.bulk.translation import Translation
from repstitch.embeddings.rows import Embeddings
from repstitch.embeddings.writing import write
from repstitch.stitchers.held_out_rows import HeldOutRows, held_out_file

N = 200
SECRET = "tr0ub4dor&3"


@pytest.fixture
def stitcher(tmp_path) -> str:
    """A saved stitcher, with held-out rows beside it."""
    made = stitcher_of(16, 24)
    path = made.save(tmp_path / "stitcher")
    native = made.translate(gaussian(N, 16, 1)) + 0.01 * gaussian(N, 24, 2)
    HeldOutRows(np.arange(N).astype(str).astype(object), native).write(path, made.version)
    return str(path)


@pytest.fixture
def address(tmp_path) -> str:
    return LanceWorld(tmp_path).create(list(range(N)), gaussian(N, 16, 1), index=True)


def test_a_table_goes_through_all_steps(capsys, address, stitcher):
    with_stitcher = (address, "--stitcher", stitcher)
    plan = result(capsys, "migrate", "plan", *with_stitcher, "--text-column", "body", "--price-per-million", "2")
    assert (plan["rows"], plan["fits"], plan["phase"]) == (N, True, None)
    assert plan["re_embedding"]["cost"] == pytest.approx(plan["re_embedding"]["tokens"] * 2e-6, rel=0.01)
    status, _, errors = run(capsys, "migrate", "run", *with_stitcher, "--yes")
    assert status == 0
    assert any(line.startswith("Plan for lancedb table docs") for line in errors)
    assert result(capsys, "migrate", "status", address)["states"]["translated"] == N
    assert result(capsys, "migrate", "verify", *with_stitcher)["phase"] == "verified"
    assert result(capsys, "migrate", "cutover", *with_stitcher, "--yes")["phase"] == "cut over"
    assert result(capsys, "migrate", "rollback", address)["without_old"] == 0
    assert result(capsys, "migrate", "cleanup", address, "--yes")["phase_before"] == "rolled back"


def test_texts_are_shown_for_people(capsys, address, stitcher):
    with_stitcher = (address, "--stitcher", stitcher)
    _, plan, _ = run(capsys, "migrate", "plan", *with_stitcher, "--text-column", "body")
    assert "in your domain: unknown" in plan
    assert "tokens of column body; add --price-per-million" in plan
    run(capsys, "migrate", "run", *with_stitcher, "--yes")
    _, text, _ = run(capsys, "migrate", "verify", *with_stitcher)
    assert text.startswith(f"pass  rows: {N} translated, 0 native")
    assert text.rstrip().endswith("State: verified")
    _, text, _ = run(capsys, "migrate", "status", address)
    assert "column vector: verified (old -> new, stitcher" in text


def test_nothing_is_written_before_someone_says_yes(capsys, monkeypatch, tmp_path, address, stitcher):
    world = LanceWorld(tmp_path)
    before = world.schema()
    status, _, errors = run(capsys, "migrate", "run", address, "--stitcher", stitcher)
    assert (status, errors[-1]) == (
        2,
        "repstitch migrate: Nothing was written. Nobody can be asked here; pass `--yes` to go on without a question.",
    )

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal("no\n"))
    assert run(capsys, "migrate", "run", address, "--stitcher", stitcher)[0] == 2
    assert world.schema() == before
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    assert run(capsys, "migrate", "run", address, "--stitcher", stitcher)[0] == 0
    assert world.schema() != before


def test_a_failed_check_has_exit_status_1(capsys, tmp_path, address, stitcher):
    run(capsys, "migrate", "run", address, "--stitcher", stitcher, "--yes")
    status, text, _ = run(capsys, "migrate", "verify", address, "--stitcher", stitcher, "--index-recall", "1")
    rows = gaussian(N, 24, 7)
    write(tmp_path / "target.parquet", Embeddings(rows, card("new", 24), names(N, "")))
    assert status in (0, 1)
    assert ("FAIL" in text) == (status == 1)


def test_a_file_states_the_address_and_the_settings(capsys, tmp_path, address, stitcher):
    job = tmp_path / "job.toml"
    job.write_text(f'address = "{address}"\nstitcher = "{stitcher}"\nnew_vector = "later"\n')
    assert result(capsys, "migrate", "plan", "--job", job)["new_column"] == "later"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "An address of the table to move is required"),
        (("lancedb://nowhere?table=docs",), "`--stitcher` is required"),
        (("lancedb://nowhere?table=docs", "--stitcher", "none"), "There is no stitcher none"),
        (("ADDRESS", "--stitcher", "STITCHER", "--workers", "0"), "`--workers` must be from 1 to 64"),
        (("lancedb://nowhere?table=docs", "--stitcher", "STITCHER"), "nowhere"),
        (("ADDRESS&vector=other", "--stitcher", "STITCHER"), "must state vector once"),
        (("docs.parquet", "--stitcher", "STITCHER"), "must begin with lancedb://"),
    ],
)
def test_what_cannot_be_planned_is_refused(capsys, address, stitcher, arguments, message):
    given = [part.replace("ADDRESS", address).replace("STITCHER", stitcher) for part in arguments]
    status, out, errors = run(capsys, "migrate", "plan", *given)
    assert (status, out, len(errors)) == (2, "", 1)
    assert message in errors[0]


def test_training_takes_the_rows_of_a_table_that_the_other_side_has(capsys, tmp_path):
    rows = gaussian(N, 6, 1)
    address = LanceWorld(tmp_path).create(list(range(N)), rows)
    write(tmp_path / "new.parquet", Embeddings(rows[50:150] @ gaussian(6, 4, 2), card("new", 4), np.arange(50, 150)))
    fast = ("--method", "ridge", "--device", "cpu", "--target", tmp_path / "new.parquet")
    out = result(capsys, "train", "--source", address, *fast, "--out", tmp_path / "a")
    assert out["source"] == "docs.vector"
    assert held_out_file(tmp_path / "a").exists()
    result(capsys, "train", "--source", address, *fast, "--out", tmp_path / "b", "--sample", "60")
    pairs = json.loads((tmp_path / "b" / "config.json").read_text())["provenance"]["pairs"]
    assert sum(pairs.values()) == 60
    status, _, errors = run(capsys, "score", tmp_path / "a", "--source", address, "--target", tmp_path / "new.parquet")
    assert status == 0, errors
    status, _, errors = run(
        capsys, "train", "--source", address, "--target", bare(tmp_path, rows), "--out", tmp_path / "c"
    )
    assert (status, "must have ids, because the rows of a store are paired by id" in errors[-1]) == (2, True)


def bare(folder: Path, rows: np.ndarray) -> Path:
    np.save(folder / "bare.npy", rows)
    return folder / "bare.npy"


def test_a_random_part_of_a_table_is_converted(capsys, tmp_path, address):
    out = result(capsys, "convert", address, "--sample", "50", "--out", tmp_path / "some.parquet")
    assert out["rows"] == 50


@pytest.mark.slow
def test_ctrl_c_ends_a_job_at_once_and_it_goes_on_later(capsys, tmp_path, stitcher):
    address = LanceWorld(tmp_path).create(list(range(5_000)), gaussian(5_000, 16, 1))
    command = [sys.executable, "-m", "repstitch", "migrate", "run", address, "--stitcher", stitcher, "--yes"]
    with subprocess.Popen([*command, "--max-rows-per-second", "300"], stderr=subprocess.PIPE, text=True) as job:
        deadline = time.monotonic() + 60
        world = LanceWorld(tmp_path)
        while "vector_new" not in world.latest.schema.names and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(2)
        job.send_signal(signal.SIGINT)
        start = time.monotonic()
        errors = job.communicate(timeout=30)[1]
    assert time.monotonic() - start < 10
    assert job.returncode == 130
    assert "Run the same command again to continue." in errors
    assert "Traceback" not in errors
    assert result(capsys, "migrate", "status", address)["phase"] == "filling"
    assert subprocess.run(command, capture_output=True, check=True).returncode == 0
    assert result(capsys, "migrate", "status", address)["states"]["translated"] == 5_000


def _command_lines() -> str:
    texts = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            texts.append(process.read_bytes().decode(errors="replace"))
        except OSError:
            continue
    return "\n".join(texts)


@pytest.mark.slow
def test_a_secret_is_in_no_output_no_file_and_no_command_line(tmp_path, stitcher, monkeypatch):
    """It is planted in the environment, as libpq takes it and in the address, and every kind of error is provoked."""
    world = PostgresColumnWorld(tmp_path)
    own = world.create(list(range(N)), gaussian(N, 16, 1))
    encoded = "".join(f"%{ord(c):02X}" for c in SECRET)
    connection = world.uri.replace("://postgres", f"://postgres:{encoded}", 1)
    assert encoded in connection
    working = tmp_path / "working"
    working.mkdir()
    query = own.partition("?")[2]
    own = "&".join(part for part in query.split("&") if part.partition("=")[0] in ("table", "vector", "id"))
    environment = {**os.environ, "REPSTITCH_ADDRESS": connection, "PGPASSWORD": SECRET}
    attempts: list[tuple[str, ...]] = [
        ("migrate", "plan", f"postgresql://?{own}", "--stitcher", stitcher),
        ("migrate", "run", f"postgresql://?{own}", "--stitcher", stitcher, "--yes"),
        ("migrate", "status", f"postgresql://?{own}", "--json"),
        ("migrate", "verify", f"postgresql://?{own}", "--stitcher", stitcher),
        ("migrate", "run", "postgresql://?table=absent", "--stitcher", stitcher, "--yes"),
        ("migrate", "run", "postgresql://?table=docs&vector=absent", "--stitcher", stitcher, "--yes"),
        ("convert", f"postgresql://?{own}", "--out", "rows.parquet"),
        ("train", "--source", f"postgresql://?{own}", "--target", "rows.parquet", "--out", "made"),
        ("convert", "postgresql://nobody@127.0.0.1:1/none?table=docs", "--out", "x.parquet"),
        ("convert", f"postgresql://u:{encoded}@127.0.0.1:1/none?table=docs", "--out", "x.parquet"),
        ("convert", f"postgresql://127.0.0.1:1/none?password={SECRET}&table=docs", "--out", "x.parquet"),
    ]
    outputs, command_lines = [], []
    for arguments in attempts:
        command = [sys.executable, "-m", "repstitch", *arguments]
        with subprocess.Popen(
            command, cwd=working, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as job:
            if not any(secret in part for part in arguments for secret in (SECRET, encoded)):
                time.sleep(1)
                command_lines.append(_command_lines())
            outputs += job.communicate(timeout=120)
        assert job.returncode in (0, 1, 2), outputs[-1]
    comments = world.run("select description from pg_description where description like '%repstitch%'")
    files = [file.read_bytes().decode(errors="replace") for file in working.rglob("*") if file.is_file()]
    everywhere = "\n".join([*outputs, *files, *command_lines, str(comments)])
    world.close()
    assert comments
    assert SECRET not in everywhere
    assert encoded not in everywhere
    assert "Traceback" not in everywhere


def test_a_run_whose_connection_the_server_ends_goes_on_and_reports(capsys, monkeypatch, tmp_path, stitcher):
    world = PostgresColumnWorld(tmp_path)
    own = world.create(list(range(N)), gaussian(N, 16, 1))
    n_calls = []

    def cut(self, *args):
        n_calls.append(None)
        if len(n_calls) == 3:
            world.run("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'repstitch'")
        return translate(self, *args)

    translate = Translation.__call__
    monkeypatch.setattr(Translation, "__call__", cut)
    monkeypatch.setattr(running, "RETRY_SECONDS", (0.01, 0.01))
    status, text, errors = run(capsys, "migrate", "run", own, "--stitcher", stitcher, "--yes")
    assert (status, len(n_calls) > 3) == (0, True)
    assert any("The connection was lost" in line for line in errors)
    assert f"indexed; {N} translated; 0 written meanwhile" in text
