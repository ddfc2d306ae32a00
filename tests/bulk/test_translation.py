import threading
import time

import numpy as np
import pytest
from helpers.spaces import gaussian

from repstitch.bulk.translation import Stopped, Translation


def test_rows_are_translated_as_the_stitcher_does_and_rows_without_a_direction_become_nan(stitcher):
    rows = gaussian(20_000, 64)
    rows[[3, 19_999]] = 0
    rows[7, 5] = np.nan
    translated = Translation(stitcher)(rows)
    bad = np.isnan(translated).any(axis=1)
    assert np.flatnonzero(bad).tolist() == [3, 7, 19_999]
    np.testing.assert_allclose(translated[~bad], stitcher.translate(rows[~bad]), atol=1e-6)


def test_the_rate_is_kept_over_all_threads(stitcher):
    translation = Translation(stitcher, max_rows_per_second=1_000)
    start = time.monotonic()
    threads = [threading.Thread(target=translation, args=(gaussian(100, 64),)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - start >= 0.5
    assert translation.n_rows == 500


def test_a_stopped_translation_ends_at_once_whatever_its_rate(stitcher):
    translation = Translation(stitcher, max_rows_per_second=1)
    threading.Timer(0.1, translation.stop).start()
    start = time.monotonic()
    with pytest.raises(Stopped):
        translation(gaussian(100, 64))
    assert time.monotonic() - start < 5


def test_progress_counts_rows(stitcher):
    seen: list[int] = []
    translation = Translation(stitcher, report=seen.append)
    translation(gaussian(3, 64))
    translation(gaussian(5, 64))
    assert seen == [3, 5]
