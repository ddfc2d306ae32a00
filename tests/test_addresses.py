"""The grammar of addresses: each address is parsed, written again, or refused with what to do."""

import os

import pytest

from repstitch import redaction
from repstitch.addresses import Address, check_no_secret, is_address, parse_address, split_table
from repstitch.errors import InputError
from repstitch.redaction import redact

PG = "postgresql"
# Text, scheme, locator, table, vector, id, where, parameters of the driver.
ACCEPTED = [
    ("lancedb://db?table=docs", "lancedb", "db", "docs", None, None, None, ""),
    ("lancedb://./db?table=docs", "lancedb", "./db", "docs", None, None, None, ""),
    ("lancedb://../data/my.db?table=docs", "lancedb", "../data/my.db", "docs", None, None, None, ""),
    ("lancedb:///var/lib/db?table=docs", "lancedb", "/var/lib/db", "docs", None, None, None, ""),
    ("lancedb:///var/lib/db/?table=docs", "lancedb", "/var/lib/db/", "docs", None, None, None, ""),
    ("lancedb://~/db?table=docs", "lancedb", "~/db", "docs", None, None, None, ""),
    ("lancedb://a b?table=docs", "lancedb", "a b", "docs", None, None, None, ""),
    ("lancedb://a%20b?table=docs", "lancedb", "a%20b", "docs", None, None, None, ""),
    ("lancedb://Daten/größe?table=docs", "lancedb", "Daten/größe", "docs", None, None, None, ""),
    ("LanceDB://db?table=docs", "lancedb", "db", "docs", None, None, None, ""),
    ("lancedb://db?table=docs&vector=emb", "lancedb", "db", "docs", "emb", None, None, ""),
    ("lancedb://db?vector=emb&table=docs", "lancedb", "db", "docs", "emb", None, None, ""),
    ("lancedb://db?table=docs&vector=emb&id=key", "lancedb", "db", "docs", "emb", "key", None, ""),
    ("lancedb://db?table=docs&where=lang%3D'de'", "lancedb", "db", "docs", None, None, "lang='de'", ""),
    ("lancedb://db?table=docs&where=n%3E3%20and%20n%3C9", "lancedb", "db", "docs", None, None, "n>3 and n<9", ""),
    ("lancedb://db?table=docs&where=a%26b", "lancedb", "db", "docs", None, None, "a&b", ""),
    ("lancedb://db?table=my%20docs", "lancedb", "db", "my docs", None, None, None, ""),
    ("lancedb://db?table=docs&vector=Mein+Vektor", "lancedb", "db", "docs", "Mein+Vektor", None, None, ""),
    ("lancedb://db?table=docs&vector=a%25b", "lancedb", "db", "docs", "a%b", None, None, ""),
    ("lancedb://db?table=docs&", "lancedb", "db", "docs", None, None, None, ""),
    (f"{PG}://host/base?table=docs", PG, "host/base", "docs", None, None, None, ""),
    ("postgres://host/base?table=docs", PG, "host/base", "docs", None, None, None, ""),
    ("POSTGRESQL://host/base?table=docs", PG, "host/base", "docs", None, None, None, ""),
    (f"{PG}://host:5433/base?table=docs", PG, "host:5433/base", "docs", None, None, None, ""),
    (f"{PG}://user@host/base?table=docs", PG, "user@host/base", "docs", None, None, None, ""),
    (f"{PG}://us%40er@host/base?table=docs", PG, "us%40er@host/base", "docs", None, None, None, ""),
    (f"{PG}://a:1,b:2,c/base?table=docs", PG, "a:1,b:2,c/base", "docs", None, None, None, ""),
    (f"{PG}://[::1]:5432/base?table=docs", PG, "[::1]:5432/base", "docs", None, None, None, ""),
    (f"{PG}:///base?table=docs", PG, "/base", "docs", None, None, None, ""),
    (f"{PG}://?table=docs", PG, "", "docs", None, None, None, ""),
    (f"{PG}:///?table=docs", PG, "/", "docs", None, None, None, ""),
    (f"{PG}:///base?host=/run/pg&table=docs", PG, "/base", "docs", None, None, None, "host=/run/pg"),
    (f"{PG}://%2Frun%2Fpg/base?table=docs", PG, "%2Frun%2Fpg/base", "docs", None, None, None, ""),
    (f"{PG}://h/b?sslmode=require&table=docs", PG, "h/b", "docs", None, None, None, "sslmode=require"),
    (
        f"{PG}://a,b/x?target_session_attrs=read-write&table=d&connect_timeout=3",
        PG,
        "a,b/x",
        "d",
        None,
        None,
        None,
        "target_session_attrs=read-write&connect_timeout=3",
    ),
    (
        f"{PG}://h/b?table=d&options=-c%20hnsw.ef_search%3D100",
        PG,
        "h/b",
        "d",
        None,
        None,
        None,
        "options=-c%20hnsw.ef_search%3D100",
    ),
    (f"{PG}://h/b?table=public.docs&vector=V&id=ID", PG, "h/b", "public.docs", "V", "ID", None, ""),
    (f'{PG}://h/b?table="a.b"."C d"', PG, "h/b", '"a.b"."C d"', None, None, None, ""),
    (f"{PG}://h/b?table=%22a%22%22b%22", PG, "h/b", '"a""b"', None, None, None, ""),
    (f"{PG}://h/b?table=d&where=n between 1 and 3", PG, "h/b", "d", None, None, "n between 1 and 3", ""),
    (f"{PG}://h/b?service=prod&table=d", PG, "h/b", "d", None, None, None, "service=prod"),
    (f"{PG}://u:pw@h/b?table=d", PG, "u:pw@h/b", "d", None, None, None, ""),
]
REFUSED = [
    ("", "must begin with lancedb://"),
    ("docs.parquet", "must begin with lancedb://"),
    ("mysql://h/b?table=d", "must begin with lancedb://"),
    ("lancedb:db?table=d", "must begin with lancedb://"),
    ("lancedb://?table=d", "must name the folder"),
    ("lancedb://db", "must name a table: add \\?table=NAME"),
    ("lancedb://db?vector=v", "must name a table: add &table=NAME"),
    ("lancedb://db?table=", "must have a value after table="),
    ("lancedb://db?table=a&table=b", "must state table once"),
    ("lancedb://db?table=a&id=", "must have a value after id="),
    ("lancedb://db?tabel=a", "unknown parameter tabel; did you mean table"),
    ("lancedb://db?table=a&read_consistency=3", "unknown parameter read_consistency"),
    ("lancedb://db?table=a.b.c", "must be NAME or SCHEMA.NAME"),
    ('lancedb://db?table="a', "must be NAME or SCHEMA.NAME"),
    (f"{PG}://h/b", "must name a table"),
    (f"{PG}://h/b?table=a..b", "must be NAME or SCHEMA.NAME"),
    (f"{PG}://h/b?table=a&Vector=v", "unknown parameter Vector; did you mean vector"),
    (f"{PG}://h/b?table=a&vectors=v", "unknown parameter vectors; did you mean vector"),
    (f"{PG}://h/b?table=a&ids=v", "unknown parameter ids; did you mean id"),
    (f"{PG}://h/b?table=a&sslmode", "unknown parameter sslmode"),
]

