import json
import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from repstitch.errors import ConflictError, InputError, NotFoundError
from repstitch.evaluation.scorecard import Scorecard
from repstitch.files import LOCK, stitchers_folder
from repstitch.spaces import Space
from repstitch.stitchers import registry as module
from repstitch.stitchers.maps import AffineMap
from repstitch.stitchers.registry import PROMOTED, Registry
from repstitch.stitchers.stitcher import Stitcher, load


def stitcher(source: str = "old", target: str = "new", seed: int = 0) -> Stitcher:
    weight = torch.randn(3, 2, generator=torch.Generator().manual_seed(seed))
    return Stitcher(
        map=AffineMap(weight, torch.zeros(2)),
        source=Space(source, 3),
        target=Space(target, 2),
        method="ridge",
        objective="match",
        input_norm="unit",
        output_norm="unit",
        source_mean=np.zeros(3, np.float32),
        target_mean=np.zeros(2, np.float32),
        seen=np.arange(2),
    )


def registry_of(folder: Path, **made: Stitcher) -> Registry:
    """Save these stitchers by name and return a registry that has read the folder."""
    for name, one in made.items():
        one.save(folder / name)
    registry = Registry(folder)
    registry.refresh()
    return registry


def put(one: Stitcher, folder: Path, name: str) -> None:
    """Replace a stitcher as a deployment does: write the new one to another folder, then rename both."""
    one.save(folder.parent / "new" / name)
    os.rename(folder / name, folder.parent / f"{name}.gone")
    os.rename(folder.parent / "new" / name, folder / name)


@pytest.fixture
def folder(tmp_path) -> Path:
    made = tmp_path / "stitchers"
    made.mkdir()
    return made


# --- which stitcher is used -------------------------------------------------------------------------------------------


def test_the_only_stitcher_of_a_pair_is_used(folder):
    registry = registry_of(folder, one=stitcher(), back=stitcher("new", "old"))
    name, resolved = registry.resolve("old", "new")
    assert name == "one"
    assert resolved.version == stitcher().version
    assert registry.resolve("new", "old")[0] == "back"


CREATED = {"c": None, "d": None, "b": "2026-05-17T09:30:00Z", "e": "2026-05-17T12:00:00+02:00", "a": "2026-05-18"}
SERVING_ORDER = ("c", "d", "b", "e", "a")  # not recorded: older than all; "e" is half an hour after "b"


def test_a_pair_is_served_by_the_stitcher_that_was_created_first(folder):
    for name, created in CREATED.items():
        replace(stitcher(seed=ord(name)), created=created).save(folder / name)
    registry = registry_of(folder)
    for i, name in enumerate(SERVING_ORDER):
        assert registry.resolve("old", "new")[0] == registry_of(folder).resolve("old", "new")[0] == name
        assert registry.route("old", "new").names == (name,)
        assert [n for n in registry.state.stitchers if registry.state.serves(n)] == [name]
        if i < len(SERVING_ORDER) - 1:
            shutil.rmtree(folder / name)
            registry.refresh()


def test_a_newcomer_is_a_candidate_and_takes_over_when_the_serving_one_is_removed(folder, caplog):
    caplog.set_level(logging.INFO)
    registry = registry_of(folder, first=replace(stitcher(seed=1), created="2026-05-17T09:30:00Z"))
    for name, created in (("later", "2026-05-18T09:30:00Z"), ("latest", "2026-05-19T09:30:00Z")):
        replace(stitcher(seed=2), created=created).save(folder / name)
    registry.refresh()
    registry.refresh()
    assert registry.resolve("old", "new")[0] == "first"
    assert caplog.text.count("Stitcher later is a candidate for old->new, which first serves") == 1
    assert caplog.text.count("Stitcher latest is a candidate for old->new, which first serves") == 1
    shutil.rmtree(folder / "first")
    registry.refresh()
    assert registry.resolve("old", "new")[0] == "later"
    assert "old->new is now served by later; before, it was first" in caplog.text
    registry.promote("latest")
    assert registry.resolve("old", "new")[0] == "latest"
    assert "old->new is now served by latest; before, it was later" in caplog.text


def test_the_time_of_creation_is_no_part_of_the_version(folder):
    made = replace(stitcher(), created="2026-05-17T09:30:00+00:00")
    made.save(folder / "a")
    assert load(folder / "a").created == made.created
    assert load(folder / "a").version == made.version == stitcher().version


