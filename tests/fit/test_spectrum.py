import pytest
import torch
from helpers.spaces import shared_latent, unrelated

from repstitch.errors import InputError
from repstitch.fit.closed_form import decompose
from repstitch.fit.spectrum import shared_spectrum
from repstitch.metrics.moments import moments


def spectrum(X, Y, train: int, **options) -> dict:
    x, y = torch.from_numpy(X), torch.from_numpy(Y)
    return shared_spectrum(decompose(moments((x[:train], y[:train]))), x[train:], y[train:], **options)


def test_the_number_of_shared_directions_is_estimated():
    result = spectrum(*shared_latent(900, rank=3), 500)
    assert result["above"] == 3
    assert result["directions"] == 10
    assert result["correlation"][0] > 0.9 > 0.2 > abs(result["correlation"][-1])


def test_unrelated_spaces_share_no_direction_even_with_fewer_pairs_than_dimensions():
    above = [spectrum(*unrelated(300, 150, 120, seed=seed), 100, draws=40)["above"] for seed in range(10)]
    assert sum(count > 0 for count in above) <= 2


def test_long_spectra_are_stored_at_64_directions_at_most():
    result = spectrum(*unrelated(400, 200, 200), 200, draws=5)
    assert result["direction"][0] == 1
    assert result["direction"][-1] == result["directions"] == 200
    assert len(result["direction"]) == len(result["correlation"]) <= 64
    assert result["direction"] == sorted(set(result["direction"]))


def test_too_few_rows_are_refused():
    with pytest.raises(InputError, match="At least 4 held-out pairs are needed for a spectrum; got 3"):
        spectrum(*shared_latent(103), 100)
