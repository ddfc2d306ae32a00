from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.spaces import gaussian, names

from repstitch.errors import InputError
from repstitch.evaluation.qrels import read_qrels
from repstitch.evaluation.relevance import SearchRows, score_relevance
from repstitch.evaluation.thresholds import Thresholds


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
    ids=["three columns", "a header and a negative grade", "TREC", "Windows line ends and a repeated line"],
)
def test_judgements_are_read_in_every_supported_format(tmp_path, text):
    assert read_qrels(written(tmp_path, text)) == {"q 1": {"d 1": 2.0, "d2": 0.0}, "q2": {"d 1": 1.0}}


def test_lines_without_a_tab_are_split_at_spaces(tmp_path):
    assert read_qrels(written(tmp_path, "q1 0 d1 2\nq1 0 d2 1\n")) == {"q1": {"d1": 2.0, "d2": 1.0}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q\td\t1\nq\td\tgood\n", "line 2 .* is 'q\\\\td\\\\tgood'"),
        ("q\td\n1\t2\n", "TREC's four columns; line 1"),
        ("q\td\tnan\nq\td\tnan\n", "line 1"),
        ("q\td\t1\nq\td\t2\n", "judges query 'q' and document 'd' twice, with different grades \\(line 2\\)"),
        ("query\tdocument\tgrade\n", "contains no judgements"),
        ("", "contains no judgements"),
    ],
)
def test_judgements_that_cannot_be_read_are_refused(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        read_qrels(written(tmp_path, text))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"`qrels` .* cannot be read"):
        read_qrels(tmp_path / "none.tsv")


def search_rows(
    n_queries: int = 40, n_documents: int = 200, worse: float = 2.0, lost: float = 0.3, d_old: int = 8
) -> tuple[SearchRows, SearchRows]:
    """Return the search rows of queries and documents.

    The new space has the true rows, the old space a view with noise of size `worse`, and the translation adds noise of
    size `lost` to the true rows. Corpus use is old → new. Document i is relevant to query i, because they are nearly
    the same item. Training used none of the rows.
    """
    D = gaussian(n_documents, 8, 1)
    Q = D[:n_queries] + 0.1 * gaussian(n_queries, 8, 2)
    turn = np.random.default_rng(3).standard_normal((8, d_old)).astype(np.float32)
    made = []
    for at, (rows, kind) in enumerate(((Q, "q"), (D, "d"))):
        n = len(rows)
        old = (rows + worse * gaussian(n, 8, 10 + at)) @ turn
        translated = rows + lost * gaussian(n, 8, 20 + at)
        tensors = (torch.from_numpy(side) for side in (old, rows, translated))
        made.append(SearchRows(names(n, kind), *tensors, seen=np.zeros(n, dtype=bool)))
    return made[0], made[1]


QRELS = {f"q{i}": {f"d{i}": 1.0} for i in range(40)}


def test_a_good_translation_of_a_corpus_beats_the_old_model_and_stays_below_re_embedding():
    scores = score_relevance(*search_rows(), QRELS, ("corpus",)).corpus
    first = scores.measures["ndcg@10"]
    assert first.keep_old.score < first.translated.score <= first.ceiling.score > 0.95
    assert first.to_dict()["shuffled"]["score"] < 0.15
    assert first.to_dict()["over_keep_old"]["interval"][0] > 0
    assert scores.verdict.measure == "ndcg@10"
    assert scores.verdict == "use"
    assert scores.queries == 40


def test_a_translation_that_is_mostly_noise_gets_the_verdict_keep_the_old_model():
    assert score_relevance(*search_rows(worse=0.2, lost=50.0), QRELS).corpus.verdict == "keep the old model"


def test_query_use_ignores_translated_documents_and_corpus_use_translated_queries():
    queries, documents = search_rows()
    scores = score_relevance(queries, documents, QRELS)
    blank = replace(queries, translated=gaussian_like(queries.translated))
    assert score_relevance(blank, documents, QRELS).corpus == scores.corpus
    blank = replace(documents, translated=gaussian_like(documents.translated))
    assert score_relevance(queries, blank, QRELS).query == scores.query
    for measure in ("ndcg@10", "recall@100"):
        query, corpus = scores.query.measures[measure], scores.corpus.measures[measure]
        assert corpus.keep_old == query.ceiling
        assert corpus.ceiling == query.keep_old


