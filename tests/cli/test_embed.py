from helpers.command_line import result, run


def test_embed_passes_its_flags_to_the_encoder(capsys, tmp_path, monkeypatch):
    import repstitch.encoders

    calls = []

    def embed(*args, **settings) -> int:
        calls.append((args, settings))
        return 7

    monkeypatch.setattr(repstitch.encoders, "embed", embed)
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
