import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from repstitch import files
from repstitch.errors import InputError
from repstitch.files import (
    check_carried_file,
    check_demo_folder,
    check_embeddings_exist,
    check_embeddings_file,
    check_ending,
    check_file_exists,
    check_items_exist,
    check_layers_folder,
    check_new,
    check_new_folder,
    check_picture,
    check_stitcher_exists,
    data_folder,
    locked,
    split_column,
    split_key,
    written_whole,
)


def entries(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# --- atomic writing ---------------------------------------------------------------------------------------------------


def test_a_new_file_appears_once_it_is_complete_and_no_temporary_file_remains(tmp_path):
    target = tmp_path / "x.json"
    with written_whole(target) as path:
        path.write_text("all of it")
        assert not target.exists()
        assert path.suffix == ".json"
    assert target.read_text() == "all of it"
    assert entries(tmp_path) == {"x.json"}


def test_an_older_file_stays_until_the_new_one_replaces_it(tmp_path):
    target = tmp_path / "x.json"
    target.write_text("old")
    with written_whole(target) as path:
        path.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert entries(tmp_path) == {"x.json"}


def test_a_folder_appears_once_it_is_complete(tmp_path):
    target = tmp_path / "s"
    with written_whole(target) as folder:
        folder.mkdir()
        (folder / "a").write_text("1")
        assert not target.exists()
        (folder / "b").write_text("2")
    assert entries(target) == {"a", "b"}
    assert entries(tmp_path) == {"s"}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("kind", ["file", "folder", "nothing"])
def test_an_exception_leaves_the_old_file_unchanged_and_no_temporary_file(tmp_path, error, kind):
    target = tmp_path / "x"
    target.write_text("old")

    def stopped():
        with written_whole(target) as path:
            if kind == "folder":
                path.mkdir()
            if kind != "nothing":
                (path / "a" if kind == "folder" else path).write_text("half")
            raise error

    with pytest.raises(error):
        stopped()
    assert target.read_text() == "old"
    assert entries(tmp_path) == {"x"}


def test_a_file_system_error_names_the_argument(tmp_path):
    def full_disk():
        with written_whole(tmp_path / "x.png", "plot") as path:
            path.write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match=r"`plot` .*x\.png cannot be written: .*No space left"):
        full_disk()
    assert not entries(tmp_path)


def test_an_error_while_reading_another_file_is_raised_unchanged(tmp_path):
    def reading(name):
        with written_whole(tmp_path / "x.json") as path:
            path.write_text((tmp_path / name).read_text())

    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        reading("none.json")
    assert not entries(tmp_path)


def test_an_error_names_the_file_or_the_output_that_contains_it(tmp_path):
    with (
        pytest.raises(InputError, match=rf"^{tmp_path}/none/x cannot be written"),
        written_whole(tmp_path / "none" / "x", argument=None) as path,
    ):
        path.write_text("half")
    with (
        pytest.raises(InputError, match=rf"^`out` {tmp_path}/whole cannot be written"),
        written_whole(tmp_path / "none" / "x", named=tmp_path / "whole") as path,
    ):
        path.write_text("half")


def test_a_block_that_writes_nothing_is_an_error(tmp_path):
    with (
        pytest.raises(InputError, match=r"`out` .*x cannot be written: .*No such file"),
        written_whole(tmp_path / "x") as path,
    ):
        assert not path.exists()
    assert not entries(tmp_path)


def test_an_unwritable_path_raises_an_input_error(tmp_path):
    (tmp_path / "file").write_text("")
    for target in (tmp_path / "file" / "x", tmp_path / "none" / "x", tmp_path / ("x" * 256)):
        with pytest.raises(InputError, match=r"`out` .* cannot be written"), written_whole(target) as path:
            path.write_text("half")
    assert entries(tmp_path) == {"file"}


