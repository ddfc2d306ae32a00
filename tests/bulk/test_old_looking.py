"""Old vectors that a forgotten writer stores among new ones of the same dimension are recognised."""

import numpy as np
import pytest
from helpers.spaces import gaussian

from repstitch.bulk.old_looking import learn


def spaces(d: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return two views (n, d) of the same items, with a mean each, as real embeddings have."""
    latent = gaussian(4_000, d, seed)
    views = [latent @ gaussian(d, d, seed + k) / np.sqrt(d) + 0.5 * gaussian(1, d, seed + 10 + k) for k in (1, 2)]
    return views[0].astype(np.float32), views[1].astype(np.float32)


@pytest.mark.parametrize("d", [64, 384])
@pytest.mark.parametrize("seed", [0, 100, 200])
def test_50_old_rows_among_1000_are_found_with_at_most_one_percent_of_false_alarms(d, seed):
    old, new = spaces(d, seed)
    classifier = learn(old[:2_000], new[:2_000])
    assert classifier.looks_old(old[2_000:2_050]).sum() == 50
    assert classifier.looks_old(new[2_000:2_950]).mean() <= 0.01
    assert classifier.recognised > 0.99


def test_one_space_on_both_sides_raises_few_false_alarms():
    rows, _ = spaces(64, 0)
    classifier = learn(rows[:1_000], rows[1_000:2_000])
    assert classifier.looks_old(rows[2_000:]).mean() <= 0.02
    assert classifier.recognised < 0.05
