"""The Python blocks of the documentation run: on synthetic files like those of the demo, and on the real demo."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.demo_files import served, write_demo, write_working_folder
from helpers.pages import PAGES, blocks, name_of, text_of, typed

from repstitch.cli.main import main

WITH_PYTHON = [page for page in PAGES if blocks(text_of(page), "python")]
ADDRESS = "http://127.0.0.1:3000"
NEEDS_THE_HUB = ("timm:", "hf://")


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
    shutil.copytree(folder, place, copy_function=os.link, dirs_exist_ok=True)
    monkeypatch.chdir(place)
    python = blocks(text_of(page), "python")
    names = {"__name__": "__main__"}
    if not any(ADDRESS in block for block in python):
        for block in python:
            exec(compile(block, name_of(page), "exec"), names)
        return
    with served(place / "models" / "stitchers") as address:
        for block in python:
            exec(compile(block.replace(ADDRESS, address), name_of(page), "exec"), names)


@pytest.mark.parametrize("page", WITH_PYTHON, ids=name_of)
def test_the_python_blocks_run(page, made, tmp_path, monkeypatch):
    run_blocks(page, made, tmp_path / "here", monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_PYTHON, ids=name_of)
def test_the_python_blocks_run_on_the_real_demo(page, real, tmp_path, monkeypatch):
    run_blocks(page, real, tmp_path / "here", monkeypatch)


def runnable(page: Path) -> list[list[str]]:
    """The commands of a page's shell blocks that end by themselves and need neither the network nor made-up files."""
    local = [words for words in typed(page) if words[0] not in ("serve", "demo", "study")]
    return [words for words in local if not any(part in word for word in words for part in NEEDS_THE_HUB)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["README.md", "docs/getting-started.md", "docs/guides/move-an-index.md"])
def test_the_commands_of_a_first_page_run_in_order_on_the_real_demo(name, real, tmp_path, monkeypatch, capsys):
    page = next(page for page in PAGES if name_of(page) == name)
    place = tmp_path / "here"
    shutil.copytree(real, place, copy_function=os.link)
    monkeypatch.chdir(place)
    for words in runnable(page):
        files = [word for word in words if word.endswith((".npy", ".parquet")) and not Path(word).exists()]
        out = words[words.index("--out") + 1] if "--out" in words else None
        if all(file == out for file in files):
            assert main(words) == 0, capsys.readouterr().err
