"""API keys and loopback access; names, pickles and logs are safe."""

import os

import pytest
from helpers.server_calls import LOCAL, URL, client_of, post_rows, refused, service_of
from helpers.serving import eventually, make_rows, post
from starlette.testclient import TestClient

from repstitch.errors import InputError
from repstitch.server.app import create_app
from repstitch.server.settings import Settings, is_loopback

KEYS = ("first-key", "second-key")
KEY_REQUIRED = "This service requires an API key: send `Authorization: Bearer KEY`, `x-api-key` or `api-key`."
OPEN = ("/livez", "/healthz", "/readyz", "/openapi.json", "/docs")
CLOSED = ("/v1/stitchers", "/v1/stitchers/old-to-new", "/v1/spaces", "/v1/models", "/metrics", "/nothing", "/")


def with_key(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.mark.parametrize("key", KEYS)
def test_every_configured_key_is_accepted(registry, key):
    client = client_of(registry, api_keys=KEYS)
    assert post_rows(client, make_rows(1), **with_key(key)).status_code == 200
    assert client.get("/v1/stitchers", headers=with_key(key)).status_code == 200
    assert client.get("/v1/stitchers", headers={"authorization": f"bearer  {key} "}).status_code == 200


@pytest.mark.parametrize("header", ["x-api-key", "api-key", "X-API-Key"])
def test_a_key_may_be_sent_in_the_headers_of_other_services(registry, header):
    client = client_of(registry, api_keys=KEYS)
    assert client.get("/v1/stitchers", headers={header: KEYS[1]}).status_code == 200
    both = {header: KEYS[1], "authorization": "Basic of-a-proxy"}
    assert client.get("/v1/stitchers", headers=both).status_code == 200


def test_keys_in_a_file_are_read_again_while_the_service_runs(registry, tmp_path, caplog):
    file = tmp_path / "keys"
    file.write_text("# of the first team\nold-key\n\n", encoding="utf-8")
    client = client_of(registry, api_keys=KEYS, api_keys_file=file)
    keys = service_of(client).keys

    def statuses(*sent):
        return [client.get("/v1/spaces", headers=with_key(key)).status_code for key in sent]

    assert statuses("old-key", KEYS[0], "new-key", "# of the first team", "") == [200, 200, 401, 401, 401]
    file.write_text("new-key\r\n", encoding="utf-8")
    keys.reload()
    assert statuses("old-key", KEYS[0], "new-key") == [401, 200, 200]
    for broken in (
        lambda: file.write_text(""),
        lambda: file.write_bytes(b"a b\n"),
        lambda: file.write_bytes(b"\xff\xfe"),
        lambda: os.truncate(file, 2**21),
        file.unlink,
        lambda: os.mkfifo(file),
        lambda: (file.unlink(), file.symlink_to(file)),
        lambda: (file.unlink(), file.symlink_to("/dev/zero")),
    ):
        broken()
        caplog.clear()
        for _ in range(3):
            keys.reload()
        assert statuses("old-key", KEYS[0], "new-key") == [401, 200, 200]
        assert caplog.text.count("The API keys that were read before stay valid: `api_keys_file`") == 1
    assert "new-key" not in caplog.text


def test_a_running_service_notices_new_keys_in_a_file(registry, tmp_path):
    file = tmp_path / "keys"
    file.write_text("old-key", encoding="utf-8")
    app = create_app(registry, Settings(api_keys_file=file, reload_s=0.05))
    with TestClient(app, LOCAL) as client:
        assert client.get("/v1/spaces", headers=with_key("new-key")).status_code == 401
        file.write_text("new-key", encoding="utf-8")
        eventually(lambda: client.get("/v1/spaces", headers=with_key("new-key")).status_code == 200)
        assert client.get("/v1/spaces", headers=with_key("old-key")).status_code == 401


@pytest.mark.parametrize(
    ("content", "message"),
    [("\n# none\n", "at least one API key"), ("a b", "printable ASCII without spaces"), (None, "cannot be read")],
)
def test_a_file_of_keys_that_cannot_be_used_stops_the_start(tmp_path, content, message):
    file = tmp_path / "keys"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=f"api_keys_file.*{message}"):
        Settings.from_env({"REPSTITCH_API_KEYS_FILE": str(file)})


