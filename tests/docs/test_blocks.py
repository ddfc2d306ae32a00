"""The Python blocks of the documentation run: on synthetic files like those of the demo, and on the real demo."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.demo_files import served, write_demo, write_working_folder
from helpers.pages import FENCE, PAGES, ROOT, blocks, commands, name_of, text_of

from repstitch.cli.main import main

WITH_PYTHON = [page for page in PAGES if blocks(text_of(page), "python")]
STORES = sorted((ROOT / "docs" / "stores").glob("*.md"))  # read from top to bottom by a test of their own
ADDRESS = "http://127.0.0.1:3000"


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("examples")
    write_demo(folder / "demo")
    write_working_folder(folder)
    return folder


@pytest.fixture(scope="session")
def real(tmp_path_factory) -> Path:
    """The working folder after `repstitch demo`."""
    folder = tmp_path_factory.mktemp("demo")
    ran = [sys.executable, "-m", "repstitch", "demo", "--out", "demo"]
    subprocess.run(ran, cwd=folder, check=True, capture_output=True)
    write_working_folder(folder)
    return folder


def run_blocks(page: Path, folder: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the Python blocks of a page in one namespace, in a copy of `folder`, with a service if they use one."""
    shutil.copytree(folder, place, dirs_exist_ok=True)
    monkeypatch.chdir(place)
    monkeypatch.setenv("REPSTITCH_ADDRESS", "")  # a block may set it
    python = blocks(text_of(page), "python")
    names: dict[str, Any] = {"__name__": "__main__"}
    if not any(ADDRESS in block for block in python):
        try:
            for block in python:
                exec(compile(block, name_of(page), "exec"), names)
        finally:
            stop_server(names)
        return
    with served(place / "models" / "stitchers") as address:
        for block in python:
            exec(compile(block.replace(ADDRESS, address), name_of(page), "exec"), names)


def stop_server(names: dict[str, Any]) -> None:
    """Stop the server that a page has started and that would go on."""
    if "server" in names:
        names["server"].stop()


@pytest.mark.parametrize("page", [page for page in WITH_PYTHON if page not in STORES], ids=name_of)
def test_the_python_blocks_run(page, made, tmp_path, monkeypatch):
    run_blocks(page, made, tmp_path / "here", monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in WITH_PYTHON if page not in STORES], ids=name_of)
def test_the_python_blocks_run_on_the_real_demo(page, real, tmp_path, monkeypatch):
    run_blocks(page, real, tmp_path / "here", monkeypatch)


# Commands that do not end by themselves, or need the network, or files that only the reader has.
NOT_RUN = ("serve", "demo", "study")
READERS_FILES = ("timm:", "photos/", "later.", "store.parquet:", "ids.txt")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["README.md", "docs/getting-started.md", "docs/guides/move-an-index.md"])
def test_a_first_page_can_be_typed_from_top_to_bottom(name, real, tmp_path, monkeypatch, capsys):
    """Its commands and its Python blocks run in order, on the files of the demo."""
    page = ROOT / name
    place = tmp_path / "here"
    shutil.copytree(real, place)
    monkeypatch.chdir(place)
    names, ran = {"__name__": "__main__"}, 0
    for _, kind, body in FENCE.findall(text_of(page)):
        if kind == "python":
            exec(compile(body, name, "exec"), names)
        for words in commands(body) if kind == "bash" else ():
            if words[0] in NOT_RUN or any(part in word for word in words for part in READERS_FILES):
                continue
            assert main(words) == 0, (words, capsys.readouterr().err)
            ran += 1
    assert ran >= 4


@pytest.mark.slow
@pytest.mark.parametrize("page", STORES, ids=name_of)
def test_the_page_of_a_store_can_be_typed_in_an_empty_folder(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REPSTITCH_ADDRESS", "")
    names: dict[str, Any] = {"__name__": "__main__"}
    ran = 0
    try:
        for _, kind, body in FENCE.findall(text_of(page)):
            if kind == "python":
                exec(compile(body, page.name, "exec"), names)
            if "server" in names:  # whose address the reader exports
                monkeypatch.setenv("REPSTITCH_ADDRESS", names["server"].get_uri())
            for words in commands(body) if kind == "bash" else ():
                assert main(words) == 0, (words, capsys.readouterr())
                ran += 1
    finally:
        stop_server(names)
    assert ran >= 5
