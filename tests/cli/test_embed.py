from helpers.command_line import result, run
from helpers.spaces import tiny_bert

from repstitch.encoders import encoder


def test_embed_passes_its_flags_to_the_encoder(capsys, tmp_path, monkeypatch):
    calls = []

    def embed(*args, **settings) -> int:
        calls.append((args, settings))
        return 7

    monkeypatch.setattr(encoder, "embed", embed)
    monkeypatch.setattr(encoder, "n_truncated", lambda out: None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "D").mkdir()
    flags = ["--pooling", "mean", "--layer", -2, "--role", "query", "--no-normalise", "--model-args", '{"depth": 2}']
    output = result(capsys, "embed", "--encoder", "E", "--data", "D", "--out", "X.parquet", "--batch-size", 3, *flags)
    assert output == {"out": "X.parquet", "rows": 7}
    assert calls == [
        (
            ("E", "D", "X.parquet"),
            {
                "batch_size": 3,
                "device": "auto",
                "precision": "auto",
                "dtype": "float32",
                "layers": None,
                "id_column": None,
                "pooling": "mean",
                "layer": -2,
                "role": "query",
                "normalise": False,
                "model_args": {"depth": 2},
            },
        )
    ]
    status, _, err = run(capsys, "embed", "--encoder", "E", "--data", "D", "--out", "X.parquet", "--model-args", "[1]")
    assert (status, err) == (2, ["repstitch embed: `--model-args` must be a JSON object; got '[1]'."])
    for layers, expected in (("all", "all"), ("1,6,-1", [1, 6, -1])):
        result(capsys, "embed", "--encoder", "E", "--data", "D", "--out", "X", "--layers", layers)
        assert calls[-1][1]["layers"] == expected
    status, _, err = run(capsys, "embed", "--encoder", "E", "--data", "D", "--out", "X", "--layers", "first")
    assert (status, err) == (2, ["repstitch embed: `--layers` must be all, or numbers like 1,6,12; got 'first'."])
    status, _, err = run(capsys, "embed", "--encoder", "E", "--data", "no.csv:text", "--out", "X.parquet")
    message = "`--data` must be an existing folder, .zip, .txt or table; there is no no.csv."
    assert (status, err) == (2, [f"repstitch embed: {message}"])


def test_truncated_texts_are_counted_in_the_result(capsys, tmp_path):
    (tmp_path / "t.txt").write_text("a b\na b c d\na\n")
    model = ("--encoder", tiny_bert(tmp_path / "bert"), "--data", tmp_path / "t.txt", "--device", "cpu")
    out = tmp_path / "x.parquet"
    assert result(capsys, "embed", *model, "--out", out, "--max-length", 5) == {
        "out": str(out),
        "rows": 3,
        "truncated": 1,
    }
    out.unlink()
    assert run(capsys, "embed", *model, "--out", out, "--max-length", 5)[1] == f"3 rows in {out} (truncated: 1)\n"
