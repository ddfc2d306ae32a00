"""`POST /v1/embeddings`, the route compatible with OpenAI, called by OpenAI's Python client and by hand."""

import base64
from dataclasses import replace
from typing import Any

import numpy as np
import openai
import pytest
from helpers.server_calls import LOCAL, client_of, refused, registry_of, service_of
from helpers.serving import eventually, make_rows, make_stitcher
from helpers.spaces import tiny_bert
from starlette.testclient import TestClient

from repstitch.encoders.encoder import load_encoder
from repstitch.server.app import create_app
from repstitch.server.negotiation import OCTETS
from repstitch.server.settings import Settings

EXPECTED = make_stitcher().translate


def post(client, **body):
    return client.post("/v1/embeddings", json=body)


@pytest.mark.parametrize("model", ["old-to-new", "old->new"])
def test_the_openai_client_translates_vectors(registry, model):
    rows, http_client = make_rows(70), client_of(registry)
    client = openai.OpenAI(base_url=f"{LOCAL}/v1", api_key="any", max_retries=0, http_client=http_client)
    for encoding in ("float", "base64", None):  # without a format, it requests base64 and decodes it
        options: dict[str, Any] = {} if encoding is None else {"encoding_format": encoding}
        answer = client.embeddings.create(model=model, input=rows.tolist(), **options)
        values: list[Any] = [each.embedding for each in answer.data]
        vectors = np.array([np.frombuffer(base64.b64decode(v), "<f4") if isinstance(v, str) else v for v in values])
        assert isinstance(values[0], str) == (encoding == "base64")
        assert np.allclose(vectors, EXPECTED(rows), atol=1e-6)
        assert [each.index for each in answer.data] == list(range(70))
        assert answer.model == model
    single = client.embeddings.create(model=model, input=rows[0].tolist(), dimensions=4)
    assert np.allclose(single.data[0].embedding, EXPECTED(rows[0]), atol=1e-6)
    assert [each.id for each in client.models.list()] == ["old-to-new", "old->new"]
    with pytest.raises(openai.NotFoundError, match="There is no stitcher 'old-to-nwe'"):
        client.embeddings.create(model="old-to-nwe", input=rows.tolist())
    assert client.models.retrieve(model).id == model
    with pytest.raises(openai.NotFoundError, match="There is no stitcher 'old-to-nwe'"):
        client.models.retrieve("old-to-nwe")
    with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False") as caught:
        client.embeddings.create(model=model, input=[1, 2, 3, 4, 5])
    assert caught.value.param == "input"
    with pytest.raises(openai.UnprocessableEntityError, match="must have 6 numbers; got 5"):
        client.embeddings.create(model=model, input=rows[:, :5].tolist())
    with pytest.raises(openai.ConflictError, match="no text encoder is loaded for space 'old'"):
        client.embeddings.create(model=model, input="a text")


def test_a_model_that_is_a_pair_and_the_name_of_a_stitcher_of_another_pair_is_ambiguous(tmp_path):
    made = {"old->new": make_stitcher("a", "b"), "a->b": make_stitcher("a", "b", seed=2), "first": make_stitcher()}
    client = client_of(registry_of(tmp_path, **made))
    message = "`model` 'old->new' is a pair and the name of a stitcher of another pair; rename it"
    refused(post(client, model="old->new", input=make_rows(1).tolist()), 409, message, "model")
    refused(client.get("/v1/models/old->new"), 409, message, "model")
    assert post(client, model="a->b", input=make_rows(1).tolist()).headers["x-stitcher"] == "a-%3Eb"
    assert [each["id"] for each in client.get("/v1/models").json()["data"]] == ["a->b", "first", "old->new"]


def test_the_response_has_openais_format_and_the_stitcher_headers(client):
    rows = make_rows(2)
    response = post(client, model="old->new", input=rows.tolist())
    answer = response.json()
    assert {key: answer[key] for key in ("object", "model", "usage")} == {
        "object": "list",
        "model": "old->new",
        "usage": {"prompt_tokens": 0, "total_tokens": 0},
    }
    assert [(each["object"], each["index"]) for each in answer["data"]] == [("embedding", 0), ("embedding", 1)]
    assert np.allclose([each["embedding"] for each in answer["data"]], EXPECTED(rows), atol=1e-6)
    assert response.headers["x-stitcher-version"] == make_stitcher().version


