from dataclasses import replace

import numpy as np
import pytest
from helpers.embedding_sets import known_spaces, layered_spaces
from helpers.spaces import embeddings

from repstitch.alignment import Atlas, atlas


@pytest.fixture(scope="module")
def measured() -> Atlas:
    return atlas(known_spaces(), ("mutual_knn", "cycle_knn"), k=6, permutations=79, sizes=[30, 120])


def numbers_of(line: str) -> list[float]:
    return [float(word.strip("*()")) for word in line.split() if word.strip("*()").replace(".", "").isdigit()]


def test_two_spaces_are_a_line_a_metric():
    pair = atlas(known_spaces()[:2], ("mutual_knn", "cka"), permutations=19)
    lines = str(pair).splitlines()
    assert [line.split(" (null ")[0] for line in lines] == [
        f"rot0 - un0, n = 120: {name} {score.score:.3f}"
        for name, metric in (("mutual_knn@10", "mutual_knn"), ("cka", "cka"))
        for score in pair.pairs(metric)
    ]
    assert all(", p = " in line and ", calibrated " in line for line in lines)
    without_null = str(atlas(known_spaces()[:2], "cka", permutations=0))
    assert without_null == f"rot0 - un0, n = 120: cka {pair.pairs('cka')[0].score:.3f}"


def test_few_spaces_are_a_matrix_with_its_level_of_chance(measured):
    text = str(measured)
    lines = text.splitlines()
    assert lines[0] == "5 spaces, n = 120, 79 permutations"
    at = lines.index(next(line for line in lines if line.startswith("mutual_knn@6  ")))
    assert lines[at].split()[1:] == ["rot0", "un0", "rot1", "un1", "rot2"]
    for i, line in enumerate(lines[at + 1 : at + 6]):
        np.testing.assert_allclose(numbers_of(line), measured.scores("mutual_knn")[i], atol=5e-4)
        assert line.count("*") == (measured.matrix("mutual_knn", "q")[i] <= 0.05).sum()
    assert lines[at + 6].startswith("chance level (null): 0.0")
    assert lines[at + 6].endswith("; * marks q ≤ 0.05")
    assert "cycle_knn@6 (row → column)" in text
    assert "rot1: rot0 1.000, rot2 1.000, un" in text


def test_many_spaces_are_the_best_pairs_first():
    spaces = [embeddings(40, 4, f"s{i}", seed=i) for i in range(9)]
    many = atlas(spaces, "cka_unbiased", permutations=9)
    lines = str(many).splitlines()
    assert lines[2].split() == ["cka_unbiased", "score", "null", "p", "q", "calibrated", "se"]
    best = sorted(map(float, many.pairs("cka_unbiased")), reverse=True)
    np.testing.assert_allclose([float(line.split()[2]) for line in lines[3:23]], best[:20], atol=5e-4)
    assert lines[23] == "and 16 more pairs with lower scores (the JSON output has all)"
    assert lines[24] == "0 of 36 pairs are above chance (* marks q ≤ 0.05)"
    assert lines[25] == "(with 9 permutations, a single pair among 36 cannot reach q ≤ 0.05; at least 719 are needed)"


def test_long_names_make_no_matrix(measured):
    long = [one.space.name + "-of-a-long-name" for one in known_spaces()]
    spaces = [replace(one, space=replace(one.space, name=name)) for one, name in zip(known_spaces(), long, strict=True)]
    lines = str(atlas(spaces, "cka", permutations=0)).splitlines()
    assert lines[2].split() == ["cka", "score", "se"]


def test_as_many_permutations_as_are_asked_for_let_one_pair_pass(measured):
    text = str(measured)
    assert "(with 79 permutations, a single pair among 10 cannot reach q ≤ 0.05; at least 199 are needed)" in text
    assert "(with 79 permutations, a single pair among 20 cannot reach q ≤ 0.05; at least 399 are needed)" in text
    enough = atlas(known_spaces(), "mutual_knn", permutations=199)
    assert "cannot reach" not in str(enough)


def test_sizes_layers_and_verdicts_are_said(measured):
    at = next(line for line in str(measured).splitlines() if line.startswith("mutual_knn@6 by number of rows"))
    assert at.split()[-2:] == ["30", "120"]
    with_layers = atlas([*layered_spaces("a", 2, 40, 1), *layered_spaces("b", 3, 40, 2)], "mutual_knn", permutations=9)
    (pair,) = with_layers.layers
    verdicts = {"trend": {"verdict": "it rises."}, "control": {"verdict": "monoculture."}}
    asymmetry = {"asymmetry": [{"verdict": "a predicts b."}, {"verdict": "b predicts c."}]}
    lines = [" ".join(line.split()) for line in str(with_layers.with_results(verdicts | asymmetry)).splitlines()]
    layers = f"a, layer {pair.source_layer} b, layer {pair.target_layer} {pair.score:.3f} {pair.null:.3f}"
    assert any(line.startswith(layers) for line in lines)
    expected = ["trend: it rises.", "", "control: monoculture.", ""]
    assert lines[-6:] == [*expected, "asymmetry: a predicts b.", "asymmetry: b predicts c."]


# --- as Markdown ------------------------------------------------------------------------------------------------------


def test_a_matrix_is_a_table_in_a_notebook(measured):
    blocks = measured._repr_markdown_().split("\n\n")
    assert blocks[0] == "5 spaces, n = 120, 79 permutations"
    head, rule, *rows = blocks[1].splitlines()
    assert head == "| mutual_knn@6 | rot0 | un0 | rot1 | un1 | rot2 |"
    assert rule == "| --- | ---: | ---: | ---: | ---: | ---: |"
    assert len(rows) == 5
    assert rows[0].startswith("| rot0 | 1 | 0.0")
    assert rows[0].endswith(" | 1.000* |")
    assert blocks[2].startswith("chance level (null): 0.0")


def test_a_bar_in_a_name_does_not_end_its_cell():
    spaces = [embeddings(40, 4, name, seed=i) for i, name in enumerate(("a|b", "c", "d"))]
    text = atlas(spaces, "cka", permutations=0)._repr_markdown_()
    assert "| cka | a\\|b | c | d |" in text
    assert "\n\nnearest spaces by cka\n\na|b: " in text
