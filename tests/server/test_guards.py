import asyncio
import itertools
import re
from contextlib import suppress

import pytest

from repstitch.errors import InputError
from repstitch.server.guards import (
    PAGE_BYTES,
    PREALLOCATE_BYTES,
    ByteReservation,
    Deadlines,
    Gate,
    check_rows,
    read_body,
)
from repstitch.server.responses import Refusal
from repstitch.server.settings import Settings, choose_device, warn_of_unknown
from repstitch.wire.rows import MalformedError


def test_an_empty_environment_gives_the_defaults():
    settings = Settings.from_env({"REPSTITCH_MAX_ROWS": "", "PATH": "/bin"})
    assert settings == Settings(stitchers=Settings().stitchers.absolute())


def test_settings_round_trip_through_the_environment(tmp_path):
    (tmp_path / "keys").write_text("three", encoding="utf-8")
    settings = Settings(
        tmp_path,
        "cpu",
        "bfloat16",
        2,
        1000,
        900,
        10,
        5,
        5000,
        1.5,
        20.0,
        0.25,
        ("one", "two"),
        tmp_path / "keys",
        True,
        ("https://a.b",),
        ("s=x",),
    )
    assert Settings.from_env(settings.to_env()) == settings


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("REPSTITCH_DEVICE", "tpu", r"`device` \(REPSTITCH_DEVICE\) must be one of auto, cpu, cuda; got 'tpu'"),
        ("REPSTITCH_MAX_ROWS", "many", r"`max_rows` \(REPSTITCH_MAX_ROWS\) must be a whole number; got 'many'"),
        ("REPSTITCH_MAX_BODY_BYTES", "1.5", r"REPSTITCH_MAX_BODY_BYTES\) must be a whole number; got '1.5'"),
        ("REPSTITCH_MAX_CONCURRENCY", "0", r"REPSTITCH_MAX_CONCURRENCY\) must be a whole number of at least 1; got 0"),
        ("REPSTITCH_WORKERS", "-1", r"REPSTITCH_WORKERS\) must be a whole number of at least 1; got -1"),
        ("REPSTITCH_TIMEOUT_S", "0", r"REPSTITCH_TIMEOUT_S\) must be a number of seconds above 0; got 0.0"),
        ("REPSTITCH_TIMEOUT_S", "nan", r"REPSTITCH_TIMEOUT_S\) must be a number of seconds above 0; got nan"),
        ("REPSTITCH_RELOAD_S", "soon", r"REPSTITCH_RELOAD_S\) must be a number; got 'soon'"),
        ("REPSTITCH_HEAD_S", "-1", r"REPSTITCH_HEAD_S\) must be a number of seconds above 0; got -1.0"),
    ],
)
def test_an_invalid_setting_is_named(variable, value, message):
    with pytest.raises(InputError, match=message):
        Settings.from_env({variable: value})


@pytest.mark.parametrize(
    "origin",
    ["page.example", "https://", "https://page.example/", "https://Page.example", "HTTPS://page.example", "null", "**"]
    + [f"https://{place}" for place in ("page.example/app", "me@page.example", "page.example:port", "page example")],
)
def test_an_origin_that_no_browser_sends_is_refused(origin):
    with pytest.raises(
        InputError, match=r"\(REPSTITCH_CORS_ORIGINS\) must be origins such as .*; got " + re.escape(repr(origin))
    ):
        Settings.from_env({"REPSTITCH_CORS_ORIGINS": f"https://page.example,{origin}"})


@pytest.mark.parametrize(
    "origin",
    [
        "*",
        "https://page.example",
        "http://localhost:8080",
        "http://[::1]:80",
        "chrome-extension://abc",
        "http://127.0.0.1",
    ],
)
def test_an_origin_as_browsers_send_it_is_accepted(origin):
    assert Settings.from_env({"REPSTITCH_CORS_ORIGINS": origin}).cors_origins == (origin,)


def test_a_variable_that_names_no_setting_is_warned_of(caplog):
    warn_of_unknown(
        {"REPSTITCH_MAX_ROW": "5", "REPSTITCH_MAX_ROWS": "5", "HOME": "/", "REPSTITCH_": "", "REPSTITCH_OPEN": ""}
    )
    assert [record.getMessage() for record in caplog.records] == [
        "REPSTITCH_ is no setting of the service and has no effect. Nearest: REPSTITCH_OPEN.",
        "REPSTITCH_MAX_ROW is no setting of the service and has no effect. Nearest: REPSTITCH_MAX_ROWS.",
    ]


