"""Who is let in."""

import httpx
import pytest
from server_calls import LOCAL, URL, client_of, post_rows, refused
from serving import free_port, make_rows, running, serve_command
from starlette.testclient import TestClient

from repstitch.errors import InputError
from repstitch.server.http import create_app
from repstitch.server.settings import Settings, is_loopback

KEYS = ("first-key", "second-key")
OPEN = ("/livez", "/healthz", "/readyz", "/openapi.json", "/docs")
CLOSED = ("/v1/stitchers", "/v1/stitchers/old-to-new", "/v1/spaces", "/v1/models", "/metrics", "/nothing", "/")


def with_key(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.mark.parametrize("key", KEYS)
def test_each_of_the_keys_opens(registry, key):
    client = client_of(registry, api_keys=KEYS)
    assert post_rows(client, make_rows(1), **with_key(key)).status_code == 200
    assert client.get("/v1/stitchers", headers=with_key(key)).status_code == 200
    assert client.get("/v1/stitchers", headers={"authorization": f"bearer  {key} "}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": ""},
        {"authorization": "Bearer"},
        {"authorization": "Bearer "},
        {"authorization": "Bearer first-ke"},
        {"authorization": "Bearer first-keys"},
        {"authorization": "Basic first-key"},
        {"authorization": "first-key"},
        {"authorization": "Bearer first-key,second-key"},
        {"authorization": b"Bearer \xff\xfe"},
        {"x-api-key": "first-key"},
    ],
)
def test_anything_else_does_not(registry, headers):
    client = client_of(registry, api_keys=KEYS)
    message = "This service asks for a key: send `Authorization: Bearer KEY` with one of REPSTITCH_API_KEYS"
    for path in CLOSED:
        response = client.get(path, headers=headers)
        refused(response, 401, message, "Authorization")
        assert response.headers["www-authenticate"] == "Bearer"
    refused(client.post(URL, content=b"x" * 24, headers=headers), 401, message, "Authorization")


def test_health_and_the_description_are_open_and_so_is_asking_for_options(registry):
    client = client_of(registry, api_keys=KEYS)
    assert [client.get(path).status_code for path in OPEN] == [200] * len(OPEN)
    refused(client.options("/v1/translate"), 405, "This route does not take that method")


def test_all_keys_are_compared_whole_whichever_fits(registry, monkeypatch):
    compared = []

    def compare(a, b):
        compared.append((len(a), len(b)))
        return a == b

    monkeypatch.setattr("repstitch.server.guards.hmac.compare_digest", compare)
    client = client_of(registry, api_keys=KEYS)
    for key in (*KEYS, "x", "y" * 4000):
        compared.clear()
        client.get("/v1/spaces", headers=with_key(key))
        assert compared == [(32, 32)] * len(KEYS)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "localhost", "[::1]"])
def test_without_keys_this_machine_is_answered(registry, host):
    assert TestClient(create_app(registry, Settings()), f"http://{host}").get("/v1/spaces").status_code == 200


@pytest.mark.parametrize("host", ["192.168.1.5", "example.com", "[2001:db8::1]", "0.0.0.0"])
def test_without_keys_others_are_not_unless_that_is_said(registry, host):
    client = TestClient(create_app(registry, Settings()), f"http://{host}")
    refused(client.get("/v1/spaces"), 401, "This service has no keys, so it answers on loopback", "Authorization")
    assert client.get("/readyz").status_code == 200
    opened = TestClient(create_app(registry, Settings(open=True)), f"http://{host}")
    assert opened.get("/v1/spaces").status_code == 200
    keyed = TestClient(create_app(registry, Settings(open=True, api_keys=KEYS)), f"http://{host}")
    assert keyed.get("/v1/spaces").status_code == 401
    assert keyed.get("/v1/spaces", headers=with_key(KEYS[0])).status_code == 200


def test_a_loopback_address_is_known_in_all_its_forms():
    assert all(map(is_loopback, ("127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "::ffff:10.0.0.1", "localhost.example.com", "")))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3"])
def test_a_service_that_others_can_reach_does_not_start_without_keys(host):
    with pytest.raises(InputError, match="can be reached from elsewhere, and no key is asked for: set REPSTITCH_API"):
        Settings().check_exposure(host)
    Settings(api_keys=KEYS).check_exposure(host)
    Settings(open=True).check_exposure(host)
    Settings().check_exposure("127.0.0.1")


@pytest.mark.parametrize("keys", [("a b",), ("ü",), ("a\tb",), ("",)])
def test_keys_that_no_header_can_carry_are_refused_and_not_shown(keys):
    if keys == ("",):
        assert Settings.from_env({"REPSTITCH_API_KEYS": " , "}).api_keys == ()
        return
    with pytest.raises(InputError, match="one of them is none") as caught:
        Settings(api_keys=keys)
    assert keys[0] not in str(caught.value)
    assert "first-key" not in repr(Settings(api_keys=KEYS))


def test_pages_of_other_origins_may_call_only_where_that_is_said(registry):
    preflight = {"origin": "https://page.example", "access-control-request-method": "POST"}
    preflight["access-control-request-headers"] = "authorization,content-type"
    closed = client_of(registry, api_keys=KEYS)
    assert "access-control-allow-origin" not in closed.options("/v1/translate", headers=preflight).headers
    client = client_of(registry, api_keys=KEYS, cors_origins=("https://page.example",))
    asked = client.options("/v1/translate", headers=preflight)
    assert asked.status_code == 200
    assert asked.headers["access-control-allow-origin"] == "https://page.example"
    response = post_rows(client, make_rows(1), origin="https://page.example", **with_key(KEYS[0]))
    assert "X-Stitcher-Version" in response.headers["access-control-expose-headers"]
    refusal = post_rows(client, make_rows(1), origin="https://page.example")
    assert refusal.status_code == 401
    assert refusal.headers["access-control-allow-origin"] == "https://page.example"
    other = client.options("/v1/translate", headers=preflight | {"origin": "https://other.example"})
    assert "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize("workers", [1, 2])
def test_a_running_service_asks_for_a_key_and_never_logs_it(folder, tmp_path, workers):
    port, log = free_port(), tmp_path / "log"
    url = f"{LOCAL}:{port}{URL}"
    with running(serve_command(folder, port, workers), port, log, env={"REPSTITCH_API_KEYS": ", ".join(KEYS)}):
        headers, body = {"content-type": "application/octet-stream"}, make_rows(1).tobytes()
        assert httpx.post(url, content=body, headers=headers).status_code == 401
        assert httpx.post(url, content=body, headers=headers | with_key("third-key")).status_code == 401
        for key in KEYS:
            assert httpx.post(url, content=body, headers=headers | with_key(key)).status_code == 200
        assert httpx.get(f"{LOCAL}:{port}/metrics").status_code == 401
    assert not any(key in log.read_text() for key in (*KEYS, "third-key"))
