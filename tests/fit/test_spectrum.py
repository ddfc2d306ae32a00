import pytest
import torch
from helpers.spaces import shared_latent, unrelated

from repstitch.errors import InputError
from repstitch.fit.closed_form import decompose
from repstitch.fit.spectrum import shared_spectrum
from repstitch.metrics.moments import moments


def spectrum(X, Y, train: int, **given) -> dict:
    x, y = torch.from_numpy(X), torch.from_numpy(Y)
    return shared_spectrum(decompose(moments((x[:train], y[:train]))), x[train:], y[train:], **given)


def test_the_directions_that_are_shared_are_counted():
    found = spectrum(*shared_latent(900, rank=3), 500)
    assert found["above"] == 3
    assert found["directions"] == 10
    assert found["correlation"][0] > 0.9 > 0.2 > abs(found["correlation"][-1])


def test_unrelated_spaces_share_nothing_even_where_pairs_are_fewer_than_dimensions():
    above = [spectrum(*unrelated(300, 150, 120, seed=seed), 100, draws=40)["above"] for seed in range(10)]
    assert sum(count > 0 for count in above) <= 2


def test_long_spectra_are_kept_at_few_places():
    found = spectrum(*unrelated(400, 200, 200), 200, draws=5)
    assert found["direction"][0] == 1
    assert found["direction"][-1] == found["directions"] == 200
    assert len(found["direction"]) == len(found["correlation"]) <= 64
    assert found["direction"] == sorted(set(found["direction"]))


def test_too_few_rows_are_refused():
    with pytest.raises(InputError, match="At least 4 held-out pairs are needed for a spectrum; got 3"):
        spectrum(*shared_latent(103), 100)
