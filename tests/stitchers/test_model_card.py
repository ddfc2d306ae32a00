from helpers.scorecards import scorecard_of
from helpers.spaces import shared_latent

from repstitch.evaluation.scorecard import Scorecard
from repstitch.stitchers.model_card import model_card

CONFIG = {
    "source": {"name": "old", "dim": 12},
    "target": {"name": "new", "dim": 10},
    "method": "ridge",
    "objective": "match",
    "input_norm": "unit",
    "output_norm": "none",
}


def test_the_model_card_contains_the_scores_and_states_which_rows_they_were_measured_on():
    X, Y = shared_latent(120)
    values = scorecard_of(X, Y, Y).to_dict() | {"held_out": "test pairs"}
    card = Scorecard(values)
    text = model_card(CONFIG, card)
    assert text.startswith("---\nlibrary_name: repstitch\n")
    for part in (
        "# old → new",
        "(12 dimensions)",
        "the method `ridge`",
        "`match`",
        "output normalisation: `none`",
        card.table(),
    ):
        assert part in text
    assert "measured on test pairs only" in text
    assert "fitted again" not in text
    assert "fitted again on all pairs; the scores are of the first fit" in model_card(
        CONFIG, Scorecard(values | {"refit": True})
    )


def test_a_model_card_without_scores_has_no_section_on_scores():
    text = model_card(CONFIG, Scorecard())
    assert "## Scores" not in text
    assert "translates in one direction only" in text
    assert "from repstitch import load" in text
