import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from repstitch.errors import InputError
from repstitch.plots import GREY, figure, plot_alignment, plot_scorecard, save

CARD = {
    "pool": 50,
    "chance": {"recall@1": 0.02, "recall@5": 0.1, "recall@10": 0.2},
    "query": {
        "recall@1": 0.5,
        "recall@5": 0.75,
        "recall@10": 0.875,
        "shuffled": {"recall@1": 0.0, "recall@5": 0.125, "recall@10": 0.25},
    },
    "alignment": {
        "mutual_knn": {"before": {"score": 0.25, "null": 0.2}, "after": {"score": 0.5, "null": 0.2}},
        "cka_unbiased": {"before": {"refused": "too few"}, "after": {"refused": "too few"}},
    },
}


def heights(axes: Axes) -> list[float]:
    return [bar.get_height() for bar in axes.patches if isinstance(bar, Rectangle)]


def levels(axes: Axes) -> list[float]:
    return [float(np.asarray(line.get_ydata())[0]) for line in axes.lines]


def test_a_scorecard_is_drawn_with_its_own_numbers_and_without_what_was_refused():
    axes = plot_scorecard(CARD, "a → b").axes
    assert len(axes) == 2
    assert heights(axes[0]) == [0.5, 0.75, 0.875]
    assert heights(axes[1]) == [0.25, 0.5]


def test_the_black_line_is_chance_or_the_shuffled_pairs_whichever_is_more():
    assert levels(plot_scorecard(CARD, "a → b").axes[0]) == [0.02, 0.125, 0.25]


def test_an_alignment_is_drawn_beside_its_null():
    axes = figure(1)[1][0]
    plot_alignment(axes, {"before": 0.3, "after": 0.6}, 0.1, "title", (GREY, GREY))
    assert levels(axes) == [0.1]
    assert axes.get_legend_handles_labels()[1] == ["unrelated spaces: 0.100"]


@pytest.mark.parametrize("ending", [".png", ".svg", ".pdf"])
def test_a_picture_is_written_in_the_format_of_its_ending(tmp_path, ending):
    path = save(plot_scorecard(CARD, "a → b"), tmp_path / f"card{ending}")
    assert path.read_bytes()[:4] in (b"\x89PNG", b"<?xm", b"%PDF")


def test_other_endings_and_missing_folders_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"`plot` must end in .png, .svg or .pdf; got 'card.bmp'"):
        save(plot_scorecard(CARD, "a → b"), tmp_path / "card.bmp")
    with pytest.raises(InputError, match="`plot` must lie in a folder that exists"):
        save(plot_scorecard(CARD, "a → b"), tmp_path / "none" / "card.png")
