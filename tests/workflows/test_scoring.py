from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.spaces import affine_image, card, gaussian, names

from repstitch.embeddings.rows import Embeddings
from repstitch.embeddings.writing import write
from repstitch.errors import InputError
from repstitch.evaluation.relevance_data import RelevanceData
from repstitch.names import USES
from repstitch.stitchers.stitcher import Stitcher, load
from repstitch.workflows.scoring import score
from repstitch.workflows.training import train

D_SOURCE, D_TARGET = 6, 4
GOLDEN = Path(__file__).parents[1] / "golden"


def fresh(n: int = 80) -> tuple[Embeddings, Embeddings]:
    X, Y, _, _ = affine_image(1000, D_SOURCE, D_TARGET, noise=0.3)
    late, ids = slice(1000 - n, 1000), names(n, "fresh")
    return Embeddings(X[late], card("old", D_SOURCE), ids), Embeddings(Y[late], card("new", D_TARGET), ids)


def test_seen_pairs_are_left_out_and_counted(sides, stitcher):
    new = fresh(60)
    both = tuple(
        Embeddings(np.concatenate([a.vectors, b.vectors]), a.space, np.concatenate([names(200), names(60, "fresh")]))
        for a, b in zip(sides, new, strict=True)
    )
    card = score(stitcher, *both)
    assert card.left_out == len(stitcher.seen) // 2
    assert card.n == 260 - len(stitcher.seen) // 2
    assert card.held_out == "unseen pairs"


def test_pairs_not_seen_in_training_are_all_scored(stitcher):
    card = score(stitcher, *fresh(60))
    assert (card.left_out, card.n) == (0, 60)


def test_the_scores_are_those_of_the_translation(stitcher):
    a, b = fresh(60)
    y = b.vectors / np.linalg.norm(b.vectors, axis=1, keepdims=True)
    similar = stitcher.translate(a.vectors) @ y.T
    own = np.diag(similar)[:, None]
    card = score(stitcher, a, b)
    assert card.query.recall_at(1).score == pytest.approx(((similar >= own).sum(1) == 1).mean())
    assert card.corpus.recall_at(1).score == pytest.approx(((own <= similar.T).sum(1) == 1).mean())
    assert card.reconstruction.cosine == pytest.approx(own.mean(), abs=1e-5)


def test_training_pairs_without_ids_are_recognised_by_their_vectors(sides):
    X, Y = (side.vectors for side in sides)
    named: dict[str, Any] = {"source_space": card("old", D_SOURCE), "target_space": card("new", D_TARGET)}
    stitcher = train(X, Y, method="ridge", device="cpu", split_shares=(0.8, 0.2, 0), **named)
    with pytest.raises(InputError, match="All 200 pairs were used to train this stitcher; pass other pairs"):
        score(stitcher, X[::-1], Y[::-1], **named)


@pytest.mark.parametrize("uses", [("query",), ("corpus",), USES])
def test_only_the_requested_uses_are_scored(stitcher, uses):
    assert [use for use in USES if use in score(stitcher, *fresh(), uses=uses)] == list(uses)


@pytest.mark.parametrize("uses", ["query", (), ("index",), ("query", "index")])
def test_unknown_or_missing_uses_are_refused(stitcher, uses):
    with pytest.raises(InputError, match="`uses` must be a tuple with at least one of query and corpus"):
        score(stitcher, *fresh(), uses=uses)


def test_swapped_sides_are_refused_by_their_cards(stitcher):
    a, b = fresh()
    with pytest.raises(InputError, match=r"`source` must have 6 dimensions.* These look like rows of 'new'"):
        score(stitcher, b, a)


def test_swapped_files_of_equal_dimension_without_cards_are_detected_by_their_means(tmp_path):
    X, Y = (
        gaussian(200, 5, 1) + np.array([3, 0, 0, 0, 0], np.float32),
        gaussian(200, 5, 2) + np.array([0, 3, 0, 0, 0], np.float32),
    )
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", Y)
    stitcher = train(X, Y, method="ridge", device="cpu", source_space="old", target_space="new")
    with pytest.raises(InputError, match="`source` looks like rows of 'new', the other side"):
        score(stitcher, tmp_path / "y.npy", tmp_path / "x.npy")


def test_invalid_rows_are_refused_or_left_out_and_counted(stitcher):
    a, b = fresh(60)
    a.vectors[7] = np.nan
    with pytest.raises(InputError, match=r"1 with source NaN or Inf \(first: id 'fresh7'\)"):
        score(stitcher, a, b)
    card = score(stitcher, a, b, drop_invalid=True)
    assert card.n == 59
    assert card.dropped["source NaN or Inf"] == 1


def test_files_give_the_same_scores_as_their_rows(tmp_path, stitcher):
    a, b = fresh()
    paths = tmp_path / "x.parquet", tmp_path / "y.parquet"
    for path, rows in zip(paths, (a, b), strict=True):
        write(path, rows)
    assert score(stitcher, *paths) == score(stitcher, a, b)


