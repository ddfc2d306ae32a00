import pytest
from matplotlib.figure import Figure

from repstitch.errors import InputError
from repstitch.plots.canvas import COLOURS, GREY, figure, looks, save


def picture() -> Figure:
    made, (axes,) = figure(1)
    axes.plot([0, 1], [0, 1], label="a line")
    axes.set_title("A title that is searched for")
    axes.legend()
    return made


@pytest.mark.parametrize(("ending", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xm"), (".pdf", b"%PDF")])
def test_a_picture_is_written_in_the_format_of_its_ending(tmp_path, ending, start):
    path = save(picture(), tmp_path / f"card{ending}")
    assert path.read_bytes()[:4] == start


@pytest.mark.parametrize("ending", [".png", ".svg", ".pdf"])
def test_the_same_picture_gives_the_same_bytes_at_any_time(tmp_path, ending, monkeypatch):
    first = save(picture(), tmp_path / f"first{ending}").read_bytes()
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    assert save(picture(), tmp_path / f"second{ending}").read_bytes() == first


def test_the_text_of_an_svg_stays_text(tmp_path):
    written = save(picture(), tmp_path / "card.svg").read_text(encoding="utf-8")
    assert "A title that is searched for</text>" in written
    assert "a line</text>" in written


def test_panels_fill_rows_of_at_most_so_many_columns():
    made, axes = figure(5, width=2, height=3, columns=3)
    assert len(axes) == 5
    assert made.get_size_inches().tolist() == [6, 6]


def test_other_endings_and_places_that_are_no_file_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"`plot` must end in .png, .svg or .pdf; got 'card.bmp'"):
        save(picture(), tmp_path / "card.bmp")
    with pytest.raises(InputError, match="`plot` must be in an existing folder"):
        save(picture(), tmp_path / "none" / "card.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(InputError, match=r"`plot` must be a file; .*folder.png is a folder"):
        save(picture(), tmp_path / "folder.png")


def test_kinds_are_told_apart_by_more_than_colour_once_colours_come_again():
    drawn = looks([f"kind {i:02d}" for i in range(40)])
    assert len({(look.colour, look.marker) for look in drawn.values()}) == 40
    assert len({(look.colour, look.hatch) for look in drawn.values()}) == 40
    assert {look.colour for look in drawn.values()} == set(COLOURS)


def test_a_kind_keeps_its_look_in_whatever_order_kinds_come_and_the_unknown_is_grey_and_last():
    drawn = looks([None, "b", "a", "b"])
    assert list(drawn) == ["a", "b", None]
    assert drawn == looks(["a", "b", None])
    assert drawn[None].colour == GREY
    assert GREY not in COLOURS
