"""Every format of request and response bodies."""

import asyncio
import base64
import io
import itertools
from dataclasses import replace

import httpx
import numpy as np
import orjson
import pyarrow as pa
import pytest
from helpers.server_calls import LOCAL, URL, client_of, post_rows, read_rows, refused
from helpers.serving import make_rows, make_stitcher
from helpers.spaces import calibration

from repstitch.server.app import create_app
from repstitch.server.negotiation import ACCEPT_BYTES, ARROW, OCTETS, OCTETS16, MediaType, body_type, reply_type
from repstitch.server.responses import JSON, Refusal
from repstitch.server.settings import Settings
from repstitch.spaces import SPACE_KEY, Space
from repstitch.stitchers.registry import Registry

EXPECTED = make_stitcher().translate
LOOSE = {"float32": 1e-6, "float16": 2e-3}


def stream(rows, ids=None, dtype="float32", batch=2, fixed=True, metadata=None, options=None, **more) -> bytes:
    """Write rows as an Arrow IPC stream of small batches."""
    rows = np.asarray(rows, dtype)
    kind = (
        pa.list_(pa.from_numpy_dtype(rows.dtype), rows.shape[1]) if fixed else pa.list_(pa.from_numpy_dtype(rows.dtype))
    )
    columns = {} if ids is None else {"id": ids}
    columns["vector"] = pa.array(list(rows), kind)
    table = pa.table(columns | more).replace_schema_metadata(metadata)
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=batch)
    return sink.getvalue()


def read_stream(response) -> pa.Table:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == ARROW
    return pa.ipc.open_stream(response.content).read_all()


def vectors_of(table: pa.Table) -> np.ndarray:
    return np.array(table["vector"].to_pylist(), np.float32)


def sent(form: str, rows: np.ndarray, dtype: str):
    """Return the content type and the body of a request in a format."""
    raw = rows.astype("<f4" if dtype == "float32" else "<f2").tobytes()
    if form == "octets":
        return f"{OCTETS}; dtype={dtype}", raw
    if form == "arrow":
        return ARROW, stream(rows, list(range(len(rows))), dtype)
    body = {"embedding": rows.tolist() if form == "json" else base64.b64encode(raw).decode(), "dtype": dtype}
    return JSON, orjson.dumps(body)


def answered(response, dtype: str) -> np.ndarray:
    """Read the vectors of a response in the format that its content type names."""
    kind = response.headers["content-type"].partition(";")[0]
    number = "<f4" if dtype == "float32" else "<f2"
    if kind == OCTETS:
        return np.frombuffer(response.content, number).reshape(-1, 4).astype(np.float32)
    if kind == ARROW:
        return vectors_of(read_stream(response))
    embedding = response.json()["embedding"]
    if isinstance(embedding, str):
        return np.frombuffer(base64.b64decode(embedding), number).reshape(-1, 4).astype(np.float32)
    return np.array(embedding, np.float32)


@pytest.mark.parametrize(
    ("form", "dtype", "accept"),
    list(itertools.product(("octets", "json", "base64", "arrow"), ("float32", "float16"), (None, OCTETS, JSON, ARROW))),
)
@pytest.mark.parametrize("n", [2, 200])
def test_every_request_format_can_be_answered_in_every_response_format(client, form, dtype, accept, n):
    rows = make_rows(n)
    content_type, body = sent(form, rows, dtype)
    headers = {"content-type": content_type} | ({"accept": accept} if accept else {})
    response = client.post(URL, content=body, headers=headers)
    assert response.status_code == 200, response.text
    same_format = accept is None or content_type.startswith(accept)
    vectors = answered(response, dtype if same_format else "float32")
    assert np.allclose(vectors, EXPECTED(rows), atol=LOOSE[dtype])
    assert response.headers["x-rows"] == str(n)


@pytest.mark.parametrize(
    ("content_type", "accept", "answer"),
    [
        (OCTETS, "", OCTETS),
        (OCTETS16, "", OCTETS16),
        (OCTETS16, "*/*", OCTETS16),
        (OCTETS16, OCTETS, OCTETS16),
        (OCTETS16, f"{OCTETS}; dtype=float32", OCTETS),
        (OCTETS, f'{OCTETS}; dtype="float16"', OCTETS16),
        (OCTETS, f"{OCTETS};dtype=float16;q=0.2, {JSON};q=0.1", OCTETS16),
        (OCTETS, f"{OCTETS};dtype=float64, {JSON};q=0.1", JSON),
        (JSON, f"{OCTETS}; dtype=float16", OCTETS16),
        (JSON, f"{JSON};dtype=float16, */*;q=0.1", OCTETS),
        (ARROW, JSON, JSON),
    ],
)
def test_accept_also_selects_the_dtype(client, content_type, accept, answer):
    rows = make_rows(2)
    form, dtype = ("arrow" if content_type == ARROW else "json" if content_type == JSON else "octets"), "float32"
    if content_type == OCTETS16:
        dtype = "float16"
    response = client.post(
        URL, content=sent(form, rows, dtype)[1], headers={"content-type": content_type, "accept": accept}
    )
    assert response.headers["content-type"] == answer


