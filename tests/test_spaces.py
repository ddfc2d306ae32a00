import logging
from dataclasses import replace

import pytest
from helpers.spaces import card

from repstitch.errors import InputError
from repstitch.spaces import Space, adopt

OLD = card("old", 4, revision="1", layer=-1, normalised=True)
NEW = card("new", 6)


@pytest.mark.parametrize(
    "name",
    [
        *("", ".hidden", "a/b", "a\\b", "a\nb", "a\0b", "a\r", None, 5),
        *("a\ud800", "\udcff", "a\tb", "a\u2028b", "a\u202eb", "\x7f", "a" * 257),
    ],
)
def test_the_name_of_a_space_must_be_plain_text(name):
    with pytest.raises(InputError, match="'name' of a space must be text without slashes"):
        Space(name, 4)


def test_a_name_may_have_256_characters_of_any_script():
    assert Space("ä" * 256, 4).name == "ä" * 256
    assert Space("多言語 e5, v2 (ü) 🙂", 4).name == "多言語 e5, v2 (ü) 🙂"


@pytest.mark.parametrize("dim", [0, -1, 2.0, "4", None, True])
def test_the_dimension_of_a_space_must_be_a_positive_whole_number(dim):
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
def test_an_invalid_card_is_refused(text, message):
    with pytest.raises(InputError, match=message):
        Space.from_json(text)


def test_a_space_does_not_conflict_with_itself():
    assert OLD.conflict(OLD) is None


ANOTHER = {"encoder": "x", "revision": "x", "dim": 5, "pooling": "mean", "layer": 3, "normalised": False}


@pytest.mark.parametrize("field", ANOTHER)
def test_spaces_conflict_if_they_state_different_values_of_an_identity_field(field):
    changed = Space.from_dict(OLD.to_dict() | {field: ANOTHER[field]})
    for a, b in ((OLD, changed), (changed, OLD)):
        conflict = a.conflict(b)
        assert conflict is not None
        assert conflict == f"{field} {getattr(a, field)!r} against {getattr(b, field)!r}"


@pytest.mark.parametrize("field", sorted(set(ANOTHER) - {"dim", "encoder"}))
def test_a_field_that_one_side_does_not_state_does_not_conflict(field):
    silent = Space.from_dict({k: v for k, v in OLD.to_dict().items() if k != field})
    assert OLD.conflict(silent) is None
    assert silent.conflict(OLD) is None


def test_the_name_is_part_of_the_identity_only_if_an_encoder_is_not_stated():
    assert OLD.conflict(replace(OLD, name="nickname")) is None
    assert Space("a", 4).conflict(Space("b", 4)) == "name 'a' against 'b'"
    assert Space("a", 4).conflict(OLD) == "name 'a' against 'old'"
    assert Space("old", 4).conflict(OLD) is None


def test_role_prompt_family_and_modality_are_not_part_of_the_identity():
    other = replace(OLD, role="query", prompt="q: ", family="f", modality="text")
    assert OLD.conflict(other) is None


def test_an_undeclared_space_is_adopted_with_a_warning_when_the_dimension_fits(caplog):
    with caplog.at_level(logging.WARNING):
        assert adopt(Space("file", 4), False, OLD, "X.npy", NEW) == OLD
    assert "X.npy has no space card; assuming space old" in caplog.text


def test_an_undeclared_space_with_the_expected_name_is_adopted_without_a_warning(caplog):
    assert adopt(Space("old", 4), False, OLD, "old.npy", NEW) == OLD
    assert not caplog.records


def test_a_declared_space_that_agrees_is_adopted_without_a_warning(caplog):
    assert adopt(replace(OLD, name="nickname"), True, OLD, "X") == OLD
    assert not caplog.records


@pytest.mark.parametrize("declared", [True, False])
def test_a_different_dimension_is_refused(declared):
    with pytest.raises(InputError, match=r"X must have 4 dimensions, like space 'old'; got 5\. Embed the rows"):
        adopt(Space("file", 5), declared, OLD, "X", NEW)


def test_a_declared_space_of_another_identity_is_refused_even_if_the_dimension_fits():
    with pytest.raises(InputError, match=r"states another identity \(revision '2' against '1'\). Use a stitcher"):
        adopt(card("old", 4, revision="2"), True, OLD, "X", NEW)


def test_a_declared_space_with_only_a_name_must_have_the_expected_name():
    with pytest.raises(InputError, match="name 'other' against 'old'"):
        adopt(Space("other", 4), True, OLD, "X", NEW)


@pytest.mark.parametrize("declared", [True, False])
def test_rows_of_the_other_side_are_recognised_by_their_dimension(declared):
    with pytest.raises(InputError, match=r"must have 4 dimensions.*look like rows of 'new', the other side"):
        adopt(NEW if declared else Space("file", 6), declared, OLD, "X", NEW)


def test_rows_of_the_other_side_are_recognised_by_their_card_if_dimensions_agree():
    same = card("new", 4)
    with pytest.raises(InputError, match=r"another identity.*look like rows of 'new', the other side"):
        adopt(same, True, OLD, "X", same)


def test_rows_of_the_other_side_are_recognised_by_their_file_name_if_dimensions_agree():
    with pytest.raises(InputError, match=r"must be in space 'old'; got 'new'.*one direction only"):
        adopt(Space("new", 4), False, OLD, "X", card("new", 4))


def test_rows_of_a_third_space_are_not_reported_as_the_other_side():
    with pytest.raises(InputError, match="another identity") as refused:
        adopt(card("third", 4), True, OLD, "X", card("new", 4))
    assert "other side" not in str(refused.value)


def test_a_different_role_warns(caplog):
    document = card("e5", 4, role="document")
    assert adopt(card("e5", 4, role="query"), True, document, "X") == document
    assert "X has role query, but the stitcher was trained on rows with role document" in caplog.text


def test_a_name_with_an_arrow_is_refused():
    with pytest.raises(InputError, match="'name' of a space must be text without slashes"):
        Space("a->b", 4)
