"""Products of a program that lets PyTorch round their factors: exact wherever a score depends on them."""

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
# A training step and a translation follow the program's setting.
FOLLOW = {"fit/lightning_modules.py", "fit/losses.py", "fit/contrastive.py"}


@pytest.fixture(params=["high", "medium", "backends"])
def coarse(request) -> Iterator[None]:
    """A program that has asked for coarse products, by PyTorch's older setting or backend by backend."""
    if request.param == "backends":
        BACKENDS[0].fp32_precision, BACKENDS[1].fp32_precision = "tf32", "bf16"
    else:
        torch.set_float32_matmul_precision(request.param)
    before = precisions()
    yield
    after = precisions()
    torch.set_float32_matmul_precision("highest")
    for backend in BACKENDS:
        backend.fp32_precision = "none"
    assert after == before


def precisions() -> tuple[str, str]:
    return BACKENDS[0].fp32_precision, BACKENDS[1].fp32_precision


class Products(TorchDispatchMode):
    """Records where products of float32 are computed, by file of the package, and which of them are not exact."""

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


@pytest.mark.usefixtures("coarse")
@pytest.mark.parametrize("objective", ["match", "neighbours", "reconstruction"])
def test_a_program_with_coarse_products_gets_exact_sums_scores_and_confidence(objective):
    X, Y = spaces(1000)
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
    assert products.coarse == {"stitchers/maps.py"}  # the translation that the confidence is about


# The other metrics compute few rows in float64.
IN_FLOAT32 = {"mutual_knn", "cycle_knn", "lcs_knn", "edit_knn", "cknna", "cknna_released", "cka", "cka_unbiased"}


@pytest.mark.usefixtures("coarse")
@pytest.mark.parametrize("metric", METRICS)
def test_a_program_with_coarse_products_gets_exact_alignment(metric):
    X, Y = spaces(60)
    with Products() as products:
        rs.align(X, Y, metric, k=5, permutations=5, device="cpu")
    assert not products.coarse
    assert bool(products.count) == (metric in IN_FLOAT32)


@pytest.mark.parametrize("metric", ["cka", "cka_unbiased"])
def test_a_program_with_coarse_products_gets_exact_alignment_of_many_wide_rows(metric):
    """So many that their products are computed in float32, and so wide that the null takes the leading directions."""
    random = torch.Generator().manual_seed(0)
    X, Y = (torch.randn(1100, 1024, generator=random) for _ in range(2))
    torch.set_float32_matmul_precision("high")
    try:
        with Products() as products:
            rs.align(X.numpy(), Y.numpy(), metric, permutations=2, device="cpu")
    finally:
        torch.set_float32_matmul_precision("highest")
    assert products.count > 5
    assert not products.coarse


@pytest.mark.usefixtures("coarse")
def test_a_program_with_coarse_products_gets_exact_ranks_and_neighbours():
    X, Y = spaces(60)
    for work in (lambda: ranks(X, Y), lambda: knn(X, Y, 5)):
        with Products() as products:
            work()
        assert products.count
        assert not products.coarse


@pytest.mark.usefixtures("coarse")
def test_a_program_with_coarse_products_gets_exact_asymmetry():
    X, Y = spaces(60)
    with Products() as products:
        asymmetry(X, Y, source="old", target="new", permutations=2)
    assert products.count > 10
    assert not products.coarse


@pytest.mark.usefixtures("coarse")
def test_a_program_with_coarse_products_gets_an_exact_proof_of_a_probe():
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
def test_backends_follow_the_setting_of_all_afterwards_as_they_did_before(before, after):
    try:
        ALL.fp32_precision = before
        with exact_products():
            assert set(precisions()) <= {"ieee", "none"}
        ALL.fp32_precision = after
        assert precisions() == (after, after)
        with ALL.flags(fp32_precision="tf32"), exact_products():
            assert precisions() == ("ieee", "ieee")
        assert precisions() == (after, after)
    finally:
        ALL.fp32_precision = "none"


def test_other_threads_can_ask_what_is_set_meanwhile():
    for precision in ("high", "highest"):
        torch.set_float32_matmul_precision(precision)
        with exact_products():
            assert torch.backends.cuda.matmul.allow_tf32 is False
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.backends.cuda.matmul.allow_tf32 is (precision == "high")


def test_a_precision_that_lightning_cannot_read_is_refused_before_refinement_on_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    BACKENDS[0].fp32_precision, BACKENDS[1].fp32_precision = "tf32", "ieee"
    try:
        with pytest.raises(rs.InputError, match=r"call `torch.set_float32_matmul_precision`"):
            _trainer(Path(), "linear", recipe_for("linear", accelerator="gpu"))
    finally:
        for backend in BACKENDS:
            backend.fp32_precision = "none"


def test_products_stay_exact_until_the_last_thread_has_left():
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
        torch.set_float32_matmul_precision("highest")