@pytest.mark.parametrize(
    ("body", "status", "message", "param"),
    [
        (
            {"input": [1.5] * 6},
            400,
            "`model` is missing; send the name of a stitcher or a pair source->target",
            "model",
        ),
        ({"model": "old->new"}, 400, "`input` is missing", "input"),
        ({"model": "old->new", "input": []}, 400, "must contain at least one row of 6 numbers", "input"),
        ({"model": "old->new", "input": [1, 2, 3, 4, 5]}, 400, "got 5 whole numbers, which are tokens", "input"),
        ({"model": "old->new", "input": [[1.5] * 6, [1] * 7]}, 400, "check_embedding_ctx_length=False", "input"),
        ({"model": "old->new", "input": [[0.0] * 6]}, 422, "`input` must have a direction", "input"),
        ({"model": "old->new", "input": [["0.1"] * 6]}, 400, "got text at position 0", "input"),
        ({"model": "old->new", "input": None}, 400, "must be a list of numbers", "input"),
        ({"model": "old->nwe", "input": [1.5] * 6}, 404, "There is no space 'nwe' (`target`). Nearest: new", "model"),
        ({"model": "new->old", "input": [1.5] * 6}, 404, "No stitcher translates new -> old", "model"),
        ({"model": "gpt", "input": [1.5] * 6}, 404, "There is no stitcher 'gpt'", "model"),
        ({"model": "old->new", "input": [1.5] * 6, "dimensions": 5}, 422, "`dimensions` must be 4", "dimensions"),
        ({"model": "old->new", "input": [1.5] * 6, "dimensions": 0}, 400, "at least 1", "dimensions"),
        ({"model": "old->new", "input": [1.5] * 6, "encoding_format": "hex"}, 400, "float, base64", "encoding_format"),
        ({"model": "old->new", "input": [1.5] * 6, "source": "old"}, 400, "`source` is not a field", None),
        ({"model": "old->new", "input": [1.5] * 6, "user": 7}, 400, "`user` must be text", "user"),
        ({"model": "old->new", "input": "words"}, 409, "no text encoder is loaded for space 'old'", "input"),
    ],
)
def test_an_invalid_embeddings_request_is_refused(client, body, status, message, param):
    refused(post(client, **body), status, message, param)


@pytest.mark.parametrize("row", [[1, 0.5, 0, -2, 0.25, 3], [1, 0, 0, -2, 0, 3]])
def test_whole_numbers_are_a_vector_if_it_has_the_dimension_of_the_source(client, row):
    """JavaScript writes 1.0 as 1."""
    vectors = post(client, model="old->new", input=row).json()["data"][0]["embedding"]
    assert np.allclose(vectors, EXPECTED(np.array(row, np.float32)), atol=1e-6)


OPTIONAL = ("encoding_format", "dimensions", "user", "input_type", "safety_identifier", "request_id")


@pytest.mark.parametrize("field", OPTIONAL)
def test_null_is_the_same_as_leaving_a_field_out(client, field):
    response = post(client, model="old->new", input=[1.5] * 6, **{field: None})
    assert response.content == post(client, model="old->new", input=[1.5] * 6).content


@pytest.mark.parametrize("field", OPTIONAL[2:])
def test_fields_of_other_services_have_no_effect(client, field):
    response = post(client, model="old->new", input=[1.5] * 6, **{field: "query"})
    assert response.content == post(client, model="old->new", input=[1.5] * 6).content


def test_the_azure_client_translates_vectors(registry):
    rows = make_rows(3)
    for deployment in (None, "old->new"):
        client = openai.AzureOpenAI(
            api_key="first",
            api_version="2026-01-01",
            azure_endpoint=LOCAL,
            azure_deployment=deployment,
            http_client=client_of(registry, api_keys=("first",)),
        )
        model = "text-embedding-3-small" if deployment else "old->new"
        answer = client.embeddings.create(model=model, input=rows.tolist())
        assert np.allclose([each.embedding for each in answer.data], EXPECTED(rows), atol=1e-6)
        assert answer.model == "old->new"
    with pytest.raises(openai.NotFoundError, match="There is no stitcher 'old-to-nwe'"):
        openai.AzureOpenAI(
            api_key="any", api_version="1", azure_endpoint=LOCAL, http_client=client_of(registry)
        ).embeddings.create(model="old-to-nwe", input=rows.tolist())
    preview = openai.OpenAI(
        base_url=f"{LOCAL}/openai/v1/",
        api_key="any",
        default_query={"api-version": "preview"},
        http_client=client_of(registry),
    )
    assert len(preview.embeddings.create(model="old->new", input=rows.tolist()).data) == 3
    assert [each.id for each in preview.models.list()] == ["old-to-new", "old->new"]


