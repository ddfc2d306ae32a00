import numpy as np
import pytest
import torch
from helpers.spaces import gaussian, names

from repstitch.errors import InputError
from repstitch.evaluation.qrels import read_qrels
from repstitch.evaluation.relevance import Sides, relevance


def written(tmp_path, text: str):
    path = tmp_path / "rel.tsv"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "text",
    [
        "q 1\td 1\t2\nq 1\td2\t0\nq2\td 1\t1\n",
        "query-id\tcorpus-id\tscore\nq 1\td 1\t2\n\nq 1\td2\t-1\nq2\td 1\t1.0\n",
        "q 1\t0\td 1\t2\nq 1\tQ0\td2\t0\nq2\t0\td 1\t1\n",
        "\ufeffq 1\td 1\t2\r\nq 1\td2\t0\r\nq2\td 1\t1\r\nq2\td 1\t1\r\n",
    ],
    ids=["three columns", "a header, and spam", "TREC", "Windows, and a line twice"],
)
def test_judgements_are_read_in_the_forms_they_come_in(tmp_path, text):
    assert read_qrels(written(tmp_path, text)) == {"q 1": {"d 1": 2.0, "d2": 0.0}, "q2": {"d 1": 1.0}}


def test_lines_without_a_tab_are_split_at_spaces(tmp_path):
    assert read_qrels(written(tmp_path, "q1 0 d1 2\nq1 0 d2 1\n")) == {"q1": {"d1": 2.0, "d2": 1.0}}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("q\td\t1\nq\td\tgood\n", "line 2 .* is 'q\\\\td\\\\tgood'"),
        ("q\td\n1\t2\n", "TREC's four columns; line 2"),
        ("q\td\tnan\nq\td\tnan\n", "line 2"),
        ("q\td\t1\nq\td\t2\n", "judges query 'q' and document 'd' twice, with different grades \\(line 2\\)"),
        ("query\tdocument\tgrade\n", "holds no judgements"),
        ("", "holds no judgements"),
    ],
)
def test_judgements_that_cannot_be_read_are_refused(tmp_path, text, said):
    with pytest.raises(InputError, match=said):
        read_qrels(written(tmp_path, text))


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"`qrels` .* cannot be read"):
        read_qrels(tmp_path / "none.tsv")


def sides(
    n_queries: int = 40, n_documents: int = 200, worse: float = 2.0, lost: float = 0.3, d_old: int = 8
) -> tuple[Sides, Sides]:
    """The new space holds the truth, the old one a noisy view of it; the translation loses `lost`.

    Corpus use is old → new: `x` old, `y` new. Document i is relevant to query i, being nearly the same item.
    """
    D = gaussian(n_documents, 8, 1)
    Q = D[:n_queries] + 0.1 * gaussian(n_queries, 8, 2)
    turn = np.random.default_rng(3).standard_normal((8, d_old)).astype(np.float32)
    made = []
    for at, (rows, kind) in enumerate(((Q, "q"), (D, "d"))):
        n = len(rows)
        x = (rows + worse * gaussian(n, 8, 10 + at)) @ turn
        t = rows + lost * gaussian(n, 8, 20 + at)
        made.append(Sides(names(n, kind), *(torch.from_numpy(side) for side in (x, rows, t))))
    return made[0], made[1]


QRELS = {f"q{i}": {f"d{i}": 1.0} for i in range(40)}
UNSEEN = np.zeros(40, dtype=bool)


def test_a_good_translation_of_a_corpus_beats_the_old_model_and_stays_below_re_embedding():
    found = relevance(*sides(), QRELS, UNSEEN, ("corpus",))["corpus"]
    first = found["ndcg@10"]
    assert first["keep_old"]["score"] < first["translated"]["score"] <= first["ceiling"]["score"] > 0.95
    assert first["shuffled"]["score"] < 0.15
    assert first["over_keep_old"]["interval"][0] > 0
    assert found["verdict"]["measure"] == "ndcg@10"
    assert found["verdict"]["verdict"] == "use"
    assert found["queries"] == 40


def test_a_translation_that_lost_everything_is_worse_than_the_old_model():
    found = relevance(*sides(worse=0.2, lost=50.0), QRELS, UNSEEN, ("corpus",))
    assert found["corpus"]["verdict"]["verdict"] == "keep the old model"


def test_each_use_searches_its_own_rows():
    queries, documents = sides()
    blank = Sides(queries.ids, queries.x, queries.y, gaussian_like(queries.t))
    corpus = relevance(blank, documents, QRELS, UNSEEN)
    assert corpus["corpus"] == relevance(queries, documents, QRELS, UNSEEN)["corpus"]
    blank = Sides(documents.ids, documents.x, documents.y, gaussian_like(documents.t))
    assert relevance(queries, blank, QRELS, UNSEEN)["query"] == relevance(queries, documents, QRELS, UNSEEN)["query"]
    for measure in ("ndcg@10", "recall@100"):
        assert corpus["corpus"][measure]["keep_old"] == corpus["query"][measure]["ceiling"]
        assert corpus["corpus"][measure]["ceiling"] == corpus["query"][measure]["keep_old"]


def gaussian_like(rows: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(gaussian(*rows.shape, seed=99))


def test_a_naive_swap_needs_one_dimension():
    assert "naive" in relevance(*sides(), QRELS, UNSEEN)["query"]["ndcg@10"]
    assert "naive" not in relevance(*sides(d_old=12), QRELS, UNSEEN)["query"]["ndcg@10"]


def test_seen_queries_do_not_judge_and_what_is_not_there_is_counted():
    seen = np.arange(40) < 10
    qrels = QRELS | {"q39": {"d39": 0.0}, "q38": {"elsewhere": 1.0}, "stranger": {"d1": 1.0}}
    found = relevance(*sides(), qrels, seen)
    assert found["query"]["queries"] == 28
    counts = {k: v for k, v in found.items() if k not in ("query", "corpus")}
    assert counts == {
        "documents": 200,
        "unknown_queries": 1,
        "unknown_documents": 1,
        "queries_without_relevant": 2,
        "queries_seen_in_training": 10,
    }


def test_few_judged_queries_are_scored_but_not_judged_by():
    found = relevance(*sides(), {"q0": {"d0": 1.0}}, UNSEEN)["corpus"]
    assert found["ndcg@10"]["ceiling"]["score"] > 0
    assert found["verdict"]["why"] == "1 judged queries are too few to judge by; at least 20 are needed."


@pytest.mark.parametrize("qrels", [{}, {"x": {"d0": 1.0}}, {"q0": {"x": 1.0}}, {"q0": {"d0": 0.0}}])
def test_no_judged_query_is_refused(qrels):
    with pytest.raises(InputError, match="relevant to one of the 40 queries at least; none is left"):
        relevance(*sides(), qrels, UNSEEN)


def test_queries_that_were_all_seen_are_refused():
    with pytest.raises(InputError, match=r"none is left \(40 were used in training\)"):
        relevance(*sides(), QRELS, ~UNSEEN)
