import pytest

from repstitch.text import columns, ends, is_deeper, markdown_table, nearest, num


@pytest.mark.parametrize(
    ("value", "text"), [(0.1234, "0.123"), (1, "1.000"), (-0.5, "-0.500"), (-0.0004, "0.000"), (1234.5678, "1234.568")]
)
def test_a_number_has_three_decimals_and_zero_has_no_sign(value, text):
    assert num(value) == text


@pytest.mark.parametrize(
    ("interval", "texts"),
    [
        ((0.1234, 0.5), ("0.123", "0.500")),
        ((0.9996, 1.0), ("0.999", "1.000")),
        ((0.50001, 0.50002), ("0.500", "0.501")),
        ((-0.0001, 0.0001), ("-0.001", "0.001")),
    ],
)
def test_the_ends_of_an_interval_never_look_equal(interval, texts):
    assert ends(*interval) == texts
    assert ends(0.01, 0.02, sign="+") == ("+0.010", "+0.020")
    assert ends(0.999, 1.0, digits=2) == ("0.99", "1.00")


def test_columns_are_aligned_to_the_left_and_numbers_to_the_right():
    assert columns([("name", "n"), ("a", 1), ("long one", 234)]) == "name        n\na           1\nlong one  234"
    assert columns([("a", "bb", 1), ("aa", "b", 22)], text=2) == "a   bb   1\naa  b   22"


def test_a_line_does_not_end_in_spaces():
    assert columns([("a", ""), ("b", "x")]) == "a\nb  x"


def test_a_markdown_table_escapes_bars_in_cells():
    table = markdown_table([("name", "n"), ("a|b", 1), (" c ", 22)])
    assert table.splitlines() == ["| name | n |", "| --- | ---: |", r"| a\|b | 1 |", "| c | 22 |"]


def test_nearest_names_are_sorted_by_similarity_and_unrelated_ones_are_left_out():
    names = ["method", "objective", "metric", "methods", "meth"]
    assert nearest("methd", names)[0] in ("method", "meth")
    assert len(nearest("metho", names)) == 3
    assert nearest("qqq", names) == []
    assert nearest("a", []) == []


@pytest.mark.parametrize(
    ("value", "depth"), [([], 1), ({"a": 1}, 1), ([1, {"a": [2]}], 3), ({"a": {"b": {"c": {}}}, "d": [1]}, 4)]
)
def test_levels_of_lists_and_dicts_are_counted(value, depth):
    assert is_deeper(value, depth - 1)
    assert not is_deeper(value, depth)
    assert not is_deeper("a", 0)