@pytest.mark.parametrize("created", ["", "yesterday", 3, ["2026-05-17"], True])
def test_a_stitcher_without_a_valid_time_of_creation_is_refused(folder, created):
    stitcher().save(folder / "a")
    config = json.loads((folder / "a" / "config.json").read_text())
    (folder / "a" / "config.json").write_text(json.dumps(config | {"created": created}))
    with pytest.raises(InputError, match="`created` must be a date and a time in ISO 8601"):
        load(folder / "a")


def test_promoting_selects_a_stitcher_and_promoting_the_older_one_rolls_back(folder):
    registry = registry_of(folder, a=stitcher(seed=1), b=stitcher(seed=2))
    assert registry.promote("b") == "old->new"
    assert registry.resolve("old", "new")[1].version == stitcher(seed=2).version
    registry.promote("a")
    assert registry.resolve("old", "new")[1].version == stitcher(seed=1).version
    assert sorted(p.name for p in folder.iterdir() if p.is_file()) == [LOCK, "promoted.json"]


def test_promoting_for_one_pair_does_not_affect_the_others(folder):
    made = {"a": stitcher(seed=1), "b": stitcher(seed=2), "c": stitcher("x", "y", 3), "d": stitcher("x", "y", 4)}
    registry = registry_of(folder, **made)
    registry.promote("a")
    registry.promote("d")
    assert (registry.resolve("old", "new")[0], registry.resolve("x", "y")[0]) == ("a", "d")
    assert json.loads((folder / "promoted.json").read_text()) == {"old->new": "a", "x->y": "d"}


def test_the_error_on_a_promotion_that_cannot_be_written_names_the_file(folder, monkeypatch):
    registry = registry_of(folder, a=stitcher())

    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(InputError, match=r"^[^`]*promoted\.json cannot be written: .*No space left"):
        registry.promote("a")


def test_another_process_sees_the_promotion_when_it_refreshes(folder):
    registry = registry_of(folder, a=stitcher(seed=1), b=stitcher(seed=2))
    other = registry_of(folder)
    registry.promote("b")
    other.refresh()
    assert other.resolve("old", "new")[0] == "b"


def test_the_promotion_of_a_removed_stitcher_is_ignored(folder):
    registry = registry_of(folder, a=stitcher(seed=1), b=stitcher(seed=2), c=stitcher(seed=3))
    registry.promote("c")
    shutil.rmtree(folder / "c")
    registry.refresh()
    assert registry.resolve("old", "new")[0] == "a"


def promote(registry: Registry, name: str, start: threading.Barrier) -> None:
    start.wait(20)
    registry.promote(name)