def test_a_file_of_keys_is_passed_to_workers_and_counts_as_keys(tmp_path):
    file = tmp_path / "keys"
    file.write_text("key", encoding="utf-8")
    settings = Settings(api_keys_file=file, open=True)
    assert Settings.from_env(settings.to_env()).api_keys_file == file
    assert Settings.from_env(Settings().to_env()).api_keys_file is None
    settings.check_exposure("0.0.0.0")
    assert settings.requires_key


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
        {"x-api-key": ""},
        {"x-api-key": "third-key"},
        {"api-key": "Bearer first-key"},
        {"x-key": "first-key"},
    ],
)
def test_any_other_authorization_is_refused(registry, headers):
    client = client_of(registry, api_keys=KEYS)
    response = client.get("/v1/spaces", headers=headers)
    refused(response, 401, KEY_REQUIRED, "Authorization")
    assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("headers", [{}, with_key("third-key")])
def test_protected_paths_require_a_key(registry, headers):
    client = client_of(registry, api_keys=KEYS)
    for path in CLOSED:
        refused(client.get(path, headers=headers), 401, KEY_REQUIRED, "Authorization")
    refused(client.post(URL, content=b"x" * 24, headers=headers), 401, KEY_REQUIRED, "Authorization")


def test_health_routes_the_openapi_document_and_options_requests_need_no_key(registry):
    client = client_of(registry, api_keys=KEYS)
    assert [client.get(path).status_code for path in OPEN] == [200] * len(OPEN)
    refused(client.options("/v1/translate"), 405, "This route does not support this HTTP method")


def test_every_key_is_compared_in_constant_time_whichever_matches(registry, monkeypatch):
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
def test_without_keys_requests_to_a_loopback_address_are_answered(registry, host):
    assert TestClient(create_app(registry, Settings()), f"http://{host}").get("/v1/spaces").status_code == 200


@pytest.mark.parametrize("host", ["192.168.1.5", "example.com", "[2001:db8::1]", "0.0.0.0"])
def test_without_keys_other_requests_are_refused_unless_open_is_set(registry, host):
    client = TestClient(create_app(registry, Settings()), f"http://{host}")
    refused(
        client.get("/v1/spaces"),
        401,
        "This service has no API keys, so it answers only requests to a loopback",
        "Authorization",
    )
    assert client.get("/readyz").status_code == 200
    opened = TestClient(create_app(registry, Settings(open=True)), f"http://{host}")
    assert opened.get("/v1/spaces").status_code == 200
    keyed = TestClient(create_app(registry, Settings(open=True, api_keys=KEYS)), f"http://{host}")
    assert keyed.get("/v1/spaces").status_code == 401
    assert keyed.get("/v1/spaces", headers=with_key(KEYS[0])).status_code == 200


