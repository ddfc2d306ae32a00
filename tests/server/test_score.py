"""`POST /v1/score`."""

import numpy as np
import pytest
from helpers.server_calls import b64, refused
from helpers.serving import make_rows, make_stitcher

from repstitch.server.service import MAX_SLOW_TASKS
from repstitch.workflows.scoring import score


@pytest.fixture
def pairs():
    X = make_rows(60)
    noise = np.random.default_rng(5).standard_normal((60, 4)).astype(np.float32)
    return X, np.asarray(make_stitcher().translate(X)) + 0.2 * noise


@pytest.mark.parametrize("write", [lambda rows: rows.tolist(), b64])
def test_pairs_are_scored_like_the_score_function_scores_them(client, pairs, write):
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
        ({"counterpart": None}, 400, "`counterpart` is missing", "counterpart"),
        (
            {"counterpart": [[1.0] * 4] * 59},
            422,
            "`counterpart` must have as many rows as `embedding` (60); got 59",
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
    refused(post(2001), 413, "A request may contain at most 2000 rows; got 2001", "embedding")
    refused(post(20, "?route=auto"), 400, "`route` is not a parameter of this route", "route")
    missing = client.post("/v1/score", json={"embedding": b64(make_rows(20)), "source": "old", "target": "new"})
    refused(missing, 400, "`counterpart` is missing", "counterpart")


def test_refused_scores_free_their_slots(client, pairs):
    X, Y = pairs
    body = {"embedding": b64(X), "counterpart": b64(Y), "source": "old", "target": "new"}
    for _ in range(MAX_SLOW_TASKS + 1):
        refused(client.post("/v1/score", json=body | {"counterpart": b64(Y[1:])}), 422, "got 59", "counterpart")
    assert client.post("/v1/score", json=body).status_code == 200
