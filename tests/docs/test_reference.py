"""Every command, option, route, setting, verdict, error code and public name is documented where it belongs."""

import argparse
import importlib.util
import re
from dataclasses import fields
from typing import Any

import pytest
from helpers.pages import DOCS, PAGES, ROOT, text_of

import repstitch
from repstitch.cli.main import parser
from repstitch.fit.recipe import Recipe
from repstitch.names import VERDICTS
from repstitch.server.openapi import document
from repstitch.server.responses import CODES
from repstitch.server.settings import Settings


def build() -> Any:
    """The script that writes the generated pages."""
    spec = importlib.util.spec_from_file_location("docs_build", DOCS / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


COMMANDS: dict[str, argparse.ArgumentParser] = build().all_commands(parser())
OPTIONS = [
    pytest.param(name, action, id=f"{name} {(action.option_strings or [action.dest])[0]}")
    for name, command in COMMANDS.items()
    for action in command._actions
    if action.dest != "help"
]


def section(name: str) -> str:
    """The part of the reference page on one command."""
    return text_of(DOCS / "reference" / "cli.md").split(f"\n## repstitch {name}\n")[1].split("\n## ")[0]


def squeezed(text: str) -> str:
    """A text without whitespace, because where help texts wrap depends on the release of Python."""
    return "".join(text.split())


@pytest.mark.parametrize(("name", "action"), OPTIONS)
def test_every_option_is_explained_in_help_and_on_its_page(name, action):
    assert action.help
    assert squeezed(action.help % vars(action)) in squeezed(section(name))
    assert all(option in section(name) for option in action.option_strings)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_page_of_a_command_has_no_option_that_is_gone(name):
    options = {option for action in COMMANDS[name]._actions for option in action.option_strings}
    documented = re.findall(r"^  (?:-h, )?(--[a-z][a-z0-9-]*)", section(name), flags=re.MULTILINE)
    assert set(documented) == {option for option in options if option.startswith("--") and option[:5] != "--no-"}


@pytest.mark.parametrize(("name", "action"), OPTIONS)
def test_the_default_that_help_states_is_the_default(name, action):
    stated = re.search(r"\(default: ([^)]*)\)", action.help % vars(action))
    default = action.default
    if name == "train" and default is None and action.dest in {field.name for field in fields(Recipe)} | {"width"}:
        default = 512 if action.dest == "width" else getattr(Recipe(), action.dest)
    if default in (None, False) or isinstance(action, argparse._StoreTrueAction):
        return
    assert stated is not None, action.help
    assert stated[1].split()[0].strip(",") == str(default).split()[0], action.help


def test_the_python_page_is_what_the_public_names_say():
    assert text_of(DOCS / "reference" / "python.md") == build().python_page(), "run: python docs/build.py --reference"


def test_the_python_page_has_every_public_name():
    page = text_of(DOCS / "reference" / "python.md")
    for name in repstitch.__all__:
        assert name.startswith("__") or f"::: repstitch.{name}\n" in page + "\n"


def test_every_route_is_documented():
    page = text_of(DOCS / "service" / "http-api.md")
    for path, methods in document()["paths"].items():
        for method in methods:
            assert re.search(rf"{method.upper()} {re.escape(path)}(?![\w/{{])", page), f"{method.upper()} {path}"
    for path in ("/healthz", "/livez", "/readyz", "/metrics", "/docs", "/openapi.json"):
        assert f"`GET {path}`" in page or f"GET {path}" in page, path


def test_every_header_of_the_service_is_documented():
    page = text_of(DOCS / "service" / "http-api.md")
    from repstitch.server.app import EXPOSED

    for header in (*EXPOSED, "Retry-After", "WWW-Authenticate"):
        assert header in page


def test_every_setting_is_documented_with_its_default():
    page = text_of(DOCS / "service" / "configuration.md")
    for field in fields(Settings):
        assert f"`REPSTITCH_{field.name.upper()}`" in page, field.name
    used = {
        name
        for folder in ("src", "service")
        for file in (ROOT / folder).rglob("*")
        if file.suffix in {".py", ".yaml", ".yml"} or file.name == "Dockerfile"
        for name in re.findall(r"REPSTITCH_[A-Z_]+\b", text_of(file))
        if not name.endswith("_")
    }
    assert [name for name in sorted(used) if name not in page] == []


@pytest.mark.parametrize("verdict", VERDICTS)
def test_every_verdict_is_explained(verdict):
    assert f"| `{verdict}` |" in text_of(DOCS / "concepts.md")


@pytest.mark.parametrize(("status", "code"), CODES.items())
def test_every_error_code_is_explained(status, code):
    parts = text_of(DOCS / "service" / "troubleshooting.md").split("\n### ")
    part = next(part for part in parts if part.startswith(f"{status} `{code}`\n"))
    assert len(part.split()) > 15, part


def test_every_make_target_is_explained():
    targets = re.findall(r"^([a-z][a-z-]*):", text_of(ROOT / "Makefile"), flags=re.MULTILINE)
    page = text_of(DOCS / "contributing" / "development.md")
    assert [target for target in targets if f"make {target}" not in page] == []


def test_every_extra_is_explained():
    declared = (
        text_of(ROOT / "pyproject.toml").split("[project.optional-dependencies]")[1].split("[project.scripts]")[0]
    )
    extras = re.findall(r"^(\w+) = \[", declared, flags=re.MULTILINE)
    pages = "".join(text_of(page) for page in PAGES)
    assert [extra for extra in extras if f"`{extra}`" not in pages and extra not in ("dev", "docs")] == []


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path, monkeypatch):
    script = build()
    for name, place in (("PAGES", "pages"), ("SITE", "site"), ("CONFIG", "zensical.toml")):
        monkeypatch.setattr(script, name, tmp_path / place)
    settings = text_of(DOCS / "zensical.toml").replace('paths = ["../src"]', f"paths = ['{ROOT / 'src'}']")
    script.stage()
    (tmp_path / "zensical.toml").write_text(settings, encoding="utf-8")
    assert script.build_site() == 0
    page = (tmp_path / "site" / "docs" / "reference" / "python.html").read_text(encoding="utf-8")
    assert "target_space" in page
    assert ":::" not in re.sub(r"<code>:::</code>", "", page)
    for site_page in (tmp_path / "site").rglob("*.html"):
        loaded = re.findall(
            r"<(?:script|link|img)[^>]*(?:src|href)=\"(https?:[^\"]+)\"", site_page.read_text(encoding="utf-8")
        )
        assert loaded == []
