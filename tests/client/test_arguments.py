"""Arguments that the clients refuse before they send anything."""

import numpy as np
import pytest
from helpers.fake_service import ADDRESS, FakeService, W, rows_of, with_value

from repstitch.client import (
    AsyncClient,
)
from repstitch.errors import InputError


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (
            np.zeros((0, 6), np.float32),
            r"`X` must be rows .*, at least one row .*; got shape \(0, 6\). Skip the call.",
        ),
        (np.zeros((3, 0), np.float32), r"at least one row and one column; got shape \(3, 0\)"),
        (np.zeros(0, np.float32), r"got shape \(0,\)"),
        (np.float32(1), r"`X` must be rows \(n, d\) or one vector \(d,\) of floats; got shape \(\). Reshape it"),
        (np.zeros((2, 3, 6), np.float32), r"got shape \(2, 3, 6\). Reshape it"),
        (
            np.ones((2, 6), np.int64),
            r"`X` must be .* of floats; got int64. Convert it, for example with `np.asarray\(X, 'float32'\)`",
        ),
        (np.ones((2, 6), complex), "got complex128"),
        (np.ones((2, 6), bool), "got bool"),
        ([["a"]], "got <U1"),
        ([[1.0], [1.0, 2.0]], r"`X` must be rows \(n, d\) or one vector \(d,\) of floats; setting an array element"),
        (with_value(np.nan, 4), "`X` must contain finite float32 numbers; row 4 has NaN, Inf or .* Remove the row.$"),
        (with_value(-np.inf, 5), "row 5 has NaN, Inf"),
        (with_value(1e39, 3, np.float64), "row 3 has NaN, Inf or a number too large for float32"),
        (np.full(6, np.nan), "row 0 has NaN"),
    ],
)
def test_arrays_that_cannot_be_translated_are_refused_without_a_request(connect, X, message):
    fake = FakeService()
    with pytest.raises(InputError, match=message):
        connect(fake, batch_bytes=48).translate(X, "old", "new")
    assert not fake.requests


def test_numbers_too_large_for_float16_are_refused_with_dtype_float16(connect):
    client, X = connect(FakeService()), with_value(70_000, 1)
    message = 'row 1 has .* too large for float16. Remove the row or send it with dtype="float32".'
    with pytest.raises(InputError, match=message):
        client.translate(X, "old", "new", dtype="float16")
    assert np.array_equal(client.translate(X, "old", "new"), X @ W)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float64"}, "`dtype` must be one of float32, float16; got 'float64'"),
        ({"dtype": np.float32}, "`dtype` must be one of"),
        ({"route": "best"}, "`route` must be one of direct, auto; got 'best'"),
        ({"confidence": 1}, "`confidence` must be one of False, True; got 1"),
        ({"stitcher": ""}, "`stitcher` must have 1 to 256 characters; got 0"),
        ({"stitcher": "x" * 10**6}, "`stitcher` must have 1 to 256 characters; got 1000000"),
        ({"source": None}, "`source` must be a name; got null"),
        ({"target": 3}, "`target` must be a name; got a number"),
        ({"target": "\ud800"}, r"`target` must be a name that UTF-8 can encode; got '\\ud800'"),
    ],
)
def test_choices_and_names_are_checked(connect, options, message):
    fake = FakeService()
    with pytest.raises(InputError, match=message):
        connect(fake).translate_full(rows_of(1), **({"source": "old", "target": "new"} | options))
    assert not fake.requests


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:3000", "`address` must be http:// or https://, a host and at most a path"),
        ("ftp://host", "got ftp://, host 'host'"),
        ("http://", "host ''"),
        ("", "got no scheme"),
        ("http://host:port", "got an invalid URL"),
        ("http://..", "got an invalid URL"),
        (None, "got an invalid URL"),
        ("http://host/?key=secret", "got a query or a fragment after it. Remove it.$"),
        ("http://host?", "got a query"),
        ("http://host#secret", "got a query or a fragment"),
        ("http://me:secret@host", "got a user name or password in it. Pass a key as `api_key`.$"),
    ],
)
def test_an_invalid_address_is_refused_and_not_quoted(kind, address, message):
    with pytest.raises(InputError, match=message) as caught:
        kind(address)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("api_key", ["", "two words", "line\nbreak", "schlüssel", 7])
def test_a_key_that_cannot_be_sent_is_refused_and_not_quoted(kind, api_key):
    with pytest.raises(InputError, match="`api_key` must be visible ASCII characters without spaces") as caught:
        kind(ADDRESS, api_key)
    assert not api_key or str(api_key) not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timeout_s": 0}, "`timeout_s` must be a number of seconds above 0; got 0"),
        ({"timeout_s": float("nan")}, "`timeout_s` must be"),
        ({"timeout_s": None}, "`timeout_s` must be"),
        ({"retries": -1}, "`retries` must be a whole number of at least 0; got -1"),
        ({"retries": True}, "`retries` must be"),
        ({"batch_bytes": 0}, "`batch_bytes` must be a whole number of at least 1; got 0"),
        ({"batch_bytes": 1e6}, "`batch_bytes` must be"),
    ],
)
def test_limits_are_checked(kind, options, message):
    with pytest.raises(InputError, match=message):
        kind(ADDRESS, **options)


def test_the_concurrency_is_checked():
    with pytest.raises(InputError, match="`concurrency` must be a whole number of at least 1; got 0"):
        AsyncClient(ADDRESS, concurrency=0)
