from typing import Any

import pytest
from matplotlib.colors import to_hex

from repstitch.errors import InputError
from repstitch.plots.canvas import ORANGE, save
from repstitch.plots.mixing import plot_shares

CURVE = [
    {"share": share, "overlap": overlap, "random": random}
    for share, overlap, random in ((0.0, 0.3, 0.3), (0.15, 0.45, 0.4), (1.0, 1.0, 1.0))
]


def test_dense_and_random_rows_are_two_lines_over_the_share():
    (axes,) = plot_shares(CURVE, 0.15).axes
    lines: Any = {line.get_label(): line for line in axes.lines}
    for name, key in (("dense rows", "overlap"), ("random rows", "random")):
        assert list(lines[name].get_xdata()) == [0.0, 0.15, 1.0]
        assert list(lines[name].get_ydata()) == [point[key] for point in CURVE]
    assert axes.get_xlabel() == "rows embedded anew; all others are translated"
    assert axes.get_ylabel() == "share of the right ten results"


@pytest.mark.parametrize(
    ("chosen", "label"),
    [
        (0.15, "15% anew: 0.45 (random rows: 0.40)"),
        (0.0, "0% anew: 0.30 (random rows: 0.30)"),
        (1.0, "100% anew: 1.00 (random rows: 1.00)"),
    ],
)
def test_the_chosen_share_is_marked_and_its_scores_are_in_the_legend(chosen, label):
    (axes,) = plot_shares(CURVE, chosen).axes
    point: Any = axes.lines[-1]
    assert (list(point.get_xdata()), to_hex(point.get_color()).upper()) == ([chosen], ORANGE)
    legend: Any = axes.get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["dense rows", "random rows", label]


def test_no_text_lies_outside_the_picture(tmp_path):
    picture = plot_shares(CURVE, 0.15)
    save(picture, tmp_path / "shares.png")
    (axes,) = picture.axes
    legend: Any = axes.get_legend()
    texts: Any = [axes.title, axes.xaxis.label, axes.yaxis.label, *legend.get_texts()]
    for text in texts:
        box = text.get_window_extent()
        assert box.x0 >= 0, text
        assert box.y0 >= 0, text
        assert box.x1 <= picture.bbox.width, text
        assert box.y1 <= picture.bbox.height, text


def test_without_held_out_rows_there_is_nothing_to_draw():
    with pytest.raises(InputError, match="`plot` requires translated held-out rows"):
        plot_shares(None, 0.2)
