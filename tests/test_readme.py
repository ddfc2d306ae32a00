"""What the documents tell people to type must be commands that exist."""

import re
import shlex
from pathlib import Path

import pytest

from repstitch.cli.main import parser
from repstitch.workflows.demo import NEXT

ROOT = Path(__file__).parents[1]


def commands(text: str) -> list[list[str]]:
    joined = text.replace("\\\n", " ")
    lines = re.findall(r"^\s*(repstitch [a-z][^\n`]*)$", joined, flags=re.MULTILINE)
    return [shlex.split(line.rstrip(" &"), comments=True)[1:] for line in lines]


@pytest.mark.parametrize("words", commands((ROOT / "README.md").read_text(encoding="utf-8")), ids=" ".join)
def test_every_command_in_the_readme_parses(words):
    assert parser().parse_args(words).run


@pytest.mark.parametrize("words", commands(NEXT.format(out="demo")), ids=" ".join)
def test_every_command_that_the_demo_prints_parses(words):
    assert parser().parse_args(words).run


def test_the_readme_names_every_command():
    readme = (ROOT / "README.md").read_text(encoding="utf-8") + (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    choices = next(a for a in parser()._actions if a.dest == "command").choices or ()
    assert [name for name in choices if name not in readme] == []


def anchor(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def test_every_link_in_a_document_leads_to_a_file_and_a_heading():
    for document in (ROOT / "README.md", ROOT / "ARCHITECTURE.md", *sorted((ROOT / "docs").rglob("*.md"))):
        for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8")):
            if link.startswith(("http:", "https:")):
                continue
            path, _, fragment = link.partition("#")
            target = document if not path else document.parent / path
            assert target.exists(), f"{document.name}: {link}"
            if fragment:
                headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), flags=re.MULTILINE)
                assert fragment in map(anchor, headings), f"{document.name}: {link}"


def test_every_python_block_in_the_readme_compiles():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    assert blocks
    for block in blocks:
        compile(block, "README.md", "exec")


def test_constraints_hold_versions_and_nothing_else():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if not re.fullmatch(r"#.*|[A-Za-z0-9_.\-]+==[A-Za-z0-9_.+!\-]+", line)] == []


@pytest.mark.parametrize("name", ["README.md", "service/deploy/compose.gpu.yaml", "service/deploy/kubernetes-gpu.yaml"])
def test_what_is_said_of_a_gpu_was_measured_or_says_that_it_was_not(name):
    measured = "Not measured on a GPU" not in (ROOT / "benchmarks" / "results" / "gpu.md").read_text()
    said = [part for part in (ROOT / name).read_text().split("\n\n") if "GPU" in part or "CUDA" in part]
    assert said
    for part in said:
        assert ("measured on" if measured else "not measured") in " ".join(part.replace("#", "").split()), part