# The characters of a password that must be percent-encoded stand as they are.
UNENCODED = [
    f"{PG}://u:SeKr/etpw@h/db?table=docs",
    f"{PG}://u:SeKr/etpw@h/db",
    f"{PG}://u:SeKr?etpw@h/db?table=docs",
    f"{PG}://u:SeKr?x=etpw@h/db?table=docs",
    f"{PG}://u:SeKr@etpw@localhost/db?table=docs",
    f"{PG}://u:/SeKr//etpw@h:5432/db?table=docs",
    f"{PG}://u:123/SeKr/etpw@h/db?table=docs",
    f"{PG}://u:SeKr/et:pw,etpw@h1:1,h2:2/db?table=docs",
    f"{PG}://u:SeKr/etpw@[::1]:5432/db?table=docs",
    f"{PG}://u:SeKr/etpw@h/db?table=docs&where=mail='a@b'",
    f"{PG}://:SeKr/etpw@h/db?table=docs",
    f"{PG}://u[:SeKr/etpw@h/db?table=docs",
    f"{PG}://me@tenant:SeKr@etpw@h/db?table=docs",
    "postgres://u:SeKr SeKr/etpw@h/db?table=docs",
]


def test_the_table_has_at_least_60_addresses():
    assert len(ACCEPTED) + len(REFUSED) >= 60


@pytest.mark.parametrize(("text", "scheme", "locator", "table", "vector", "id", "where", "parameters"), ACCEPTED)
def test_an_address_is_parsed_and_written_again(text, scheme, locator, table, vector, id, where, parameters):
    address = parse_address(text)
    assert address == Address(scheme, locator, table, vector, id, where, parameters)
    assert parse_address(address.to_text()) == address
    assert is_address(text)


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_other_text_is_refused_with_what_to_do(text, message):
    with pytest.raises(InputError, match=message):
        parse_address(text)


def test_the_driver_gets_its_own_part_unchanged():
    address = parse_address("postgres://us%40er@a:1,b:2/base?sslmode=require&table=t&options=-c%20a%3Db&id=k")
    assert address.connection == "postgresql://us%40er@a:1,b:2/base?sslmode=require&options=-c%20a%3Db"
    assert parse_address("lancedb:///a/b?table=t").connection == "lancedb:///a/b"


def test_reports_name_the_table_and_no_host():
    label = parse_address("postgresql://user@secret-host/base?table=public.docs&vector=emb").label
    assert label == "postgresql table public.docs, column emb"


def test_a_table_may_have_a_schema_and_quoted_names():
    assert split_table("docs") == ("docs",)
    assert split_table("public.docs") == ("public", "docs")
    assert split_table('"a.b"."C ""d"""') == ("a.b", 'C "d"')


