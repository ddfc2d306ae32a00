import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.spaces import gaussian, rotated
from torch.nn import functional as F

from repstitch.fit import losses
from repstitch.fit.losses import LOSSES, Batch, info_nce, listwise_distillation, native_scale, squared_error
from repstitch.names import OBJECTIVES


def batch_of(
    predicted, targets, rows=None, duplicate_mask=None, scale: float = 20.0, native_scale: float = 20.0
) -> Batch:
    """Return a batch with all targets as gallery. `rows` are the positions of the counterparts (default: the first)."""
    predicted, targets = (torch.as_tensor(np.asarray(side), dtype=torch.float32) for side in (predicted, targets))
    positive_index = torch.arange(len(predicted)) if rows is None else torch.as_tensor(rows)
    gallery = F.normalize(targets, dim=1)
    return Batch(
        predicted, targets[positive_index], gallery, positive_index, duplicate_mask, torch.tensor(scale), native_scale
    )


def noisy_batch(noise: float, n: int = 200, seed: int = 5) -> Batch:
    """Return the batch of a rotation with noise on its weights, applied to the rows that the rotation fits."""
    X, Y, R = rotated(n)
    return batch_of(X @ (R + noise * gaussian(8, 8, seed)), Y)


def test_every_objective_has_a_loss():
    assert set(LOSSES) == set(OBJECTIVES)


@pytest.mark.parametrize("objective", LOSSES)
def test_a_loss_is_smallest_at_the_true_map_and_grows_with_noise(objective):
    for seed in range(5, 10):
        values = [float(LOSSES[objective].function(noisy_batch(noise, seed=seed))) for noise in (0.0, 0.1, 0.3, 1.0)]
        assert values == sorted(values)
        assert values[0] < values[1] - 1e-4


@pytest.mark.parametrize("objective", LOSSES)
def test_a_step_against_the_gradient_lowers_the_loss(objective):
    batch = noisy_batch(0.3)
    predicted = batch.predicted.clone().requires_grad_()
    before = LOSSES[objective].function(replace(batch, predicted=predicted))
    before.backward()
    assert predicted.grad is not None
    after = LOSSES[objective].function(replace(batch, predicted=(predicted - 1e-2 * predicted.grad).detach()))
    assert float(after) < float(before.detach())


@pytest.mark.parametrize("objective", ["match", "neighbours"])
def test_losses_based_on_cosines_do_not_depend_on_the_length_of_the_rows(objective):
    batch = noisy_batch(0.3)
    longer = replace(batch, predicted=batch.predicted * torch.linspace(0.5, 9, len(batch.predicted))[:, None])
    torch.testing.assert_close(LOSSES[objective].function(longer), LOSSES[objective].function(batch))


@pytest.mark.parametrize("objective", LOSSES)
def test_a_loss_does_not_depend_on_the_order_of_batch_and_gallery(objective):
    batch = noisy_batch(0.3)
    rows = torch.randperm(len(batch.predicted), generator=torch.Generator().manual_seed(0))
    columns = torch.randperm(len(batch.gallery), generator=torch.Generator().manual_seed(1))
    moved = replace(
        batch,
        predicted=batch.predicted[rows],
        targets=batch.targets[rows],
        gallery=batch.gallery[columns],
        positive_index=columns.argsort()[batch.positive_index[rows]],
    )
    torch.testing.assert_close(LOSSES[objective].function(moved), LOSSES[objective].function(batch))


@pytest.mark.parametrize("objective", LOSSES)
def test_a_whole_weight_counts_as_that_many_equal_rows(objective):
    batch = noisy_batch(0.3)
    counts = 1 + torch.arange(len(batch.predicted)) % 3
    rows = torch.arange(len(counts)).repeat_interleave(counts)
    repeated = replace(
        batch, predicted=batch.predicted[rows], targets=batch.targets[rows], positive_index=batch.positive_index[rows]
    )
    weighted = replace(batch, weights=counts / counts.float().mean())
    torch.testing.assert_close(LOSSES[objective].function(weighted), LOSSES[objective].function(repeated))


# --- InfoNCE ----------------------------------------------------------------------------------------------------------


