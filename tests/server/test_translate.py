"""`POST /v1/translate`: responses and refusals."""

import base64
from dataclasses import replace

import numpy as np
import pytest
from helpers.scorecards import scorecard_of as scored
from helpers.server_calls import URL, b64, client_of, post_rows, read_rows, refused
from helpers.serving import make_rows, make_stitcher
from helpers.spaces import calibration, gaussian
from starlette.testclient import TestClient

from repstitch.evaluation.scorecard import Scorecard
from repstitch.server.negotiation import OCTETS, MediaType, reply_type
from repstitch.server.responses import JSON
from repstitch.server.service import INLINE_ROWS
from repstitch.stitchers.registry import Registry
from repstitch.stitchers.stitcher import Stitcher


@pytest.mark.parametrize("n", [1, 3, INLINE_ROWS, INLINE_ROWS + 1, 2500])
def test_rows_are_translated_by_the_stitcher(client, n):
    rows = make_rows(n)
    response = post_rows(client, rows)
    assert np.allclose(read_rows(response), make_stitcher().translate(rows), atol=1e-6)
    assert response.headers["content-type"] == OCTETS
    assert response.headers["x-rows"] == str(n)
    assert response.headers["x-dim"] == "4"
    assert response.headers["x-stitcher"] == "old-to-new"
    assert response.headers["x-stitcher-version"] == make_stitcher().version


def test_one_vector_in_json_gives_one_vector(client):
    rows = make_rows(1)
    body = {"embedding": rows[0].tolist(), "source": "old", "target": "new"}
    response = client.post("/v1/translate", json=body)
    assert response.status_code == 200
    answer = response.json()
    assert np.allclose(answer.pop("embedding"), make_stitcher().translate(rows)[0], atol=1e-6)
    assert answer == {
        "source": "old",
        "target": "new",
        "stitcher": "old-to-new",
        "version": make_stitcher().version,
        "rows": 1,
        "dim": 4,
    }
    assert response.headers["x-stitcher-version"] == answer["version"]


@pytest.mark.parametrize("n", [1, 2, 5000])
def test_a_list_of_vectors_in_json_gives_a_list(client, n):
    rows = make_rows(n)
    answer = client.post(URL, json={"embedding": rows.tolist()}).json()
    assert np.allclose(answer["embedding"], make_stitcher().translate(rows), atol=1e-6)
    assert answer["rows"] == n


def test_base64_is_answered_with_base64_unless_floats_are_requested(client):
    rows = make_rows(2)
    expected = make_stitcher().translate(rows)
    answer = client.post(URL, json={"embedding": b64(rows)}).json()
    assert np.allclose(np.frombuffer(base64.b64decode(answer["embedding"]), "<f4"), expected.reshape(-1), atol=1e-6)
    answer = client.post(URL, json={"embedding": b64(rows), "encoding_format": "float"}).json()
    assert np.allclose(answer["embedding"], expected, atol=1e-6)
    answer = client.post(URL, json={"embedding": rows[0].tolist(), "encoding_format": "base64"}).json()
    assert np.allclose(np.frombuffer(base64.b64decode(answer["embedding"]), "<f4"), expected[0], atol=1e-6)


@pytest.mark.parametrize(
    ("accept", "body", "reply"),
    [
        ("", JSON, JSON),
        ("*/*", OCTETS, OCTETS),
        ("application/json", OCTETS, JSON),
        ("application/octet-stream", JSON, OCTETS),
        ("application/*", JSON, JSON),
        ("application/json;q=0.5, application/octet-stream", JSON, OCTETS),
        ("application/json;q=0, */*", JSON, OCTETS),
        ("text/html, */*;q=0.1", OCTETS, OCTETS),
        ("APPLICATION/JSON", OCTETS, JSON),
        ("application/json;q=nan, application/octet-stream;q=0.1", JSON, OCTETS),
    ],
)
def test_accept_selects_the_response_format(accept, body, reply):
    form = reply_type(accept.encode(), MediaType(body))
    assert (body if form is None else form.kind) == reply


def test_binary_rows_can_be_answered_with_json(client):
    rows = make_rows(2)
    answer = post_rows(client, rows, accept=JSON).json()
    assert np.allclose(answer["embedding"], make_stitcher().translate(rows), atol=1e-6)


def test_json_can_be_answered_with_binary_rows(client):
    rows = make_rows(2)
    response = client.post(URL, json={"embedding": rows.tolist()}, headers={"accept": OCTETS})
    assert np.allclose(read_rows(response), make_stitcher().translate(rows), atol=1e-6)


