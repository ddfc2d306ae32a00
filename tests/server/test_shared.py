"""What all routes share: small requests answered together, routes over other spaces, pairs scored."""

import asyncio
import base64
from dataclasses import replace
from typing import Any, cast

import httpx
import numpy as np
import pytest
from helpers.scorecards import scorecard_of
from helpers.server_calls import LOCAL, URL, client_of, post_rows, read_rows, refused
from helpers.serving import make_rows, make_stitcher
from helpers.spaces import confidence

from repstitch.server.app import create_app
from repstitch.server.batching import BATCH_PROBE_INTERVAL, BATCH_ROWS
from repstitch.server.guards import Deadlines
from repstitch.server.negotiation import OCTETS
from repstitch.server.settings import Settings
from repstitch.stitchers.pipeline import Pipeline
from repstitch.stitchers.registry import Registry
from repstitch.workflows.scoring import score


def registry_of(folder, **made) -> Registry:
    for name, stitcher in made.items():
        stitcher.save(folder / name)
    registry = Registry(folder)
    registry.refresh()
    return registry


# --- small requests answered together ---------------------------------------------------------------------------------


@pytest.fixture
def products(monkeypatch):
    """The number of rows of every product that is computed."""
    counted, real = [], Pipeline.run

    def run(self, rows):
        counted.append(len(rows))
        return real(self, rows)

    monkeypatch.setattr(Pipeline, "run", run)
    return counted


def at_once(registry, requests: list[tuple[str, bytes]], **settings) -> list[httpx.Response]:
    """The answers to requests that are all there before any is answered."""

    async def scenario():
        transport = httpx.ASGITransport(create_app(registry, Settings(**settings)))
        async with httpx.AsyncClient(transport=transport, base_url=LOCAL) as client:
            headers = {"content-type": OCTETS}
            return await asyncio.gather(*(client.post(url, content=body, headers=headers) for url, body in requests))

    return asyncio.run(scenario())


def test_requests_that_come_together_are_one_product_and_keep_their_rows(registry, products):
    sent = [make_rows(1 + i % 3, seed=i) for i in range(20)]
    answers = at_once(registry, [(URL, rows.tobytes()) for rows in sent])
    for rows, answer in zip(sent, answers, strict=True):
        assert np.allclose(read_rows(answer), make_stitcher().translate(rows), atol=1e-6)
    assert max(products[:-20]) > 3  # the last twenty are those of the assertion above
    assert len(products[:-20]) < 12


def test_one_that_cannot_be_answered_is_refused_alone(registry):
    sent = [make_rows(2, seed=i) for i in range(6)]
    sent[2] = np.zeros((1, 6), np.float32)
    sent[4] = np.full((1, 6), np.nan, np.float32)
    answers = at_once(registry, [(URL, rows.tobytes()) for rows in sent])
    assert [answer.status_code for answer in answers] == [200, 200, 422, 200, 422, 200]
    refused(answers[2], 422, "must have a direction; 1 of 1 rows (first: row 0)", "embedding")
    refused(answers[4], 422, "must be finite float32 numbers; 1 of 1 rows (first: row 0)", "embedding")
    for i in (0, 1, 3, 5):
        assert np.allclose(read_rows(answers[i]), make_stitcher().translate(sent[i]), atol=1e-6)


def test_requests_of_different_pairs_and_measures_never_meet(tmp_path):
    sure = make_stitcher("sure", calibration=confidence(6, pool=500))
    other = make_stitcher("old", "other", 6, 5, seed=3)
    registry = registry_of(tmp_path, a=make_stitcher(), b=other, c=sure)
    kinds = [
        (URL, make_stitcher(), 4),
        ("/v1/translate?source=old&target=other", other, 5),
        ("/v1/translate?source=sure&target=new", sure, 4),
        ("/v1/translate?source=sure&target=new&confidence=true", sure, 9),
    ]
    sent = [(*kinds[i % 4], make_rows(1 + i % 2, seed=i)) for i in range(24)]
    answers = at_once(registry, [(url, rows.tobytes()) for url, _, _, rows in sent])
    for (_, stitcher, width, rows), answer in zip(sent, answers, strict=True):
        expected = np.asarray(stitcher.translate(rows))
        assert np.allclose(read_rows(answer, width)[:, : expected.shape[1]], expected, atol=1e-6)
        if width == 9:
            measures = np.column_stack(list(stitcher.confidence(rows).values()))
            assert np.allclose(read_rows(answer, width)[:, 4:], measures, rtol=1e-3)


def test_no_product_grows_beyond_what_keeps_the_others_waiting(registry, products):
    answers = at_once(registry, [(URL, make_rows(40, seed=i).tobytes()) for i in range(30)])
    assert all(answer.status_code == 200 for answer in answers)
    assert 40 < max(products) <= BATCH_ROWS
    assert sum(products) == 30 * 40


