"""Reading rows in parts gives the same rows as parsing the whole text, or None where the whole must be parsed."""

import json
import tracemalloc

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from repstitch.wire import fields, lists
from repstitch.wire.fields import EMBEDDINGS, TRANSLATE, read_embedding, read_json
from repstitch.wire.rows import MalformedError, UnusableError

DIM = 3
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
ROWS = st.lists(st.lists(FLOATS, min_size=DIM, max_size=DIM), min_size=1, max_size=8)
PART_BYTES = st.sampled_from([1, 7, 64])
SPACES = st.sampled_from([(",", ":"), (", ", ": "), (" ,\n\t", " : ")])
PIECES = (
    b"[",
    b"]",
    b",",
    b"[[",
    b"]]",
    b"],[",
    b'"',
    b"1",
    b"-0.5",
    b"null",
    b"{",
    b"}",
    b" ",
    b'"x"',
    b"1e999",
    b"\\",
)


@pytest.fixture(params=[1, 7, 64])
def in_parts(request, monkeypatch):
    monkeypatch.setattr(lists, "PART_BYTES", request.param)


@given(part_bytes=PART_BYTES, rows=ROWS, separators=SPACES, before=st.booleans(), data=st.data())
def test_rows_read_in_parts_equal_those_of_the_whole_text(part_bytes, rows, separators, before, data):
    rest = data.draw(st.dictionaries(st.sampled_from(["source", "target", "x"]), st.text(max_size=5)))
    payload = {**rest, "embedding": rows} if before else {"embedding": rows, **rest}
    text = json.dumps(payload, separators=separators).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lists, "PART_BYTES", part_bytes)
        result = lists.read_rows(text, "embedding")
    if result is None:  # only where a text value contains brackets
        assert any(set("[]") & set(value) for value in rest.values())
        return
    assert np.array_equal(result.pop("embedding"), np.array(rows, np.float32))
    assert result == rest


@given(part_bytes=PART_BYTES, rows=ROWS, data=st.data())
def test_a_corrupted_text_is_never_read_differently_in_parts(part_bytes, rows, data):
    text = orjson.dumps({"embedding": rows, "source": "old"})
    for _ in range(data.draw(st.integers(1, 3))):
        at, end = sorted((data.draw(st.integers(0, len(text))), data.draw(st.integers(0, len(text)))))
        end = min(end, at + data.draw(st.integers(0, 4)))
        text = text[:at] + data.draw(st.sampled_from(PIECES)) + text[end:]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lists, "PART_BYTES", part_bytes)
        result = lists.read_rows(text, "embedding")
    if result is not None:
        whole = orjson.loads(text)
        assert np.array_equal(result.pop("embedding"), np.array(whole.pop("embedding"), np.float32))
        assert result == whole


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[[1.5]]",
        b'{"embedding":[[1.5]]',
        b'{"embedding":[[1.5],]}',
        b'{"embedding":[[1.5]],"embedding":"x"}',
        b'{"embedding":[[1.5]],"embedding":[[2.5]]}',
        b'{"embedding":[1.5],"other":[[1.5]]}',
        b'{"embedding":[[1.5],[[1.5]]]}',
        b'{"embedding":[[1.5],[1.5,2.5]]}',
        b'{"embedding":[[1.5],[]]}',
        b'{"embedding":[[1.5],[true]]}',
        b'{"embedding":[[1.5],[1.5,null]]}',
        b'{"embedding":[[1.5],["]],[["]]}',
        b'{"embedding":[[1.5],{"a":[1.5]}]}',
        b'{"embedding":[[1,2],[3,4]]}',  # whole numbers may be tokens
        b'{"embedding":"[[1.5]]"}',
        b'{"embedding":"\\[[1.5]]"}',
        b'{"embedding":[[1.5]]x}',
        b'{"embedding":[[NaN]]}',
        b'{"embedding":[[1.5]' + b" " * 5000 + b"]}",
        b'{"embedding":[[1.5]], "source": "' + b"x" * 5000 + b'"}',
    ],
)
def test_anything_but_a_list_of_float_rows_is_not_read_in_parts(text, in_parts):
    assert lists.read_rows(text, "embedding") is None