def test_a_stitcher_without_input_normalisation_accepts_rows_of_zeros(folder):
    make_stitcher("raw", "new", input_norm="none").save(folder / "raw-to-new")
    registry = Registry(folder)
    registry.refresh()
    zeros = np.zeros((1, 6), np.float32)
    response = post_rows(client_of(registry), zeros, "/v1/translate?source=raw&target=new")
    assert np.allclose(read_rows(response), make_stitcher(input_norm="none").translate(zeros))


def test_translating_causes_no_torch_warning_about_read_only_arrays(client, recwarn):
    post_rows(client, make_rows(1))
    client.post(URL, json={"embedding": b64(make_rows(1))})
    assert not [warning for warning in recwarn if "writable" in str(warning.message)]


# --- confidence -------------------------------------------------------------------------------------------------------


SURE = "/v1/translate?source=sure&target=new"
MEASURES = ["p_match@500", "cosine_lower", "p_typical", "shared", "distance"]


@pytest.fixture
def sure(folder) -> tuple[TestClient, Stitcher]:
    stitcher = make_stitcher("sure", calibration=calibration(6, pool=500))
    stitcher.save(folder / "sure-to-new")
    registry = Registry(folder)
    registry.refresh()
    return client_of(registry), stitcher


@pytest.mark.parametrize("usable", [None, True, False])
def test_unusable_confidence_is_marked_by_a_header(folder, usable):
    tested = {"n": 9, "pool": 9, "calibrated": True, "ece": 0.1, "covered": 0.9, "level": 0.9, "usable": usable}
    made = make_stitcher("sure", calibration=calibration(6, pool=500))
    scores = scored(gaussian(30, 5), gaussian(30, 4, 1), gaussian(30, 4, 2)).to_dict() | (
        {} if usable is None else {"confidence": tested}
    )
    replace(made, scorecard=Scorecard(scores)).save(folder / "sure-to-new")
    registry = Registry(folder)
    registry.refresh()
    client, rows = client_of(registry), gaussian(3, 6)
    for reply in (
        post_rows(client, rows, SURE + "&confidence=true"),
        client.post(SURE, json={"embedding": rows.tolist(), "confidence": True}),
    ):
        assert reply.status_code == 200
        assert reply.headers.get("x-confidence-usable") == ("false" if usable is False else None)
    assert "x-confidence-usable" not in post_rows(client, rows, SURE).headers


@pytest.mark.parametrize("n", [1, INLINE_ROWS + 1, 2500])
def test_confidence_is_appended_to_each_row_as_columns(sure, n):
    client, stitcher = sure
    rows = make_rows(n)
    response = post_rows(client, rows, SURE + "&confidence=true")
    columns = read_rows(response, 4 + len(MEASURES))
    assert np.allclose(columns[:, :4], stitcher.translate(rows), atol=1e-6)
    assert np.allclose(columns[:, 4:].T, list(stitcher.confidence(rows).to_dict().values()), rtol=1e-3)
    assert response.headers["x-confidence"].split(",") == MEASURES
    assert (response.headers["x-dim"], response.headers["x-rows"]) == ("4", str(n))


@pytest.mark.parametrize("where", ["query", "body", "both"])
@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_confidence_in_json_is_one_list_per_measure(sure, where, encoding):
    client, stitcher = sure
    rows = make_rows(3)
    body = {"embedding": rows.tolist(), "encoding_format": encoding}
    body |= {} if where == "query" else {"confidence": True}
    answer = client.post(SURE + ("" if where == "body" else "&confidence=true"), json=body).json()
    assert list(answer["confidence"]) == MEASURES
    for name, values in stitcher.confidence(rows).to_dict().items():
        assert np.allclose(answer["confidence"][name], values, rtol=1e-3)
    vectors = answer["embedding"]
    if encoding == "base64":
        vectors = np.frombuffer(base64.b64decode(vectors), "<f4").reshape(3, 4)
    assert np.allclose(vectors, stitcher.translate(rows), atol=1e-6)
    assert answer["dim"] == 4


def test_confidence_of_one_vector_is_one_number_per_measure(sure):
    client, stitcher = sure
    rows = make_rows(1)
    answer = client.post(SURE, json={"embedding": rows[0].tolist(), "confidence": True}).json()
    expected = {
        name: pytest.approx(float(values[0]), rel=1e-3) for name, values in stitcher.confidence(rows).to_dict().items()
    }
    assert answer["confidence"] == expected
    assert len(answer["embedding"]) == 4


