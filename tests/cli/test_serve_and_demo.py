from pathlib import Path

from helpers.command_line import run


def test_serve_and_demo_pass_their_flags_on(capsys, monkeypatch):
    import repstitch.server.run
    import repstitch.workflows.demo

    calls = []
    monkeypatch.setattr(repstitch.server.run, "serve", lambda *args: calls.append(args))
    monkeypatch.setattr(repstitch.workflows.demo, "demo", lambda *args, **more: calls.append((*args, more)))
    assert run(capsys, "serve", "--stitchers", "s", "--port", 0, "--workers", 2)[0] == 0
    assert run(capsys, "demo", "--out", "d", "--seed", 3)[0] == 0
    assert calls == [("s", "127.0.0.1", 0, 2, "uvicorn"), (Path("d"), {"seed": 3})]
