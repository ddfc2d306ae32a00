import numpy as np
import pytest
import torch
from helpers.spaces import gaussian

from repstitch.embeddings.normalising import cosines

X, Y = torch.from_numpy(gaussian(50, 8, 1)), torch.from_numpy(gaussian(50, 8, 2))
EXACT = torch.nn.functional.cosine_similarity(X.double(), Y.double()).numpy()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("factor", [1e-37, 1e-30, 1e-20, 1e-10, 1.0, 1e20, 1e37])
def test_the_cosine_of_rows_does_not_depend_on_their_lengths(factor, dtype):
    scaled = (Y.to(dtype) * factor).to(dtype)
    np.testing.assert_allclose(cosines(X.to(dtype), scaled), EXACT, atol=1e-6)
    np.testing.assert_allclose(cosines(scaled, X.to(dtype)), EXACT, atol=1e-6)


def test_cosines_of_usual_rows_have_the_digits_of_pytorch_and_a_row_of_zeros_has_none():
    assert torch.equal(cosines(X, Y), torch.nn.functional.cosine_similarity(X, Y))
    assert cosines(X, torch.zeros_like(Y)).tolist() == [0.0] * 50
