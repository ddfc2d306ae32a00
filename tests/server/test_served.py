"""Translation over routes through other spaces."""

from dataclasses import replace

import numpy as np
import pytest
from helpers.scorecards import scorecard_of
from helpers.server_calls import URL, client_of, post_rows, read_rows, refused, registry_of
from helpers.serving import make_rows, make_stitcher
from helpers.spaces import calibration

DETOUR = "/v1/translate?source=old&target=newest"


def scored(source, target, d_source, d_target, noise, **more):
    """Return a stitcher with a scorecard on noisy counterparts, and its recall@1 in query use."""
    stitcher = make_stitcher(source, target, d_source, d_target, **more)
    X = make_rows(50, d_source)
    translated = np.asarray(stitcher.translate(X))
    Y = translated + noise * make_rows(50, d_target, seed=9)
    card = scorecard_of(X, Y, translated)
    return replace(stitcher, scorecard=card), card.query.recall_at(1).score


@pytest.fixture(scope="module")
def detour(tmp_path_factory):
    """Return two stitchers that together translate old to newest, their registry, and the product of their scores."""
    first, one = scored("old", "new", 6, 4, 0.2, calibration=calibration(6, pool=500))
    second, two = scored("new", "newest", 4, 5, 0.3, seed=2)
    assert 0 < one < 1
    assert 0 < two < 1
    made = {"old-to-new": first, "new-to-newest": second}
    return first, second, registry_of(tmp_path_factory.mktemp("detour"), **made), one * two


def test_a_route_through_another_space_is_used_only_with_route_auto(detour):
    first, second, registry, expected = detour
    client, rows = client_of(registry), make_rows(3)
    for parameter in ("", "&route=direct"):
        error = refused(
            post_rows(client, rows, DETOUR + parameter), 404, "No stitcher translates old -> newest. Nearest:", "target"
        )
        assert error["message"].endswith(" A route through new exists: `/v1/translate` uses it with route=auto.")
    response = post_rows(client, rows, DETOUR + "&route=auto")
    assert np.allclose(read_rows(response, 5), second.translate(first.translate(rows)), atol=1e-6)
    assert response.headers["x-route"] == "old->new->newest"
    assert response.headers["x-stitcher"] == "old-to-new,new-to-newest"
    assert response.headers["x-stitcher-version"] == f"{first.version},{second.version}"
    assert float(response.headers["x-expected-score"]) == pytest.approx(expected, rel=1e-3)
    assert response.headers["x-dim"] == "5"


def test_a_json_response_contains_the_route(detour):
    first, second, registry, expected = detour
    rows = make_rows(2)
    body = {"embedding": rows.tolist(), "source": "old", "target": "newest", "route": "auto"}
    answer = client_of(registry).post("/v1/translate", json=body).json()
    assert np.allclose(answer["embedding"], second.translate(first.translate(rows)), atol=1e-6)
    assert answer["route"] == ["old", "new", "newest"]
    assert answer["expected_score"] == pytest.approx(expected)
    assert answer["stitcher"] == "old-to-new,new-to-newest"


def test_route_auto_reports_a_direct_stitcher_as_a_route_of_one(detour):
    first, _, registry, _ = detour
    response = post_rows(client_of(registry), make_rows(1), URL + "&route=auto&confidence=true")
    assert response.headers["x-route"] == "old->new"
    expected_score = float(response.headers["x-expected-score"])
    assert expected_score == pytest.approx(first.scorecard.query_recall, rel=1e-3)
    assert response.headers["x-confidence"].split(",") == list(first.calibration.names)


def test_the_expected_score_is_unknown_without_scorecards(tmp_path):
    made = {"a": make_stitcher("old", "new"), "b": make_stitcher("new", "newest", 4, 5)}
    client = client_of(registry_of(tmp_path, **made))
    response = post_rows(client, make_rows(1), DETOUR + "&route=auto")
    assert response.headers["x-expected-score"] == "unknown"
    body = {"embedding": make_rows(1).tolist(), "source": "old", "target": "newest", "route": "auto"}
    assert client.post("/v1/translate", json=body).json()["expected_score"] is None


@pytest.mark.parametrize(
    ("query", "status", "message", "param"),
    [
        ("&route=shortest", 400, "`route` must be one of direct, auto; got 'shortest'", "route"),
        ("&route=", 400, "`route` must be one of direct, auto; got ''", "route"),
        ("&route=auto&confidence=true", 409, "The route old->new->newest uses several stitchers, but", "confidence"),
    ],
)
def test_an_invalid_route_request_is_refused(detour, query, status, message, param):
    refused(post_rows(client_of(detour[2]), make_rows(1), DETOUR + query), status, message, param)


def test_a_pair_without_any_route_is_refused(detour):
    response = post_rows(client_of(detour[2]), make_rows(1), "/v1/translate?source=newest&target=old&route=auto")
    refused(response, 404, "There is no route through other spaces either", "source")