def info_nce_by_hand(predicted, targets, rows, columns, scale: float) -> float:
    """Compute the loss row by row: the cross entropy without copies of the counterpart."""
    predicted, targets = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (predicted, targets))
    similar = scale * predicted @ targets.T

    def entropy(scores, truth, others):
        kept = np.array([s for s, other in zip(scores, others, strict=True) if other] + [scores[truth]])
        return np.log(np.exp(kept - kept.max()).sum()) + kept.max() - scores[truth]

    copies = (targets[:, None] == targets[None]).all(-1)
    entropies = [entropy(similar[i][columns], columns.index(row), ~copies[row][columns]) for i, row in enumerate(rows)]
    return float(np.mean(entropies))


def duplicates_of(targets: np.ndarray, rows: list[int], columns: list[int]) -> torch.Tensor:
    """Return a mask that is true where a column is another copy of the counterpart of the row."""
    same = (targets[rows][:, None] == targets[columns][None]).all(-1)
    same[np.arange(len(rows)), [columns.index(row) for row in rows]] = False
    return torch.from_numpy(same)


@pytest.mark.parametrize("repeats", [False, True], ids=["all targets differ", "targets repeat"])
def test_info_nce_equals_the_loss_computed_row_by_row(repeats):
    targets, predicted = gaussian(120, 6), gaussian(30, 6, 1)
    rows = np.random.default_rng(2).permutation(120)[:30].tolist()
    if repeats:
        targets[rows[5:9]] = targets[rows[4]]
        targets[100:110] = targets[rows[0]]
    columns = list(range(120))
    batch = batch_of(predicted, targets, rows, duplicates_of(targets, rows, columns) if repeats else None, scale=7.0)
    expected = info_nce_by_hand(predicted.astype(float), targets.astype(float), rows, columns, 7.0)
    assert float(info_nce(batch)) == pytest.approx(expected, rel=1e-5)


def test_copies_of_the_counterpart_are_not_negatives():
    """If every other target is a copy, there are no negatives and the loss is zero."""
    predicted, targets = gaussian(20, 6), np.repeat(gaussian(1, 6, 1), 20, axis=0)
    duplicate_mask = duplicates_of(targets, list(range(20)), list(range(20)))
    assert float(info_nce(batch_of(predicted, targets, duplicate_mask=duplicate_mask))) == pytest.approx(0, abs=1e-6)
    assert float(info_nce(batch_of(predicted, targets))) > math.log(20) / 2


# --- distillation -----------------------------------------------------------------------------------------------------


def native_distribution(targets: np.ndarray, scale: float) -> np.ndarray:
    """Return the softmax of each row over its similarities with the other rows, with 0 for the row itself."""
    unit = targets / np.linalg.norm(targets, axis=1, keepdims=True)
    p = np.exp(scale * (unit @ unit.T - 1))
    np.fill_diagonal(p, 0)
    return p / p.sum(1, keepdims=True)


def entropy_of(p: np.ndarray) -> np.ndarray:
    return -np.sum(p * np.log(np.where(p > 0, p, 1)), axis=1)


@pytest.mark.parametrize("scale", [1.0, 8.0, 60.0])
def test_the_distillation_loss_of_the_targets_themselves_is_their_native_entropy(scale):
    targets = gaussian(80, 6).astype(float)
    loss = float(listwise_distillation(batch_of(3 * targets, targets, scale=scale, native_scale=scale)))
    assert loss == pytest.approx(entropy_of(native_distribution(targets, scale)).mean(), rel=1e-4)


def test_the_distillation_loss_of_other_rows_is_above_the_native_entropy():
    targets = gaussian(80, 6).astype(float)
    least = entropy_of(native_distribution(targets, 8.0)).mean()
    for seed in range(1, 6):
        for scale in (4.0, 8.0, 16.0):
            other = batch_of(targets + 0.3 * gaussian(80, 6, seed), targets, scale=scale, native_scale=8.0)
            assert float(listwise_distillation(other)) > least


def test_distillation_equals_the_cross_entropy_computed_row_by_row():
    targets, predicted, rows = gaussian(60, 6).astype(float), gaussian(10, 6, 1).astype(float), list(range(20, 30))
    unit, directions = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (targets, predicted))
    wanted, expected = native_distribution(targets, 5.0), []
    for i, row in enumerate(rows):
        others = [column for column in range(60) if column != row]
        logits = 9.0 * unit[others] @ directions[i]
        expected.append(-wanted[row, others] @ (logits - np.log(np.exp(logits).sum())))
    loss = float(listwise_distillation(batch_of(predicted, targets, rows, scale=9.0, native_scale=5.0)))
    assert loss == pytest.approx(np.mean(expected), rel=1e-5)