@pytest.mark.parametrize("parameter", ["", "&confidence=false"])
def test_confidence_is_left_out_unless_it_is_requested(sure, parameter):
    client, _ = sure
    response = post_rows(client, make_rows(3), SURE + parameter)
    assert read_rows(response).shape == (3, 4)
    assert "x-confidence" not in response.headers
    assert "confidence" not in client.post(SURE + parameter, json={"embedding": [1.0] * 6}).json()


def test_confidence_of_a_stitcher_without_calibration_is_409(client):
    message = "Stitcher 'old-to-new' has no calibration; send the request without `confidence`"
    refused(post_rows(client, make_rows(1), URL + "&confidence=true"), 409, message, "confidence")
    refused(client.post(URL, json={"embedding": [1.0] * 6, "confidence": True}), 409, message, "confidence")
    assert post_rows(client, make_rows(1), URL + "&confidence=false").status_code == 200


@pytest.mark.parametrize("value", ["1", "True", "", "yes", "true%20"])
def test_a_confidence_that_is_neither_true_nor_false_is_400(sure, value):
    response = post_rows(sure[0], make_rows(1), f"{SURE}&confidence={value}")
    refused(response, 400, "`confidence` must be true or false; got", "confidence")


@pytest.mark.parametrize("value", [1, "true", [True]])
def test_a_confidence_in_json_that_is_not_a_boolean_is_400(sure, value):
    response = sure[0].post(SURE, json={"embedding": [1.0] * 6, "confidence": value})
    refused(response, 400, "`confidence` must be true or false; got", "confidence")


def test_confidence_that_differs_between_query_and_body_is_refused(sure):
    response = sure[0].post(SURE + "&confidence=true", json={"embedding": [1.0] * 6, "confidence": False})
    refused(response, 400, "`confidence` is True in the query string and False in the body; send it once", "confidence")


def test_invalid_rows_are_refused_with_confidence_too(sure):
    response = post_rows(sure[0], np.zeros((2, 6)), SURE + "&confidence=true")
    refused(response, 422, "must have a direction; 2 of 2 rows", "embedding")


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("embedding", "status", "message"),
    [
        (["0.1"] * 6, 400, "got text at position 0"),
        ([None] * 6, 400, "got null at position 0"),
        ([[1, 2, 3], [4, 5, 6]], 422, "The rows of `embedding` must have 6 numbers; got 3"),
        ([0.0] * 6, 422, "must have a direction; 1 of 1 rows (first: row 0) contain only zeros"),
        ([[1.0] * 6, [1e39] * 6], 422, "must be finite float32 numbers; 1 of 2 rows (first: row 1) contain NaN or Inf"),
        ("AAA", 400, "must be standard base64 of float32 bytes"),
        (b64([np.nan] * 6), 422, "must be finite float32 numbers"),
        ([], 400, "it is empty"),
    ],
)
def test_an_embedding_that_cannot_be_translated_is_refused(client, embedding, status, message):
    refused(client.post(URL, json={"embedding": embedding}), status, message, "embedding")


@pytest.mark.parametrize(
    ("body", "message", "param"),
    [
        (b"[1, 2]", "The body must be a JSON object", None),
        (b"", "The body must be JSON", None),
        (b"{", "The body must be JSON", None),
        (b'{"vector": []}', "`embedding` is missing", "embedding"),
        (b'{"embedding": [NaN]}', "The body must be JSON", None),
    ],
)
def test_a_malformed_body_is_400(client, body, message, param):
    response = client.post(URL, content=body, headers={"content-type": JSON})
    refused(response, 400, message, param)


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        (b"", 400, "The body must contain at least one row of 6 float32 numbers; it is empty"),
        (b"x" * 25, 400, "a multiple of 4 bytes; got 25"),
        (b"x" * 28, 422, "a multiple of 24 bytes; got 28"),
    ],
)
def test_bytes_that_are_not_whole_rows_are_refused(client, content, status, message):
    response = client.post(URL, content=content, headers={"content-type": OCTETS})
    refused(response, status, message, "embedding")


@pytest.mark.parametrize("n", [1, 3000])
def test_invalid_rows_are_counted_over_the_whole_body(client, n):
    rows = np.concatenate([make_rows(n), np.full((2, 6), np.nan, np.float32)])
    message = f"2 of {n + 2} rows (first: row {n}) contain NaN or Inf"
    refused(post_rows(client, rows), 422, message, "embedding")