def test_requests_that_come_one_by_one_wait_for_nobody(registry, products):
    async def scenario():
        app = create_app(registry, Settings())
        service, loop = app.state.service, cast(Any, asyncio.get_running_loop())
        served, turns = service.resolve({"source": "old", "target": "new"}), []
        monitor = loop.call_soon
        loop.call_soon = lambda *args, **more: turns.append(args[0]) or monitor(*args, **more)
        for _ in range(BATCH_PROBE_INTERVAL * 3):
            await service.translate(served, make_rows(1), False)
        return sum(getattr(turn, "__name__", "") == "_answer_pending" for turn in turns)

    assert asyncio.run(scenario()) == 3  # one in eight looks for others
    assert products == [1] * BATCH_PROBE_INTERVAL * 3


def test_an_error_of_the_service_reaches_all_that_waited(registry, monkeypatch):
    def fail(self, rows):
        raise RuntimeError("broken")

    monkeypatch.setattr(Pipeline, "run", fail)
    answers = at_once(registry, [(URL, make_rows(1).tobytes())] * 5)
    assert [answer.status_code for answer in answers] == [500] * 5


# --- time -------------------------------------------------------------------------------------------------------------


def test_the_clock_cancels_what_is_late_and_nothing_else():
    async def scenario():
        deadlines, ends = Deadlines(0.2), []

        async def work(seconds):
            task = deadlines.start()
            try:
                await asyncio.sleep(seconds)
            except asyncio.CancelledError:
                pass
            finally:
                ends.append((seconds, deadlines.stop(task)))
            await asyncio.sleep(0)  # a task that was late can go on
            return seconds

        done = await asyncio.gather(work(0.01), work(5), work(0.02), work(6))
        return done, sorted(ends), deadlines

    done, ends, deadlines = asyncio.run(scenario())
    assert done == [0.01, 5, 0.02, 6]
    assert ends == [(0.01, False), (0.02, False), (5, True), (6, True)]
    assert not deadlines._ends
    assert not deadlines._cancelled


def test_being_cancelled_by_another_is_not_being_late():
    async def scenario():
        deadlines, seen = Deadlines(5), []

        async def work():
            task = deadlines.start()
            try:
                await asyncio.sleep(10)
            finally:
                seen.append(deadlines.stop(task))

        task = asyncio.create_task(work())
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return seen

    assert asyncio.run(scenario()) == [False]


# --- routes over other spaces -----------------------------------------------------------------------------------------

DETOUR = "/v1/translate?source=old&target=newest"


def scored(source, target, d_source, d_target, noise, **more):
    """A stitcher with the scorecard of noisy counterparts, and its recall@1 in query use."""
    stitcher = make_stitcher(source, target, d_source, d_target, **more)
    X = make_rows(50, d_source)
    translated = np.asarray(stitcher.translate(X))
    Y = translated + noise * make_rows(50, d_target, seed=9)
    card = scorecard_of(X, Y, translated)
    return replace(stitcher, scorecard=card), card.query.recall_at(1).score


@pytest.fixture(scope="module")
def detour(tmp_path_factory):
    """Two stitchers that lead from old to newest, their registry, and the product of their scores."""
    first, one = scored("old", "new", 6, 4, 0.2, calibration=confidence(6, pool=500))
    second, two = scored("new", "newest", 4, 5, 0.3, seed=2)
    assert 0 < one < 1
    assert 0 < two < 1
    made = {"old-to-new": first, "new-to-newest": second}
    return first, second, registry_of(tmp_path_factory.mktemp("detour"), **made), one * two


def test_a_detour_is_taken_only_when_asked_for(detour):
    first, second, registry, expected = detour
    client, rows = client_of(registry), make_rows(3)
    for asked in ("", "&route=direct"):
        error = refused(
            post_rows(client, rows, DETOUR + asked), 404, "No stitcher goes old -> newest. Nearest:", "target"
        )
        assert error["message"].endswith(" With route=auto it goes over new.")
    response = post_rows(client, rows, DETOUR + "&route=auto")
    assert np.allclose(read_rows(response, 5), second.translate(first.translate(rows)), atol=1e-6)
    assert response.headers["x-route"] == "old->new->newest"
    assert response.headers["x-stitcher"] == "old-to-new,new-to-newest"
    assert response.headers["x-stitcher-version"] == f"{first.version},{second.version}"
    assert float(response.headers["x-expected-score"]) == pytest.approx(expected, rel=1e-3)
    assert response.headers["x-dim"] == "5"