def test_a_file_does_not_replace_a_folder(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a").write_text("1")
    with pytest.raises(InputError, match="cannot be written"), written_whole(tmp_path / "x") as path:
        path.write_text("new")
    assert entries(tmp_path / "x") == {"a"}
    assert entries(tmp_path) == {"x"}


def test_a_name_may_be_as_long_as_the_file_system_allows(tmp_path):
    for name in ("x" * 255, "é" * 127, ".repstitch.loc", ".repstitch.lock.json"):
        with written_whole(tmp_path / name) as path:
            path.write_text("all of it")
        assert (tmp_path / name).read_text() == "all of it"


def test_missing_folders_are_created_on_request(tmp_path):
    with written_whole(tmp_path / "a" / "b" / "s", parents=True) as folder:
        folder.mkdir()
    assert (tmp_path / "a" / "b" / "s").is_dir()


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_content_and_folders_are_synced_before_and_after_the_rename(tmp_path, monkeypatch, kind):
    events = []
    fsync, replace = os.fsync, os.replace

    def sync(descriptor):
        events.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def rename(source, target):
        events.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", rename)
    with written_whole(tmp_path / "x") as path:
        if kind == "folder":
            path.mkdir()
            path = path / "a"
        path.write_text("1")
    assert events == [*(["a"] if kind == "folder" else []), "x", "rename", tmp_path.name]


def test_a_folder_that_cannot_be_synced_is_no_error_but_a_file_is(tmp_path, monkeypatch):
    def refuse(kinds):
        def fsync(descriptor):
            if Path(os.readlink(f"/proc/self/fd/{descriptor}")).is_dir() in kinds:
                raise OSError(22, "Invalid argument")

        monkeypatch.setattr(os, "fsync", fsync)

    refuse({True})
    with written_whole(tmp_path / "x") as path:
        path.write_text("1")
    refuse({False})
    with (
        pytest.raises(InputError, match=r"cannot be written: .*Invalid argument"),
        written_whole(tmp_path / "y") as path,
    ):
        path.write_text("1")
    assert entries(tmp_path) == {"x"}


KILLED = """
import os, sys
from pathlib import Path
from repstitch.files import written_whole
with written_whole(Path(sys.argv[1])) as path:
    path.mkdir()
    (path / "a").write_text("half")
    if sys.argv[2] == "killed":
        os._exit(137)
    print("writing", flush=True)
    sys.stdin.read()
"""


def writer(target: Path, ending: str) -> subprocess.Popen:
    """Start a process that writes to `target` until its input is closed, or is killed."""
    command = [sys.executable, "-c", KILLED, str(target), ending]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_the_next_write_removes_what_killed_processes_left_and_nothing_else(tmp_path):
    with writer(tmp_path / "alive", "lives") as alive:
        assert alive.stdout.readline() == "writing\n"  # type: ignore[union-attr]
        with writer(tmp_path / "killed", "killed") as killed:
            assert killed.wait() == 137
        assert len(entries(tmp_path)) == 2
        with written_whole(tmp_path / "x") as path:
            path.write_text("1")
        assert len(entries(tmp_path)) == 2
        alive.communicate("")
        assert alive.returncode == 0
    assert entries(tmp_path) == {"x", "alive"}


def test_without_locks_a_second_writer_leaves_the_temporary_folder_of_the_first(tmp_path, monkeypatch):
    def unsupported(*args):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with written_whole(tmp_path / "x") as first:
        first.write_text("1")
        with written_whole(tmp_path / "y") as second:
            second.write_text("2")
    assert [(tmp_path / name).read_text() for name in "xy"] == ["1", "2"]
    assert entries(tmp_path) == {"x", "y"}


def test_what_another_user_left_is_not_an_error(tmp_path, monkeypatch):
    (tmp_path / ".repstitch-0123456789ab.tmp").mkdir()
    flock = fcntl.flock

    def refuse(file, operation):
        if operation & fcntl.LOCK_NB:
            raise PermissionError(13, "Permission denied")
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", refuse)
    with written_whole(tmp_path / "x") as path:
        path.write_text("1")
    assert "x" in entries(tmp_path)


def test_a_folder_is_locked_for_one_process_at_a_time_and_follows_a_rename(tmp_path):
    with locked(tmp_path / "a") as first, locked(tmp_path / "a") as second:
        assert (first, second) == (True, False)
        (tmp_path / "a").rename(tmp_path / "b")
        with locked(tmp_path / "a") as fresh, locked(tmp_path / "b") as moved:
            assert (fresh, moved) == (True, False)
    with locked(tmp_path / "b") as again:
        assert again


# --- the package's data -----------------------------------------------------------------------------------------------


def test_the_package_finds_its_cards_and_studies():
    for name in ("spaces", "studies"):
        assert list(data_folder(name).glob("*.toml"))


def test_an_installed_package_finds_its_files_inside_itself(tmp_path, monkeypatch):
    (tmp_path / "models" / "spaces").mkdir(parents=True)
    monkeypatch.setattr(files, "__file__", str(tmp_path / "files.py"))
    assert data_folder("spaces") == tmp_path / "models" / "spaces"
    assert data_folder("studies") == tmp_path.parents[1] / "models" / "studies"


# --- paths with a key or a column -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("x.npz", ("x.npz", None)),
        ("a/x.npz:key", ("a/x.npz", "key")),
        ("x.parquet:wide", ("x.parquet", "wide")),
        ("x.txt:key", ("x.txt:key", None)),
        ("s3://bucket/x.parquet", ("s3://bucket/x.parquet", None)),
        ("s3://bucket/x.parquet:wide", ("s3://bucket/x.parquet", "wide")),
        ("c:x.npz", ("c:x.npz", None)),
    ],
)
def test_a_key_follows_the_last_colon_of_a_file_of_embeddings(path, parts):
    assert split_key(path) == parts


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("t.csv", ("t.csv", None)),
        ("t.TSV:a", ("t.TSV", "a")),
        ("t.parquet:a", ("t.parquet", "a")),
        ("t.txt:a", ("t.txt:a", None)),
    ],
)
def test_a_column_follows_the_last_colon_of_a_table(path, parts):
    assert split_column(path) == parts


