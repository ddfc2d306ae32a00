"""The documentation pages as data: blocks of code, commands, links, and figures with the tables they come from."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = [README, ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]
GENERATED = {DOCS / "reference" / "cli.md", DOCS / "reference" / "python.md"}

FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", flags=re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)")
FIGURE = re.compile(r"\[([^\]]+)\]\(([^)\s#]*results/[^)\s#]+\.md)(?:#([^)\s]*))?\s+\"([^\"]+)\"\)")
NUMBER = re.compile(r"-?\d[\d,]*\.?\d*(?:e-?\d+)?|-?\.\d+")
UNITS = r" ?(?:%|×|times\b|fold\b|x\b|µs\b|ms\b|s\b|seconds\b|minutes\b|hours\b|[MG]B\b|requests/s)"
MEASURED = re.compile(rf"(?<![\w.@/-])(?:\d[\d,]*\.\d+|\.\d+|\d[\d,]*(?={UNITS}))")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    """Return the code blocks of one language, without their indentation."""
    return [
        "".join(line.removeprefix(indent) for line in body.splitlines(keepends=True))
        for indent, kind, body in FENCE.findall(text)
        if kind == language
    ]


def commands(text: str) -> list[list[str]]:
    """Return the arguments of every line of a script that calls repstitch; backslashes join lines."""
    joined = re.sub(r"\\\n\s*", "", text)
    lines = re.findall(r"^\s*(?:\$ )?(?:[A-Z_]+=\S+ )*(repstitch [a-z][^\n`|>]*)", joined, flags=re.MULTILINE)
    return [shlex.split(line.rstrip().rstrip("&"), comments=True)[1:] for line in lines]


def typed(page: Path) -> list[list[str]]:
    """Return the arguments of every repstitch command that a page tells the reader to type."""
    return [words for block in blocks(text_of(page), "bash") for words in commands(block)]


def anchor(heading: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")


def headings(text: str) -> list[str]:
    return re.findall(r"^#+ (.+)$", FENCE.sub("", text), flags=re.MULTILINE)


def prose(text: str) -> str:
    """Return a page without code, figures that link to their row, and the addresses of other links."""
    text = FIGURE.sub("", FENCE.sub("", text))
    text = re.sub(r"``.+?``|`[^`]*`", "", text)
    return re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)


@dataclass(frozen=True)
class Figure:
    """A measured figure in a page: the text that is shown, and the cell of a results table that it comes from."""

    shown: str
    file: Path
    section: str
    title: str

    def cells(self) -> list[str]:
        """Return the cells that the title names: `ROW | COLUMN` or `TABLE | ROW | COLUMN`.

        TABLE is the first header cell of a table. ROW is the first cell of a row, or its first cells joined by commas.
        """
        parts = [part.strip() for part in self.title.replace("\\|", "|").split(" | ")]
        name, (row, column) = parts[0] if len(parts) == 3 else None, parts[-2:]
        matching = []
        for header, rows in tables(text_of(self.file), self.section):
            if column in header and name in (None, header[0]):
                named = [cells for cells in rows if any(", ".join(cells[:n]) == row for n in range(1, len(cells)))]
                matching += [cells[header.index(column)] for cells in named]
        return matching

    def agrees(self, cell: str) -> bool:
        """Whether the cell has every number that is shown, rounded to the digits that are shown, and the same unit."""
        without_intervals = re.sub(r"\[[^\]]*\]", "", cell)
        units = [unit for unit in re.findall(r"[a-zA-Zµ/]+", self.shown) if unit not in ("to", "x")]
        if not NUMBER.search(self.shown) or any(unit not in cell + self.title for unit in units):
            return False
        scale = 100 if "%" in self.shown and "%" not in cell else 1
        values = [scale * float(value.replace(",", "")) for value in NUMBER.findall(without_intervals)]
        return all(_is_rounded(number, values) for number in NUMBER.findall(self.shown))


def _is_rounded(number: str, values: list[float]) -> bool:
    """Whether a number, as text, is one of the values rounded to its digits."""
    digits = number.replace(",", "")
    tolerance = 0.5 * 10.0 ** -len(digits.partition(".")[2]) * (1 + 1e-6)
    return any(abs(value - float(digits)) <= tolerance for value in values)


def figures(page: Path) -> list[Figure]:
    """Return the figures of a page that link to a cell of a results table."""
    return [
        Figure(shown, page.parent / file, section, title)
        for shown, file, section, title in FIGURE.findall(text_of(page))
    ]


def tables(text: str, section: str) -> Iterator[tuple[list[str], list[list[str]]]]:
    """Yield the header and the rows of each table under the heading with the anchor `section`."""
    inside, lines = False, []
    for line in [*text.splitlines(), ""]:
        if line.startswith("#"):
            inside = not section or anchor(line.lstrip("# ")) == section
        if inside and line.startswith("|"):
            lines.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))])
        elif lines:
            yield lines[0], lines[2:]
            lines = []
