import base64
import re

import numpy as np
import orjson
import pytest

from repstitch.wire import fields
from repstitch.wire import rows as bytes_
from repstitch.wire.rows import MalformedError, UnusableError

DIM = 3
ROWS = np.array([[1, 2, 3], [-0.1, 1e-20, 3e38]], dtype=np.float32)


def b64(array) -> str:
    return base64.b64encode(np.asarray(array, dtype="<f4").tobytes()).decode()


def test_rows_round_trip_through_bytes():
    assert np.array_equal(bytes_.rows_from_bytes(bytearray(bytes_.rows_to_bytes(ROWS)), DIM), ROWS)


def test_bytes_are_little_endian_float32():
    assert bytes_.rows_to_bytes(np.array([[1.0]], dtype=">f4")) == b"\x00\x00\x80\x3f"


@pytest.mark.parametrize(
    ("n_bytes", "kind", "message"),
    [
        (0, MalformedError, "must contain at least one row of 3 float32 numbers; it is empty"),
        (13, MalformedError, "a multiple of 4 bytes; got 13"),
        (16, UnusableError, "whole rows of 3 float32 numbers, a multiple of 12 bytes; got 16"),
    ],
)
def test_bytes_that_do_not_fill_whole_rows_are_refused(n_bytes, kind, message):
    with pytest.raises(kind, match=message):
        bytes_.rows_from_bytes(bytearray(n_bytes), DIM)


@pytest.mark.parametrize("encoding", fields.ENCODINGS)
@pytest.mark.parametrize("n", [1, 2])
def test_embeddings_round_trip_through_json_exactly(encoding, n):
    text = fields.write_json({"embedding": fields.write_embedding(ROWS[:n], False, encoding)})
    rows, _ = fields.read_embedding(orjson.loads(text)["embedding"], DIM)
    assert np.array_equal(rows, ROWS[:n])


@pytest.mark.parametrize("n", [1, fields.PART_ROWS, fields.PART_ROWS + 1, 3 * fields.PART_ROWS])
@pytest.mark.parametrize("kind", ["rows", "list", "base64"])
def test_the_parts_of_a_reply_joined_equal_a_reply_in_one_part(n, kind):
    rows = np.random.default_rng(n).standard_normal((n, DIM), dtype=np.float32)
    values = {"rows": rows, "list": [{"index": i} for i in range(n)], "base64": b64(rows)}
    rest = {"model": "a]b", "rows": n}
    parts = fields.write_reply("embedding", values[kind], rest)
    assert (len(parts) > 1) == (n > fields.PART_ROWS and kind != "base64")
    assert b"".join(parts) == fields.write_json({"embedding": values[kind], **rest})


def test_a_long_vector_is_written_in_one_part():
    vector = np.arange(2 * fields.PART_ROWS, dtype=np.float32)
    assert fields.write_reply("embedding", vector, {}) == [fields.write_json({"embedding": vector})]


@pytest.mark.parametrize(("bracket", "limit"), [(b"[", 2 * 10 + fields.EXTRA_BRACKETS), (b"{", fields.EXTRA_BRACKETS)])
def test_too_many_brackets_are_refused_before_parsing(bracket, limit):
    with pytest.raises(MalformedError, match="at most 10 rows; it has too many brackets"):
        fields.read_json(b'{"embedding":' + bracket * (limit + 1), "embedding", fields.TRANSLATE, 10)
    with pytest.raises(MalformedError, match="must be JSON"):
        fields.read_json(b'{"embedding":' + bracket * (limit - 1), "embedding", fields.TRANSLATE, 10)


def test_one_vector_in_is_one_vector_out():
    rows, single = fields.read_embedding([1, 2.5, 3], DIM)
    assert single
    assert rows.shape == (1, DIM)
    assert orjson.loads(fields.write_json(fields.write_embedding(rows, single, "float"))) == [1, 2.5, 3]


def test_a_list_with_one_vector_stays_a_list():
    rows, single = fields.read_embedding([[1, 2, 3]], DIM)
    assert not single
    assert orjson.loads(fields.write_json(fields.write_embedding(rows, single, "float"))) == [[1, 2, 3]]


@pytest.mark.parametrize(
    ("embedding", "message"),
    [
        ([], "must contain at least one row of 3 numbers; it is empty"),
        ([[]], "Row 0 of `embedding` must contain numbers; got an empty list"),
        ([1, "2", 3], "list of numbers or a list of rows of numbers; got text at position 1"),
        (["1", "2", "3"], "got text at position 0"),
        ([1, None, 3], "got null at position 1"),
        ([1, True, 3], "got a boolean at position 1"),
        ([1, [2], 3], "got a list at position 1"),
        ([{}, 1, 2], "got an object at position 0"),
        ([[1, 2, 3], [1, None, 3]], "Row 1 of `embedding` must be a list of numbers; got null at position 1"),
        ([[1, 2, 3], 4], "Row 1 of `embedding` must be a list, like the rows before it; got a number"),
        ([[1, 2, 3], [1, 2]], "must all have 3 numbers; row 0 has 3, row 1 has 2"),
        ([[[1, 2, 3]]], "Row 0 of `embedding` must be a list of numbers; got a list at position 0"),
        (7, "must be a list of numbers, a list of such lists, or base64; got a number"),
        (None, "or base64; got null"),
        ({"0": 1}, "or base64; got an object"),
        ("", "in base64 must contain at least one row of 3 float32 numbers; it is empty"),
        ("AAA", "must be standard base64 of float32 bytes; Incorrect padding"),
        ("AAAA\nAAAA", "must be standard base64 of float32 bytes; Only base64 data is allowed"),
        ("AAA-_AAA", "must be standard base64 of float32 bytes; Only base64 data is allowed"),
        ("é", "must be standard base64 of float32 bytes"),
        ("AAAA", "a multiple of 4 bytes; got 3 bytes"),
    ],
)
def test_an_embedding_that_cannot_be_read_is_refused(embedding, message):
    with pytest.raises(MalformedError, match=re.escape(message)) as caught:
        fields.read_embedding(embedding, DIM)
    assert caught.value.param == "embedding"