# --- existing inputs --------------------------------------------------------------------------------------------------


def test_missing_inputs_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"There is no file .*x\.npz; pass the path of embeddings \(\.parquet"):
        check_embeddings_exist(f"{tmp_path}/x.npz:key")
    with pytest.raises(InputError, match=r"`ids`: there is no file .*ids\.npz; pass a file with one entry per row\."):
        check_file_exists(f"{tmp_path}/ids.npz:key", "ids")
    with pytest.raises(InputError, match=r"`qrels`: there is no file .*; pass a file with lines of query"):
        check_file_exists(tmp_path, "qrels", "lines of query")
    with pytest.raises(InputError, match=r"`data` must be an existing folder, .* or table; there is no .*t\.csv\."):
        check_items_exist(f"{tmp_path}/t.csv:text")
    with pytest.raises(InputError, match=r"There is no stitcher .*none; pass the folder of a saved stitcher\.$"):
        check_stitcher_exists(tmp_path / "none")
    with pytest.raises(InputError, match=r"There is no stitcher me/none; .*, or hf://me/none for one on the Hugging"):
        check_stitcher_exists("me/none")
    for check in (check_embeddings_exist, check_items_exist, check_stitcher_exists):
        with pytest.raises(InputError, match="x" * 300):
            check("x" * 300)


def test_existing_and_remote_inputs_are_accepted(tmp_path):
    for name in ("x.npz", "t.csv"):
        (tmp_path / name).touch()
    check_embeddings_exist(f"{tmp_path}/x.npz:key")
    check_embeddings_exist(tmp_path)
    check_embeddings_exist("s3://bucket/x.parquet")
    check_file_exists(f"{tmp_path}/x.npz:key", "ids")
    os.mkfifo(tmp_path / "pipe")
    check_file_exists(tmp_path / "pipe", "qrels")
    check_items_exist(f"{tmp_path}/t.csv:text")
    check_stitcher_exists(tmp_path)
    check_stitcher_exists("hf://owner/name")


# --- allowed outputs --------------------------------------------------------------------------------------------------


def test_an_output_must_have_one_of_the_endings_and_the_message_names_the_argument(tmp_path):
    assert check_ending(tmp_path / "x.b", (".a", ".b")) == tmp_path / "x.b"
    with pytest.raises(InputError, match=r"`plot` must end in \.a, \.b or \.c; got 'x\.txt'"):
        check_ending(tmp_path / "x.txt", (".a", ".b", ".c"), "plot")
    with pytest.raises(InputError, match=r"`out` must end in \.a, the only format; got 'x\.A'"):
        check_ending(tmp_path / "x.A", (".a",), note=", the only format")


def test_a_new_output_must_not_exist_and_its_folder_must(tmp_path):
    assert check_new(tmp_path / "x") == tmp_path / "x"
    (tmp_path / "x").touch()
    with pytest.raises(
        InputError, match=r"`cache` .*x exists and is never overwritten; pass another name or remove it"
    ):
        check_new(tmp_path / "x", "cache")
    with pytest.raises(InputError, match=r"`out` must be in an existing folder; there is no .*none"):
        check_new(tmp_path / "none" / "x")
    for check in (check_new, check_picture, check_embeddings_file, check_carried_file):
        long = tmp_path / ("x" * 300 + {check_picture: ".png", check_carried_file: ".npz"}.get(check, ".parquet"))
        with pytest.raises(InputError, match=r"cannot be created: .*too long"):
            check(long)


