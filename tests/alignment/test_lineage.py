import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.spaces import card

from repstitch.alignment.lineage import column, numeric_column, read_models
from repstitch.encoders import catalogue
from repstitch.errors import InputError

TEXT = "name,score,family\nold,61.5,a\nnew,70,\n"


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet"])
def test_a_table_is_read_by_name_whatever_its_format(tmp_path, kind):
    path = tmp_path / f"t.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table({"name": ["old", "new"], "score": [61.5, 70.0], "family": ["a", ""]}), path)
    else:
        path.write_text(TEXT.replace(",", "\t") if kind == "tsv" else TEXT)
    assert read_models(path) == {"old": {"score": 61.5, "family": "a"}, "new": {"score": 70.0, "family": ""}}


def test_a_column_is_the_tables_then_the_cards_then_the_catalogues():
    known = next(c for c in catalogue.cards().values() if c.family and c.family != "mine")
    spaces = [card("old", 4, family="f"), card("new", 4, family="g"), card(known.name, 4), card("other", 4)]
    table = {"old": {"family": "tabled"}, "new": {"family": ""}}
    assert column(spaces, "family", table) == ["tabled", "g", known.family, None]
    assert column(spaces, "family") == ["f", "g", known.family, None]


def test_numbers_are_read_from_text_too():
    spaces = [card("a", 4), card("b", 4), card("c", 4, parameters=7)]
    assert numeric_column(spaces, "size", {"a": {"size": "7e9"}, "c": {"size": 2}}) == [7e9, None, 2.0]
    assert numeric_column(spaces, "parameters") == [None, None, 7.0]


def test_refuses_a_column_that_nobody_has_and_what_is_no_number():
    spaces = [card("a", 4, family="bert")]
    with pytest.raises(InputError, match=r"There is no column 'size'; cards have .*parameters.*Pass a `table`"):
        column(spaces, "size")
    with pytest.raises(InputError, match=r"There is no column 'size'; cards have .*, and the table has score"):
        column(spaces, "size", {"a": {"score": 1}})
    with pytest.raises(InputError, match="Column 'family' must contain numbers; a has 'bert'"):
        numeric_column(spaces, "family")


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("t.txt", TEXT, "`table` must end in .parquet, .csv or .tsv; got 't.txt'"),
        ("t.csv", "model,score\na,1\n", "must have a column `name`; got the columns model, score"),
        ("t.csv", "name,score\na,1\na,2\n", "must contain each name once; 'a' appears twice"),
        ("t.csv", "name,score\na,1,2\n", "cannot be read"),
        ("t.parquet", TEXT, "cannot be read"),
        ("gone/t.csv", None, "cannot be read"),
    ],
)
def test_refuses_a_table_that_cannot_be_read(tmp_path, name, text, says):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=says):
        read_models(tmp_path / name)
