from collections.abc import Callable

import pytest
from helpers.spaces import card, gaussian

from repstitch.embeddings.columns import read_column
from repstitch.embeddings.reading import read
from repstitch.embeddings.rows import Embeddings
from repstitch.encoders import catalogue
from repstitch.encoders.items import read_items
from repstitch.errors import InputError
from repstitch.evaluation.qrels import read_qrels
from repstitch.lines import read_lines
from repstitch.transfer.labels import label
from repstitch.workflows.study_file import read_study

# Characters at which `str.splitlines` ends a line, but a text file does not, and separators that `str.split` removes.
INSIDE = {
    "vertical tab": "\x0b",
    "form feed": "\x0c",
    "file separator": "\x1c",
    "next line": "\x85",
    "line separator": "\u2028",
    "paragraph separator": "\u2029",
    "carriage return": "\r",
    "no-break space": "\xa0",
    "ideographic space": "\u3000",
}
ENTRIES = ["red{}apple", "{}pear", "plum{}", "fig"]


READERS: dict[str, Callable] = {
    "lines": lambda path: read_lines(path, "lines"),
    "ids": lambda path: list(read(gaussian(4, 3), ids=path).ids),  # type: ignore[arg-type]
    "groups": lambda path: list(read(gaussian(4, 3), group=path).groups),  # type: ignore[arg-type]
    "labels": lambda path: list(label(Embeddings(gaussian(4, 3), card("old", 3)), path).labels),  # type: ignore[arg-type]
    "names of prompts": lambda path: list(read_column(path, 4, "names")),
    "texts": lambda path: read_items(path, "text").values,
}


@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["line feed", "carriage return and line feed"])
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["no mark", "byte order mark"])
@pytest.mark.parametrize("inside", INSIDE)
@pytest.mark.parametrize("kind", READERS)
def test_every_kind_of_list_has_one_entry_per_line(tmp_path, kind, inside, mark, end):
    entries = [entry.format(INSIDE[inside]) for entry in ENTRIES]
    if inside == "carriage return":
        entries[2] = "plum"  # before the end of a line, it would be a part of the end
    for last in ("", end):
        (tmp_path / "list.txt").write_bytes((mark + end.join(entries) + last).encode())
        assert READERS[kind](tmp_path / "list.txt") == entries


@pytest.mark.parametrize("inside", INSIDE)
@pytest.mark.parametrize("between", ["\t", " "], ids=["tabs", "spaces"])
def test_judgements_have_one_query_and_document_per_line(tmp_path, inside, between):
    separator = INSIDE[inside]
    lines = [f"q{separator}{i}{between}d{separator}{i}{between}1" for i in range(3)]
    for mark, end in (("", "\n"), ("\ufeff", "\r\n")):
        (tmp_path / "qrels.tsv").write_bytes((mark + end.join(lines) + end).encode())
        judged = {f"q{separator}{i}": {f"d{separator}{i}": 1.0} for i in range(3)}
        assert read_qrels(tmp_path / "qrels.tsv") == judged


def test_spaces_around_the_columns_of_judgements_are_no_part_of_them(tmp_path):
    (tmp_path / "qrels.txt").write_text("  q1   0  d1  2\nq2\t d2 \t 1\n")
    assert read_qrels(tmp_path / "qrels.txt") == {"q1": {"d1": 2.0}, "q2": {"d2": 1.0}}


def test_ids_and_labels_of_a_table_begin_after_a_byte_order_mark(tmp_path):
    (tmp_path / "t.csv").write_bytes("\ufeffid,kind\r\na,x\r\nb,y\r\n".encode())
    rows = Embeddings(gaussian(2, 3), card("old", 3), ["b", "a"])  # type: ignore[arg-type]
    assert list(label(rows, f"{tmp_path}/t.csv:kind").labels) == ["y", "x"]  # type: ignore[arg-type]
    assert read_items(f"{tmp_path}/t.csv:kind", "text").ids == ["a", "b"]


def test_an_empty_file_has_no_lines_and_an_empty_line_is_an_entry(tmp_path):
    for content, lines in (("", []), ("\n", [""]), ("a\n\n", ["a", ""]), ("a", ["a"])):
        (tmp_path / "list.txt").write_text(content)
        assert read_lines(tmp_path / "list.txt", "lines") == lines


def test_a_file_that_is_not_utf_8_is_refused(tmp_path):
    (tmp_path / "list.txt").write_bytes("a\nb\n".encode("utf-16"))
    with pytest.raises(InputError, match=r"^`ids` .*list\.txt cannot be read as UTF-8 text: 'utf-8' codec"):
        read_lines(tmp_path / "list.txt", "ids")
    with pytest.raises(InputError, match=r"^`ids` .*none\.txt cannot be read as UTF-8 text: .*No such file"):
        read_lines(tmp_path / "none.txt", "ids")


def test_cards_and_studies_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "card.toml").write_text('[[space]]\nname = "a"\nencoder = "timm:a"\n', encoding="utf-8-sig")
    assert list(catalogue.read(tmp_path / "card.toml")) == ["a"]
    files = ", ".join(f'{{ file = "{name}.npy", name = "{name}" }}' for name in "ab")
    study = f'[[experiment]]\nname = "e"\n[[experiment.group]]\nname = "g"\nfiles = [{files}]\n'
    (tmp_path / "study.toml").write_text(study, encoding="utf-8-sig")
    assert [experiment.name for experiment in read_study(tmp_path / "study.toml").experiments] == ["e"]