def test_every_form_of_loopback_address_is_recognised():
    assert all(map(is_loopback, ("127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "::ffff:10.0.0.1", "localhost.example.com", "")))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3"])
def test_a_service_reachable_from_other_machines_does_not_start_without_keys(host):
    with pytest.raises(
        InputError, match="is reachable from other machines, but no API keys are set: set REPSTITCH_API"
    ):
        Settings().check_exposure(host)
    Settings(api_keys=KEYS).check_exposure(host)
    Settings(open=True).check_exposure(host)
    Settings().check_exposure("127.0.0.1")


@pytest.mark.parametrize("keys", [("a b",), ("ü",), ("a\tb",), ("",)])
def test_keys_that_a_header_cannot_contain_are_refused_and_not_shown(keys):
    if keys == ("",):
        assert Settings.from_env({"REPSTITCH_API_KEYS": " , "}).api_keys == ()
        return
    with pytest.raises(InputError, match="one is not") as caught:
        Settings(api_keys=keys)
    assert keys[0] not in str(caught.value)
    assert "first-key" not in repr(Settings(api_keys=KEYS))


def test_only_configured_origins_may_call_from_a_web_page(registry):
    preflight = {"origin": "https://page.example", "access-control-request-method": "POST"}
    preflight["access-control-request-headers"] = "authorization,content-type"
    closed = client_of(registry, api_keys=KEYS)
    assert "access-control-allow-origin" not in closed.options("/v1/translate", headers=preflight).headers
    client = client_of(registry, api_keys=KEYS, cors_origins=("https://page.example",))
    allowed = client.options("/v1/translate", headers=preflight)
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == "https://page.example"
    response = post_rows(client, make_rows(1), origin="https://page.example", **with_key(KEYS[0]))
    assert "X-Stitcher-Version" in response.headers["access-control-expose-headers"]
    refusal = post_rows(client, make_rows(1), origin="https://page.example")
    assert refusal.status_code == 401
    assert refusal.headers["access-control-allow-origin"] == "https://page.example"
    other = client.options("/v1/translate", headers=preflight | {"origin": "https://other.example"})
    assert "access-control-allow-origin" not in other.headers


# --- names, logs, pickles ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "..%2F..%2Fetc%2Fpasswd",
        "..",
        "%2E%2E%2Fold-to-new",
        ".%2Fold-to-new",
        "old-to-new%00",
        "%2Fetc",
        "old-to-new%2Fconfig.json",
    ],
)
def test_a_stitcher_name_is_never_used_as_a_path(client, folder, name):
    (folder.parent / "secret").write_text("secret")
    response = client.get(f"/v1/stitchers/{name}")
    assert response.status_code in (400, 404)
    assert "secret" not in response.text
    for query in (f"stitcher={name}&source=old&target=new", f"source={name}&target=new"):
        assert post_rows(client, make_rows(1), f"/v1/translate?{query}").status_code in (400, 404)


PICKLES = ("application/vnd.bentoml+pickle", "application/x-pickle", "application/python-pickle", "application/pickle")


@pytest.mark.parametrize("content_type", PICKLES)
@pytest.mark.parametrize("path", ["/v1/translate?source=old&target=new", "/v1/embeddings", "/v1/score"])
def test_a_pickle_is_415_on_every_route_and_never_loaded(client, path, content_type, tmp_path):
    import pickle

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "loaded"), "w"))

    response = client.post(path, content=pickle.dumps(Evil()), headers={"content-type": content_type})
    refused(response, 415, "`Content-Type` must be", "Content-Type")
    assert not (tmp_path / "loaded").exists()


def test_nothing_in_the_package_can_load_a_pickle():
    import ast
    from pathlib import Path

    import repstitch

    for path in Path(repstitch.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                assert not names & {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}, path
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or node.func.attr != "load":
                continue
            if ast.unparse(node.func).endswith("np.load"):
                assert any(k.arg == "allow_pickle" and ast.unparse(k.value) == "False" for k in node.keywords), path
            if ast.unparse(node.func) == "torch.load":
                assert any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords), path


def test_no_log_line_contains_a_number_of_a_vector(service):
    port, log = service
    url, number = f"{LOCAL}:{port}{URL}", 0.123456
    bad = [number] * 5 + ["x"]
    post(url, json={"embedding": [number] * 6})
    post(url, json={"embedding": bad})
    post(url, json={"embedding": [number] * 5})
    post(url, content=f'{{"embedding": [{number}, '.encode(), headers={"content-type": "application/json"})
    post(f"{LOCAL}:{port}/v1/embeddings", json={"model": "old->new", "input": [number] * 6})
    post(f"{LOCAL}:{port}/v1/score", json={"embedding": [[number] * 6], "counterpart": [[number] * 4]})
    assert "123456" not in post(url, json={"embedding": bad}).text
    assert "123456" not in log.read_text()
