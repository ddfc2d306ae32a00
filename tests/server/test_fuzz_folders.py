"""Whatever one folder of stitchers contains, it affects only itself: the others are served, listed and reloaded."""

import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from helpers.fuzz import cases, spoiled, tell
from helpers.metrics import numbers
from helpers.server_calls import client_of, post_rows, registry_of, service_of
from helpers.serving import make_rows, make_stitcher
from hypothesis import given
from hypothesis import strategies as st

from repstitch.stitchers.registry import Registry

GOLDEN = Path(__file__).parents[1] / "golden" / "format-1-confidence"
JSON_FILES = ("config.json", "scorecard.json")
VALUES = (
    int("9" * 400), -1, 0, 2**63, 1e400, float("nan"), True, None, "", "\ud800", "x" * 300, "a\nb", "\u202e", "->",
    [], {}, [[[]]], {"a": {}}, "/", "..", "1e400",
)  # fmt: skip


def edit(file: str, **changes):
    """Return a function that changes fields of a JSON file; the text may contain what `json` does not write."""

    def change(folder: Path) -> None:
        content = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(content | changes))

    return change


def edit_space(**changes):
    def change(folder: Path) -> None:
        space = json.loads((folder / "config.json").read_text())["source"]
        edit("config.json", source=space | changes)(folder)

    return change


def replace_file(file: str, make):
    def change(folder: Path) -> None:
        (folder / file).unlink()
        make(folder / file)

    return change


def nested(depth: int) -> list:
    """Return lists nested in `depth` levels."""
    value: list = []
    for _ in range(depth - 1):
        value = [value]
    return value


def zeros(path: Path) -> None:
    """Write weights of 5 GiB that take no space on the disk."""
    n_bytes = 5 * 2**30
    header = json.dumps({"seen": {"dtype": "I64", "shape": [n_bytes // 8], "data_offsets": [0, n_bytes]}}).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + n_bytes)


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**40)


HOSTILE = {
    "a number of 400 digits": edit("scorecard.json", query={"recall@1": int("9" * 400)}),
    "a chance level of 400 digits": edit("scorecard.json", chance={"recall@10": 0.1, "recall@1": int("9" * 400)}),
    "a number of rows of 400 digits": edit("scorecard.json", n=int("9" * 400)),
    "a dimension of 400 digits": edit_space(dim=int("9" * 400)),
    "half of a surrogate pair in the name of a space": edit_space(name="a\ud800b"),
    "a line break in the name of a space": edit_space(name="a\nb"),
    "a name of a space that is too long": edit_space(name="a" * 257),
    "a time of creation beyond the calendar": edit("config.json", created="0000-00-00"),
    "deeply nested JSON": lambda folder: (folder / "scorecard.json").write_text("[" * 100_000),
    "deep nesting in the card of a space": edit_space(encoder=nested(500)),
    "deep nesting in the settings": edit("config.json", settings={"a": nested(900)}),
    "a config of a terabyte": replace_file("config.json", sparse),
    "a scorecard of a terabyte": replace_file("scorecard.json", sparse),
    "weights of a terabyte": replace_file("model.safetensors", sparse),
    "weights of zeros that take no space on the disk": replace_file("model.safetensors", zeros),
    "a pipe as config": replace_file("config.json", os.mkfifo),
    "a pipe as weights": replace_file("model.safetensors", os.mkfifo),
    "an endless device as scorecard": replace_file("scorecard.json", lambda path: path.symlink_to("/dev/zero")),
    "a folder as weights": replace_file("model.safetensors", Path.mkdir),
    "a link to itself": replace_file("config.json", lambda path: path.symlink_to(path)),
    "a line break in its name": lambda folder: folder.rename(folder.with_name("two\nlines")),
    "bytes that are no text in its name": lambda folder: folder.rename(folder.with_name(os.fsdecode(b"\xff"))),
}


@pytest.fixture
def stitchers(tmp_path):
    return tmp_path / "stitchers"


def check_the_others(client, registry: Registry) -> None:
    """Check that a good stitcher is served, that another one is loaded now, and that every list can be read."""
    name = f"next{len(registry.state.stitchers)}"
    make_stitcher("old", name).save(registry.folder / name)
    service_of(client).refresh()
    for target in ("new", name):
        assert post_rows(client, make_rows(1), f"/v1/translate?source=old&target={target}").status_code == 200
    for path in ("stitchers", "spaces", "models"):
        strict_json(client.get(f"/v1/{path}"))
    for listed in client.get("/v1/stitchers").json()["stitchers"]:
        strict_json(client.get(f"/v1/stitchers/{listed['name']}"))
    assert numbers(client.get("/metrics").text)
    shutil.rmtree(registry.folder / name)


def strict_json(response) -> Any:
    """Return the JSON of a response, which has no NaN, no Inf and no half of a surrogate pair."""
    assert response.status_code == 200
    content = json.loads(response.content, parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))
    json.dumps(content, ensure_ascii=False).encode()
    return content


def test_what_json_cannot_contain_is_replaced(stitchers):
    client = client_of(registry_of(stitchers, good=make_stitcher()))
    settings = {"big": 2**70, "nan": float("nan"), "inf": [float("inf")], "half": "a\ud800b", "\udc00": (1, None)}
    edit("config.json", settings=settings)(stitchers / "good")
    service_of(client).refresh()
    shown = strict_json(client.get("/v1/stitchers/good"))["settings"]
    assert shown == {"big": 2**70, "nan": None, "inf": [None], "half": "a?b", "?": [1, None]}


@pytest.mark.parametrize("spoil", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_folder_is_refused_and_affects_no_other(stitchers, spoil, caplog):
    client = client_of(registry_of(stitchers, good=make_stitcher()))
    service = service_of(client)
    shutil.copytree(GOLDEN, stitchers / "bad")
    spoil(stitchers / "bad")
    for _ in range(2):
        service.refresh()
        check_the_others(client, service.registry)
    assert set(service.registry.state.stitchers) - {"good"} <= {"next1"}
    assert len(service.registry.state.problems) == 1
    assert caplog.text.count("Not loaded") == 1  # and not at every refresh


def spoil_json(folder: Path, file: str, steps: list[int], value: object) -> None:
    """Replace one value in a JSON file, reached by the numbers of its keys."""
    content = json.loads((folder / file).read_text())
    at, parent, key = content, content, next(iter(content))
    for step in steps:
        if not isinstance(at, dict | list) or not at:
            break
        parent, key = at, list(at)[step % len(at)] if isinstance(at, dict) else step % len(at)
        at = at[key]
    parent[key] = value
    (folder / file).write_text(json.dumps(content))


@cases(0.1)
@given(data=st.data())
def test_a_spoiled_folder_affects_no_other(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("fuzz")
    client = client_of(registry_of(folder, good=make_stitcher()))
    shutil.copytree(GOLDEN, folder / "bad")
    file = data.draw(st.sampled_from((*JSON_FILES, *JSON_FILES, "model.safetensors")))
    if file.endswith(".json") and data.draw(st.booleans()):
        steps = data.draw(st.lists(st.integers(0, 30), min_size=1, max_size=5))
        spoil_json(folder / "bad", file, steps, data.draw(st.sampled_from(VALUES)))
    else:
        path = folder / "bad" / file
        path.write_bytes(data.draw(spoiled(path.read_bytes(), 3)))
    service = service_of(client)
    service.refresh()
    loaded = "bad" in service.registry.state.stitchers
    assert loaded != ("bad" in service.registry.state.problems)
    tell(Counter({("folder", file, 200 if loaded else 422): 1}))
    check_the_others(client, service.registry)
    shutil.rmtree(folder)
