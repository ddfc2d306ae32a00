import logging
from dataclasses import replace

import pytest
from helpers.spaces import card

from repstitch.errors import InputError
from repstitch.spaces import Space, adopt

OLD = card("old", 4, revision="1", layer=-1, normalised=True)
NEW = card("new", 6)


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "a\\b", "a\nb", "a\0b", "a\r", None, 5])
def test_a_space_must_be_called_by_a_plain_word(name):
    with pytest.raises(InputError, match="'name' of a space must be text without slashes"):
        Space(name, 4)


@pytest.mark.parametrize("dim", [0, -1, 2.0, "4", None, True])
def test_a_space_must_have_a_whole_number_of_dimensions(dim):
    with pytest.raises(InputError, match="'dim' of space 'a' must be a positive whole number"):
        Space("a", dim)


def test_an_unknown_modality_or_role_is_refused():
    with pytest.raises(InputError, match="'modality' of space 'a' must be one of image, text, other; got 'sound'"):
        Space("a", 4, modality="sound")
    with pytest.raises(InputError, match="'role' of space 'a' must be one of query, document, none; got 'key'"):
        Space("a", 4, role="key")


def test_a_card_survives_json():
    whole = Space(
        "e5 – base", 768, "transformers:e5", "abc", "mean", -2, True, "text", "query", "query: ", "e5", "bert",
        "contrastive", "CCPairs", 110_000_000,
    )  # fmt: skip
    for space in (whole, OLD, Space("a", 1, normalised=False, layer=0)):
        assert Space.from_json(space.to_json()) == space
        assert Space.from_dict(space.to_dict()) == space


def test_unstated_fields_are_left_out_of_a_card_but_false_and_zero_are_kept():
    plain = {"name": "a", "dim": 4, "modality": "other", "role": "none"}
    assert Space("a", 4).to_dict() == plain
    assert Space("a", 4, normalised=False, layer=0).to_dict() == plain | {"normalised": False, "layer": 0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "The space card must be JSON"),
        ("[1]", "must be a JSON object; got list"),
        ("3", "must be a JSON object; got int"),
        ('{"name": "a"}', "must have at least the fields 'name' and 'dim'"),
        ('{"dim": 4}', "must have at least the fields 'name' and 'dim'"),
        ('{"name": "a", "dim": 4, "colour": "red"}', "unknown field 'colour'; allowed fields are architecture"),
        ('{"name": ["a"], "dim": 4}', "must be text without slashes"),
    ],
)
def test_a_card_that_cannot_be_understood_is_refused(text, message):
    with pytest.raises(InputError, match=message):
        Space.from_json(text)


def test_a_space_does_not_conflict_with_itself():
    assert OLD.conflict(OLD) is None


ANOTHER = {"encoder": "x", "revision": "x", "dim": 5, "pooling": "mean", "layer": 3, "normalised": False}


@pytest.mark.parametrize("field", ANOTHER)
def test_whatever_changes_the_numbers_of_a_vector_conflicts_when_both_state_it(field):
    changed = Space.from_dict(OLD.to_dict() | {field: ANOTHER[field]})
    for a, b in ((OLD, changed), (changed, OLD)):
        said = a.conflict(b)
        assert said is not None
        assert said == f"{field} {getattr(a, field)!r} against {getattr(b, field)!r}"


@pytest.mark.parametrize("field", sorted(set(ANOTHER) - {"dim", "encoder"}))
def test_what_one_side_does_not_state_conflicts_with_nothing(field):
    silent = Space.from_dict({k: v for k, v in OLD.to_dict().items() if k != field})
    assert OLD.conflict(silent) is None
    assert silent.conflict(OLD) is None


def test_the_name_is_part_of_the_identity_only_where_an_encoder_is_not_stated():
    assert OLD.conflict(replace(OLD, name="nickname")) is None
    assert Space("a", 4).conflict(Space("b", 4)) == "name 'a' against 'b'"
    assert Space("a", 4).conflict(OLD) == "name 'a' against 'old'"
    assert Space("old", 4).conflict(OLD) is None


def test_role_prompt_and_lineage_are_no_part_of_the_identity():
    other = replace(OLD, role="query", prompt="q: ", family="f", modality="text")
    assert OLD.conflict(other) is None


def test_an_undeclared_space_is_adopted_with_a_warning_when_the_dimension_fits(caplog):
    with caplog.at_level(logging.WARNING):
        assert adopt(Space("file", 4), False, OLD, "X.npy", NEW) == OLD
    assert "X.npy has no space card; assuming space old" in caplog.text


def test_an_undeclared_space_of_the_expected_name_is_adopted_in_silence(caplog):
    assert adopt(Space("old", 4), False, OLD, "old.npy", NEW) == OLD
    assert not caplog.records


def test_a_declared_space_that_agrees_is_taken_in_silence(caplog):
    assert adopt(replace(OLD, name="nickname"), True, OLD, "X") == OLD
    assert not caplog.records


@pytest.mark.parametrize("declared", [True, False])
def test_another_dimension_is_refused(declared):
    with pytest.raises(InputError, match=r"X must have 4 dimensions, like space 'old'; got 5\. Embed the rows"):
        adopt(Space("file", 5), declared, OLD, "X", NEW)


def test_a_declared_space_of_another_identity_is_refused_although_the_dimension_fits():
    with pytest.raises(InputError, match=r"states another identity \(revision '2' against '1'\). Use a stitcher"):
        adopt(card("old", 4, revision="2"), True, OLD, "X", NEW)


def test_a_name_that_was_only_declared_by_flag_must_be_that_of_the_space():
    with pytest.raises(InputError, match="name 'other' against 'old'"):
        adopt(Space("other", 4), True, OLD, "X", NEW)


@pytest.mark.parametrize("declared", [True, False])
def test_backwards_use_is_named_by_the_dimension(declared):
    with pytest.raises(InputError, match=r"must have 4 dimensions.*look like rows of 'new', the other side"):
        adopt(NEW if declared else Space("file", 6), declared, OLD, "X", NEW)


def test_backwards_use_is_named_by_the_card_where_the_dimensions_agree():
    same = card("new", 4)
    with pytest.raises(InputError, match=r"another identity.*look like rows of 'new', the other side"):
        adopt(same, True, OLD, "X", same)


def test_backwards_use_is_named_by_the_file_name_where_the_dimensions_agree():
    with pytest.raises(InputError, match=r"must be in space 'old'; got 'new'.*one direction only"):
        adopt(Space("new", 4), False, OLD, "X", card("new", 4))


def test_a_stranger_is_not_taken_for_the_other_side():
    with pytest.raises(InputError, match="another identity") as refused:
        adopt(card("third", 4), True, OLD, "X", card("new", 4))
    assert "other side" not in str(refused.value)


def test_another_role_warns(caplog):
    document = card("e5", 4, role="document")
    assert adopt(card("e5", 4, role="query"), True, document, "X") == document
    assert "X has role query, but the stitcher was trained on rows with role document" in caplog.text


def test_a_name_that_reads_like_a_pair_is_refused():
    with pytest.raises(InputError, match="'name' of a space must be text without slashes"):
        Space("a->b", 4)