def test_promotions_at_the_same_time_are_all_kept(folder):
    names = [f"s{i}" for i in range(30)]
    registry = registry_of(folder, **{name: stitcher(name, "new") for name in names})
    start = threading.Barrier(len(names))
    threads = [threading.Thread(target=promote, args=(registry, name, start)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert json.loads((folder / "promoted.json").read_text()) == {f"{name}->new": name for name in names}


def test_a_stitcher_requested_by_name_is_used_even_if_another_is_promoted(folder):
    registry = registry_of(folder, a=stitcher(seed=1), b=stitcher(seed=2))
    registry.promote("b")
    assert registry.resolve("old", "new", "a")[1].version == stitcher(seed=1).version


def test_a_stitcher_requested_by_name_for_another_pair_is_a_conflict(folder):
    registry = registry_of(folder, a=stitcher(), b=stitcher("new", "old"))
    with pytest.raises(ConflictError, match="Stitcher 'b' translates new -> old, not old -> new"):
        registry.resolve("old", "new", "b")


def test_the_error_on_unknown_names_and_spaces_lists_the_nearest(folder):
    registry = registry_of(folder, clip_to_bert=stitcher("clip", "bert"), siglip_to_dino=stitcher("siglip", "dino"))
    with pytest.raises(NotFoundError, match=r"There is no stitcher 'clip_to_brt'\. Nearest: clip_to_bert"):
        registry.get("clip_to_brt")
    with pytest.raises(NotFoundError, match=r"There is no space 'clib' \(`source`\)\. Nearest: clip"):
        registry.resolve("clib", "bert")
    with pytest.raises(NotFoundError, match=r"There is no space 'brt' \(`target`\)\. Nearest: bert"):
        registry.resolve("clip", "brt")
    stitcher("clip", "bert", seed=1).save(registry.folder / "clip_to_bert_2")
    registry.refresh()
    with pytest.raises(NotFoundError, match=r"No stitcher translates bert -> clip\. Nearest: clip->bert\.$"):
        registry.resolve("bert", "clip")
    with pytest.raises(NotFoundError, match="There is no stitcher 'x'"):
        registry.promote("x")


def test_the_error_on_an_empty_folder_says_that_it_contains_no_stitchers(folder):
    registry = registry_of(folder)
    with pytest.raises(NotFoundError, match="The folder contains no stitchers"):
        registry.get("a")
    with pytest.raises(NotFoundError, match="There is no space 'old'"):
        registry.resolve("old", "new")


# --- changes in the folder --------------------------------------------------------------------------------------------


def test_refresh_loads_new_stitchers_and_drops_removed_ones(folder):
    registry = registry_of(folder, a=stitcher(seed=1))
    stitcher("x", "y").save(folder / "b")
    assert registry.refresh() == {"b": "loaded"}
    assert registry.resolve("x", "y")[0] == "b"
    shutil.rmtree(folder / "a")
    assert registry.refresh() == {"a": "removed"}
    assert set(registry.state.stitchers) == {"b"}


def test_unchanged_stitchers_are_not_read_again(folder, monkeypatch):
    registry = registry_of(folder, a=stitcher(seed=1))
    before = registry.state.stitchers["a"]
    monkeypatch.setattr(module, "load", lambda path: pytest.fail(f"read {path}"))
    assert registry.refresh() == {}
    assert registry.state.stitchers["a"] is before


def test_a_stitcher_replaced_by_rename_is_read_again(folder):
    registry = registry_of(folder, a=stitcher(seed=1))
    put(stitcher(seed=2), folder, "a")
    assert registry.refresh() == {"a": "loaded"}
    assert registry.get("a").version == stitcher(seed=2).version


def test_a_stitcher_replaced_by_a_corrupt_one_is_reported_and_stays_in_use(folder, caplog):
    registry = registry_of(folder, a=stitcher(seed=1))
    (folder / "a" / "model.safetensors").write_bytes(b"torn")
    with caplog.at_level(logging.ERROR):
        report = registry.refresh()
    assert "is not a complete stitcher" in report["a"]
    assert "is not a complete stitcher" in registry.state.problems["a"]
    assert "Not loaded" in caplog.text
    assert registry.get("a").version == stitcher(seed=1).version
    assert registry.refresh() == {}  # reported once, and still in use
    assert registry.get("a").version == stitcher(seed=1).version
    assert "a" in registry.state.problems
    put(stitcher(seed=2), folder, "a")
    assert registry.refresh() == {"a": "loaded"}
    assert registry.state.problems == {}


def test_a_corrupt_stitcher_does_not_affect_the_others(folder):
    registry = registry_of(folder, a=stitcher(seed=1))
    stitcher("x", "y").save(folder / "b")
    (folder / "torn").mkdir()
    (folder / "torn" / "config.json").write_text("{")
    report = registry.refresh()
    assert report["b"] == "loaded"
    assert set(registry.state.stitchers) == {"a", "b"}
    assert set(registry.state.problems) == {"torn"}
    shutil.rmtree(folder / "torn")
    registry.refresh()
    assert registry.state.problems == {}


def test_all_stitchers_stay_in_use_if_the_whole_folder_disappears(folder):
    registry = registry_of(folder, a=stitcher(seed=1), b=stitcher(seed=2))
    registry.promote("b")
    before = registry.state
    os.rename(folder, folder.parent / "away")
    assert registry.refresh() == {}
    assert registry.state is before
    assert registry.resolve("old", "new")[0] == "b"
    os.rename(folder.parent / "away", folder)
    assert registry.refresh() == {}
    assert registry.resolve("old", "new")[0] == "b"


def test_a_stitcher_that_is_replaced_by_two_renames_stays_in_use(folder, monkeypatch):
    registry = registry_of(folder, a=stitcher(seed=1))
    stitcher(seed=2).save(folder.parent / "new")
    os.rename(folder / "a", folder.parent / "old")
    monkeypatch.setattr(module, "sleep", lambda _: os.rename(folder.parent / "new", folder / "a"))
    assert registry.refresh() == {"a": "loaded"}
    assert registry.get("a").version == stitcher(seed=2).version


def test_all_stitchers_stay_in_use_while_the_whole_folder_is_being_deleted(folder, monkeypatch):
    registry = registry_of(folder, a=stitcher(seed=1), b=stitcher(seed=2))
    before = registry.state
    shutil.rmtree(folder / "a")
    monkeypatch.setattr(module, "sleep", lambda _: shutil.rmtree(folder))
    assert registry.refresh() == {}
    assert registry.state is before


def test_a_stitcher_that_may_not_be_read_is_read_when_its_permissions_change(folder, monkeypatch):
    def permitted(path: Path) -> Stitcher:
        if not os.stat(path / "config.json").st_mode & 0o400:  # as the system refuses it, unless root asks
            raise InputError("Permission denied")
        return load(path)

    monkeypatch.setattr(module, "load", permitted)
    stitcher().save(folder / "a")
    os.chmod(folder / "a" / "config.json", 0o000)
    registry = registry_of(folder)
    assert registry.state.problems == {"a": "Permission denied"}
    assert registry.refresh() == {}
    os.chmod(folder / "a" / "config.json", 0o600)
    assert registry.refresh() == {"a": "loaded"}
    assert registry.state.problems == {}


def test_a_stitcher_that_could_not_be_read_is_read_again_later(folder, monkeypatch, caplog):
    failures: list[Exception] = [MemoryError(), MemoryError(), OSError(24, "Too many open files")]

    def short_of_memory(path: Path) -> Stitcher:
        if failures:
            raise failures.pop(0)
        return load(path)

    monkeypatch.setattr(module, "load", short_of_memory)
    registry = registry_of(folder, a=stitcher())
    assert registry.refresh() == {}
    assert len(failures) == 2  # not tried at every refresh
    monkeypatch.setattr(module, "RETRY_S", 0.0)
    registry._retry_at = 0.0
    assert registry.refresh() == {}
    assert list(registry.refresh()) == ["a"]
    assert registry.refresh() == {"a": "loaded"}
    assert registry.state.problems == {}
    assert [record.getMessage() for record in caplog.records if "Not loaded" in record.message] == [
        f"Not loaded: {folder / 'a'}: MemoryError",
        f"Not loaded: {folder / 'a'}: [Errno 24] Too many open files",
    ]


@pytest.mark.parametrize("loaded", [True, False])
def test_a_folder_that_cannot_be_listed_changes_nothing_and_is_reported_once(folder, monkeypatch, caplog, loaded):
    registry = registry_of(folder, a=stitcher()) if loaded else Registry(folder)
    before = set(registry.state.stitchers)

    def refuse(_path):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", refuse)
        for _ in range(3):
            assert registry.refresh() == {}
    assert set(registry.state.stitchers) == before
    assert caplog.text.count(f"The folder {folder} cannot be read: [Errno 13] Permission denied") == 1
    stitcher("x", "y").save(folder / "b")
    assert registry.refresh() == {"b": "loaded"}


@pytest.fixture
def public() -> Iterator[Path]:
    """Yield an empty folder that an ordinary user reads: if root runs the tests, another user for this test."""
    with tempfile.TemporaryDirectory() as parent:
        os.chmod(parent, 0o755)
        path = Path(parent) / "stitchers"
        path.mkdir()
        yield path
        os.chmod(path, 0o755)


@contextmanager
def ordinary_user() -> Iterator[None]:
    """Run the block without the rights of root."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_a_folder_whose_entries_cannot_be_reached_changes_nothing(public, caplog):
    registry = Registry(public)
    for name, seed in (("a", 0), ("b", 1)):
        stitcher(seed=seed).save(public / name)
    promote_by_file(public, "b")
    registry.refresh()
    before = registry.state
    for path, mode in ((public, 0o644), (public, 0o000), (public / "a", 0o000), (public / PROMOTED, 0o000)):
        allowed = path.stat().st_mode
        path.chmod(mode)
        with ordinary_user():
            for _ in range(2):
                assert set(registry.refresh().values()) <= {"loaded"} | set(registry.state.problems.values())
                assert registry.state.serving == before.serving
                assert registry.state.stitchers.keys() == before.stitchers.keys()
        path.chmod(allowed)
        registry.refresh()
        assert not registry.state.problems
    assert caplog.text.count("cannot be read") == 3  # each once: twice the whole folder, once the promotions


def test_a_promotion_that_is_a_link_to_itself_is_reported_and_the_last_choice_stays(folder):
    registry = registry_of(folder, a=stitcher(), b=stitcher(seed=1))
    promote_by_file(folder, "b")
    registry.refresh()
    before = registry.state.serving
    (folder / PROMOTED).unlink()
    (folder / PROMOTED).symlink_to(folder / PROMOTED)
    registry.refresh()
    assert registry.state.serving == before
    assert PROMOTED in registry.state.problems


def promote_by_file(folder: Path, name: str) -> None:
    (folder / PROMOTED).write_text(json.dumps({"old->new": name}), encoding="utf-8")


def test_a_missing_folder_is_reported_once_and_read_when_it_is_created(folder, caplog):
    registry = Registry(folder / "later")
    registry.refresh()
    registry.refresh()
    assert [record.message for record in caplog.records if "There is no folder" in record.message] == [
        f"There is no folder {folder / 'later'} yet; create it to load stitchers."
    ]
    stitcher().save(folder / "later" / "a")
    assert registry.refresh() == {"a": "loaded"}
    assert registry.state.problems == {}


def test_hidden_folders_half_written_folders_and_files_are_ignored(folder):
    stitcher().save(folder / "a")
    shutil.copytree(folder / "a", folder / ".b.1234abcd.tmp")
    shutil.copytree(folder / "a", folder / ".git")
    (folder / "notes.txt").write_text("mine")
    registry = registry_of(folder)
    assert set(registry.state.stitchers) == {"a"}
    assert registry.state.problems == {}


def test_a_folder_removed_while_it_is_read_is_reported_as_a_problem(folder, monkeypatch):
    registry = registry_of(folder, a=stitcher(seed=1))
    stitcher("x", "y").save(folder / "b")
    whole = Path.iterdir

    def racing(self):
        if self.name == "b":
            shutil.rmtree(self)
        return whole(self)

    monkeypatch.setattr(Path, "iterdir", racing)
    assert "There is no stitcher" in registry.refresh()["b"]
    assert registry.get("a").version == stitcher(seed=1).version


@pytest.mark.parametrize("content", ["{", "[]", '{"old->new": 3}', "\x00"])
def test_a_corrupt_promoted_file_is_reported_and_the_last_choice_stays(folder, content):
    registry = registry_of(folder, a=stitcher(seed=1), b=stitcher(seed=2))
    registry.promote("b")
    (folder / "promoted.json").write_text(content)
    registry.refresh()
    assert "Remove it and promote again" in registry.state.problems["promoted.json"]
    assert registry.resolve("old", "new")[0] == "b"
    with pytest.raises(InputError, match="Remove it and promote again"):
        registry.promote("a")
    assert (folder / "promoted.json").read_text() == content
    (folder / "promoted.json").unlink()
    registry.promote("a")
    assert registry.resolve("old", "new")[0] == "a"


def test_a_promotion_that_cannot_be_written_changes_nothing(folder, monkeypatch):
    registry = registry_of(folder, a=stitcher(seed=1), b=stitcher(seed=2))
    registry.promote("a")

    def refuse(*_args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(InputError, match=r"promoted\.json cannot be written: .*Permission denied"):
        registry.promote("b")
    assert sorted(p.name for p in folder.iterdir()) == [LOCK, "a", "b", "promoted.json"]
    registry.refresh()
    assert registry.resolve("old", "new")[0] == "a"


def test_the_folder_is_the_argument_else_the_environment_variable_else_the_default(tmp_path, monkeypatch):
    monkeypatch.delenv("REPSTITCH_STITCHERS", raising=False)
    assert stitchers_folder() == Path("models/stitchers")
    monkeypatch.setenv("REPSTITCH_STITCHERS", str(tmp_path / "env"))
    assert Registry().folder == tmp_path / "env"
    assert Registry(tmp_path / "named").folder == tmp_path / "named"


# --- routes over other spaces -----------------------------------------------------------------------------------------


def scored(source: str, target: str, recall: float | None, seed: int = 0, dims: tuple[int, int] = (3, 3)) -> Stitcher:
    """Return a stitcher whose scorecard has this recall@1, or is empty if `recall` is None."""
    weight = torch.randn(*dims, generator=torch.Generator().manual_seed(seed))
    card = Scorecard() if recall is None else Scorecard({"query": {"recall@1": recall}})
    return replace(
        stitcher(),
        map=AffineMap(weight, torch.zeros(dims[1])),
        source=Space(source, dims[0]),
        target=Space(target, dims[1]),
        source_mean=np.zeros(dims[0], np.float32),
        target_mean=np.zeros(dims[1], np.float32),
        scorecard=card,
    )


def route_of(source: str, target: str, made: dict[str, Stitcher], promoted: dict[str, str] | None = None):
    registry = Registry("nowhere")
    registry.state = module.State(made, promoted or {})
    return registry.route(source, target)


def test_a_direct_stitcher_is_used_even_if_a_longer_route_has_a_higher_score():
    made = {"ab": scored("a", "b", 0.9), "bc": scored("b", "c", 0.9), "ac": scored("a", "c", 0.1)}
    assert route_of("a", "c", made).names == ("ac",)


def test_the_route_with_the_highest_product_of_scores_is_used():
    made = {
        "ab": scored("a", "b", 0.5),
        "bd": scored("b", "d", 0.5),
        "ac": scored("a", "c", 0.9),
        "ce": scored("c", "e", 0.9),
        "ed": scored("e", "d", 0.9),
    }
    route = route_of("a", "d", made)
    assert route.names == ("ac", "ce", "ed")
    assert route.spaces == ("a", "c", "e", "d")
    assert route.score == pytest.approx(0.9**3)
    made["ed"] = scored("e", "d", 0.2)
    assert route_of("a", "d", made).names == ("ab", "bd")


def test_the_shorter_of_equal_routes_is_used_and_routes_without_scores_come_last():
    made = {"ab": scored("a", "b", 1.0), "bc": scored("b", "c", 1.0), "cd": scored("c", "d", 1.0)}
    made["bd"] = scored("b", "d", 1.0)
    assert route_of("a", "d", made).names == ("ab", "bd")
    made["bd"] = scored("b", "d", None)
    assert route_of("a", "d", made).names == ("ab", "bc", "cd")
    del made["cd"]
    route = route_of("a", "d", made)
    assert route.names == ("ab", "bd")
    assert route.score is None


def test_a_route_translates_as_its_stitchers_do_in_turn():
    made = {"ab": scored("a", "b", 0.5, 1, (3, 5)), "bc": scored("b", "c", 0.5, 2, (5, 4))}
    rows = np.random.default_rng(0).standard_normal((7, 3)).astype(np.float32)
    in_turn = made["bc"].translate(made["ab"].translate(rows))
    route = route_of("a", "c", made)
    assert np.allclose(route.pipeline(torch.from_numpy(rows)).translated, in_turn, atol=1e-6)


def test_a_route_joins_two_stitchers_only_if_the_cards_of_the_space_agree():
    other = replace(scored("b", "c", 0.9), source=Space("b", 3, encoder="timm:x"))
    made = {"ab": replace(scored("a", "b", 0.9), target=Space("b", 3, encoder="timm:y")), "bc": other}
    with pytest.raises(NotFoundError, match=r"No stitcher translates a -> c.*There is no route through other spaces"):
        route_of("a", "c", made)
    made["narrow"] = scored("b", "c", 0.9, dims=(2, 3))
    with pytest.raises(NotFoundError):
        route_of("a", "c", made)


def test_a_route_uses_only_stitchers_that_serve_their_pair():
    made = {"ab": scored("a", "b", 0.5), "ab2": scored("a", "b", 0.9, 1), "bc": scored("b", "c", 0.5)}
    assert route_of("a", "c", made).names == ("ab", "bc")
    assert route_of("a", "c", made, {"a->b": "ab2"}).names == ("ab2", "bc")


def test_the_search_ends_if_there_are_cycles_or_spaces_that_cannot_be_reached():
    made = {"ab": scored("a", "b", 0.9), "ba": scored("b", "a", 0.9), "cd": scored("c", "d", 0.9)}
    for source, target in (("a", "d"), ("a", "c"), ("a", "a"), ("d", "a")):
        with pytest.raises(NotFoundError):
            route_of(source, target, made)
