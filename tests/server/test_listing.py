"""The GET routes, and reloading when the stitchers folder changes."""

import os
import shutil
from dataclasses import replace

import numpy as np
from helpers.scorecards import scorecard_of
from helpers.server_calls import LOCAL, client_of, post_rows, read_rows, refused
from helpers.serving import eventually, make_rows, make_stitcher
from starlette.testclient import TestClient

from repstitch.server.app import create_app
from repstitch.server.settings import Settings
from repstitch.stitchers.registry import Registry


def test_the_list_describes_every_stitcher(client):
    assert client.get("/v1/stitchers").json() == {
        "stitchers": [
            {
                "name": "old-to-new",
                "source": "old",
                "target": "new",
                "source_dim": 6,
                "target_dim": 4,
                "version": make_stitcher().version,
                "method": "ridge",
                "objective": "match",
                "confidence": [],
                "serves": True,
                "scores": {},
            }
        ]
    }


def test_a_pair_is_served_by_the_promoted_stitcher(folder, registry, client):
    make_stitcher(seed=7).save(folder / "second")
    registry.refresh()
    assert [s["serves"] for s in client.get("/v1/stitchers").json()["stitchers"]] == [True, False]
    registry.promote("second")
    assert [s["serves"] for s in client.get("/v1/stitchers").json()["stitchers"]] == [False, True]


def test_the_list_says_when_a_stitcher_was_created_if_that_is_recorded(folder, registry, client):
    replace(make_stitcher("x", "y"), created="2026-05-17T09:30:00+00:00").save(folder / "recorded")
    registry.refresh()
    listed = client.get("/v1/stitchers").json()["stitchers"]
    assert [stitcher.get("created") for stitcher in listed] == [None, "2026-05-17T09:30:00+00:00"]
    assert client.get("/v1/stitchers/recorded").json()["created"] == "2026-05-17T09:30:00+00:00"


def test_the_list_shows_main_scores_and_the_detail_route_the_whole_scorecard(folder, registry, client):
    X, Y = make_rows(40), make_rows(40, 4)
    translated = np.asarray(make_stitcher().translate(X))
    scorecard = scorecard_of(X, Y, translated)
    card = scorecard.to_dict()
    make_stitcher("old", "scored", scorecard=scorecard).save(folder / "scored")
    registry.refresh()
    listed = client.get("/v1/stitchers").json()["stitchers"][1]["scores"]
    assert set(listed) == {"query", "corpus", "chance"}
    assert listed["query"] == {name: card["query"][name] for name in ("recall@1", "recall@10")}
    assert client.get("/v1/stitchers/scored").json()["scorecard"] == card


def test_the_detail_route_describes_one_stitcher(client):
    shown = client.get("/v1/stitchers/old-to-new").json()
    assert shown["scorecard"] == {}
    assert shown["source"] == make_stitcher().source.to_dict()
    assert {"settings", "split", "version"} <= set(shown)
    refused(client.get("/v1/stitchers/old-to-ne"), 404, "There is no stitcher 'old-to-ne'. Nearest: old-to-new", "name")
    refused(client.get(f"/v1/stitchers/{'x' * 300}"), 400, "`name` must have 1 to 256 characters", "name")


def test_spaces_are_listed_with_the_spaces_they_translate_from_and_to(folder, registry, client):
    make_stitcher("new", "newest", 4, 5).save(folder / "again")
    registry.refresh()
    spaces = client.get("/v1/spaces").json()["spaces"]
    assert [(s["name"], s["dim"], s["from"], s["to"]) for s in spaces] == [
        ("new", 4, ["old"], ["newest"]),
        ("newest", 5, ["new"], []),
        ("old", 6, [], ["new"]),
    ]


def test_a_non_ascii_name_is_percent_encoded_in_the_header(tmp_path):
    make_stitcher("alt", "neü").save(tmp_path / "ältere→neue")
    registry = Registry(tmp_path)
    registry.refresh()
    response = post_rows(client_of(registry), make_rows(1), "/v1/translate?source=alt&target=ne%C3%BC")
    assert response.headers["x-stitcher"] == "%C3%A4ltere%E2%86%92neue"


def test_only_health_routes_answer_before_a_stitcher_is_loaded(folder):
    client = client_of(Registry(folder))  # its lifespan does not run, so nothing is loaded yet
    for path in ("/livez", "/healthz"):
        assert client.get(path).json() == {"status": "ok"}
    for response in (
        client.get("/readyz"),
        post_rows(client, make_rows(1)),
        client.get("/v1/stitchers"),
        client.get("/v1/spaces"),
    ):
        refused(response, 503, "No stitcher is loaded yet; retry later")
        assert response.headers["retry-after"] == "1"


def test_stitchers_are_loaded_at_the_start_and_when_they_are_published(folder, tmp_path):
    app = create_app(Registry(folder), Settings(reload_s=0.05))
    with TestClient(app, LOCAL) as client:
        eventually(lambda: client.get("/readyz").status_code == 200)
        make_stitcher("old", "other").save(folder / "old-to-other")
        eventually(lambda: post_rows(client, make_rows(1), "/v1/translate?source=old&target=other").is_success)


def test_a_corrupt_replacement_is_refused_and_the_old_stitcher_stays(folder):
    app = create_app(Registry(folder), Settings(reload_s=0.05))
    with TestClient(app, LOCAL) as client:
        eventually(lambda: client.get("/readyz").status_code == 200)
        broken = folder / ".broken"
        shutil.copytree(folder / "old-to-new", broken)
        (broken / "model.safetensors").write_bytes(b"not weights")
        os.rename(folder / "old-to-new", folder / ".before")
        os.rename(broken, folder / "old-to-new")
        make_stitcher("old", "other").save(folder / "old-to-other")  # its arrival shows that the folder was read
        eventually(lambda: len(client.get("/v1/stitchers").json()["stitchers"]) == 2)
        assert np.allclose(
            read_rows(post_rows(client, make_rows(1))), make_stitcher().translate(make_rows(1)), atol=1e-6
        )


def test_a_temporarily_unreadable_folder_changes_nothing(folder, monkeypatch, caplog):
    registry = Registry(folder)
    real, failures = Registry.refresh, [OSError("gone"), OSError("gone")]

    def refresh(self):
        if failures:
            raise failures.pop()
        return real(self)

    monkeypatch.setattr(Registry, "refresh", refresh)
    with TestClient(create_app(registry, Settings(reload_s=0.02)), LOCAL) as client:
        eventually(lambda: client.get("/readyz").status_code == 200)
    assert "could not be read; the stitchers loaded before remain in use" in caplog.text