def test_the_device_depends_on_whether_cuda_is_available(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert choose_device(Settings(device="auto")) == choose_device(Settings(device="cpu")) == "cpu"
    with pytest.raises(InputError, match=r"`device` \(REPSTITCH_DEVICE\) is cuda but PyTorch"):
        choose_device(Settings(device="cuda"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert choose_device(Settings(device="auto")) == choose_device(Settings(device="cuda")) == "cuda"
    assert choose_device(Settings(device="cpu", workers=4)) == "cpu"
    with pytest.raises(InputError, match="must be 1 on CUDA, where one process keeps the device busy; got 4"):
        choose_device(Settings(device="auto", workers=4))


def read(messages, length, limit):
    async def receive():
        return messages.pop(0)

    return asyncio.run(read_body(receive, length, limit, ByteReservation(Gate(Settings()))))


def chunk(body, more=False):
    return {"type": "http.request", "body": body, "more_body": more}


def test_a_body_is_joined_from_its_chunks():
    assert read([chunk(b"ab", True), chunk(b"", True), chunk(b"c")], None, 3) == b"abc"


def test_a_content_length_over_the_limit_is_refused_before_reading():
    unread = [chunk(b"abcd")]
    with pytest.raises(Refusal, match="at most 3 bytes; got 4") as caught:
        read(unread, b"4", 3)
    assert caught.value.status == 413
    assert unread


def test_a_body_without_content_length_is_refused_at_the_limit():
    unread = [chunk(b"ab", True), chunk(b"cd", True), chunk(b"ef")]
    with pytest.raises(Refusal, match="at most 3 bytes; got more"):
        read(unread, None, 3)
    assert len(unread) == 1


@pytest.mark.parametrize("n", [2, PREALLOCATE_BYTES + 2, 2 * PREALLOCATE_BYTES])
def test_a_body_longer_than_its_content_length_is_refused(n):
    unread = [chunk(b"a" * n, True), chunk(b"b", True), chunk(b"c")]
    with pytest.raises(MalformedError, match=f"must have the {n} bytes that `Content-Length` states; got more"):
        read(unread, b"%d" % n, 9 * PREALLOCATE_BYTES)
    assert len(unread) == 1


@pytest.mark.parametrize("first", [0, 1, PREALLOCATE_BYTES, PREALLOCATE_BYTES + 1])
def test_a_long_body_is_read_into_preallocated_memory(first):
    sent = bytes(range(256)) * (PREALLOCATE_BYTES // 64)
    at = [0, first, first + PREALLOCATE_BYTES, first + PREALLOCATE_BYTES + 7, len(sent)]
    parts = [chunk(sent[start:end], end < len(sent)) for start, end in itertools.pairwise(at)]
    assert read(parts, b"%d" % len(sent), len(sent)) == sent


def test_a_long_body_shorter_than_its_content_length_is_returned_as_received():
    sent = b"a" * (PREALLOCATE_BYTES + 1)
    assert read([chunk(sent, True), chunk(b"b")], b"%d" % (3 * PREALLOCATE_BYTES), 9 * PREALLOCATE_BYTES) == sent + b"b"


def test_bytes_are_reserved_when_they_arrive_not_when_they_are_announced():
    gate = Gate(Settings())

    async def reserved_after(*parts):
        messages = [chunk(part, True) for part in parts]

        async def receive():
            if messages:
                return messages.pop(0)
            reserved.append(gate.bytes)
            return {"type": "http.disconnect"}

        reserved = []
        with pytest.raises(ConnectionError), ByteReservation(gate) as reservation:
            await read_body(receive, b"%d" % (8 * PAGE_BYTES), 8 * PAGE_BYTES, reservation)
        return reserved[0]

    large = bytes(PREALLOCATE_BYTES + 1)
    assert asyncio.run(reserved_after(b"a")) == 1
    assert asyncio.run(reserved_after(large)) == PAGE_BYTES  # the least that an allocation takes
    assert asyncio.run(reserved_after(large, b"a")) == PAGE_BYTES
    assert asyncio.run(reserved_after(large, bytes(3 * PAGE_BYTES))) == 3 * PAGE_BYTES + len(large)
    assert gate.bytes == 0


@pytest.mark.parametrize("length", [b"x", b"-1", b"9" * 5000])
def test_an_invalid_content_length_is_refused(length):
    with pytest.raises(Refusal, match="at most 3 bytes"):
        read([chunk(b"")], length, 3)


def test_a_disconnect_ends_the_reading_of_the_body():
    with pytest.raises(ConnectionError):
        read([chunk(b"a", True), {"type": "http.disconnect"}], None, 3)


def test_rows_over_the_limit_are_refused():
    check_rows(3, 3)
    with pytest.raises(Refusal, match="at most 3 rows; got 4"):
        check_rows(4, 3)


# --- deadlines --------------------------------------------------------------------------------------------------------


def test_only_tasks_past_their_deadline_are_cancelled():
    async def scenario():
        deadlines, ends = Deadlines(0.2), []

        async def work(seconds):
            task = deadlines.start()
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(seconds)
            ends.append((seconds, deadlines.stop(task)))
            await asyncio.sleep(0)  # a task cancelled for being late can continue
            return seconds

        done = await asyncio.gather(work(0.01), work(5), work(0.02), work(6))
        return done, sorted(ends), deadlines

    done, ends, deadlines = asyncio.run(scenario())
    assert done == [0.01, 5, 0.02, 6]
    assert ends == [(0.01, False), (0.02, False), (5, True), (6, True)]
    assert not deadlines._ends
    assert not deadlines._cancelled


def test_a_task_cancelled_by_other_code_does_not_count_as_late():
    async def scenario():
        deadlines, seen = Deadlines(5), []

        async def work():
            task = deadlines.start()
            try:
                await asyncio.sleep(10)
            finally:
                seen.append(deadlines.stop(task))

        task = asyncio.create_task(work())
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return seen

    assert asyncio.run(scenario()) == [False]