def test_json_tells_the_route_too(detour):
    first, second, registry, expected = detour
    rows = make_rows(2)
    body = {"embedding": rows.tolist(), "source": "old", "target": "newest", "route": "auto"}
    answer = client_of(registry).post("/v1/translate", json=body).json()
    assert np.allclose(answer["embedding"], second.translate(first.translate(rows)), atol=1e-6)
    assert answer["route"] == ["old", "new", "newest"]
    assert answer["expected_score"] == pytest.approx(expected)
    assert answer["stitcher"] == "old-to-new,new-to-newest"


def test_a_direct_stitcher_asked_for_by_auto_is_told_as_a_route_of_one(detour):
    first, _, registry, _ = detour
    response = post_rows(client_of(registry), make_rows(1), URL + "&route=auto&confidence=true")
    assert response.headers["x-route"] == "old->new"
    found = float(response.headers["x-expected-score"])
    assert found == pytest.approx(first.scorecard.query_recall, rel=1e-3)
    assert response.headers["x-confidence"].split(",") == list(first.calibration.names)


def test_an_expected_score_that_nobody_knows_is_said_to_be_unknown(tmp_path):
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
        ("&route=auto&confidence=true", 409, "The route old->new->newest leads over other spaces, and", "confidence"),
    ],
)
def test_a_route_that_cannot_be_is_refused(detour, query, status, message, param):
    refused(post_rows(client_of(detour[2]), make_rows(1), DETOUR + query), status, message, param)


def test_where_no_route_leads_the_nearest_pairs_are_named(detour):
    response = post_rows(client_of(detour[2]), make_rows(1), "/v1/translate?source=newest&target=old&route=auto")
    refused(response, 404, "No route over other spaces leads there either", "source")


# --- scoring ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def pairs():
    X = make_rows(60)
    noise = np.random.default_rng(5).standard_normal((60, 4)).astype(np.float32)
    return X, np.asarray(make_stitcher().translate(X)) + 0.2 * noise


def b64(rows) -> str:
    return base64.b64encode(np.asarray(rows, "<f4").tobytes()).decode()


@pytest.mark.parametrize("write", [lambda rows: rows.tolist(), b64])
def test_pairs_are_scored_as_the_command_scores_them(client, pairs, write):
    X, Y = pairs
    body = {"embedding": write(X), "counterpart": write(Y), "source": "old", "target": "new"}
    answer = client.post("/v1/score", json=body).json()
    assert answer["rows"] == 60
    assert answer["stitcher"] == "old-to-new"
    assert answer["version"] == make_stitcher().version
    expected = score(make_stitcher(), X, Y).to_dict()
    assert answer["scorecard"]["query"]["recall@1"] == pytest.approx(expected["query"]["recall@1"])
    assert answer["scorecard"]["corpus"]["verdict"]["verdict"] == expected["corpus"]["verdict"]["verdict"]
    assert answer["scorecard"]["chance"] == expected["chance"]


@pytest.mark.parametrize(
    ("change", "status", "message", "param"),
    [
        ({"counterpart": None}, 400, "`counterpart` must be a list of numbers", "counterpart"),
        (
            {"counterpart": [[1.0] * 4] * 59},
            422,
            "`counterpart` must have the 60 rows of `embedding`; got 59",
            "counterpart",
        ),
        ({"counterpart": [[1.0] * 3] * 60}, 422, "The rows of `counterpart` must have 4 numbers; got 3", "counterpart"),
        ({"counterpart": [[0.0] * 4] * 60}, 422, "`counterpart` must have a direction; 60 of 60", "counterpart"),
        ({"embedding": [[1e39] * 6] * 60}, 422, "`embedding` must be finite", "embedding"),
        ({"source": "ol"}, 404, "There is no space 'ol'", "source"),
        ({"confidence": True}, 400, "`confidence` is not a field", None),
    ],
)
def test_pairs_that_cannot_be_scored_are_refused(client, pairs, change, status, message, param):
    body = {"embedding": pairs[0].tolist(), "counterpart": pairs[1].tolist(), "source": "old", "target": "new"}
    refused(client.post("/v1/score", json=body | change), status, message, param)


def test_too_few_and_too_many_pairs_are_refused(client, pairs):
    def post(n, query=""):
        body = {"embedding": b64(make_rows(n)), "counterpart": b64(make_rows(n, 4)), "source": "old", "target": "new"}
        return client.post("/v1/score" + query, json=body)

    assert post(19).status_code == 422
    assert "at least 20" in post(19).json()["error"]["message"].lower()
    refused(post(2001), 413, "A request may hold at most 2000 rows; got 2001", "embedding")
    refused(post(20, "?route=auto"), 400, "`route` is not a parameter of this route", "route")
    missing = client.post("/v1/score", json={"embedding": b64(make_rows(20)), "source": "old", "target": "new"})
    refused(missing, 400, "`counterpart` is missing", "counterpart")
