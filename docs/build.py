"""Write the generated reference pages, and build the documentation as a site.

`python docs/build.py` writes docs/reference/cli.md and docs/reference/python.md and builds build/site; with
`--reference` it writes the two pages only. Building needs the extra `docs`, and no network.
"""

import argparse
import importlib
import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
PAGES, SITE, CONFIG = ROOT / "build" / "pages", ROOT / "build" / "site", ROOT / "build" / "zensical.toml"
CLI_PAGE, PYTHON_PAGE = ROOT / "docs" / "reference" / "cli.md", ROOT / "docs" / "reference" / "python.md"
WIDTH = 100  # of the help texts
PACKAGES = {
    "repstitch": "The whole job in one call each.",
    "repstitch.embeddings": "Read, pair, split, check and write embeddings.",
    "repstitch.metrics": "Alignment and retrieval metrics, on NumPy arrays or torch tensors.",
    "repstitch.alignment": "The alignment of many spaces.",
    "repstitch.fit": "Fit maps from moments or pairs.",
    "repstitch.stitchers": "Maps, stitchers, the registry and routes.",
    "repstitch.evaluation": "Scores on held-out pairs.",
    "repstitch.mixing": "Native and translated rows together, and result lists of two models.",
    "repstitch.transfer": "Move probes, directions and dictionaries.",
    "repstitch.client": "Clients of the service, and their errors.",
}


def cli_page() -> str:
    """Return the reference of the command line: the help of every command."""
    os.environ["COLUMNS"] = str(WIDTH)
    from repstitch.cli.main import parser

    top = parser()
    commands = next(action for action in top._actions if isinstance(action, argparse._SubParsersAction))
    listed = {action.dest: action.help for action in commands._choices_actions}
    rows = "\n".join(f"| [`repstitch {name}`](#{_anchor(f'repstitch {name}')}) | {listed[name]} |" for name in listed)
    sections = [
        "# Command line",
        "Every command and option, as `repstitch COMMAND --help` prints them. Results go to stdout, everything else\n"
        "to stderr. The exit status is 0 on success, 1 if `migrate verify` finds a fault, 2 on an error in the input\n"
        "(with one line that says what to do), and 130 if interrupted. `docs/build.py` writes this page.",
        f"| command | what it does |\n|---|---|\n{rows}",
    ]
    for name, command in all_commands(top).items():
        text = "\n".join(line.rstrip() for line in command.format_help().splitlines())
        sections.append(f"## repstitch {name}\n\n```text\n{text}\n```")
    return "\n\n".join(sections) + "\n"


def all_commands(parser: argparse.ArgumentParser, before: str = "") -> dict[str, argparse.ArgumentParser]:
    """Return the parser of every command by its words, such as `migrate run`, each command before its steps."""
    commands: dict[str, argparse.ArgumentParser] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                commands[f"{before}{name}"] = command
                commands |= all_commands(command, f"{before}{name} ")
    return commands


def python_page() -> str:
    """Return the reference of the Python names: a table for each package, then what the site fills with details."""
    sections = [
        "# Python",
        "Every public name. `help(rs.train)` prints the details of a name in Python; the site that `make docs` builds\n"
        "shows them below, in place of the lines that begin with `:::`. `docs/build.py` writes this page.",
    ]
    details = ["## Details"]
    for package, purpose in PACKAGES.items():
        module = importlib.import_module(package)
        names = [name for name in module.__all__ if not name.startswith("__")]
        rows = "\n".join(f"| `{name}` | {_summary(getattr(module, name))} |" for name in names)
        sections.append(f"## {package}\n\n{purpose}\n\n| name | what it is |\n|---|---|\n{rows}")
        details += [f"::: {package}.{name}" for name in names if package == "repstitch" or not _at_top(module, name)]
    return "\n\n".join([*sections, *details]) + "\n"


def _at_top(module: ModuleType, name: str) -> bool:
    """Whether `repstitch` itself offers the object that has this name in a module, so that its details appear once."""
    return getattr(importlib.import_module("repstitch"), name, None) is getattr(module, name)


def _summary(thing: object) -> str:
    """Return the first sentence of a docstring, for a cell of a table."""
    if isinstance(thing, dict):
        return f"A dictionary with {len(thing)} entries: {', '.join(f'`{key}`' for key in thing)}."
    text = inspect.getdoc(thing) or ""
    paragraph = " ".join(text.split("\n\n")[0].split())
    return re.split(r"(?<=[.!?]) (?=[A-Z`])", paragraph)[0].replace("|", "\\|")


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def stage() -> None:
    """Copy the pages and the files that they link to to build/pages, in the same folders, and the settings to build."""
    shutil.rmtree(PAGES, ignore_errors=True)
    pages = [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")]
    pages += (ROOT / "benchmarks" / "results").glob("*.md")
    files = set(pages)
    for page in pages:
        for link in re.findall(r"\]\(([^)\s#]+)", page.read_text(encoding="utf-8")):
            linked = page.parent / link
            if "://" not in link and linked.is_file():
                files.add(linked.resolve())
    for file in files:
        copy = PAGES / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    shutil.copyfile(ROOT / "docs" / "zensical.toml", CONFIG)


def build_site() -> int:
    """Build the site from the staged pages; a link that leads nowhere is an error. Returns the exit status."""
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict", "-f", str(CONFIG)]
    return subprocess.run(command, env=os.environ | {"NO_COLOR": "1"}, check=False).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the reference pages and build the site in build/site.")
    parser.add_argument("--reference", action="store_true", help="write the two reference pages only")
    reference_only = parser.parse_args().reference
    CLI_PAGE.write_text(cli_page(), encoding="utf-8")
    PYTHON_PAGE.write_text(python_page(), encoding="utf-8")
    if reference_only:
        return 0
    stage()
    status = build_site()
    print(f"The site is in {SITE}; open {SITE / 'index.html'}." if status == 0 else "The site was not built.")
    return status


if __name__ == "__main__":
    sys.exit(main())
