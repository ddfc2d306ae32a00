"""`repstitch migrate` from the plan to the end, and what it refuses."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers.command_line import result, run
from helpers.lance_world import LanceWorld
from helpers.migrations import stitcher_of
from helpers.postgresql_world import PostgresColumnWorld
from helpers.spaces import card, gaussian, names

from repstitch.bulk import running
from repstitch.bulk.report import verification_text
from repstitch.bulk.translation import Translation
from repstitch.cli.main import main
from repstitch.embeddings.rows import Embeddings
from repstitch.embeddings.writing import write
from repstitch.stitchers.held_out_rows import HeldOutRows, held_out_file
from repstitch.stitchers.stitcher import load

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


def test_a_plan_chooses_the_rows_to_embed_anew(capsys, tmp_path, address, stitcher):
    out = tmp_path / "anew.txt"
    command = ("migrate", "plan", address, "--stitcher", stitcher, "--share", "0.2")
    plan = result(capsys, *command, "--ids-out", out)
    assert plan["chosen"] == {"share": 0.2, "rows": N // 5, "ids_out": str(out)}
    ids = out.read_text().splitlines()
    assert len(set(ids)) == N // 5
    assert set(ids) <= set(map(str, range(N)))
    status, _, errors = run(capsys, *command, "--ids-out", out)
    assert (status, "exists" in errors[-1]) == (2, True)
    status, _, errors = run(capsys, *command)
    assert (status, "`--share` and `--ids-out` must be passed together" in errors[-1]) == (2, True)
    np.save(tmp_path / "q.npy", gaussian(20, 24, 4))
    _, text, _ = run(capsys, *command, "--ids-out", tmp_path / "by-queries.txt", "--queries", tmp_path / "q.npy")
    assert f"{N // 5} rows chosen (20%); their ids are in {tmp_path / 'by-queries.txt'}" in text
    assert (tmp_path / "by-queries.txt").read_text() != out.read_text()


def test_a_plan_draws_what_shares_of_the_rows_gain(capsys, tmp_path, address, stitcher):
    made, rows, out = load(stitcher), gaussian(N, 16, 1), tmp_path / "shares.png"
    command = ("migrate", "plan", address, "--stitcher", stitcher, "--share", "0.15", "--plot", out)
    status, _, errors = run(capsys, *command, "--ids-out", tmp_path / "first.txt")
    assert (status, "`--plot` requires translated held-out rows" in errors[-1], out.exists()) == (2, True, False)
    translated = made.translate(rows)
    native = (translated + 0.1 * gaussian(N, 24, 2)).astype(np.float32)
    HeldOutRows(np.arange(N).astype(str).astype(object), native, translated, rows).write(Path(stitcher), made.version)
    plan = result(capsys, *command, "--ids-out", tmp_path / "first.txt")
    assert [point["share"] for point in plan["share_curve"]] == [0.0, 0.05, 0.1, 0.15, 0.2, 0.4, 0.7, 1.0]
    assert out.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--plot", "shares.png"), "`--plot` draws what a share of the rows gains, so it requires `--share`."),
        (("--share", "0.2", "--ids-out", "ids.txt", "--plot", "shares.gif"), "`--plot` must end in .png, .svg or .pdf"),
    ],
)
def test_a_plan_that_cannot_be_drawn_is_refused_before_the_table_is_read(capsys, stitcher, options, message):
    status, _, errors = run(capsys, "migrate", "plan", "lancedb://nowhere?table=t", "--stitcher", stitcher, *options)
    assert (status, message in errors[-1]) == (2, True), errors


def test_texts_are_shown_for_people(capsys, address, stitcher):
    with_stitcher = (address, "--stitcher", stitcher)
    _, plan, _ = run(capsys, "migrate", "plan", *with_stitcher, "--text-column", "body")
    assert "in your domain: unknown" in plan
    assert "tokens of column body; add --price-per-million" in plan
    run(capsys, "migrate", "run", *with_stitcher, "--yes")
    _, text, _ = run(capsys, "migrate", "verify", *with_stitcher)
    assert text.startswith(f"pass  rows: {N} translated, 0 native")
    assert text.rstrip().endswith("State: verified. Cut over with `repstitch migrate cutover`.")
    _, text, _ = run(capsys, "migrate", "status", address)
    assert "column vector: verified (old -> new, stitcher" in text
    assert text.rstrip().endswith("Cut over with `repstitch migrate cutover`.")


def test_every_step_ends_with_the_next_one(capsys, address, stitcher):
    with_stitcher = (address, "--stitcher", stitcher)

    def last(step: str, *arguments: str) -> str:
        status, text, _ = run(capsys, "migrate", step, *arguments)
        assert status == 0
        return text.splitlines()[-1]

    assert last("run", *with_stitcher, "--yes") == "State: indexed. Verify it with `repstitch migrate verify`."
    assert last("verify", *with_stitcher) == "State: verified. Cut over with `repstitch migrate cutover`."
    assert last("cutover", *with_stitcher, "--yes").startswith("State: cut over. Go back with `repstitch migrate roll")
    assert last("rollback", address).startswith("State: rolled back. Continue it with `repstitch migrate run`")


def test_a_table_that_is_cut_over_has_no_plan(capsys, address, stitcher):
    with_stitcher = (address, "--stitcher", stitcher)
    run(capsys, "migrate", "run", *with_stitcher, "--yes")
    assert result(capsys, "migrate", "plan", *with_stitcher)["phase"] == "indexed"
    run(capsys, "migrate", "verify", *with_stitcher)
    run(capsys, "migrate", "cutover", *with_stitcher, "--yes")
    status, out, errors = run(capsys, "migrate", "plan", *with_stitcher)
    assert (status, out) == (2, "")
    assert "is cut over. Go back with `repstitch migrate rollback`, or end it with" in errors[-1]


@pytest.mark.parametrize("step", [("plan",), ("run", "--yes")])
@pytest.mark.parametrize("has_begun", [False, True])
def test_a_condition_is_refused_by_the_plan_as_by_the_run(capsys, address, stitcher, step, has_begun):
    if has_begun:
        run(capsys, "migrate", "run", address, "--stitcher", stitcher, "--yes")
    name, *options = step
    status, out, errors = run(capsys, "migrate", name, f"{address}&where=id<9", "--stitcher", stitcher, *options)
    assert (status, out) == (2, "")
    assert "must have no condition (where=), because all rows get new vectors" in errors[-1]


def test_the_status_counts_the_rows_to_do_once(capsys, monkeypatch, address, stitcher):
    with monkeypatch.context() as patch:
        patch.setattr(running, "fill", interrupted)
        assert run(capsys, "migrate", "run", address, "--stitcher", stitcher, "--yes")[0] == 130
    _, text, _ = run(capsys, "migrate", "status", address)
    assert [line.split()[:3] for line in text.splitlines()[1:]] == [
        [str(N), "to", "do,"],
        ["Finish", "it", "with"],
    ]


def test_the_status_does_not_call_rows_that_were_written_since_the_cut_over_to_do(capsys, tmp_path, address, stitcher):
    for step in ("run", "verify", "cutover"):
        yes = () if step == "verify" else ("--yes",)
        assert run(capsys, "migrate", step, address, "--stitcher", stitcher, *yes)[0] == 0
    LanceWorld(tmp_path).insert([N], gaussian(1, 24, 3))
    _, text, _ = run(capsys, "migrate", "status", address)
    assert [line.split()[:2] for line in text.splitlines()[1:4]] == [
        [str(N), "translated"],
        ["1", "written"],
        ["0", "to"],
    ]


def test_the_result_of_a_run_has_a_line_of_its_own(capsys, monkeypatch, address, stitcher):
    def run_with_bar(*args):
        job = run_job(*args)
        print("\rindex: 100%|██|", end="", file=sys.stderr)
        return job

    run_job = running.run
    monkeypatch.setattr(running, "run", run_with_bar)
    assert main(["migrate", "run", address, "--stitcher", stitcher, "--yes"]) == 0
    assert capsys.readouterr().err.endswith("|██|\n")


def interrupted(*_):
    raise KeyboardInterrupt


def test_a_verification_without_enough_held_out_rows_says_how_many_there_are(capsys, tmp_path, stitcher):
    address = LanceWorld(tmp_path / "other").create(list(range(1_000, 1_030)), gaussian(30, 16, 1))
    run(capsys, "migrate", "run", address, "--stitcher", stitcher, "--yes")
    status, text, _ = run(capsys, "migrate", "verify", address, "--stitcher", stitcher)
    assert status == 0
    assert "Not verified by search: too few held-out rows of the stitcher are in this table" in text
    status, _, errors = run(capsys, "migrate", "cutover", address, "--stitcher", stitcher, "--yes")
    assert status == 2
    assert "`--target` or `--queries`" in errors[-1]  # which are options of another step
    assert "`--without-search`" in errors[-1]


def test_the_share_of_the_scorecards_pool_is_shown():
    by_map = {"recall@1": 1.0, "interval": [0.9, 1.0], "queries": 368, "pool": 368, "same_pool": False, "passed": True}
    by_map |= {"card": 0.99, "card_interval": None, "card_pool": 2_039}
    rows = {"passed": True, "first_bad": None, "natives_fit": None, "native_gain": None}
    rows |= dict.fromkeys(
        ("translated", "native", "skipped", "missing", "wrong", "changed", "doubled", "native_compared"), 0
    )
    checks = {"rows": rows, "index": None, "map": by_map, "qrels": None, "latency": {}}
    text = verification_text(checks | {"passed": True, "complete": False}, "incomplete")
    assert "368 of 2,039 held-out rows are in this table; half of the scorecard's pool is needed" in text


def test_ctrl_c_at_the_question_says_that_nothing_was_written(capsys, monkeypatch, tmp_path, address, stitcher):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

        def readline(self, *_) -> str:
            raise KeyboardInterrupt

    before = LanceWorld(tmp_path).schema()
    monkeypatch.setattr(sys, "stdin", Terminal())
    status, _, errors = run(capsys, "migrate", "run", address, "--stitcher", stitcher)
    assert (status, errors[-1]) == (130, "Begin? [y/N] repstitch migrate: interrupted. Nothing was written.")
    assert LanceWorld(tmp_path).schema() == before


@pytest.mark.parametrize("step", ["verify", "rollback", "cleanup", "cutover"])
def test_a_lost_connection_says_what_to_do(capsys, monkeypatch, address, stitcher, step):
    def lost(*_):
        raise ConnectionError("The connection to PostgreSQL was lost: closed.")

    run(capsys, "migrate", "run", address, "--stitcher", stitcher, "--yes")
    monkeypatch.setattr("repstitch.stores.lancedb.table.LanceTable.job", lost)
    arguments = {
        "verify": ("--stitcher", stitcher),
        "cutover": ("--stitcher", stitcher, "--yes"),
        "cleanup": ("--yes",),
    }
    status, _, errors = run(capsys, "migrate", step, address, *arguments.get(step, ()))
    wanted = "repstitch migrate: The connection to PostgreSQL was lost: closed. Run the same command again."
    assert (status, errors[-1]) == (2, wanted)


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
        (("no-folder", "--stitcher", "STITCHER"), f"There is no folder {Path.cwd() / 'no-folder'}"),
        (("FOLDER", "--stitcher", "STITCHER"), "is a database of LanceDB; pass lancedb://"),
        (("FOLDER/docs.lance", "--stitcher", "STITCHER"), "is a table of LanceDB; pass lancedb://"),
        (("lancedb://db?table=docs",), "Put an address with & in single quotes"),
        (("ADDRESS", "--stitcher", "STITCHER", "--price-per-million", "inf"), "must be from 0 to 1,000,000; got inf"),
    ],
)
def test_what_cannot_be_planned_is_refused(capsys, address, stitcher, arguments, message):
    folder = address.removeprefix("lancedb://").partition("?")[0]
    words = {"FOLDER": folder, "ADDRESS": address, "STITCHER": stitcher}
    command = [re.sub("FOLDER|ADDRESS|STITCHER", lambda word: words[word[0]], part) for part in arguments]
    status, out, errors = run(capsys, "migrate", "plan", *command)
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
    result(capsys, "train", "--source", address, *fast, "--out", tmp_path / "b", "--sample", "90")
    pairs = json.loads((tmp_path / "b" / "config.json").read_text())["provenance"]["pairs"]
    assert sum(pairs.values()) == 90  # with fewer, validation may be too small to be halved, and is counted twice
    status, _, errors = run(capsys, "score", tmp_path / "a", "--source", address, "--target", tmp_path / "new.parquet")
    assert status == 0, errors
    status, _, errors = run(
        capsys, "train", "--source", address, "--target", bare(tmp_path, rows), "--out", tmp_path / "c"
    )
    assert (status, "must have ids, because the rows of a store are paired by id" in errors[-1]) == (2, True)


def bare(folder: Path, rows: np.ndarray) -> Path:
    np.save(folder / "bare.npy", rows)
    return folder / "bare.npy"


def test_a_random_part_of_a_table_is_drawn(capsys, tmp_path, address):
    out = result(capsys, "sample", address, "--n", "50", "--out", tmp_path / "some.parquet")
    assert out["rows"] == 50
    drawn = pq.read_table(tmp_path / "some.parquet")
    assert len(set(drawn["id"].to_pylist())) == 50


@pytest.mark.slow
def test_ctrl_c_ends_a_job_at_once_and_it_goes_on_later(capsys, tmp_path, stitcher):
    address = LanceWorld(tmp_path).create(list(range(5_000)), gaussian(5_000, 16, 1))
    command = [sys.executable, "-m", "repstitch", "migrate", "run", address, "--stitcher", stitcher, "--yes"]
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell may run the tests with the signal ignored
    slowly = [*command, "--max-rows-per-second", "300"]
    with subprocess.Popen(slowly, stderr=subprocess.PIPE, text=True, preexec_fn=heed) as job:
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
    address = world.create(list(range(N)), gaussian(N, 16, 1))
    encoded = "".join(f"%{ord(c):02X}" for c in SECRET)
    connection = world.uri.replace("://postgres", f"://postgres:{encoded}", 1)
    assert encoded in connection
    working = tmp_path / "working"
    working.mkdir()
    query = address.partition("?")[2]
    address = "&".join(part for part in query.split("&") if part.partition("=")[0] in ("table", "vector", "id"))
    environment = {**os.environ, "REPSTITCH_ADDRESS": connection, "PGPASSWORD": SECRET}
    attempts: list[tuple[str, ...]] = [
        ("migrate", "plan", f"postgresql://?{address}", "--stitcher", stitcher),
        ("migrate", "run", f"postgresql://?{address}", "--stitcher", stitcher, "--yes"),
        ("migrate", "status", f"postgresql://?{address}", "--json"),
        ("migrate", "verify", f"postgresql://?{address}", "--stitcher", stitcher),
        ("migrate", "run", "postgresql://?table=absent", "--stitcher", stitcher, "--yes"),
        ("migrate", "run", "postgresql://?table=docs&vector=absent", "--stitcher", stitcher, "--yes"),
        ("convert", f"postgresql://?{address}", "--out", "rows.parquet"),
        ("train", "--source", f"postgresql://?{address}", "--target", "rows.parquet", "--out", "made"),
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
    address = world.create(list(range(N)), gaussian(N, 16, 1))
    n_calls = []

    def cut(self, *args):
        n_calls.append(None)
        if len(n_calls) == 3:
            world.run("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'repstitch'")
        return translate(self, *args)

    translate = Translation.__call__
    monkeypatch.setattr(Translation, "__call__", cut)
    monkeypatch.setattr(running, "RETRY_SECONDS", (0.01, 0.01))
    status, text, errors = run(capsys, "migrate", "run", address, "--stitcher", stitcher, "--yes")
    assert (status, len(n_calls) > 3) == (0, True)
    assert any("The connection was lost" in line for line in errors)
    assert f"indexed; {N} translated; 0 written meanwhile" in text


def test_a_verification_whose_connection_the_server_ends_says_what_to_do(capsys, monkeypatch, tmp_path, stitcher):
    world = PostgresColumnWorld(tmp_path)
    own = world.create(list(range(N)), gaussian(N, 16, 1))
    assert run(capsys, "migrate", "run", own, "--stitcher", stitcher, "--yes")[0] == 0

    def cut(self, *args):
        world.run("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'repstitch'")
        return translate(self, *args)

    translate = Translation.__call__
    monkeypatch.setattr(Translation, "__call__", cut)
    status, _, errors = run(capsys, "migrate", "verify", own, "--stitcher", stitcher)
    assert status == 2
    assert "was lost" in errors[-1]
    assert errors[-1].endswith(". Run the same command again.")
    monkeypatch.undo()
    assert run(capsys, "migrate", "verify", own, "--stitcher", stitcher)[0] == 0