def test_distillation_leaves_out_the_counterpart_itself():
    """Changing the column of the counterpart changes neither the loss nor its gradient."""
    targets, rows = gaussian(60, 6), list(range(20, 30))
    batch = batch_of(gaussian(10, 6, 1), targets, rows)
    results = []
    for column in (batch.gallery[20], -batch.gallery[20], 5 * batch.gallery[0]):
        predicted = batch.predicted[:1].clone().requires_grad_()
        gallery = batch.gallery.clone()
        gallery[20] = column
        loss = listwise_distillation(
            replace(
                batch,
                predicted=predicted,
                targets=batch.targets[:1],
                positive_index=batch.positive_index[:1],
                gallery=gallery,
            )
        )
        loss.backward()
        results.append((loss.detach(), predicted.grad))
    for loss, gradient in results[1:]:
        torch.testing.assert_close(loss, results[0][0])
        torch.testing.assert_close(gradient, results[0][1])


# --- squared error ----------------------------------------------------------------------------------------------------


def test_squared_error_is_the_mean_squared_length_of_the_errors():
    predicted, targets = gaussian(30, 6), gaussian(50, 6, 1)
    rows = list(range(10, 40))
    expected = np.square(np.linalg.norm(predicted.astype(float) - targets[rows], axis=1)).mean()
    assert float(squared_error(batch_of(predicted, targets, rows))) == pytest.approx(expected, rel=1e-5)


def test_squared_error_uses_only_the_predicted_rows_and_their_targets():
    batch = noisy_batch(0.3)
    nan: Any = torch.tensor(float("nan"))
    other = replace(batch, gallery=batch.gallery * nan, duplicate_mask=None, scale=nan, native_scale=float("nan"))
    assert float(squared_error(other)) == float(squared_error(batch))
    assert float(squared_error(replace(batch, predicted=batch.targets))) == 0


# --- the native scale -------------------------------------------------------------------------------------------------


def clusters(groups: int, size: int) -> torch.Tensor:
    """Return unit rows in orthogonal groups of `size` copies, so `size` − 1 rows have cosine 1 and all others 0."""
    return torch.eye(groups).repeat_interleave(size, dim=0)


@pytest.mark.parametrize(("groups", "size"), [(8, 11), (40, 21), (100, 3), (60, 30)])
def test_the_native_scale_of_clusters_gives_the_chosen_perplexity(groups, size):
    """For g groups of s copies, s − 1 rows weigh eᵇ each and the other (g − 1) s rows 1, which gives the entropy."""
    b = native_scale(clusters(groups, size))
    near, far = size - 1, (groups - 1) * size
    total = near * math.exp(b) + far
    p, q = math.exp(b) / total, 1 / total
    assert math.exp(-near * p * math.log(p) - far * q * math.log(q)) == pytest.approx(losses.NEIGHBOURS, rel=1e-3)


def test_the_native_scale_of_gaussian_rows_gives_the_chosen_perplexity_on_average():
    rows = gaussian(600, 12).astype(float)
    scale = native_scale(F.normalize(torch.from_numpy(rows).float(), dim=1))
    assert math.exp(entropy_of(native_distribution(rows, scale)).mean()) == pytest.approx(losses.NEIGHBOURS, rel=1e-3)


def test_a_denser_space_has_a_larger_native_scale():
    narrow, wide = (
        F.normalize(torch.from_numpy(gaussian(400, 8)) + torch.tensor([shift] + [0.0] * 7)) for shift in (9, 0)
    )
    assert native_scale(narrow) > 5 * native_scale(wide)


@pytest.mark.parametrize("n", [2, 5, 20, losses.NEIGHBOURS])
def test_fewer_rows_than_neighbours_have_the_smallest_native_scale(n):
    scale = native_scale(F.normalize(torch.from_numpy(gaussian(n, 4)), dim=1))
    assert scale == pytest.approx(1, rel=1e-3)


def test_the_native_scale_does_not_change_its_rows_and_samples_large_spaces():
    rows = F.normalize(torch.from_numpy(gaussian(losses.SAMPLE + 300, 4)), dim=1)
    before = rows.clone()
    assert math.isfinite(native_scale(rows))
    assert torch.equal(rows, before)
