"""Scores use exact products even if the program has set PyTorch to a lower precision of float32 products."""

import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import repstitch as rs
from repstitch.alignment.asymmetry import asymmetry
from repstitch.fit.contrastive import _trainer
from repstitch.fit.recipe import recipe_for
from repstitch.metrics.alignment import METRICS
from repstitch.metrics.neighbours import graph, knn
from repstitch.metrics.retrieval import ranks
from repstitch.precision import exact_products

PACKAGE = Path(rs.__file__).parent
ALL: Any = torch.backends
BACKENDS: tuple[Any, ...] = (torch.backends.cuda.matmul, cast(Any, torch.backends.mkldnn).matmul)
PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "dot", "vdot", "linear", "matmul", "_cdist_forward"}
# Training steps, like translations, use the precision that the program has set.
FOLLOW = {"fit/lightning_modules.py", "fit/losses.py", "fit/contrastive.py"}


PRECISIONS = ("high", "medium", "backends")


@pytest.fixture(autouse=True)
def precision_is_restored() -> Iterator[None]:
    """Return to PyTorch's default, in which no backend has a precision of its own, after every test."""
    yield
    torch.set_float32_matmul_precision("highest")
    for backend in (*BACKENDS, ALL):
        backend.fp32_precision = "none"


@pytest.fixture(params=PRECISIONS)
def coarse(request) -> Iterator[None]:
    """Set a low precision of products, by PyTorch's older setting or for each backend."""
    if request.param == "backends":
        BACKENDS[0].fp32_precision, BACKENDS[1].fp32_precision = "tf32", "bf16"
    else:
        torch.set_float32_matmul_precision(request.param)
    before = precisions()
    yield
    assert precisions() == before


def precisions() -> tuple[str, str]:
    return BACKENDS[0].fp32_precision, BACKENDS[1].fp32_precision


class Products(TorchDispatchMode):
    """Count the products of float32 matrices, and record the files of the package that compute inexact ones."""

    def __init__(self):
        super().__init__()
        self.count, self.coarse = 0, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function._schema.name.split("::")[1] in PRODUCTS and args[0].dtype == torch.float32:
            self.count += 1
            if not set(precisions()) <= {"ieee", "none"}:
                frames = [Path(frame.filename) for frame in traceback.extract_stack()]
                ours = [str(file.relative_to(PACKAGE)) for file in frames if file.is_relative_to(PACKAGE)]
                self.coarse.add(ours[-1])
        return function(*args, **(kwargs or {}))