def test_seen_pairs_with_other_ids_are_recognised_by_their_vectors(sides, stitcher):
    renamed = tuple(Embeddings(side.vectors, side.space, names(200, "renamed")) for side in sides)
    usual, again = score(stitcher, *sides), score(stitcher, *renamed)
    assert again.left_out == usual.left_out
    assert again.query.recall_at(1).score == usual.query.recall_at(1).score


# --- training pairs in another form -----------------------------------------------------------------------------------


def unit(X: np.ndarray) -> np.ndarray:
    return X / np.linalg.norm(X, axis=1, keepdims=True)


def bfloat16(X: np.ndarray) -> np.ndarray:
    return torch.from_numpy(X).bfloat16().float().numpy()


FORMS = {
    "unit": unit,
    "doubled": lambda X: 2 * X,
    "float16": lambda X: X.astype(np.float16),
    "bfloat16": bfloat16,
    "unit, bfloat16": lambda X: bfloat16(unit(X)),
}


def converted(sides, form: str) -> tuple[Embeddings, ...]:
    """Return the rows in another form and with other ids."""
    return tuple(
        Embeddings(FORMS[form](side.vectors), side.space, names(len(side.vectors), "renamed")) for side in sides
    )


@pytest.mark.parametrize("form", FORMS)
def test_training_pairs_are_left_out_in_any_form(sides, stitcher, form):
    card = score(stitcher, *converted(sides, form))
    assert card.left_out == len(stitcher.seen) // 2
    assert card.notes == []


def test_queries_are_left_out_in_any_form(sides, stitcher, judged, tmp_path):
    qrels = tmp_path / "rel.tsv"
    qrels.write_text("\n".join(f"renamed{i}\titem{i}\t1" for i in range(200)), encoding="utf-8")
    source, target = converted(sides, "bfloat16")
    scores = score(stitcher, *sides, relevance=RelevanceData(qrels, source, target)).relevance
    assert scores is not None
    assert scores.queries_seen_in_training == len(stitcher.seen) // 2


def test_a_stitcher_remembers_a_training_pair_in_at_most_32_bytes(stitcher):
    assert stitcher.seen.nbytes + stitcher.seen_rows.nbytes <= 32 * len(stitcher.seen) // 2


