import numpy as np
import pytest
from helpers.scorecards import scorecard_of
from helpers.spaces import gaussian, shared_latent
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from repstitch.errors import InputError
from repstitch.evaluation.scorecard import Scorecard
from repstitch.plots.canvas import GREY, figure
from repstitch.plots.stitchers import plot_alignment, plot_scorecard

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
    axes = plot_scorecard(Scorecard(CARD), "a → b").axes
    assert len(axes) == 2
    assert heights(axes[0]) == [0.5, 0.75, 0.875]
    assert heights(axes[1]) == [0.25, 0.5]


def full(n: int = 60) -> dict:
    """A card with everything that is drawn."""
    X, Y = shared_latent(n)
    T = Y + gaussian(n, 10, 3)
    card = scorecard_of(X, Y, T, permutations=2).to_dict()
    card["spectrum"] = {
        "direction": [1, 2, 4],
        "correlation": [0.9, 0.5, 0.1],
        "null": 0.2,
        "above": 2,
        "directions": 4,
    }
    bins = [{"predicted": 0.2, "observed": 0.25, "n": 5}, {"predicted": 0.5, "observed": 0.4, "n": 5}]
    return card | {"confidence": {"ece": 0.05, "bins": bins, "n": 10, "pool": 1000}}


def test_a_whole_card_has_five_panels_with_its_own_numbers():
    card = full()
    retrieval, references, spectrum, confidence, hubness = plot_scorecard(Scorecard(card), "a → b").axes
    assert heights(retrieval)[:3] == [card["query"][f"recall@{r}"] for r in (1, 5, 10)]
    labels = [text.get_text() for text in references.texts]
    for use in ("query", "corpus"):
        for name in ("translated", "keep_old", "constant", "shuffled"):
            assert f"{card[use]['references']['overlap@10'][name]['score']:.2f}" in labels
        assert f"{use}: {card[use]['verdict']['verdict']}" in references.get_legend_handles_labels()[1]
    assert np.asarray(spectrum.lines[0].get_ydata()).tolist() == [0.9, 0.5, 0.1]
    assert levels(spectrum)[1] == 0.2
    assert np.asarray(confidence.collections[0].get_offsets()).tolist() == [[0.2, 0.25], [0.5, 0.4]]
    assert heights(hubness) == [card["hubness_native"], card["query"]["hubness_skew"], card["corpus"]["hubness_skew"]]


def test_a_confidence_that_is_not_usable_is_drawn_in_grey_with_its_reason():
    card = full()
    card["confidence"] |= {"usable": False, "reason": "it was tested on 3 hits and 7 misses"}
    axes = plot_scorecard(Scorecard(card), "a → b").axes[3]
    assert axes.get_title() == "Confidence: not usable"
    assert " ".join(axes.texts[0].get_text().split()) == "Not usable: it was tested on 3 hits and 7 misses."
    usable = plot_scorecard(Scorecard(full()), "a → b").axes[3]
    assert (usable.get_title(), len(usable.texts)) == ("Confidence: calibration error 0.050", 0)
    colours = [np.asarray(place.collections[0].get_facecolor())[0] for place in (axes, usable)]
    assert colours[0].tolist() != colours[1].tolist()


def test_what_a_card_does_not_hold_is_not_drawn():
    card = full()
    assert len(plot_scorecard(Scorecard({k: v for k, v in card.items() if k != "confidence"}), "a → b").axes) == 4
    assert len(plot_scorecard(Scorecard(card | {"spectrum": None, "confidence": None}), "a → b").axes) == 3


def test_a_reference_that_one_use_lacks_is_drawn_for_the_other_alone():
    card = full()
    del card["corpus"]["references"]["overlap@10"]["constant"]
    labels = [text.get_text() for text in plot_scorecard(Scorecard(card), "a → b").axes[1].texts]
    shown = [
        f"{card[use]['references']['overlap@10'][name]['score']:.2f}"
        for use in ("query", "corpus")
        for name in ("translated", "keep_old", "reranked", "ceiling", "shuffled", "constant", "naive")
        if name in card[use]["references"]["overlap@10"]
    ]
    assert sorted(labels) == sorted(shown)


def test_relevance_is_drawn_in_place_of_overlap_where_it_was_judged():
    card = full()
    block = {
        name: {"score": at, "interval": [at - 0.01, at + 0.01]}
        for name, at in {"translated": 0.31, "keep_old": 0.22, "ceiling": 0.43}.items()
    }
    card["relevance"] = {"documents": 60, "query": {"queries": 30, "ndcg@10": block, "recall@100": block}}
    labels = [text.get_text() for text in plot_scorecard(Scorecard(card), "a → b").axes[1].texts]
    assert labels == ["0.31", "0.22", "0.43"]


def test_the_black_line_is_chance_or_the_shuffled_pairs_whichever_is_more():
    assert levels(plot_scorecard(Scorecard(CARD), "a → b").axes[0]) == [0.02, 0.125, 0.25]


def test_an_alignment_is_drawn_beside_its_null():
    axes = figure(1)[1][0]
    plot_alignment(axes, {"before": 0.3, "after": 0.6}, 0.1, "title", (GREY, GREY))
    assert levels(axes) == [0.1]
    assert axes.get_legend_handles_labels()[1] == ["unrelated spaces: 0.100"]


def test_a_stitcher_without_a_scorecard_has_nothing_to_draw():
    with pytest.raises(InputError, match="`plot` requires a stitcher with a scorecard; this one has none"):
        plot_scorecard(Scorecard(), "a → b")