@pytest.mark.parametrize(
    ("query", "status", "message", "param"),
    [
        ("", 400, "`source` is missing; send the name of a space, see /v1/spaces", "source"),
        ("?source=old", 400, "`target` is missing", "target"),
        (
            "?source=old&target=new&sticher=x",
            400,
            "`sticher` is not a query parameter; allowed parameters are source",
            None,
        ),
        ("?source=old&source=new&target=new", 400, "`source` must be sent only once", "source"),
        ("?source=&target=new", 400, "`source` must have 1 to 256 characters; got 0", "source"),
        ("?source=%ff&target=new", 400, "The query string must be percent-encoded UTF-8", None),
        (f"?source={'x' * 5000}", 400, "The query string may have at most 4096 bytes", None),
        ("?source=ol&target=new", 404, "There is no space 'ol' (`source`). Nearest: old", "source"),
        ("?source=old&target=nwe", 404, "There is no space 'nwe' (`target`). Nearest: new", "target"),
        ("?source=new&target=old", 404, "No stitcher translates new -> old. Nearest: old->new", "source"),
        (
            "?source=old&target=new&stitcher=old-to",
            404,
            "There is no stitcher 'old-to'. Nearest: old-to-new",
            "stitcher",
        ),
        ("?source=new&target=old&stitcher=old-to-new", 409, "translates old -> new, not new -> old", "stitcher"),
    ],
)
def test_an_invalid_or_unserved_pair_is_refused(client, query, status, message, param):
    refused(post_rows(client, make_rows(1), f"/v1/translate{query}"), status, message, param)
    names = dict(part.split("=") for part in query[1:].split("&") if part)
    if status != 400:
        refused(client.post("/v1/translate", json={"embedding": [1.0] * 6} | names), status, message, param)


def test_a_name_that_differs_between_query_and_body_is_refused(client):
    response = client.post(URL, json={"embedding": [1.0] * 6, "source": "other"})
    refused(response, 400, "`source` is 'old' in the query string and 'other' in the body; send it once", "source")


def test_the_first_of_several_stitchers_serves_until_another_is_promoted(folder, registry, client):
    make_stitcher(seed=7).save(folder / "second")
    registry.refresh()
    rows = make_rows(1)
    assert np.allclose(read_rows(post_rows(client, rows)), make_stitcher().translate(rows), atol=1e-6)
    assert post_rows(client, rows, URL + "&stitcher=second").headers["x-stitcher"] == "second"
    registry.promote("second")
    response = post_rows(client, rows)
    assert response.headers["x-stitcher"] == "second"
    assert np.allclose(read_rows(response), make_stitcher(seed=7).translate(rows), atol=1e-6)
    registry.promote("old-to-new")
    assert np.allclose(read_rows(post_rows(client, rows)), make_stitcher().translate(rows), atol=1e-6)


@pytest.mark.parametrize(
    "content_type",
    ["application/vnd.bentoml+pickle", "application/x-www-form-urlencoded", "multipart/form-data", "text/plain", ""],
)
def test_any_other_content_type_is_415_including_pickle(client, content_type):
    response = client.post(URL, content=b"x" * 24, headers={"content-type": content_type})
    refused(response, 415, "`Content-Type` must be application/octet-stream, application/json or", "Content-Type")


def test_a_compressed_body_is_refused(client):
    refused(post_rows(client, make_rows(1), content_encoding="gzip"), 415, "Compressed bodies are not supported")


def test_an_accept_that_allows_no_supported_format_is_406(client):
    message = "`Accept` must allow application/octet-stream, application/json or application/vnd.apache.arrow.stream"
    refused(post_rows(client, make_rows(1), accept="text/html"), 406, message, "Accept")


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/translate//", "/v2/translate", "/v1/stitchers//"])
def test_an_unknown_route_is_a_json_404(client, path):
    refused(client.get(path), 404, "There is no such route")


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/v1/translate", "POST"),
        ("PUT", "/v1/translate", "POST"),
        ("DELETE", "/v1/stitchers/old-to-new", "GET, HEAD"),
        ("POST", "/livez", "GET, HEAD"),
    ],
)
def test_an_unsupported_method_is_405(client, method, path, allow):
    response = client.request(method, path)
    refused(response, 405, "This route does not support this HTTP method")
    assert response.headers["allow"] == allow