def test_embeddings_are_written_as_parquet_and_layers_into_a_folder(tmp_path):
    assert check_embeddings_file(tmp_path / "x.parquet") == tmp_path / "x.parquet"
    with pytest.raises(InputError, match=r"`out` must end in \.parquet, the format of embeddings"):
        check_embeddings_file(tmp_path / "x.npy")
    assert check_layers_folder(tmp_path / "x") == tmp_path / "x"
    with pytest.raises(InputError, match=r"`out` must be a folder, because .* is written; got 'x\.parquet'"):
        check_layers_folder(tmp_path / "x.parquet")


def test_only_directions_can_be_written_as_npy(tmp_path):
    assert check_carried_file(tmp_path / "x.npy") == tmp_path / "x.npy"
    with pytest.raises(InputError, match=r"`out` must end in \.safetensors or \.npz; got 'x\.npy'"):
        check_carried_file(tmp_path / "x.npy", directions=False)
    with pytest.raises(InputError, match=r"`out` must end in \.safetensors, \.npz or \.npy; got 'x\.txt'"):
        check_carried_file(tmp_path / "x.txt", directions=True)
    with pytest.raises(InputError, match=r"must end in \.safetensors or \.npz \(or \.npy for directions\); got 'x"):
        check_carried_file(tmp_path / "x.txt")


def test_a_new_folder_must_have_a_plain_name_and_must_not_exist(tmp_path):
    assert check_new_folder(tmp_path / "a" / "b" / "s") == tmp_path / "a" / "b" / "s"
    for name in ("", "..", ".hidden"):
        with pytest.raises(InputError, match="`out` must name a folder to create and must not start with a dot; got"):
            check_new_folder(f"{tmp_path}/x/{name}" if name else "")
    (tmp_path / "s").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"`out` .*s exists and an atlas is never overwritten; pass another name"):
        check_new_folder(tmp_path / "s", "an atlas")
    (tmp_path / "t").mkdir()
    with pytest.raises(
        InputError, match=r"^`out` [^`]*t exists and a stitcher is never overwritten; pass another name"
    ):
        check_new_folder(tmp_path / "t")


def test_a_new_folder_must_be_where_one_can_be_created(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"`out` .* cannot be created"):
        check_new_folder(tmp_path / "file" / "s")
    with pytest.raises(InputError, match=r"`out` cannot be created: .*too long"):
        check_new_folder(tmp_path / ("x" * 300))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(InputError, match=r"`out` .*s cannot be created: .* is not a writable folder"):
        check_new_folder(tmp_path / "s")


@pytest.mark.parametrize("name", ["a\0b", "a\ud800b"])
def test_a_name_that_no_file_can_have_is_refused(tmp_path, name):
    for check in (check_new, check_new_folder):
        with pytest.raises(InputError, match="`out` cannot be created: ") as caught:
            check(tmp_path / name)
        assert str(caught.value).isprintable()


def test_a_plot_replaces_a_file_but_not_a_folder(tmp_path):
    (tmp_path / "old.png").touch()
    assert check_picture(tmp_path / "old.png") == tmp_path / "old.png"
    with pytest.raises(InputError, match=r"`plot` must end in \.png, \.svg or \.pdf; got 'x\.gif'"):
        check_picture(tmp_path / "x.gif")
    with pytest.raises(InputError, match=r"`plot` must be in an existing folder; there is no .*none"):
        check_picture(tmp_path / "none" / "x.png")
    (tmp_path / "x.png").mkdir()
    with pytest.raises(InputError, match=r"`plot` must be a file; .*x\.png is a folder"):
        check_picture(tmp_path / "x.png")


def test_the_demo_replaces_only_its_own_folder(tmp_path):
    assert check_demo_folder(tmp_path / "new") == tmp_path / "new"
    assert check_demo_folder(tmp_path) == tmp_path
    (tmp_path / "mine.txt").touch()
    with pytest.raises(InputError, match=r"`out` .* exists and was not created by the demo; pass another folder"):
        check_demo_folder(tmp_path)
    (tmp_path / files.DEMO_MARK).touch()
    assert check_demo_folder(tmp_path) == tmp_path
