"""The demo runs the main workflow, so it is tested from start to end."""

import numpy as np
import pytest

from repstitch.cli.main import main
from repstitch.embeddings.reading import read
from repstitch.stitchers.stitcher import load


@pytest.mark.slow
def test_the_demo_goes_from_images_to_a_response_and_a_plot(tmp_path, capfd):
    out = tmp_path / "demo"
    assert main(["demo", "--out", str(out)]) == 0
    output = capfd.readouterr().out
    assert "POST http://127.0.0.1" in output
    assert "repstitch train --source" in output
    assert (out / "demo.png").stat().st_size > 10_000
    stitcher = load(out / "stitchers" / "test_resnet-to-test_convnext")
    card = stitcher.scorecard
    assert card.query.recall_at(10).score > 10 * card.query.shuffled.recall_at(10).score
    rows = read(out / "test_resnet.trained.parquet").vectors[:5]
    written = read(out / "translated.parquet")
    assert written.space == stitcher.target
    np.testing.assert_allclose(written.vectors[:5], stitcher.translate(rows), atol=1e-5)


def test_the_demo_refuses_a_folder_that_it_did_not_create(tmp_path, capsys):
    (tmp_path / "photo.jpg").touch()
    assert main(["demo", "--out", str(tmp_path)]) == 2
    assert "was not created by the demo" in capsys.readouterr().err
    assert (tmp_path / "photo.jpg").exists()
