"""Links, anchors, commands, code blocks and figures of the documentation pages are right."""

import subprocess

import pytest
from helpers.pages import (
    DOCS,
    FENCE,
    GENERATED,
    LINK,
    MEASURED,
    PAGES,
    README,
    ROOT,
    Figure,
    anchor,
    blocks,
    commands,
    figures,
    headings,
    name_of,
    prose,
    text_of,
    typed,
)

from repstitch.cli.main import parser
from repstitch.workflows.demo import NEXT

# Files that state whether a GPU was used.
GPU_FILES = [
    *(page for page in PAGES if page not in GENERATED and page.name != "CHANGELOG.md"),
    *sorted((ROOT / "service" / "deploy").glob("*gpu*")),
]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_to_a_file_and_a_heading(page):
    for link in LINK.findall(FENCE.sub("", text_of(page))):
        if link.startswith(("http:", "https:")):
            continue
        path, _, fragment = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if fragment:
            assert fragment in map(anchor, headings(text_of(target))), link


def test_every_page_can_be_reached_from_the_readme():
    reached, waiting = {README}, [README]
    while waiting:
        page = waiting.pop()
        for link in LINK.findall(text_of(page)):
            linked = (page.parent / link.partition("#")[0]).resolve()
            if linked.suffix == ".md" and linked.is_file() and linked not in reached:
                reached.add(linked)
                waiting.append(linked)
    assert set(PAGES) - reached == set()


@pytest.mark.parametrize("page", [page for page in PAGES if page not in GENERATED], ids=name_of)
def test_every_command_parses(page):
    for words in typed(page):
        assert parser().parse_args(words).run, words


@pytest.mark.parametrize("words", commands(NEXT.format(out="demo")), ids=" ".join)
def test_every_command_that_the_demo_prints_parses(words):
    assert parser().parse_args(words).run


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_shell_block_is_valid_bash(page):
    for block in blocks(text_of(page), "bash"):
        checked = subprocess.run(["bash", "-n"], input=block, text=True, capture_output=True, check=False)
        assert (checked.returncode, checked.stderr) == (0, ""), block


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_names_a_language_that_readers_know(page):
    kinds = {kind for _, kind, _ in FENCE.findall(text_of(page))}
    assert kinds <= {"bash", "python", "text", "json", "toml", "yaml", "make"}


@pytest.mark.parametrize(
    "figure",
    [pytest.param(figure, id=f"{name_of(page)}: {figure.shown}") for page in PAGES for figure in figures(page)],
)
def test_every_measured_figure_is_that_of_the_row_it_links_to(figure: Figure):
    cells = figure.cells()
    assert len(cells) == 1, figure.title
    assert figure.agrees(cells[0]), f"{figure.shown} is not in {cells[0]!r} ({figure.title})"


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page not in GENERATED and page.name != "CHANGELOG.md"], ids=name_of
)
def test_every_measured_figure_links_to_its_row(page):
    """A number with a decimal point or a unit is measured, unless it is code: definitions are written as `0.9`."""
    unlinked = [line.strip() for line in prose(text_of(page)).splitlines() if MEASURED.search(line)]
    assert unlinked == []


def test_figures_are_compared_with_their_digits(tmp_path):
    (tmp_path / "results.md").write_text(
        "## Speed\n\n| what | time | share |\n|---|---|---|\n| ours | 1.48 s [1.2, 1.9] | 0.916 |\n"
    )
    file = tmp_path / "results.md"
    for shown, column, right in (
        ("1.5 s", "time", True),
        ("1.48", "time", True),
        ("1.4 s", "time", False),
        ("1.480", "time", True),
        ("91.6 %", "share", True),
        ("92 %", "share", True),
        ("93 %", "share", False),
        ("0.91", "share", False),
        ("1.48 ms", "time", False),
        ("1.48 to 99 s", "time", False),
        ("1.9 s", "time", False),
    ):
        figure = Figure(shown, file, "speed", f"what | ours | {column}")
        assert [figure.agrees(cell) for cell in figure.cells()] == [right], shown
    assert Figure("1.5 s", file, "speed", "theirs | time").cells() == []
    assert Figure("1.5 s", file, "memory", "ours | time").cells() == []


def test_the_readme_fits_on_one_screen():
    text = text_of(README)
    assert len(text.splitlines()) <= 170
    assert len(text.split()) <= 1300
    assert len(blocks(text, "python")[0].splitlines()) <= 8
    assert len(typed(README)) == 6


@pytest.mark.parametrize("page", [page for page in PAGES if page != README and page not in GENERATED], ids=name_of)
def test_lines_are_at_most_120_characters_long(page):
    """Lines of tables, of code and with a link that is longer by itself can be longer."""
    long = [line for line in FENCE.sub("", text_of(page)).splitlines() if len(line) > 120]
    assert [line for line in long if "|" not in line and "](" not in line] == []


@pytest.mark.parametrize("file", GPU_FILES, ids=name_of)
def test_what_is_said_of_a_gpu_was_measured_or_says_that_it_was_not(file):
    """In each paragraph of the README and of files for deployment, and on each page that mentions one."""
    measured = "Not measured on a GPU" not in (ROOT / "benchmarks" / "results" / "gpu.md").read_text()
    is_page = DOCS in file.parents
    phrase = "measured on a" if measured else "not measured"
    parts = [text_of(file)] if is_page else text_of(file).split("\n\n")
    parts = [part for part in parts if "GPU" in part or "CUDA" in part]
    assert parts or is_page
    for part in parts:
        assert phrase in " ".join(part.replace("#", "").split()), part


def test_no_page_waits_for_the_output_of_a_command():
    assert [name_of(page) for page in PAGES if "OUTPUT OF" in text_of(page)] == []


def test_the_pages_mention_every_page_of_the_site():
    settings = (DOCS / "zensical.toml").read_text(encoding="utf-8")
    unlisted = [
        name_of(page) for page in PAGES if f'"{name_of(page)}"' not in settings and "decisions/" not in name_of(page)
    ]
    assert unlisted == ["docs/README.md"]
