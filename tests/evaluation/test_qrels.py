import pytest

from repstitch.errors import InputError
from repstitch.evaluation.qrels import read_qrels


@pytest.mark.parametrize("end", ["\t", "\t\t", " \t"])
def test_a_tab_at_the_end_of_a_line_is_no_column(tmp_path, end):
    (tmp_path / "q.tsv").write_text(f"q1\td1\t1{end}\nq1\td2\t2\n")
    assert read_qrels(tmp_path / "q.tsv") == {"q1": {"d1": 1, "d2": 2}}


@pytest.mark.parametrize("line", ["q1\td1\tnan", "q1\td1\tinf", "q1\td1\t"])
def test_a_first_judgement_without_a_grade_is_no_header(tmp_path, line):
    (tmp_path / "q.tsv").write_text(f"{line}\nq1\td2\t2\n")
    with pytest.raises(InputError, match=r"line 1 of .*q\.tsv"):
        read_qrels(tmp_path / "q.tsv")