def test_a_stitcher_of_an_earlier_release_recognises_equal_vectors_only_and_its_scorecard_says_so(sides, stitcher):
    earlier = replace(stitcher, seen_rows=None)
    same, doubled = (score(earlier, *rows) for rows in (sides, converted(sides, "doubled")))
    assert (same.left_out, doubled.left_out) == (len(stitcher.seen) // 2, 0)
    for scores in (same, doubled):
        (note,) = scores.notes
        assert note.startswith("This stitcher is of an earlier release and recognises training pairs by ids and ident")
        assert note in str(scores)
    assert load(GOLDEN / "format-1-affine").seen_rows is None


# --- near duplicates --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wide() -> tuple[Stitcher, np.ndarray, np.ndarray]:
    """Return a stitcher that was trained on all of 300 pairs, and the pairs."""
    X, Y, _, _ = affine_image(300, 24, 16, noise=0.3)
    return train(X, Y, method="ridge", device="cpu", refit_on_all=True, source_space="old", target_space="new"), X, Y


def scored(stitcher: Stitcher, *parts: tuple[np.ndarray, np.ndarray]):
    """Score the rows of all parts together, without ids."""
    X, Y = (np.concatenate(side) for side in zip(*parts, strict=True))
    return score(stitcher, X, Y, source_space="old", target_space="new")


def unseen(n: int) -> tuple[np.ndarray, np.ndarray]:
    X, Y, _, _ = affine_image(1000, 24, 16, noise=0.3)
    return X[-n:], Y[-n:]


def test_near_duplicates_of_training_pairs_in_the_same_files_are_counted_and_scored_apart(wide):
    stitcher, X, Y = wide
    near = X[:40] + np.float32(0.05) * gaussian(40, 24, 7), Y[:40] + np.float32(0.05) * gaussian(40, 16, 8)
    card, alone = scored(stitcher, (2 * X, Y), near, unseen(60)), scored(stitcher, unseen(60))
    assert (card.left_out, card.n, card.near_duplicates) == (300, 100, 40)
    assert card.notes == [
        "40 of 100 unseen pairs nearly repeat one of 300 training pairs in these files in both spaces, so their scores "
        "partly measure memorisation."
    ]
    assert card.without_near_duplicates is not None
    assert card.without_near_duplicates.left_out == 40
    for use in USES:
        without = card.without_near_duplicates.uses[use]["recall@1"]
        assert without <= alone.uses[use].recall_at(1).score  # the same queries, in a larger gallery
    assert "without the 40 near duplicates of training rows" in card.table()


def test_near_duplicates_are_not_counted_where_the_files_have_no_training_pairs(wide):
    stitcher, X, Y = wide
    card = scored(stitcher, unseen(60))
    assert (card.left_out, card.near_duplicates, card.without_near_duplicates, card.notes) == (0, None, None, [])
    card = scored(stitcher, (X, Y), unseen(60))
    assert (card.left_out, card.near_duplicates, card.without_near_duplicates, card.notes) == (300, 0, None, [])


# --- by relevance judgements ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def judged(tmp_path_factory) -> RelevanceData:
    """Return queries near the last 60 documents, and their judgements. Training saw a part of the documents."""
    X, Y, _, _ = affine_image(200, D_SOURCE, D_TARGET, noise=0.3)
    ids = names(60, "q")
    queries = X[140:] + 0.05 * gaussian(60, D_SOURCE, 7), Y[140:] + 0.05 * gaussian(60, D_TARGET, 8)
    qrels = tmp_path_factory.mktemp("judged") / "rel.tsv"
    lines = [f"q{i}\titem{140 + i}\t2" for i in range(60)]
    qrels.write_text("\n".join(["query\tdocument\tgrade", *lines, "stranger\titem1\t1"]), encoding="utf-8")
    return RelevanceData(
        qrels,
        Embeddings(queries[0], card("old", D_SOURCE), ids),
        Embeddings(queries[1], card("new", D_TARGET), ids),
    )


def test_relevance_is_scored_over_all_documents_and_decides_the_verdicts(sides, stitcher, judged):
    card = score(stitcher, *sides, relevance=judged)
    scores = card.relevance
    assert scores is not None
    assert scores.documents == 200
    assert card.left_out == scores.documents_seen_in_training > 0
    assert (scores.unknown_queries, scores.queries_seen_in_training) == (1, 0)
    y = sides[1].vectors / np.linalg.norm(sides[1].vectors, axis=1, keepdims=True)
    similar = stitcher.translate(judged.source_queries.vectors) @ y.T
    place = (similar > similar[np.arange(60), 140 + np.arange(60)][:, None]).sum(1)
    by_hand = np.where(place < 10, 1 / np.log2(place + 2), 0).mean()
    assert scores.query.measures["ndcg@10"].translated.score == pytest.approx(by_hand, abs=1e-3)
    for use in USES:
        assert card.uses[use].verdict.to_dict() == scores.uses[use].verdict.to_dict()
        assert card.uses[use].verdict.measure == "ndcg@10"
    assert "60 queries" in card.table()
    assert f"relevance: 200 documents searched ({card.left_out} of them seen in training)" in card.table()
    line = next(line for line in str(card).splitlines() if line.startswith("nDCG@10 "))
    assert str(scores.query.measures["ndcg@10"].translated) in line


def test_queries_seen_in_training_are_left_out(sides, stitcher, judged, tmp_path):
    qrels = tmp_path / "rel.tsv"
    qrels.write_text("\n".join(f"item{i}\titem{i}\t1" for i in range(200)), encoding="utf-8")
    scores = score(stitcher, *sides, relevance=RelevanceData(qrels, *sides)).relevance
    assert scores is not None
    assert scores.queries_seen_in_training == len(stitcher.seen) // 2
    assert scores.query.queries == 200 - len(stitcher.seen) // 2


def test_queries_whose_ids_equal_those_of_unrelated_documents_are_kept(sides, stitcher, judged, tmp_path):
    qrels = tmp_path / "rel.tsv"
    qrels.write_text("\n".join(f"item{i}\titem{140 + i}\t1" for i in range(60)), encoding="utf-8")
    numbered = (replace(queries, ids=names(60)) for queries in (judged.source_queries, judged.target_queries))
    scores = score(stitcher, *sides, relevance=RelevanceData(qrels, *numbered)).relevance
    assert scores is not None
    assert scores.queries_seen_in_training == 0
    assert scores.query.queries == 60


@pytest.mark.parametrize("left_out", ["source_queries", "target_queries", "qrels"])
def test_queries_and_judgements_must_be_passed_together(judged, left_out):
    with pytest.raises(InputError, match="`source_queries`, `target_queries` and `qrels` must be passed together"):
        replace(judged, **{left_out: None})


@pytest.mark.parametrize("side", ["source_queries", "target_queries"])
def test_relevance_needs_ids(sides, stitcher, judged, side):
    with pytest.raises(InputError, match="`qrels` refers to ids, so documents and queries must have ids on both sides"):
        score(stitcher, *sides, relevance=replace(judged, **{side: replace(getattr(judged, side), ids=None)}))


def test_query_ids_can_be_passed_separately(sides, stitcher, judged):
    arrays = {name: getattr(judged, name).vectors for name in ("source_queries", "target_queries")}
    separate = replace(judged, **arrays, source_query_ids=names(60, "q"), target_query_ids=names(60, "q"))
    assert score(stitcher, *sides, relevance=separate) == score(stitcher, *sides, relevance=judged)


def test_queries_of_the_other_space_are_refused(sides, stitcher, judged):
    swapped = RelevanceData(judged.qrels, judged.target_queries, judged.source_queries)
    with pytest.raises(InputError, match="the other side"):
        score(stitcher, *sides, relevance=swapped)


def test_the_repr_of_relevance_data_lists_its_fields(judged):
    assert repr(judged) == "RelevanceData(qrels, source_queries, target_queries)"