@pytest.mark.parametrize("content_type", [f"{OCTETS}; dtype=float64", f"{JSON}; dtype=float16", f"{OCTETS}; dtype="])
def test_an_unsupported_dtype_is_415(client, content_type):
    response = client.post(URL, content=bytes(48), headers={"content-type": content_type})
    refused(response, 415, "The `dtype` of a `Content-Type` must be float32 or float16 and is", "Content-Type")


def test_a_translation_too_large_for_float16_is_refused(folder):
    big = make_stitcher("raw", "big")
    big = replace(big, map=replace(big.map, weight=big.map.weight * 1e6), output_norm="none")
    big.save(folder / "big")
    registry = Registry(folder)
    registry.refresh()
    url = "/v1/translate?source=raw&target=big"
    client, rows = client_of(registry), make_rows(2)
    refused(
        client.post(url, content=rows.astype("<f2").tobytes(), headers={"content-type": OCTETS16}),
        422,
        "The translation of row 0 has numbers too large for float16; request float32",
    )
    response = client.post(url, content=rows.tobytes(), headers={"content-type": OCTETS})
    assert np.allclose(read_rows(response), big.translate(rows), rtol=1e-5)


# --- arrow ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ids", [["a", "b", "ü"], [3, 1, 2], None])
@pytest.mark.parametrize("fixed", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_arrow_rows_keep_their_ids(client, ids, fixed, dtype):
    rows = make_rows(3)
    response = client.post(URL, content=stream(rows, ids, dtype, fixed=fixed), headers={"content-type": ARROW})
    table = read_stream(response)
    assert table.column_names == (["vector"] if ids is None else ["id", "vector"])
    assert ids is None or table["id"].to_pylist() == ids
    assert np.allclose(vectors_of(table), EXPECTED(rows), atol=LOOSE[dtype])
    assert (
        str(table.schema.field("vector").type)
        == f"fixed_size_list<item: {'float' if dtype == 'float32' else 'halffloat'}>[4]"
    )
    assert Space.from_json(table.schema.metadata[SPACE_KEY]) == make_stitcher().target


@pytest.mark.parametrize("accept", ["application/json", "text/html", f"{OCTETS};dtype=float64"])
def test_the_path_for_bytes_answers_in_the_format_of_the_body_whatever_is_accepted(client, accept):
    url, rows = URL.replace("translate", "translate/bytes"), make_rows(3)
    response = client.post(url, content=rows.tobytes(), headers={"content-type": OCTETS, "accept": accept})
    assert response.headers["content-type"] == OCTETS
    assert np.allclose(read_rows(response), EXPECTED(rows), atol=1e-6)
    response = client.post(url, content=rows.tobytes(), headers={"content-type": OCTETS, "accept": ARROW})
    assert np.allclose(vectors_of(read_stream(response)), EXPECTED(rows), atol=1e-6)
    refused(client.post(url, json={"embedding": rows.tolist()}), 415, "`Content-Type` must be", "Content-Type")


def write_stream(**columns: pa.Array) -> bytes:
    table, sink = pa.table(columns), pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def test_an_arrow_stream_of_polars_is_read_and_its_ids_are_returned(client):
    """polars writes text as `string_view` and vectors as `large_list`."""
    rows, ids = make_rows(3), ["a", "b" * 20, "ü"]
    vectors = pa.array(list(rows), pa.large_list(pa.float32()))
    body = write_stream(id=pa.array(ids, pa.string_view()), vector=vectors)
    answer = read_stream(client.post(URL, content=body, headers={"content-type": ARROW}))
    assert answer["id"].to_pylist() == ids
    assert np.allclose(vectors_of(answer), EXPECTED(rows), atol=1e-6)


def test_views_of_lists_are_refused_because_a_small_body_could_have_many_rows(client):
    numbers = pa.array(make_rows(1)[0])
    zeros, sixes = (pa.array([value] * 50_000, pa.int32()) for value in (0, 6))
    body = write_stream(vector=pa.ListViewArray.from_arrays(zeros, sixes, numbers))
    response = client.post(URL, content=body, headers={"content-type": ARROW})
    refused(response, 400, "`vector` must contain lists of float32 or float16; got list_view", "embedding")


def test_arrow_responses_have_confidence_columns(folder):
    stitcher = make_stitcher("sure", calibration=calibration(6, pool=500))
    stitcher.save(folder / "sure-to-new")
    registry = Registry(folder)
    registry.refresh()
    rows = make_rows(3)
    url = "/v1/translate?source=sure&target=new&confidence=true"
    table = read_stream(client_of(registry).post(url, content=stream(rows, [1, 2, 3]), headers={"content-type": ARROW}))
    for name, values in stitcher.confidence(rows).to_dict().items():
        assert np.allclose(table[name].to_numpy(), values, rtol=1e-3)


def test_rows_whose_card_states_another_space_are_refused(client):
    rows = make_rows(2)
    card = {SPACE_KEY: Space("other", 6).to_json().encode()}
    response = client.post(URL, content=stream(rows, metadata=card), headers={"content-type": ARROW})
    refused(response, 422, "must be in space 'old', but their card states another identity", "embedding")
    card = {SPACE_KEY: Space("old", 6).to_json().encode()}
    assert client.post(URL, content=stream(rows, metadata=card), headers={"content-type": ARROW}).status_code == 200


def with_null(rows) -> bytes:
    vectors = pa.array([*rows.tolist(), None], pa.list_(pa.float32(), rows.shape[1]))
    return as_stream(pa.table({"vector": vectors}))


def as_stream(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


ROWS = make_rows(3)
REFUSED = [
    (b"", 400, "The body must be an Arrow IPC stream"),
    (b"abc", 400, "The body must be an Arrow IPC stream"),
    (stream(ROWS)[:100], 400, "The body must be an Arrow IPC stream"),
    (stream(ROWS) + b"more", 400, "The body must end with its Arrow stream; 4 more bytes follow"),
    (stream(ROWS[:0]), 400, "must contain at least one row of 6 numbers; it is empty"),
    (
        stream(ROWS, options=pa.ipc.IpcWriteOptions(compression="zstd")),
        400,
        "must be an Arrow stream without compression",
    ),
    (
        stream(ROWS, options=pa.ipc.IpcWriteOptions(compression="lz4")),
        400,
        "must be an Arrow stream without compression",
    ),
    (
        stream(ROWS, text=["a", "b", "c"]),
        400,
        "may have only the columns id and vector, each at most once; got vector, text",
    ),
    (as_stream(pa.table({"id": [1]})), 400, "The stream must have a column `vector`"),
    (as_stream(pa.table({"vector": [1.0]})), 400, "`vector` must contain lists of float32 or float16; got double"),
    (stream(ROWS.astype(np.float64), dtype="float64"), 400, "`vector` must contain lists of float32 or float16; got"),
    (stream(ROWS, [[1], [2], [3]]), 400, "`id` must contain text or integers; got list"),
    (stream(ROWS[:, :5]), 422, "`vector` must have 6 numbers per row; got 5"),
    (stream(ROWS[:, :5], fixed=False), 422, "`vector` must have 6 numbers per row; row 0 has 5"),
    (with_null(ROWS), 422, "`vector` must not be null; it is null in 1 rows"),
    (stream(np.full((2, 6), np.nan)), 422, "must be finite float32 numbers; 2 of 2 rows"),
    (as_stream(pa.table({"vector": pa.array(["a"]).dictionary_encode()})), 400, "not dictionaries"),
]


@pytest.mark.parametrize(("body", "status", "message"), REFUSED, ids=[each[2][:40] for each in REFUSED])
def test_a_stream_that_cannot_be_translated_is_refused(client, body, status, message):
    response = client.post(URL, content=body, headers={"content-type": ARROW})
    assert response.status_code == status, response.text
    assert message in response.json()["error"]["message"]


def test_rows_of_different_lengths_are_not_reshaped(client):
    vectors = pa.array([[1.0] * 3, [1.0] * 9], pa.list_(pa.float32()))
    response = client.post(URL, content=as_stream(pa.table({"vector": vectors})), headers={"content-type": ARROW})
    refused(response, 422, "`vector` must have 6 numbers per row; row 0 has 3", "embedding")


def test_an_arrow_request_must_name_both_spaces_in_the_query(client):
    response = client.post("/v1/translate?source=old", content=stream(ROWS), headers={"content-type": ARROW})
    refused(response, 400, "`target` is missing", "target")


# --- headers ----------------------------------------------------------------------------------------------------------


def test_a_long_accept_header_is_refused_before_it_is_parsed(client, monkeypatch):
    longest = "*/*," * (ACCEPT_BYTES // 4)
    assert post_rows(client, make_rows(1), accept=longest).status_code == 200
    monkeypatch.setattr("repstitch.server.negotiation._read_range", lambda _: 1 / 0)
    refused(
        post_rows(client, make_rows(1), accept=f"{longest},"), 406, "`Accept` may have at most 4096 bytes", "Accept"
    )


def test_content_type_and_accept_headers_are_parsed():
    assert body_type(b"Application/Octet-Stream ; DType=Float16") == MediaType(OCTETS, "float16")
    assert reply_type(b"*/*;q=0, application/json", MediaType(OCTETS)) == MediaType(JSON)
    with pytest.raises(Refusal):
        reply_type(b"application/octet-stream;q=0", MediaType(OCTETS))


def test_too_many_rows_are_refused_from_the_content_length_alone(registry):
    async def never():
        raise AssertionError("the body was read")
        yield b""

    async def scenario():
        app = create_app(registry, Settings(max_rows=3))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=LOCAL) as client:
            headers = {"content-type": OCTETS, "content-length": str(24 * 4)}
            return await client.post(URL, content=never(), headers=headers)

    message = "A request may contain at most 3 rows; got 4. Send them in several requests"
    refused(asyncio.run(scenario()), 413, message, "embedding")
