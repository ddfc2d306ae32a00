import pytest
from helpers.spaces import affine_image, card, names

from repstitch.embeddings.rows import Embeddings
from repstitch.stitchers.stitcher import Stitcher
from repstitch.workflows.training import train


@pytest.fixture(scope="session")
def sides() -> tuple[Embeddings, Embeddings]:
    """Return embeddings of the same 200 items in a space of 6 dimensions and in one of 4."""
    X, Y, _, _ = affine_image(200, 6, 4, noise=0.3)
    return Embeddings(X, card("old", 6), names(200)), Embeddings(Y, card("new", 4), names(200))


@pytest.fixture(scope="session")
def stitcher(sides) -> Stitcher:
    """Return a stitcher trained on part of `sides`."""
    return train(*sides, method="ridge", device="cpu")
