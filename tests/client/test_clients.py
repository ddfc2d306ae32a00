"""Both clients: API key, connections, imports, and calls of the real service."""

import asyncio
from pathlib import Path

import httpx
import numpy as np
import pytest
from helpers.fake_service import ADDRESS, FakeService, problem, rows_of
from helpers.imports import loaded_after
from helpers.serving import free_port, make_rows, make_stitcher, running, serve_command
from helpers.spaces import calibration

from repstitch.client import (
    AsyncClient,
    Client,
    ClientConflictError,
    ClientError,
    ClientInputError,
    ClientNotFoundError,
    ServiceError,
    Translation,
)

KEY = "sesame-0123"


def test_the_key_is_sent_as_bearer_and_shown_nowhere(connect):
    fake = FakeService(faults=[None, problem(401, "The key is not known."), httpx.ConnectError("refused")])
    client = connect(fake, api_key=KEY, retries=0)
    client.translate(rows_of(1), "old", "new")
    assert fake.requests[0].headers["authorization"] == f"Bearer {KEY}"
    shown = repr(client.client)
    assert shown == f"{type(client.client).__name__}('{ADDRESS}')"
    for _ in range(2):
        with pytest.raises(ClientError) as caught:
            client.translate(rows_of(1), "old", "new")
        assert KEY not in f"{caught.value!r} {caught.value} {caught.value.__dict__} {caught.value.__cause__!r}"


def test_without_a_key_no_authorization_header_is_sent(connect):
    fake = FakeService()
    connect(fake).translate(rows_of(1), "old", "new")
    assert "authorization" not in fake.requests[0].headers


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirects_are_not_followed(connect, status):
    fake = FakeService(faults=[httpx.Response(status, headers={"location": "http://elsewhere/"})])
    with pytest.raises(ServiceError, match=f"`address` must be the URL of the service; got a redirect \\({status}\\)"):
        connect(fake, api_key=KEY).translate(rows_of(1), "old", "new")
    assert [request.url.host for request in fake.requests] == ["127.0.0.1"]


def test_an_address_may_have_a_path(connect):
    fake = FakeService()
    connect(fake, "https://host/vectors/").translate(rows_of(1), "old", "new")
    assert str(fake.requests[0].url) == "https://host/vectors/v1/translate?source=old&target=new"


# --- context managers, imports ----------------------------------------------------------------------------------------


def test_leaving_the_block_closes_the_connections():
    with Client(ADDRESS) as client:
        assert not client._http.is_closed
    assert client._http.is_closed

    async def scenario():
        async with AsyncClient(ADDRESS) as client:
            assert not client._http.is_closed
        return client._http.is_closed

    assert asyncio.run(scenario())


def test_importing_the_client_loads_neither_torch_nor_the_server():
    code = "import repstitch.client\nassert not {'starlette', 'uvicorn', 'orjson', 'pyarrow'} & set(sys.modules)"
    assert loaded_after(code) == {"numpy"}


def test_without_httpx_a_client_says_what_to_install():
    code = (
        "sys.modules['httpx'] = None\nfrom repstitch.client import AsyncClient, Client\n"
        "from repstitch.errors import InputError\n"
        "for kind in (Client, AsyncClient):\n    try:\n        kind('http://host')\n        raise SystemExit(1)\n"
        "    except InputError as error:\n"
        "        assert 'needs httpx; install it with `pip install repstitch[serve]`' in str(error), error"
    )
    assert loaded_after(code) == {"numpy"}


# --- the real service -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vectors", [make_rows(5), make_rows(1), make_rows(1)[0]], ids=["rows", "row", "vector"])
def test_the_application_translates_as_the_stitcher_does(to_app, vectors):
    result = to_app({"batch_bytes": 48}).translate_full(vectors, "old", "new")
    expected = np.asarray(make_stitcher().translate(np.atleast_2d(vectors))).reshape(*vectors.shape[:-1], 4)
    assert np.allclose(result.vectors, expected, atol=1e-6)
    assert result.vectors.shape == expected.shape
    assert (result.stitcher, result.version) == ("old-to-new", make_stitcher().version)


def test_the_confidence_from_the_application_equals_that_of_the_stitcher(to_app):
    X = make_rows(5)
    expected = make_stitcher("sure", calibration=calibration(6, pool=500)).confidence(X).to_dict()
    result = to_app({"batch_bytes": 48}).translate_full(X, "sure", "new", confidence=True)
    assert list(result.confidence) == list(expected)
    for name, values in expected.items():
        assert np.allclose(result.confidence[name], values, rtol=1e-3)


def test_refusals_of_the_application_raise_typed_errors(to_app):
    client, X = to_app(), make_rows(3)
    with pytest.raises(ClientNotFoundError, match=r"There is no space 'ol' .* Nearest: old") as caught:
        client.translate(X, "ol", "new")
    assert (caught.value.status, caught.value.code, caught.value.param) == (404, "not_found", "source")
    with pytest.raises(ClientConflictError, match="has no calibration"):
        client.translate_full(X, "old", "new", confidence=True)
    with pytest.raises(ClientInputError, match="The rows must have 6 numbers; got `X-Dim` 5") as caught:
        client.translate(make_rows(1, 5), "old", "new")
    assert caught.value.status == 422
    with pytest.raises(ClientInputError, match="contain only zeros"):
        client.translate(np.zeros((1, 6), np.float32), "old", "new")
    with pytest.raises(ClientNotFoundError, match="Nearest: old-to-new"):
        client.stitcher("old-to-ne")


def test_batches_above_the_limits_of_the_application_are_halved(to_app):
    X = make_rows(9)
    expected = make_stitcher().translate(X)
    for limits in ({"max_rows": 2}, {"max_body_bytes": 50}):
        assert np.allclose(to_app(**limits).translate(X, "old", "new"), expected, atol=1e-6)


def test_the_spaces_and_stitchers_of_the_application_are_listed(to_app):
    client = to_app()
    assert client.ready()
    assert [space["name"] for space in client.spaces()] == ["new", "old", "sure"]
    assert [stitcher["name"] for stitcher in client.stitchers()] == ["old-to-new", "sure-to-new"]
    assert client.stitcher("old-to-new")["version"] == make_stitcher().version


def test_both_clients_translate_with_a_service_in_a_separate_process(tmp_path: Path):
    folder, port = tmp_path / "stitchers", free_port()
    make_stitcher().save(folder / "old-to-new")
    X = make_rows(20_000)
    expected = make_stitcher().translate(X)
    env = {"OMP_NUM_THREADS": "1", "REPSTITCH_MAX_BODY_BYTES": "200000"}

    async def scenario():
        async with AsyncClient(f"http://127.0.0.1:{port}", batch_bytes=100_000) as client:
            return await client.translate(X, "old", "new")

    unreachable = Client(f"http://127.0.0.1:{free_port()}", retries=0)
    assert not unreachable.ready()
    with running(serve_command(folder, port), port, tmp_path / "log", env=env):
        with Client(f"http://127.0.0.1:{port}") as client:
            assert client.ready()
            # 480 kB in one request, which the service refuses unread and the client then halves.
            assert np.allclose(client.translate(X, "old", "new"), expected, atol=1e-6)
            assert isinstance(client.translate_full(X[0], "old", "new"), Translation)
        assert np.allclose(asyncio.run(scenario()), expected, atol=1e-6)