def test_the_route_takes_only_json_and_no_query_parameters(client):
    response = client.post("/v1/embeddings", content=bytes(24), headers={"content-type": OCTETS})
    refused(response, 415, "`Content-Type` must be application/json; got application/octet-stream", "Content-Type")
    for query in ("model=x", "api-version=1&model=x", "api-versions=1", "%61pi-version"):
        refused(client.post(f"/v1/embeddings?{query}", json={}), 400, "This route takes no query parameters")


def test_a_pair_is_the_stitcher_that_serves_it_and_a_candidate_needs_its_name(folder, registry, client):
    make_stitcher(seed=7).save(folder / "second")
    registry.refresh()
    body = {"input": make_rows(1).tolist()}
    vectors = post(client, model="old->new", **body).json()["data"][0]["embedding"]
    assert np.allclose(vectors, make_stitcher().translate(make_rows(1))[0], atol=1e-6)
    vectors = post(client, model="second", **body).json()["data"][0]["embedding"]
    assert np.allclose(vectors, make_stitcher(seed=7).translate(make_rows(1))[0], atol=1e-6)


# --- texts ------------------------------------------------------------------------------------------------------------

TEXTS = ["the cat sat on the mat", "a dog", "b"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return tiny_bert(tmp_path_factory.mktemp("bert") / "tiny-bert")


@pytest.fixture(scope="module")
def texts(bert, tmp_path_factory):
    """Return a client of a service with the encoder of the source space loaded, that encoder, and the stitcher."""
    encoder = load_encoder(str(bert), device="cpu")
    stitcher = replace(make_stitcher("words", "new", 16), source=replace(encoder.space, name="words"))
    registry = registry_of(tmp_path_factory.mktemp("stitchers"), **{"words-to-new": stitcher})
    client = client_of(registry, encoders=(f"words={bert}",), device="cpu")
    service_of(client).texts.load()
    return client, encoder, stitcher


def test_texts_are_embedded_and_translated(texts):
    client, encoder, stitcher = texts
    expected = stitcher.translate(encoder.encode(TEXTS))
    answer = post(client, model="words->new", input=TEXTS).json()
    assert np.allclose([each["embedding"] for each in answer["data"]], expected, atol=1e-5)
    single = post(client, model="words->new", input=TEXTS[0]).json()
    assert np.allclose(single["data"][0]["embedding"], expected[0], atol=1e-5)
    vectors = post(client, model="words->new", input=encoder.encode(TEXTS).tolist()).json()
    assert np.allclose([each["embedding"] for each in vectors["data"]], expected, atol=1e-5)
    assert {s["name"]: s["takes_texts"] for s in client.get("/v1/spaces").json()["spaces"]} == {
        "words": True,
        "new": False,
    }


@pytest.mark.parametrize("input", ["", ["a", ""], ["a", 7], ["a", None], "  "])
def test_empty_texts_are_refused(texts, input):
    refused(
        post(texts[0], model="words->new", input=input), 400, "`input` must contain only non-empty texts; got", "input"
    )


def test_too_many_texts_are_refused(texts):
    refused(post(texts[0], model="words->new", input=["a"] * 2049), 413, "at most 2048 texts; got 2049", "input")


def test_an_encoder_that_differs_from_the_stitchers_source_space_is_refused(texts, monkeypatch):
    client, encoder, _ = texts
    another = replace(encoder, space=replace(encoder.space, revision="another"))
    monkeypatch.setattr(service_of(client).texts, "encoders", {"words": another})
    refused(
        post(client, model="words->new", input="a"),
        409,
        "the encoder loaded for space 'words' differs from the one that the stitcher was trained for (revision",
        "input",
    )


def test_an_encoder_that_cannot_be_loaded_is_logged_and_left_out(registry, caplog, tmp_path):
    service = service_of(client_of(registry, encoders=(f"old={tmp_path}/none",), device="cpu"))
    service.texts.load()
    assert service.texts.encoders == {}
    assert "The text encoder of space old could not be loaded" in caplog.text


def test_a_started_service_loads_its_encoder(bert, texts):
    client, encoder, stitcher = texts
    app = create_app(service_of(client).registry, Settings(encoders=(f"words={bert}",), device="cpu"))
    with TestClient(app, LOCAL) as started:
        eventually(lambda: started.get("/v1/spaces").json()["spaces"][-1]["takes_texts"], 60)
        openai_client = openai.OpenAI(base_url=f"{LOCAL}/v1", api_key="any", http_client=started)
        answer = openai_client.embeddings.create(model="words->new", input=TEXTS)
    expected = stitcher.translate(encoder.encode(TEXTS))
    assert np.allclose([each.embedding for each in answer.data], expected, atol=1e-5)