def gaussian_like(rows: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(gaussian(*rows.shape, seed=99))


def ndcg_of(order: np.ndarray, grades: dict[int, float]) -> float:
    """nDCG@10 of documents, best first, in plain Python."""
    gained = sum(grades.get(int(row), 0.0) / np.log2(rank + 2) for rank, row in enumerate(order[:10]))
    best = sorted(grades.values(), reverse=True)[:10]
    return gained / sum(grade / np.log2(rank + 2) for rank, grade in enumerate(best))


@pytest.mark.parametrize("use", ["corpus", "query"])
def test_the_rival_without_a_map_reranks_the_first_100_of_the_old_model_by_the_new_one(use):
    queries, documents = search_rows(n_documents=400)
    grades = [{i: 2.0, (i * 7) % 400: 1.0} for i in range(40)]
    qrels = {f"q{i}": {f"d{row}": grade for row, grade in judged.items()} for i, judged in enumerate(grades)}
    measures = getattr(score_relevance(queries, documents, qrels, (use,)), use).measures
    sides = [(np.asarray(queries.source), np.asarray(documents.source))]
    sides.append((np.asarray(queries.target), np.asarray(documents.target)))
    old, new = sides if use == "corpus" else sides[::-1]
    expected = []
    for query in range(40):
        similar = [(D @ Q[query]) / np.linalg.norm(D, axis=1) / np.linalg.norm(Q[query]) for Q, D in (old, new)]
        first = np.argsort(-similar[0])[:100]
        expected.append(ndcg_of(first[np.argsort(-similar[1][first])], grades[query]))
    reranked = measures["ndcg@10"].reranked
    assert reranked is not None
    assert reranked.score == pytest.approx(np.mean(expected), abs=1e-6)
    assert reranked.interval is not None
    assert measures["recall@100"].reranked == measures["recall@100"].keep_old
    if use == "corpus":  # whose new model is the better one
        assert measures["ndcg@10"].keep_old.score + 0.05 < reranked.score < measures["ndcg@10"].ceiling.score


def test_reranking_all_documents_is_full_re_embedding():
    measures = score_relevance(*search_rows(n_documents=100), QRELS, ("corpus",)).corpus.measures["ndcg@10"]
    assert measures.reranked == measures.ceiling


def test_an_old_model_that_is_gone_has_no_shortlist():
    gone = Thresholds(old_model="gone")
    scores = score_relevance(*search_rows(), QRELS, thresholds=gone)
    for use in (scores.query, scores.corpus):
        assert {measure.reranked for measure in use.measures.values()} == {None}
        assert use.verdict.numbers["reranked"] is None


def test_a_naive_swap_is_scored_only_if_both_spaces_have_the_same_dimension():
    assert "naive" in score_relevance(*search_rows(), QRELS).query.measures["ndcg@10"]
    assert "naive" not in score_relevance(*search_rows(d_old=12), QRELS).query.measures["ndcg@10"]


def test_queries_seen_in_training_are_left_out_and_unknown_ids_are_counted():
    queries, documents = search_rows()
    queries = replace(queries, seen=np.arange(40) < 10)
    documents = replace(documents, seen=np.arange(200) < 7)
    qrels = QRELS | {"q39": {"d39": 0.0}, "q38": {"elsewhere": 1.0}, "stranger": {"d1": 1.0}}
    scores = score_relevance(queries, documents, qrels)
    assert scores.query.queries == 28
    counts = {
        key: value for key, value in scores.to_dict().items() if key not in ("query", "corpus", "unseen_documents")
    }
    assert counts == {
        "documents": 200,
        "unknown_queries": 1,
        "unknown_documents": 1,
        "queries_without_relevant": 2,
        "queries_seen_in_training": 10,
        "documents_seen_in_training": 7,
    }
    assert counts == {name: getattr(scores, name) for name in counts}


def test_documents_that_trained_flatter_and_the_others_give_the_verdict():
    queries, documents = search_rows(lost=2.5)
    seen = np.arange(200) % 2 == 0
    memorised = documents.translated.clone()
    memorised[torch.from_numpy(seen)] = documents.target[torch.from_numpy(seen)]  # as a map that knows them by heart
    documents = replace(documents, seen=seen, translated=memorised)
    qrels = {f"q{i}": {f"d{i}": 2.0, f"d{i + 41}": 1.0} for i in range(40)}  # one document of either half
    scores = score_relevance(queries, documents, qrels, ("corpus",))
    unseen = scores.unseen_documents
    assert unseen is not None
    assert unseen.documents == 100
    assert unseen.documents_seen_in_training == 0
    first, over_all = (r.corpus.measures["ndcg@10"].retention for r in (unseen, scores))
    assert first is not None
    assert over_all is not None
    assert first.score < over_all.score - 0.1
    assert scores.deciding.corpus == unseen.corpus
    alone = score_relevance(queries, documents.take(np.flatnonzero(~seen)), qrels, ("corpus",))
    assert alone.corpus == unseen.corpus
    assert alone.unseen_documents is None
    assert alone.deciding.corpus == alone.corpus


def test_scores_over_all_documents_give_the_verdict_if_too_few_queries_are_left_without_those_that_trained():
    queries, documents = search_rows()
    documents = replace(documents, seen=np.arange(200) >= 15)
    scores = score_relevance(queries, documents, QRELS, ("corpus",))
    assert scores.unseen_documents is None
    assert scores.deciding is scores


def test_few_judged_queries_are_scored_but_give_no_verdict():
    scores = score_relevance(*search_rows(), {"q0": {"d0": 1.0}}).corpus
    assert scores.measures["ndcg@10"].ceiling.score > 0
    assert scores.verdict.why == "1 judged queries are too few for a verdict; at least 20 are needed."


@pytest.mark.parametrize(("n_documents", "chance"), [(80, 1.0), (150, 2 / 3), (400, 1 / 4)])
def test_the_chance_level_of_a_shortlist_is_its_depth_over_the_number_of_documents(n_documents, chance):
    scores = score_relevance(*search_rows(n_documents=n_documents, lost=1.5), QRELS, ("corpus",)).corpus
    assert scores.depth == min(100, n_documents)
    assert scores.verdict.numbers["first_stage_chance"] == pytest.approx(chance)


@pytest.mark.parametrize("qrels", [{}, {"x": {"d0": 1.0}}, {"q0": {"x": 1.0}}, {"q0": {"d0": 0.0}}])
def test_judgements_without_a_usable_query_are_refused(qrels):
    with pytest.raises(InputError, match="for at least one of 40 queries; none is left"):
        score_relevance(*search_rows(), qrels)


def test_queries_that_were_all_used_in_training_are_refused():
    queries, documents = search_rows()
    with pytest.raises(InputError, match=r"none is left \(40 were used in training\)"):
        score_relevance(replace(queries, seen=np.ones(40, dtype=bool)), documents, QRELS)


def test_only_the_requested_uses_are_scored():
    scores = score_relevance(*search_rows(), QRELS, ("corpus",))
    assert list(scores.uses) == ["corpus"]
    with pytest.raises(InputError, match=r"`use` must be a use that was judged \(corpus\); got 'query'"):
        _ = scores.query