def spaces(n: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    latent = random.standard_normal((n, 12))
    noise = 0.1 * random.standard_normal((2, n, 24))
    X, Y = (latent @ random.standard_normal((12, 24)) + part for part in noise)
    return X.astype(np.float32), Y.astype(np.float32)


@pytest.mark.parametrize(
    ("coarse", "objective"),
    [
        pytest.param(setting, objective, marks=() if objective == "match" or setting == "high" else pytest.mark.slow)
        for setting in PRECISIONS
        for objective in ("match", "neighbours", "reconstruction")
    ],
    indirect=["coarse"],
)
@pytest.mark.usefixtures("coarse")
def test_training_scores_and_confidence_are_exact_in_a_program_with_coarse_products(objective):
    X, Y = spaces(600)
    with Products() as products:
        stitcher = rs.train(
            X, Y, source_space="old", target_space="new", objective=objective, epochs=1, width=8, device="cpu"
        )
    assert products.count > 100
    assert products.coarse == FOLLOW - ({"fit/losses.py"} if objective == "reconstruction" else set())
    with Products() as products:
        rs.score(stitcher, X, Y, source_space="old", target_space="new")
    assert products.count > 10
    assert not products.coarse
    with Products() as products:
        stitcher.confidence(X[:50])
    assert products.coarse == {"stitchers/maps.py"}  # the translation itself follows the program's setting


# The other metrics compute so few rows in float64.
IN_FLOAT32 = {"mutual_knn", "cycle_knn", "lcs_knn", "edit_knn", "cknna", "cknna_released", "cka", "cka_unbiased"}


@pytest.mark.usefixtures("coarse")
@pytest.mark.parametrize("metric", METRICS)
def test_alignment_is_exact_in_a_program_with_coarse_products(metric):
    X, Y = spaces(60)
    with Products() as products:
        rs.align(X, Y, metric, k=5, permutations=5, device="cpu")
    assert not products.coarse
    assert bool(products.count) == (metric in IN_FLOAT32)


@pytest.mark.parametrize("metric", ["cka", "cka_unbiased"])
def test_alignment_of_many_wide_rows_is_exact_in_a_program_with_coarse_products(metric):
    """With so many rows products are in float32, and with so many dimensions the null uses the leading directions."""
    random = torch.Generator().manual_seed(0)
    X, Y = (torch.randn(1100, 1024, generator=random) for _ in range(2))
    torch.set_float32_matmul_precision("high")
    with Products() as products:
        rs.align(X.numpy(), Y.numpy(), metric, permutations=2, device="cpu")
    assert products.count > 5
    assert not products.coarse


@pytest.mark.usefixtures("coarse")
def test_ranks_and_neighbours_are_exact_in_a_program_with_coarse_products():
    X, Y = spaces(60)
    for work in (lambda: ranks(X, Y), lambda: knn(X, Y, 5)):
        with Products() as products:
            work()
        assert products.count
        assert not products.coarse


@pytest.mark.usefixtures("coarse")
def test_asymmetry_is_exact_in_a_program_with_coarse_products():
    X, Y = spaces(60)
    with Products() as products:
        asymmetry(X, Y, source="old", target="new", permutations=2)
    assert products.count > 10
    assert not products.coarse


@pytest.mark.usefixtures("coarse")
def test_the_evaluation_of_a_probe_is_exact_in_a_program_with_coarse_products():
    X, Y = spaces(400)
    labels = np.where(X[:, 0] > 0, "above", "below")
    with Products() as products:
        stitcher = rs.train(X, Y, source_space="old", target_space="new", method="ridge", labels=labels, device="cpu")
    assert "probe_transfer" in stitcher.scorecard.to_dict()
    assert products.count > 10
    assert not products.coarse


PARENTS = ("none", "ieee", "tf32")


@pytest.mark.parametrize("after", PARENTS)
@pytest.mark.parametrize("before", PARENTS)
def test_exact_products_leaves_backends_following_the_global_setting(before, after):
    ALL.fp32_precision = before
    with exact_products():
        assert set(precisions()) <= {"ieee", "none"}
    ALL.fp32_precision = after
    assert precisions() == (after, after)
    with ALL.flags(fp32_precision="tf32"), exact_products():
        assert precisions() == ("ieee", "ieee")
    assert precisions() == (after, after)


def test_the_precision_can_be_read_inside_exact_products():
    for precision in ("high", "highest"):
        torch.set_float32_matmul_precision(precision)
        with exact_products():
            assert torch.backends.cuda.matmul.allow_tf32 is False
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.backends.cuda.matmul.allow_tf32 is (precision == "high")


def test_a_precision_that_lightning_cannot_read_is_refused_before_refinement_on_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    BACKENDS[0].fp32_precision, BACKENDS[1].fp32_precision = "tf32", "ieee"
    with pytest.raises(rs.InputError, match=r"call `torch.set_float32_matmul_precision`"):
        _trainer(Path(), "linear", recipe_for("linear", accelerator="gpu"))


def test_products_stay_exact_until_the_last_thread_leaves():
    torch.set_float32_matmul_precision("medium")
    before, entered, leave = precisions(), threading.Event(), threading.Event()

    def other_thread() -> None:
        with exact_products():
            entered.set()
            leave.wait(10)

    other = threading.Thread(target=other_thread)
    try:
        with exact_products():
            other.start()
            assert entered.wait(10)
        assert precisions() == ("ieee", "ieee")
        leave.set()
        other.join()
        assert precisions() == before
        assert torch.get_float32_matmul_precision() == "medium"
        with pytest.raises(rs.InputError), exact_products():
            graph(torch.zeros(5, 3), 2)
        assert precisions() == before
    finally:
        leave.set()
