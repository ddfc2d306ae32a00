import os

import pytest
from helpers.serving import make_stitcher


@pytest.fixture(scope="session")
def stitchers(tmp_path_factory):
    """Create a folder with one stitcher and set REPSTITCH_STITCHERS to it for the session."""
    folder = tmp_path_factory.mktemp("stitchers")
    make_stitcher().save(folder / "old-to-new")
    os.environ["REPSTITCH_STITCHERS"] = str(folder)
    yield folder
    del os.environ["REPSTITCH_STITCHERS"]
