"""No secret leaves the program: in messages, logs, files or replies."""

import logging
from urllib.parse import quote

import pytest

from repstitch.addresses import parse_address
from repstitch.errors import InputError, one_line
from repstitch.redaction import log_handler, redact, redact_values

SECRET = "tr0ub@dor/&3 +ß"


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("connect to postgresql://user:hunter22@host/b failed", "connect to postgresql://user:[hidden]@host/b failed"),
        ("postgresql://host/b?password=hunter22&x=1", "postgresql://host/b?password=[hidden]&x=1"),
        ("https://host/?x=1&api_key=hunter22", "https://host/?x=1&api_key=[hidden]"),
        ("postgresql://u:hun/ter22@h/b?x=a@b", "postgresql://u:[hidden]@h/b?x=a@b"),
        ("postgresql://u:hun?ter22@h/b", "postgresql://u:[hidden]@h/b"),
        ("postgresql://u:hun@ter22@h/b", "postgresql://u:[hidden]@h/b"),
        ("postgresql://h1:5432,h2:5433/b?user=me@tenant", "postgresql://h1:5432,h2:5433/b?user=me@tenant"),
        ("postgresql://u@[::1]:5432/b?host=/run@x", "postgresql://u@[::1]:5432/b?host=/run@x"),
        ("postgresql://h/b?oauth_client_secret=hunter22", "postgresql://h/b?oauth_client_secret=[hidden]"),
        ("postgresql://h/b?scram_client_%6Bey=hunter22&x=1", "postgresql://h/b?scram_client_%6Bey=[hidden]&x=1"),
        ("postgresql://h/b?sslkey=client.key", "postgresql://h/b?sslkey=client.key"),
        ("oauth_client_secret=hunter22 user=u", "oauth_client_secret=[hidden] user=u"),
        ("host=h password=hunter22 user=u", "host=h password=[hidden] user=u"),
        ("password='hun ter22' user=u", "password=[hidden] user=u"),
        ("password = 'it\\'s' x", "password = [hidden] x"),
        (
            "nothing to hide: a:b@c, token 5, the password is long",
            "nothing to hide: a:b@c, token 5, the password is long",
        ),
    ],
)
def test_secrets_in_addresses_and_settings_are_removed(text, redacted):
    assert redact(text) == redacted


@pytest.mark.parametrize("form", [SECRET, quote(SECRET), quote(SECRET, safe="")])
def test_a_secret_that_was_seen_once_is_removed_everywhere_in_every_form(form):
    parse_address(f"postgresql://user:{quote(SECRET, safe='')}@host/base?table=t")
    assert form not in redact(f"the server said: {form}!")


def test_a_short_secret_is_removed_as_a_whole_word_only():
    parse_address("postgresql://user:pw@host/base?table=t")
    assert redact("pwcca of 'pw', pw_1 and pw.") == "pwcca of '[hidden]', pw_1 and [hidden]."


def test_keys_and_numbers_of_json_are_unchanged():
    parse_address("postgresql://user:1234@host/base?table=t")
    value = {"1234": [1234, "1234 rows", ("1234",)], "n": {"x": 1234.0, "y": None, "z": True}}
    redacted = {"1234": [1234, "[hidden] rows", ["[hidden]"]], "n": {"x": 1234.0, "y": None, "z": True}}
    assert redact_values(value) == redacted


def test_the_password_of_the_environment_is_removed(monkeypatch):
    monkeypatch.setenv("PGPASSWORD", SECRET)
    assert SECRET not in redact(f"FATAL: {SECRET}")


def test_errors_contain_no_secret():
    parse_address("postgresql://user:hunter22@host/base?table=t")
    assert "hunter22" not in str(InputError("no hunter22 here"))
    assert "hunter22" not in one_line(RuntimeError("no hunter22 here"))


def test_log_lines_contain_no_secret(capsys):
    parse_address("postgresql://user:hunter22@host/base?table=t")
    handler = log_handler("%(message)s")
    handler.emit(logging.makeLogRecord({"msg": "no %s here", "args": ("hunter22",)}))
    assert capsys.readouterr().err == "no [hidden] here\n"