@pytest.mark.parametrize(
    ("embedding", "message"),
    [
        ([1, 2], "`embedding` must have 3 numbers; got 2"),
        ([[1, 2], [3, 4]], "The rows of `embedding` must have 3 numbers; got 2"),
        ([[1, 2, 3, 4, 5, 6]], "must have 3 numbers; got 6"),
        (b64([1, 2]), "whole rows of 3 float32 numbers, a multiple of 12 bytes; got 8"),
    ],
)
def test_rows_of_another_dimension_are_never_reshaped(embedding, message):
    with pytest.raises(UnusableError, match=message):
        fields.read_embedding(embedding, DIM)


def test_numbers_too_large_for_float32_become_inf_and_are_reported():
    rows, _ = fields.read_embedding([[1, 2, 3], [1e39, 2**64, 3]], DIM)
    assert bytes_.faults(rows) == (
        "`embedding` must be finite float32 numbers; 1 of 2 rows (first: row 1) contain NaN or Inf."
    )


def test_a_signalling_nan_is_reported_without_a_warning(recwarn):
    rows = np.frombuffer(b"\x01\x00\x80\x7f" * 6, "<f4").reshape(1, 6)
    assert "NaN or Inf" in (bytes_.faults(rows) or "")
    assert not recwarn.list


def test_faults_name_the_first_row_of_zeros():
    rows = np.array([[1, 2, 3], [0, 0, 0], [0, 0, 0]], dtype=np.float32)
    assert bytes_.faults(rows) == "`embedding` must have a direction; 2 of 3 rows (first: row 1) contain only zeros."
    assert bytes_.faults(rows[:1]) is None


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "The body must be JSON"),
        (b"{", "The body must be JSON; unexpected end of data"),
        (b'{"embedding": [NaN, 1, 2]}', "The body must be JSON"),
        (b'{"embedding": [1e400, 1, 2]}', "The body must be JSON; number is infinity"),
        (b"\xff\xfe", "The body must be JSON"),
        (b"[" * 5000, "The body must be JSON"),
        (b"[1, 2, 3]", 'must be a JSON object {"embedding": ...}; got a list'),
        (b'"text"', "got text"),
        (b"null", "got null"),
        (b"{}", "`embedding` is missing"),
        (b'{"embeddings": [1, 2, 3]}', "`embedding` is missing"),
        (b'{"embedding": [1], "sticher": "x"}', "`sticher` is not a field; allowed fields are embedding, source"),
        (b'{"embedding": [1], "source": 7}', "`source` must be a name; got a number"),
        (b'{"embedding": [1], "target": ""}', "`target` must have 1 to 256 characters; got 0"),
        (b'{"embedding": [1], "encoding_format": "hex"}', "`encoding_format` must be one of float, base64; got 'hex'"),
        (b'{"embedding": [1], "encoding_format": []}', "must be one of float, base64; got a list"),
    ],
)
def test_a_malformed_body_is_refused(body, message):
    with pytest.raises(MalformedError, match=re.escape(message)):
        fields.read_json(bytearray(body), "embedding", fields.TRANSLATE)


@pytest.mark.parametrize("checks", [fields.TRANSLATE, fields.SCORE, fields.EMBEDDINGS])
def test_null_for_an_optional_field_is_the_same_as_leaving_it_out(checks):
    required = "input" if "input" in checks else "embedding"
    for name in set(checks) - {required}:
        body = bytearray(f'{{"{required}": [0.5, 1], "{name}": null}}'.encode())
        assert fields.read_json(body, required, checks) == {required: [0.5, 1]}
    assert fields.read_json(bytearray(f'{{"{required}": null}}'.encode()), required, checks) == {required: None}


def test_a_very_long_name_is_refused():
    with pytest.raises(MalformedError, match="`source` must have 1 to 256 characters; got 1000000"):
        fields.check_name("source", "x" * 1_000_000)


def test_no_message_quotes_the_numbers_of_a_vector():
    for body in (b'{"embedding": [0.123456, "0.654321", 1]}', b'{"embedding": [0.123456, 1'):
        with pytest.raises(MalformedError) as caught:
            fields.read_embedding(fields.read_json(bytearray(body), "embedding", fields.TRANSLATE)["embedding"], DIM)
        assert not re.search("123456|654321", str(caught.value))