def test_an_address_without_a_locator_takes_it_from_the_environment(monkeypatch):
    monkeypatch.setenv("REPSTITCH_ADDRESS", "postgres://user:hidden-pw@host/base?sslmode=require&table=ignored")
    address = parse_address("postgresql://?table=docs&id=k")
    assert address.connection == "postgresql://user:hidden-pw@host/base?sslmode=require"
    assert (address.table, address.id) == ("docs", "k")
    assert "hidden-pw" not in str(address) + repr(address)
    assert parse_address("postgresql://other/base?table=docs").locator == "other/base"


@pytest.mark.parametrize(
    ("value", "message"), [("host/base", "must be an address"), ("lancedb://db", "must begin with postgresql://")]
)
def test_an_unusable_address_in_the_environment_is_refused(monkeypatch, value, message):
    monkeypatch.setenv("REPSTITCH_ADDRESS", value)
    with pytest.raises(InputError, match=message):
        parse_address("postgresql://?table=docs")


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://user:pw-a-b@host/base?table=t",
        "postgresql://user:p%40ss-word@host/base?table=t",
        "postgresql://host/base?password=pw-a-b&table=t",
        "postgresql://host/base?table=t&sslpassword=pw-a-b",
        "postgresql://host/base?table=t&p%61ssword=pw-a-b",
        "--source=postgresql://user:pw-a-b@host/base?table=t",
        "qdrant://host?api_key=pw-a-b",
        "http://user:pw-a-b@host/",
        *UNENCODED,
        "lancedb://u:SeKr/etpw@host?table=t",
        "postgresql:u:SeKr/etpw@host/base?table=t",
        "postgresql:/u:SeKr/etpw@host/base?table=t",
        "docs=postgresql://u:SeKr/etpw@host/base?table=t",
        "lancedb://db,postgresql://u:SeKr/etpw@host/base",
        "postgresql://h:5432/base?table=t&oauth_client_secret=SeKretpw",
        "postgresql://h:5432/base?table=t&scram_client_key=SeKretpw",
        "postgresql://h:5432/base?scram_server_key=SeKretpw&table=t",
        "postgresql://h/b?PassWord=Se&Kretpw&table=t",
        "s3://bucket/base?aws_secret_access_key=SeKretpw",
        "s3://bucket/base?AccountKey=SeKretpw&session_token_id=1",
    ],
)
def test_a_secret_on_the_command_line_is_refused_and_not_repeated(text):
    with pytest.raises(InputError, match="must not contain a password or a key") as error:
        check_no_secret(text)
    assert not any(secret in str(error.value) for secret in ("pw-a-b", "p%40ss", "p@ss", "SeKr", "etpw", "Kretpw"))


@pytest.mark.parametrize("text", UNENCODED)
def test_a_password_that_is_not_percent_encoded_is_refused_everywhere_and_no_part_of_it_is_shown(monkeypatch, text):
    monkeypatch.setattr(redaction, "_secrets", set())
    with pytest.raises(InputError, match="must be percent-encoded: write %2F, %3F and %40"):
        parse_address(text)
    monkeypatch.setenv("REPSTITCH_ADDRESS", text)
    with pytest.raises(InputError, match="must be percent-encoded") as error:
        parse_address("postgresql://?table=t")
    for message in (str(error.value), redact(text), redact("cannot resolve etpw@h"), redact("port 'SeKr' of etpw")):
        assert not any(part in message for part in ("SeKr", "etpw"))


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://user@host/base?table=t",
        "lancedb://db?table=t",
        "s3://bucket/a:b@c",
        "postgresql://h1:5432,h2:5433/base?table=t",
        "postgresql://h1:5432,h2:5433/base?table=t&where=mail%3D'a@b'",
        "postgresql://h:5432/base?table=t&where=mail='a@b'",
        "postgresql://h:5432/base?user=me@tenant&table=t",
        "postgresql://h:5432?host=/var/run@x&table=t",
        "postgresql://:5432/base?host=/var/run@x&table=t",
        "postgresql:///base?host=/var/run@x&table=t",
        "postgresql://user@[::1]:5432/base?host=/var/run@x&table=t",
        "postgresql://[::1]:5432/base?host=/var/run@x&table=t",
        "postgresql://user@h1:5432,h2:5433/base?host=/var/run@x&table=t",
        "postgresql://user@h:5432/my@base?table=t",
        "postgresql://us%40er@h:5432/my%40base?table=t",
        "postgresql://host/my@base?table=t",
        "postgresql://h,[::1]:5432/my@base?table=t",
        "postgresql://host/base?sslkey=/home/me/client.key&sslcert=x&passfile=/home/me/.pgpass&table=t",
        "lancedb://a:b?table=t&where=mail='a@b'",
        "a:b@c",
        "--out=x",
        "text: a@b",
    ],
)
def test_text_without_a_secret_is_accepted(text):
    check_no_secret(text)


def test_a_file_is_no_address():
    assert not any(map(is_address, ["docs.parquet", "s3://bucket/docs.parquet", os.curdir, 3, None]))
