"""The Lightning modules of refinement: the map being refined, its batches, its training step and its progress bar."""

import math
from collections.abc import Iterator

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from repstitch.errors import InputError
from repstitch.fit.closed_form import Decomposition
from repstitch.fit.losses import Batch, Loss, native_scale
from repstitch.fit.objective import ValidationObjective
from repstitch.fit.recipe import Recipe
from repstitch.stitchers.maps import AffineMap, Map, ResidualMLP

MONITOR = "val_score"
LOG_SCALE_RATE = 3e-3


class Refiner(nn.Module):
    """An affine map of whitened source rows, optionally with a residual MLP whose output layer starts at zero."""

    mean: Tensor
    whiten: Tensor

    def __init__(self, start: AffineMap, decomposition: Decomposition, recipe: Recipe):
        super().__init__()
        d = decomposition
        scale = (d.x_values + recipe.whitening * d.x_values.mean()).sqrt()
        mean = d.moments.x_mean
        self.register_buffer("mean", mean.float())
        self.register_buffer("whiten", (d.x_vectors / scale).float())
        self.weight = nn.Parameter(((d.x_vectors * scale).T @ start.weight.double()).float())
        self.bias = nn.Parameter((mean @ start.weight.double() + start.bias.double()).float())
        self.hidden = nn.Linear(start.d_source, recipe.width) if recipe.width else None
        self.drop = nn.Dropout(recipe.dropout)
        if recipe.width:
            self.out = nn.Parameter(torch.zeros(recipe.width, start.d_target))
        self.to(start.weight.device)  # the hidden layer is initialised on the CPU, to be the same on every machine

    def forward(self, x: Tensor) -> Tensor:
        z = (x - self.mean) @ self.whiten
        y = z @ self.weight + self.bias
        return y if self.hidden is None else y + self.drop(F.gelu(self.hidden(z))) @ self.out

    @torch.no_grad()
    def map(self) -> Map:
        """Return the same function as one map of unwhitened rows."""
        whiten, mean = self.whiten.double(), self.mean.double()

        def unwhitened(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
            folded = whiten @ weight.double()
            return folded.float(), (bias.double() - mean @ folded).float()

        weight, bias = unwhitened(self.weight, self.bias)
        if self.hidden is None:
            return AffineMap(weight, bias)
        hidden_weight, hidden_bias = unwhitened(self.hidden.weight.T, self.hidden.bias)
        return ResidualMLP(weight, bias, hidden_weight, hidden_bias, self.out.detach().clone())


def draw_extra(rows: Tensor, n: int, gallery: int, seed: int) -> Tensor | None:
    """Draw row numbers (m,) of targets that fill up the gallery of a batch.

    `rows` (b,) are the rows of the batch, and `gallery` is the size of the gallery. Returns None if the gallery has
    room for all `n` targets. Rows of the batch are not drawn, because a counterpart that is drawn again would be its
    own nearest neighbour. The draw is on the CPU: on a GPU, removing these rows would make every step wait for the
    device.
    """
    if n <= gallery:
        return None
    random = torch.Generator().manual_seed(seed)
    extra = torch.randint(n, (max(0, gallery - len(rows)),), generator=random)
    return extra[~torch.isin(extra, rows)]


class Batches:
    """Batches of row numbers, shuffled anew each epoch, with extra rows that fill up their galleries (`draw_extra`).

    Every rank gets its own share of the batch and the same extra rows, because all ranks compute the same loss.
    """

    def __init__(self, n: int, module: "PairsModule"):
        self.n, self.module = n, module

    def __len__(self) -> int:
        return max(1, (self.n // self.world) // self.size)

    @property
    def world(self) -> int:
        return self.module.trainer.world_size if self.module.trainer else 1

    @property
    def size(self) -> int:
        return min(self.module.recipe.batch_size, self.n // self.world)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        trainer, recipe = self.module.trainer, self.module.recipe
        epoch, rank = (trainer.current_epoch, trainer.global_rank) if trainer else (0, 0)
        random = torch.Generator().manual_seed(recipe.seed * 100_003 + epoch)
        order = torch.randperm(self.n, generator=random)
        shares = [order[other :: self.world] for other in range(self.world)]
        for step in range(len(self)):
            batch = slice(step * self.size, (step + 1) * self.size)
            seed = recipe.seed * 100_003 + epoch * len(self) + step
            extra = draw_extra(torch.cat([share[batch] for share in shares]), self.n, recipe.gallery, seed)
            yield shares[rank][batch], extra


class PairsModule(L.LightningDataModule):
    """Batches of row numbers for training; the pairs themselves stay in `RefineModule`."""

    def __init__(self, n: int, recipe: Recipe):
        super().__init__()
        self.n, self.recipe = n, recipe

    def train_dataloader(self) -> Batches:
        return Batches(self.n, self)

    def val_dataloader(self) -> list[Tensor]:
        return [torch.zeros(1)]  # one step, because the objective has its own rows


class RefineModule(L.LightningModule):
    """Computes the loss of a refiner on batches of pairs gathered over ranks, and its validation score each epoch.

    Each row is compared with all targets or, if there are more targets than the recipe's `gallery`, with the targets of
    the batch and a random draw of the others.
    """

    def __init__(
        self,
        refiner: Refiner,
        X: Tensor,
        Y: Tensor,
        objective: ValidationObjective,
        temperature: float,
        recipe: Recipe,
        loss: Loss,
        weights: Tensor | None = None,
    ):
        super().__init__()
        self.refiner, self.objective, self.recipe, self.minimised = refiner, objective, recipe, loss
        # Squared error has no temperature, and DDP waits for the gradient of every parameter that could have one.
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)), loss.temperature != "none")
        # Plain attributes, not buffers: DDP would broadcast buffers at every step, and checkpoints would store them.
        self.X, self.Y, self.gallery = X, Y, F.normalize(Y, dim=1)
        self.weights = None if weights is None else weights / weights.mean()
        self.copies = torch.unique(Y, dim=0, return_inverse=True)[1]
        self.unique_targets = len(torch.unique(self.copies)) == len(self.copies)
        self.native_scale = native_scale(self.gallery) if loss.temperature == "native" else 1.0

    def on_fit_start(self) -> None:
        self.X, self.Y, self.gallery, self.copies = (
            t.to(self.device) for t in (self.X, self.Y, self.gallery, self.copies)
        )
        self.weights = None if self.weights is None else self.weights.to(self.device)
        self.objective = self.objective.to(self.device)

    def on_train_epoch_start(self) -> None:
        # Dropout is seeded in each epoch, so that a resumed run gives the same map.
        torch.manual_seed(self.recipe.seed * 100_003 + self.current_epoch + (self.global_rank << 52))

    def training_step(self, batch: tuple[Tensor, Tensor | None]) -> Tensor:
        rows, extra = batch
        predicted = self.refiner(self.X[rows])
        if self.trainer.world_size > 1:
            # Every rank computes the loss of the whole batch; gradients flow back through `all_gather`.
            predicted = self.all_gather(predicted, sync_grads=True).flatten(0, 1)  # type: ignore[union-attr]
            rows = self.all_gather(rows).flatten()  # type: ignore[union-attr]
        return self.loss(predicted, rows, extra)

    def loss(self, predicted: Tensor, rows: Tensor, extra: Tensor | None = None) -> Tensor:
        """Return the loss of translated rows (b, d_target) whose counterparts have the row numbers `rows` (b,).

        They are compared with the targets of `rows` and `extra` or, without `extra`, with all targets.
        """
        in_batch = torch.arange(len(rows), device=rows.device)
        if extra is None:
            columns, positive_index, gallery, copies = None, rows, self.gallery, self.copies
        else:
            columns, positive_index = torch.cat([rows, extra]), in_batch
            gallery, copies = self.gallery[columns], self.copies[columns]
        duplicate_mask = None
        if columns is not None or not self.unique_targets:
            duplicate_mask = self.copies[rows, None] == copies
            duplicate_mask[in_batch, positive_index] = False
        scale = self.log_scale.exp().clamp(max=1000.0)
        weights = None if self.weights is None else self.weights[rows]
        return self.minimised.function(
            Batch(predicted, self.Y[rows], gallery, positive_index, duplicate_mask, scale, self.native_scale, weights)
        )

    def validation_step(self, _batch: Tensor) -> None:
        try:
            score = self.objective.score(self.refiner.map())
        except InputError:  # the fit diverged; the best epoch so far is kept
            score = -math.inf
        self.log(MONITOR, score, batch_size=1, sync_dist=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        recipe = self.recipe
        size = {name: float(p.detach().square().mean().sqrt()) for name, p in self.refiner.named_parameters()}
        # Both are added to the output of the weight, and may be zero at the start.
        size |= {"bias": size["weight"], "out": size["weight"]}
        rate = recipe.learning_rate or self.minimised.rate
        groups = [{"params": [p], "lr": rate * size[name]} for name, p in self.refiner.named_parameters()]
        optimizer = torch.optim.AdamW([*groups, {"params": [self.log_scale], "lr": LOG_SCALE_RATE}], weight_decay=0.0)
        steps = recipe.epochs * len(Batches(len(self.Y), self.trainer.datamodule))  # type: ignore[attr-defined]
        warm = min(10, steps)

        def pace(step: int) -> float:
            return min(1.0, (step + 1) / warm) * (1 + math.cos(math.pi * min(1.0, step / steps))) / 2

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, pace)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Progress(Callback):
    """A progress bar over the epochs on stderr, shown if the run takes longer than a second."""

    def __init__(self, method: str):
        self.method = method

    def on_train_start(self, trainer, pl_module) -> None:
        hide = None if trainer.is_global_zero else True
        self.bar = tqdm(total=trainer.max_epochs, desc=self.method, unit="epoch", delay=1, disable=hide, leave=False)
        self.bar.update(trainer.current_epoch)

    def on_validation_end(self, trainer, pl_module) -> None:
        if not trainer.sanity_checking:
            self.bar.set_postfix(val=f"{float(trainer.callback_metrics[MONITOR]):.3f}")
            self.bar.update(1)

    def on_train_end(self, trainer, pl_module) -> None:
        self.bar.close()