def test_the_last_of_two_fields_of_one_name_counts(in_parts):
    assert lists.read_rows(b'{"embedding":[[1.5]],"embedding":"x"}', "embedding") is None
    assert lists.read_rows(b'{"embedding":"x","embedding":[[1.5]]}', "embedding") == {"embedding": [[1.5]]}


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_the_rows_of_a_long_request_are_read_as_an_array(kind):
    rows = np.random.default_rng(0).standard_normal((20_000, DIM), dtype=np.float32)
    text = orjson.dumps({"source": "old", "embedding": rows, "target": "new"}, option=orjson.OPT_SERIALIZE_NUMPY)
    assert len(text) > 2**20 - 2**19
    result = read_json(kind(text + b" " * 2**20), "embedding", TRANSLATE, 20_000)
    assert not isinstance(result["embedding"], np.ndarray)  # too much text follows the rows
    result = read_json(kind(b" " * 2**20 + text), "embedding", TRANSLATE, 20_000)
    assert np.array_equal(result["embedding"], rows)
    array, single = read_embedding(result["embedding"], DIM)
    assert np.array_equal(array, rows)
    assert not single
    with pytest.raises(UnusableError, match="The rows of `embedding` must have 4 numbers; got 3"):
        read_embedding(result["embedding"], 4)
    with pytest.raises(MalformedError, match="too many brackets"):
        read_json(kind(b" " * 2**20 + text), "embedding", TRANSLATE, 100)


def test_numbers_too_large_for_float32_become_inf_and_integers_are_read():
    result = lists.read_rows(b'{"embedding":[[1e300,-1e300,2,0.5]]}', "embedding")
    assert result is not None
    assert result["embedding"].tolist() == [[np.inf, -np.inf, 2, 0.5]]


def test_tokens_in_a_long_request_stay_whole_numbers(monkeypatch):
    monkeypatch.setattr(fields, "LONG_BYTES", 1000)
    text = b'{"input":[[1,2]' + b",[1,2]" * 200 + b'],"model":"m"}'
    assert read_json(text, "input", EMBEDDINGS)["input"][0] == [1, 2]


def test_reading_in_parts_takes_a_fraction_of_the_memory(monkeypatch):
    monkeypatch.setattr(lists, "PART_BYTES", 2**16)
    rows = np.random.default_rng(0).standard_normal((1000, 256), dtype=np.float32)
    text = orjson.dumps({"embedding": rows}, option=orjson.OPT_SERIALIZE_NUMPY)

    def peak(read) -> int:
        tracemalloc.start()
        read()
        n_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return n_bytes

    whole = peak(lambda: np.array(json.loads(text)["embedding"], np.float32))
    assert peak(lambda: lists.read_rows(text, "embedding")) < whole / 3


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_characters_are_counted_across_blocks(kind):
    for n in (0, 1, lists.BLOCK):
        assert lists.count(kind(b"[a{[" * n), b"[") == 2 * n
        assert lists.count(kind(b"[a{[" * n), b"{") == n


@pytest.mark.parametrize("space", [b"\x0b", b"\x0c", b"\xa0", b"\x00", b"\xef\xbb\xbf"])
def test_only_json_whitespace_is_accepted_between_rows(space, in_parts):
    row, many = b"[1.5]", b",[1.5]" * 20
    assert lists.read_rows(b'{"embedding":[' + row + many + b"]}", "embedding") is not None
    assert lists.read_rows(b'{"embedding":[' + row + many.replace(b",", space + b",") + b"]}", "embedding") is None
    assert lists.read_rows(b'{"embedding":[' + space + row + many + b"]}", "embedding") is None
    assert lists.read_rows(b'{"embedding":[' + row + many + space + b"]}", "embedding") is None
