import json
import logging
import os
import signal
import subprocess
import sys
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from helpers.processes import Spy
from helpers.spaces import gaussian
from torch.nn import functional as F

from repstitch.errors import InputError
from repstitch.fit.contrastive import refine
from repstitch.fit.lightning_modules import Batches, PairsModule, RefineModule, Refiner, draw_extra
from repstitch.fit.losses import LOSSES, Batch, native_scale
from repstitch.fit.objective import OBJECTIVES, ValidationObjective
from repstitch.fit.ranks import from_first_rank, leave_to_first_rank
from repstitch.fit.recipe import Recipe, recipe_for
from repstitch.fit.selection import Problem
from repstitch.metrics.retrieval import mrr, ranks
from repstitch.stitchers.maps import AffineMap, ResidualMLP
from repstitch.stitchers.stitcher import load

FAST: dict[str, Any] = {"accelerator": "cpu", "epochs": 3, "batch_size": 64, "temperatures": (1.0,)}
SMALL: dict[str, Any] = FAST | {"width": 16}


def bent(n: int, noise: float = 0.1, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return unit rows of two views of six numbers. The target is nonlinear: it also uses their absolute values."""
    random = np.random.default_rng(seed)
    mix_x, mix_y, mix_bent = (np.random.default_rng(99 + i).standard_normal((6, d)) for i, d in enumerate((10, 8, 8)))
    Z = random.standard_normal((n, 6))
    X, Y = Z @ mix_x, Z @ mix_y + (np.abs(Z) - 0.8) @ mix_bent + noise * random.standard_normal((n, 8))
    return tuple(F.normalize(torch.from_numpy(rows).float(), dim=1) for rows in (X, Y))  # type: ignore[return-value]


def problem_of(n: int = 300, validation: int = 80, **space) -> Problem:
    X, Y = bent(n + validation, **space)
    objective = ValidationObjective("match", X[:validation], Y[:validation], Y[validation:])
    return Problem(X[validation:], Y[validation:], objective)


def scored_by(problem: Problem, objective: str) -> Problem:
    return replace(problem, objective=replace(problem.objective, name=objective))


@pytest.fixture(scope="module")
def problem() -> Problem:
    return problem_of()


def start_of(problem: Problem) -> AffineMap:
    """Return a closed form with noise on its weights, so that every fit can improve it from the first epoch on."""
    map = problem.start.map
    assert isinstance(map, AffineMap)
    noise = torch.randn(map.weight.shape, generator=torch.Generator().manual_seed(0))
    return AffineMap(map.weight + 0.5 * map.weight.std() * noise, map.bias)


def fit(problem: Problem, method: str = "mlp", start: AffineMap | None = None, **settings):
    start = start or start_of(problem)
    recipe = recipe_for(method, **(SMALL | settings))
    return refine(problem.X, problem.Y, start, problem.decomposition, problem.objective, recipe)


def module_of(problem: Problem, Y: torch.Tensor | None = None, temperature: float = 0.05, **settings):
    recipe = recipe_for("mlp", **(SMALL | settings))
    refiner = Refiner(start_of(problem), problem.decomposition, recipe)
    loss = LOSSES[problem.objective.name]
    return RefineModule(refiner, problem.X, problem.Y if Y is None else Y, problem.objective, temperature, recipe, loss)


def same(a, b) -> bool:
    return type(a) is type(b) and all(torch.equal(t, b.tensors()[name]) for name, t in a.tensors().items())


# --- the start --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "form"), [("linear", AffineMap), ("mlp", ResidualMLP)])
def test_a_fit_starts_exactly_at_the_closed_form(problem, method, form):
    start = start_of(problem)
    refiner = Refiner(start, problem.decomposition, recipe_for(method, width=16)).eval()
    rows = torch.from_numpy(gaussian(50, 10, 3))
    assert isinstance(refiner.map(), form)
    for begun in (refiner.map()(rows), refiner(rows).detach()):
        torch.testing.assert_close(begun, start(rows), atol=2e-5, rtol=1e-5)


def test_the_residual_starts_at_zero_and_its_hidden_layer_does_not(problem):
    map = Refiner(start_of(problem), problem.decomposition, recipe_for("mlp", width=16)).map()
    assert isinstance(map, ResidualMLP)
    assert torch.equal(map.out_weight, torch.zeros(16, 8))
    assert map.hidden_weight.abs().min() > 0


def test_the_map_is_the_function_that_was_trained(problem):
    refiner = Refiner(start_of(problem), problem.decomposition, recipe_for("mlp", width=16)).eval()
    with torch.no_grad():
        for parameter in refiner.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)) / 10)
    rows = torch.from_numpy(gaussian(50, 10, 3))
    torch.testing.assert_close(refiner.map()(rows), refiner(rows).detach(), atol=1e-4, rtol=1e-4)


# --- the loss ---------------------------------------------------------------------------------------------------------


def rows_of(n: int, most: int) -> list[int]:
    return torch.randperm(most, generator=torch.Generator().manual_seed(1))[:n].tolist()


def translated(module, rows: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return module.refiner.eval()(module.X[rows])


def loss_of(module, predicted: torch.Tensor, rows: torch.Tensor, step: int = 0) -> torch.Tensor:
    """Return the loss of the rows, with the extra targets that are drawn at this step."""
    return module.loss(predicted, rows, draw_extra(rows, len(module.Y), module.recipe.gallery, step))


def batch_for_loss(module, rows: list[int], monkeypatch, step: int = 0) -> Batch:
    """Return the batch that the module passes to its loss function for these rows."""
    batches: list[Batch] = []
    recording = replace(module.minimised, function=lambda batch: batches.append(batch) or torch.tensor(0.0))
    monkeypatch.setattr(module, "minimised", recording)
    loss_of(module, translated(module, rows), torch.tensor(rows), step)
    return batches[0]


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("gallery", [4096, 60, 30], ids=["all targets", "sampled gallery", "only the batch"])
def test_a_loss_receives_the_rows_their_targets_and_a_gallery_that_contains_these(
    problem, objective, gallery, monkeypatch
):
    rows = rows_of(30, len(problem.Y))
    module = module_of(scored_by(problem, objective), gallery=gallery)
    batch = batch_for_loss(module, rows, monkeypatch)
    torch.testing.assert_close(batch.predicted, translated(module, rows))
    assert torch.equal(batch.targets, problem.Y[rows])
    torch.testing.assert_close(batch.gallery[batch.positive_index], F.normalize(problem.Y[rows], dim=1))
    torch.testing.assert_close(batch.gallery.norm(dim=1), torch.ones(len(batch.gallery)))
    assert len(batch.gallery) == len(problem.Y) if gallery == 4096 else 30 <= len(batch.gallery) <= gallery
    assert float(batch.scale.detach()) == pytest.approx(20)
    assert batch.native_scale == (native_scale(module.gallery) if objective == "neighbours" else 1)


@pytest.mark.parametrize("gallery", [4096, 60], ids=["all targets", "sampled gallery"])
def test_only_other_copies_of_a_counterpart_are_marked_as_duplicates(problem, gallery, monkeypatch):
    Y = problem.Y.clone()
    rows = rows_of(30, len(Y))
    Y[rows[5:9]] = Y[rows[4]].clone()
    Y[100:110] = Y[rows[0]].clone()
    batch = batch_for_loss(module_of(problem, Y, gallery=gallery), rows, monkeypatch)
    assert batch.duplicate_mask is not None
    expected = (batch.gallery[batch.positive_index][:, None] == batch.gallery[None]).all(-1)
    expected[torch.arange(30), batch.positive_index] = False
    assert torch.equal(batch.duplicate_mask, expected)
    assert batch.duplicate_mask[4].sum() >= 4


def test_there_is_no_duplicate_mask_if_all_targets_differ(problem, monkeypatch):
    assert batch_for_loss(module_of(problem), rows_of(30, len(problem.Y)), monkeypatch).duplicate_mask is None


def test_a_sampled_gallery_never_contains_a_row_of_the_batch_twice(problem, monkeypatch):
    """Otherwise the second copy would be the nearest neighbour of the row."""
    rows = rows_of(100, len(problem.Y))
    for step in range(5):
        batch = batch_for_loss(module_of(scored_by(problem, "neighbours"), gallery=200), rows, monkeypatch, step)
        assert ((batch.gallery @ batch.gallery[:100].T) > 1 - 1e-6).sum() == 100
        assert batch.duplicate_mask is not None
        assert not batch.duplicate_mask.any()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_only_losses_with_a_temperature_learn_one(problem, objective):
    """Squared error has no temperature. Several processes would wait for the gradient of an unused one."""
    module = module_of(scored_by(problem, objective))
    assert module.log_scale.requires_grad is (objective != "reconstruction")
    with torch.no_grad():
        module.refiner.out.normal_(generator=torch.Generator().manual_seed(1))
    rows = torch.arange(40)
    module.loss(module.refiner(module.X[rows]), rows).backward()
    without_gradient = [name for name, p in module.named_parameters() if p.requires_grad and p.grad is None]
    assert without_gradient == []


def test_a_sampled_gallery_contains_the_batch_and_draws_other_targets_at_each_step(problem):
    rows = torch.arange(20)
    whole, sampled = module_of(problem), module_of(problem, gallery=60)
    predicted = translated(whole, rows.tolist())
    losses = []
    for step in (0, 0, 1):
        losses.append(loss_of(sampled, predicted, rows, step).item())
    batch = loss_of(module_of(problem, gallery=20), predicted, rows).item()
    assert losses[0] == losses[1] != losses[2]
    assert all(batch < loss < whole.loss(predicted, rows).item() for loss in losses)


# --- the batches ------------------------------------------------------------------------------------------------------


def epoch_of(n: int, batch_size: int, epoch: int = 0, rank: int = 0, world: int = 1, seed: int = 0) -> list[list[int]]:
    trainer = SimpleNamespace(world_size=world, global_rank=rank, current_epoch=epoch)
    module: Any = SimpleNamespace(recipe=Recipe(batch_size=batch_size, seed=seed), trainer=trainer)
    batches = Batches(n, module)
    positions = [rows.tolist() for rows, _ in batches]
    assert len(positions) == len(batches)
    return positions


@pytest.mark.parametrize(("n", "batch_size", "sizes"), [(100, 20, [20] * 5), (109, 20, [20] * 5), (7, 20, [7])])
def test_an_epoch_visits_each_row_at_most_once_in_batches_of_one_size(n, batch_size, sizes):
    batches = epoch_of(n, batch_size)
    rows = [row for batch in batches for row in batch]
    assert [len(batch) for batch in batches] == sizes
    assert len(set(rows)) == len(rows)
    assert set(rows) <= set(range(n))


def test_the_order_of_the_rows_is_determined_by_the_epoch_and_the_seed():
    assert epoch_of(50, 10) == epoch_of(50, 10)
    orders = {str(epoch_of(50, 10, epoch, seed=seed)) for epoch in (0, 1, 2) for seed in (0, 1)}
    assert len(orders) == 6


@pytest.mark.parametrize("n", [100, 101, 103])
def test_no_row_is_used_on_two_ranks_in_an_epoch(n):
    ranks_rows = [[r for batch in epoch_of(n, 10, rank=rank, world=3) for r in batch] for rank in range(3)]
    assert {len(rows) for rows in ranks_rows} == {30}
    assert len(set().union(*ranks_rows)) == 90


# --- the fit ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "learning_rate", "least"), [("linear", 0.005, 0.005), ("mlp", 0.1, 0.2)])
def test_a_fit_raises_the_mrr_of_rows_it_was_not_trained_on(method, learning_rate, least):
    """In a noisy nonlinear space, training improves the best closed form, and an MLP gains more than a linear map."""
    n = 2000
    X, Y = bent(n + 400, noise=1.0)
    problem = Problem(X[400:n], Y[400:n], ValidationObjective("match", X[:400], Y[:400], Y[400:n]))
    closed = problem.start.map
    assert isinstance(closed, AffineMap)
    refined = fit(problem, method, closed, epochs=12, width=64, learning_rate=learning_rate)
    before, after = (mrr(ranks(map(X[n:]), Y[n:])) for map in (closed, refined.map))
    assert after > before + least
    assert refined.score > problem.objective.score(closed)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("method", ["linear", "mlp"])
@pytest.mark.parametrize("learning_rate", [None, 0.1, 10.0, 1e4])
def test_a_fit_is_never_worse_than_its_start_on_the_validation_rows(problem, objective, method, learning_rate):
    problem = scored_by(problem, objective)
    refined = fit(problem, method, learning_rate=learning_rate, patience=2)
    start = problem.objective.score(start_of(problem))
    assert refined.score == problem.objective.score(refined.map) >= start
    assert (refined.epoch == 0) == same(refined.map, start_of(problem))


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("method", ["linear", "mlp"])
def test_a_fit_improves_the_objective_it_is_trained_for(problem, objective, method):
    problem = scored_by(problem, objective)
    assert fit(problem, method, learning_rate=0.05).score > problem.objective.score(start_of(problem)) + 0.01


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_default_learning_rate_is_that_of_the_objective(problem, objective):
    problem = scored_by(problem, objective)
    assert same(fit(problem).map, fit(problem, learning_rate=LOSSES[objective].rate).map)


@pytest.mark.parametrize("objective", ["neighbours", "reconstruction"])
def test_temperatures_are_tried_for_the_match_objective_only(problem, objective):
    problem = scored_by(problem, objective)
    one, many = fit(problem), fit(problem, temperatures=(2.5, 0.5))
    assert same(one.map, many.map)
    assert one.temperature == many.temperature == pytest.approx(1 / native_scale(F.normalize(problem.Y, dim=1)))


def test_a_fit_that_diverges_is_left_out_with_a_warning(problem, caplog):
    with caplog.at_level(logging.WARNING):
        refined = fit(problem, learning_rate=1e30, clip=0.0)
    assert "The mlp fit diverged and is left out; lower `learning_rate`" in caplog.text
    assert same(refined.map, start_of(problem))
    assert refined.epoch == 0


def test_the_map_of_the_best_epoch_is_returned_with_the_number_of_the_epoch(problem):
    """Fitting exactly that many epochs gives the same map again."""
    best = fit(problem, epochs=6)
    assert best.epoch > 0
    again = fit(problem, epochs=6, stop_after=best.epoch)
    assert same(again.map, best.map)
    assert (again.epoch, again.score) == (best.epoch, best.score)


def test_a_fit_with_a_fixed_number_of_epochs_is_returned_whatever_its_score(problem):
    refined = fit(problem, learning_rate=1e3, stop_after=2)
    assert refined.epoch == 2
    assert refined.score < problem.objective.score(start_of(problem))


def test_every_temperature_is_tried_and_the_best_run_kept(problem):
    single = [fit(problem, temperatures=(t,)) for t in (1.0, 2.5)]
    both = fit(problem, temperatures=(1.0, 2.5))
    assert both.score == max(run.score for run in single)
    assert min(run.epoch for run in single) > 0
    assert single[1].temperature == pytest.approx(2.5 * single[0].temperature)


@pytest.mark.parametrize("settings", [{}, {"gallery": 100}], ids=["all targets", "sampled gallery"])
def test_the_map_is_determined_by_the_seed(problem, settings):
    first, second, other = (fit(problem, seed=seed, **settings) for seed in (1, 1, 2))
    assert first.epoch > 0
    assert same(first.map, second.map)
    assert not same(first.map, other.map)


def test_a_fit_with_a_sampled_gallery_improves_the_score(problem):
    assert fit(problem, gallery=80, epochs=5).score > problem.objective.score(start_of(problem))


def test_a_fit_with_repeated_targets_improves_the_score():
    X, Y = bent(400)
    Y = Y[torch.arange(400) // 4 * 4]
    problem = Problem(X[80:], Y[80:], ValidationObjective("match", X[:80], Y[:80], Y[80:]))
    refined = fit(problem, epochs=5)
    assert refined.score > problem.objective.score(start_of(problem))


def test_gradients_are_clipped(problem):
    """Gradients clipped to almost nothing are small compared with Adam's epsilon, so the weights hardly change."""
    clipped, free = (fit(problem, clip=clip, stop_after=1) for clip in (1e-20, 1.0))
    start = start_of(problem)
    torch.testing.assert_close(clipped.map.weight, start.weight, atol=1e-4, rtol=1e-4)
    assert (free.map.weight - start.weight).abs().max() > 1e-2


def test_patience_ends_a_fit_that_no_longer_improves(problem, monkeypatch):
    epochs, scores = [], iter([0.5, 0.6, 0.6, 0.1, 0.7])
    monkeypatch.setattr(RefineModule, "on_train_epoch_end", lambda self: epochs.append(self.current_epoch))
    monkeypatch.setattr(
        RefineModule, "validation_step", lambda self, _batch: self.log("val_score", next(scores), batch_size=1)
    )
    assert fit(problem, epochs=20, patience=2).epoch in (0, 2)
    assert epochs == [0, 1, 2, 3]


def test_a_fit_does_not_change_the_random_state_write_files_or_print(problem, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    before = torch.get_rng_state()
    fit(problem)
    assert torch.equal(torch.get_rng_state(), before)
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("method", ["linear", "mlp"])
def test_the_default_width_of_a_recipe_depends_on_the_method(method):
    assert recipe_for(method).width == {"linear": 0, "mlp": 512}[method]
    assert recipe_for(method, width=7).width == {"linear": 0, "mlp": 7}[method]


def test_an_unknown_setting_is_refused():
    with pytest.raises(
        InputError, match=r"`lr` is not a setting of the methods linear and mlp; allowed names are .*learning_rate"
    ):
        recipe_for("mlp", lr=0.1)


# --- interrupting and resuming ----------------------------------------------------------------------------------------


def interrupt_at(step: int, monkeypatch, how=None) -> list[int]:
    """Interrupt training in its `step`-th step, as Ctrl-C does. Returns a list that gets an entry for each step."""
    steps: list[int] = []
    whole = RefineModule.training_step

    def training_step(self, batch):
        steps.append(len(steps))
        if len(steps) == step:
            (how or _interrupt)()
        return whole(self, batch)

    monkeypatch.setattr(RefineModule, "training_step", training_step)
    return steps


def _interrupt() -> None:
    raise KeyboardInterrupt


def test_ctrl_c_ends_a_fit_at_once_with_a_keyboard_interrupt(problem, monkeypatch):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore SIGINT
    try:
        steps = interrupt_at(6, monkeypatch, how=lambda: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            fit(problem)
        assert len(steps) == 6
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def whole_fit(problem):
    """Return a function that makes an uninterrupted fit of four epochs, once for each method and settings."""
    return cache(lambda method, *settings: fit(problem, method, epochs=4, **dict(settings)))


@pytest.mark.parametrize("settings", [{}, {"gallery": 100}, {"temperatures": (1.0, 2.0)}], ids=str)
@pytest.mark.parametrize("method", ["linear", "mlp"])
@pytest.mark.parametrize("step", [4, 10, 14], ids="step {}".format)
def test_a_resumed_fit_gives_the_same_map_as_an_uninterrupted_fit(
    problem, whole_fit, tmp_path, monkeypatch, method, settings, step
):
    whole = whole_fit(method, *settings.items())
    assert whole.epoch > 0
    with monkeypatch.context() as patch:
        interrupt_at(step, patch)
        with pytest.raises(KeyboardInterrupt):
            fit(problem, method, epochs=4, checkpoints=str(tmp_path), **settings)
    steps = interrupt_at(0, monkeypatch)
    resumed = fit(problem, method, epochs=4, checkpoints=str(tmp_path), **settings)
    assert same(resumed.map, whole.map)
    assert (resumed.score, resumed.epoch, resumed.temperature) == (whole.score, whole.epoch, whole.temperature)
    n_epochs = 4 * len(settings.get("temperatures", (1,)))
    assert len(steps) == 4 * (n_epochs - (step - 1) // 4)  # four steps per epoch; finished epochs are not repeated


def test_a_finished_fit_is_not_repeated(problem, tmp_path, monkeypatch):
    first = fit(problem, epochs=20, patience=1, checkpoints=str(tmp_path))
    steps = interrupt_at(0, monkeypatch)
    second = fit(problem, epochs=20, patience=1, checkpoints=str(tmp_path))
    assert same(first.map, second.map)
    assert steps == []


def test_a_damaged_checkpoint_is_ignored_with_a_warning(problem, tmp_path, monkeypatch, caplog):
    whole = fit(problem)
    with monkeypatch.context() as patch:
        interrupt_at(9, patch)
        with pytest.raises(KeyboardInterrupt):
            fit(problem, checkpoints=str(tmp_path))
    for checkpoint in tmp_path.rglob("last.ckpt"):
        checkpoint.write_bytes(checkpoint.read_bytes()[:99])
    with caplog.at_level(logging.WARNING):
        again = fit(problem, checkpoints=str(tmp_path))
    assert "last.ckpt cannot be read and is ignored" in caplog.text
    assert same(again.map, whole.map)


@pytest.mark.parametrize(
    "other",
    [{"learning_rate": 0.2}, {"epochs": 4}, {"seed": 9}, {"width": 8}, {"pairs": 1}, {"objective": 1}],
    ids=str,
)
def test_checkpoints_of_another_job_are_ignored(problem, tmp_path, other):
    fit(problem, checkpoints=str(tmp_path))
    if "pairs" in other:
        problem, other = problem_of(seed=5), {}
    elif "objective" in other:
        problem, other = replace(problem, objective=replace(problem.objective, name="neighbours")), {}
    expected = fit(problem, **other)
    actual = fit(problem, checkpoints=str(tmp_path), **other)
    assert same(actual.map, expected.map)
    assert actual.score == expected.score


# --- several processes ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("gallery", [4096, 100], ids=["all targets", "sampled gallery"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_two_processes_split_the_rows_and_use_the_gradient_of_the_whole_batch(
    problem, tmp_path, monkeypatch, gallery, objective
):
    monkeypatch.setenv("MASTER_PORT", "chosen by Lightning")  # so that the test ends without the port
    monkeypatch.delenv("MASTER_PORT")
    problem = scored_by(problem, objective)
    settings = {"batch_size": 32, "dropout": 0.0, "gallery": gallery}
    torch.manual_seed(0)
    module = module_of(problem, **settings)
    with torch.no_grad():  # nonzero output weights, so that the hidden layer has a gradient
        module.refiner.out.normal_(generator=torch.Generator().manual_seed(1))
    initial = {name: p.detach().clone() for name, p in module.named_parameters()}
    trainer = L.Trainer(
        max_epochs=2,
        accelerator="cpu",
        devices=2,
        strategy="ddp_spawn",
        callbacks=[Spy(tmp_path)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, datamodule=PairsModule(len(problem.X), module.recipe))

    rows = [json.loads((tmp_path / f"rows-{rank}.json").read_text()) for rank in (0, 1)]
    for epoch in (0, 1):
        seen = [{r for e, batch in rank for r in batch if e == epoch} for rank in rows]
        assert not seen[0] & seen[1]
        assert len(seen[0]) == len(seen[1]) == 32 * (len(problem.X) // 2 // 32)
    alone = module_of(problem, **settings)
    alone.load_state_dict(initial, strict=False)
    batch = torch.tensor(rows[0][0][1] + rows[1][0][1])
    loss_of(alone, alone.refiner.train()(alone.X[batch]), batch).backward()
    for rank in (0, 1):
        gradients = torch.load(tmp_path / f"gradients-{rank}.pt", weights_only=True)
        for name, parameter in alone.named_parameters():
            if not parameter.requires_grad:
                continue
            assert parameter.grad is not None
            assert parameter.grad.abs().max() > 0
            torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-5, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "more"), [("ddp", ["--refit"]), ("ddp_spawn", [])], ids=["ddp", "ddp_spawn"])
def test_the_command_line_trains_on_two_processes_as_well_as_on_one(tmp_path, strategy, more):
    """Two processes with half the batch size use the same batches as one process, so only the dropout differs."""
    X, Y = bent(700, noise=0.3)
    np.save(tmp_path / "x.npy", X.numpy())
    np.save(tmp_path / "y.npy", Y.numpy())

    def run(out: str, *settings: str) -> dict:
        command = [sys.executable, "-m", "repstitch", "train", "--source", "x.npy", "--target", "y.npy", "--out", out]
        command += ["--method", "mlp", "--width", "32", "--epochs", "8", "--device", "cpu", "--json", *more, *settings]
        environ = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("\n") == 1  # only one process prints
        return json.loads(done.stdout)

    one = run("one", "--batch-size", "64")
    two = run("two", "--batch-size", "32", "--devices", "2", "--strategy", strategy)
    assert two["scorecard"]["query"]["mrr"] == pytest.approx(one["scorecard"]["query"]["mrr"], abs=0.06)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "two", "x.npy", "y.npy"]
    stitcher = load(tmp_path / "two")
    assert stitcher.version == two["version"]
    assert isinstance(stitcher.map, ResidualMLP)
    assert (len(stitcher.seen) == 2 * 700) == bool(more)  # each pair is recorded by its id and by its vectors


def test_the_rank_helpers_do_nothing_in_a_single_process():
    assert from_first_rank({"a": 1}) == {"a": 1}
    leave_to_first_rank()


def test_the_key_of_a_job_depends_on_every_row_the_weights_the_loss_and_the_start():
    from repstitch.fit.contrastive import _job
    from repstitch.fit.objective import ValidationObjective

    X, Y = torch.randn(9000, 4), torch.randn(9000, 3)
    objective = ValidationObjective("match", X[:50], Y[:50], Y)
    loss = LOSSES["match"]
    start = AffineMap(torch.zeros(4, 3), torch.zeros(3))
    jobs = {_job(X, Y, start, objective, 0.1, Recipe(), loss, None)}
    for row in (1, 4097, 8998):
        other = Y.clone()
        other[row] += 1
        jobs.add(_job(X, other, start, objective, 0.1, Recipe(), loss, None))
    jobs.add(_job(X, Y, start, objective, 0.1, Recipe(), LOSSES["neighbours"], None))
    jobs.add(_job(X, Y, AffineMap(torch.ones(4, 3), torch.zeros(3)), objective, 0.1, Recipe(), loss, None))
    jobs.add(_job(X, Y, start, objective, 0.1, Recipe(), loss, torch.ones(9000)))
    assert len(jobs) == 7
