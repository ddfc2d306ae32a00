"""Maps refined by gradient: start from the closed form, then minimise the loss of the objective.

The weights are learned in the source's whitened coordinates, where every direction moves at the same rate, and folded
back into a plain map at the end.
"""

import hashlib
import logging
import math
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from repstitch.errors import InputError, one_line
from repstitch.fit.closed_form import Decomposition
from repstitch.fit.judge import Judge
from repstitch.fit.losses import LOSSES, Batch, Loss, native_scale
from repstitch.fit.ranks import from_first_rank, rank
from repstitch.fit.recipe import Recipe
from repstitch.maps import AffineMap, Map, ResidualMLP

log = logging.getLogger(__name__)

MONITOR = "val_score"
LOG_SCALE_RATE = 3e-3


class Refiner(nn.Module):
    """An affine map, and perhaps a residual MLP with a zero output layer, on whitened source rows."""

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
        self.to(start.weight.device)  # the hidden layer is drawn on the CPU, alike on every machine

    def forward(self, x: Tensor) -> Tensor:
        z = (x - self.mean) @ self.whiten
        y = z @ self.weight + self.bias
        return y if self.hidden is None else y + self.drop(F.gelu(self.hidden(z))) @ self.out

    @torch.no_grad()
    def map(self) -> Map:
        """The same function of unwhitened rows, as one map."""
        whiten, mean = self.whiten.double(), self.mean.double()

        def unfold(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
            plain = whiten @ weight.double()
            return plain.float(), (bias.double() - mean @ plain).float()

        weight, bias = unfold(self.weight, self.bias)
        if self.hidden is None:
            return AffineMap(weight, bias)
        hidden_weight, hidden_bias = unfold(self.hidden.weight.T, self.hidden.bias)
        return ResidualMLP(weight, bias, hidden_weight, hidden_bias, self.out.detach().clone())


class Batches:
    """Row numbers in an order of their own each epoch, one rank's share of them, a batch at a time."""

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

    def __iter__(self) -> Iterator[Tensor]:
        trainer = self.module.trainer
        epoch, rank = (trainer.current_epoch, trainer.global_rank) if trainer else (0, 0)
        random = torch.Generator().manual_seed(self.module.recipe.seed * 100_003 + epoch)
        order = torch.randperm(self.n, generator=random)[rank :: self.world]
        for at in range(0, len(self) * self.size, self.size):
            yield order[at : at + self.size]


class PairsModule(L.LightningDataModule):
    """The pairs, held as two tensors that batches are sliced from by row number."""

    def __init__(self, n: int, recipe: Recipe):
        super().__init__()
        self.n, self.recipe = n, recipe

    def train_dataloader(self) -> Batches:
        return Batches(self.n, self)

    def val_dataloader(self) -> list[Tensor]:
        return [torch.zeros(1)]  # one step: the judge holds its own rows


class RefineModule(L.LightningModule):
    """The loss of a refiner on batches of pairs, gathered over ranks, and its score by the judge after each epoch.

    Each row is compared with all targets or, where there are more than the recipe's `gallery`, with those of the batch
    and a random draw of all, which may hold a row's own counterpart once more.
    """

    def __init__(
        self, refiner: Refiner, X: Tensor, Y: Tensor, judge: Judge, temperature: float, recipe: Recipe, loss: Loss
    ):
        super().__init__()
        self.refiner, self.judge, self.recipe, self.minimised = refiner, judge, recipe, loss
        # Squared error has no temperature, and DDP waits for the gradient of every parameter that could have one.
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)), loss.temperature != "none")
        # Plain attributes, not buffers: DDP would broadcast buffers at every step, checkpoints would hold the data.
        self.X, self.Y, self.gallery = X, Y, F.normalize(Y, dim=1)
        self.copies = torch.unique(Y, dim=0, return_inverse=True)[1]
        self.unique_targets = len(torch.unique(self.copies)) == len(self.copies)
        self.native = native_scale(self.gallery) if loss.temperature == "native" else 1.0

    def on_fit_start(self) -> None:
        self.X, self.Y, self.gallery, self.copies = (
            t.to(self.device) for t in (self.X, self.Y, self.gallery, self.copies)
        )
        self.judge = self.judge.to(self.device)

    def on_train_epoch_start(self) -> None:
        # Each epoch drops out by a seed of its own, so that a stopped run goes on as it would have.
        torch.manual_seed(self.recipe.seed * 100_003 + self.current_epoch + (self.global_rank << 52))

    def training_step(self, rows: Tensor) -> Tensor:
        rows = rows.to(self.device)
        predicted = self.refiner(self.X[rows])
        if self.trainer.world_size > 1:
            # Every rank takes the loss of the whole batch; gradients flow back through the gathering.
            predicted = self.all_gather(predicted, sync_grads=True).flatten(0, 1)  # type: ignore[union-attr]
            rows = self.all_gather(rows).flatten()  # type: ignore[union-attr]
        return self.loss(predicted, rows)

    def loss(self, predicted: Tensor, rows: Tensor) -> Tensor:
        """The loss of translated rows (b, d_target) whose counterparts are these row numbers (b,)."""
        here = torch.arange(len(rows), device=rows.device)
        if len(self.Y) <= self.recipe.gallery:
            columns, own, gallery, copies = None, rows, self.gallery, self.copies
        else:
            # Drawn alike on every rank, for they all take the same loss.
            random = torch.Generator().manual_seed(self.recipe.seed * 100_003 + self.global_step)
            extra = torch.randint(len(self.Y), (max(0, self.recipe.gallery - len(rows)),), generator=random)
            extra = extra.to(rows.device)
            # A counterpart drawn once more would be its own nearest neighbour.
            columns, own = torch.cat([rows, extra[~torch.isin(extra, rows)]]), here
            gallery, copies = self.gallery[columns], self.copies[columns]
        alike = None
        if columns is not None or not self.unique_targets:
            alike = self.copies[rows, None] == copies
            alike[here, own] = False
        scale = self.log_scale.exp().clamp(max=1000.0)
        return self.minimised.of(Batch(predicted, self.Y[rows], gallery, own, alike, scale, self.native))

    def validation_step(self, _batch: Tensor) -> None:
        try:
            score = self.judge.score(self.refiner.map())
        except InputError:  # it diverged; the best epoch so far is kept
            score = -math.inf
        self.log(MONITOR, score, batch_size=1, sync_dist=True)

    def configure_optimizers(self):
        recipe = self.recipe
        size = {name: float(p.detach().square().mean().sqrt()) for name, p in self.refiner.named_parameters()}
        size |= {"bias": size["weight"], "out": size["weight"]}  # they add to what the weight gives, and may be zero
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
    """One bar on stderr over the epochs, for runs that take longer than a second."""

    def __init__(self, what: str):
        self.what = what

    def on_train_start(self, trainer, pl_module) -> None:
        hide = None if trainer.is_global_zero else True
        self.bar = tqdm(total=trainer.max_epochs, desc=self.what, unit="epoch", delay=1, disable=hide, leave=False)
        self.bar.update(trainer.current_epoch)

    def on_validation_end(self, trainer, pl_module) -> None:
        if not trainer.sanity_checking:
            self.bar.set_postfix(val=f"{float(trainer.callback_metrics[MONITOR]):.3f}")
            self.bar.update(1)

    def on_train_end(self, trainer, pl_module) -> None:
        self.bar.close()


@dataclass(frozen=True)
class Refined:
    """A refined map, its validation score, and the epoch and temperature it was found at (epoch 0: the start)."""

    map: Map
    score: float
    epoch: int
    temperature: float


def refine(
    X: Tensor,
    Y: Tensor,
    start: AffineMap,
    decomposition: Decomposition,
    judge: Judge,
    recipe: Recipe,
    loss: Loss | None = None,
) -> Refined:
    """Refine `start` on pairs X (n, d_source), Y (n, d_target) and return the best epoch by the judge.

    `loss` is what is minimised, by default what suits the judge's objective.

    Never worse than the start on the judge's rows: an epoch that beats nothing is not kept. With `stop_after` the map
    after that many epochs is returned whatever its score, for refits. The same seed gives the same map on one machine.
    """
    loss = loss or LOSSES[judge.objective]
    base, multiples = judge.temperature(start), recipe.temperatures
    if loss.temperature != "held out":
        base, multiples = 1 / native_scale(F.normalize(Y, dim=1)), (1.0,)
    best = Refined(start, judge.score(start), 0, base)
    for multiple in multiples:
        run = _run(X, Y, start, decomposition, judge, base * multiple, recipe, loss)
        if recipe.stop_after is not None or run.score > best.score:
            best = run
    return best


def _run(X, Y, start, decomposition, judge, temperature: float, recipe: Recipe, loss: Loss) -> Refined:
    with ExitStack() as stack:
        stack.enter_context(_quiet())
        stack.enter_context(torch.random.fork_rng())
        torch.manual_seed(recipe.seed)
        kind = "mlp" if recipe.width else "linear"
        place = recipe.checkpoints or stack.enter_context(tempfile.TemporaryDirectory())
        folder = Path(place) / f"{kind}-{_job(X, Y, start, judge, temperature, recipe, loss)}"
        last, done = folder / "last.ckpt", folder / "done"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"`checkpoints` must be a folder that can be written to: {one_line(error)}") from None
        if not done.exists():
            module = RefineModule(Refiner(start, decomposition, recipe), X, Y, judge, temperature, recipe, loss)
            trainer = _trainer(folder, kind, recipe)
            try:
                trainer.fit(
                    module,
                    datamodule=PairsModule(len(X), recipe),
                    ckpt_path=last if _is_whole(last) else None,
                    weights_only=True,
                )
            except SystemExit:
                if trainer.interrupted:  # the Trainer turns Ctrl-C into an exit
                    raise KeyboardInterrupt from None
                raise
        state: dict = {}
        if not rank():
            kept = torch.load(
                last if recipe.stop_after else folder / "best.ckpt", map_location="cpu", weights_only=True
            )
            state = {"epoch": int(kept["epoch"]) + 1, "weights": kept["state_dict"]}
            done.touch()
        state = from_first_rank(state)
        refiner = Refiner(start, decomposition, recipe)
        refiner.load_state_dict(
            {k.removeprefix("refiner."): v for k, v in state["weights"].items() if k.startswith("refiner.")}
        )
        try:
            map = refiner.eval().map()
            return Refined(map, judge.score(map), state["epoch"], temperature)
        except InputError:
            log.warning("The %s fit diverged and is left out; lower `learning_rate`.", kind)
            return Refined(start, judge.score(start), 0, temperature)


def _trainer(folder: Path, kind: str, recipe: Recipe) -> L.Trainer:
    best = ModelCheckpoint(folder, filename="best", monitor=MONITOR, mode="max", enable_version_counter=False)
    # Of its own, for `save_last` skips the epochs that are not the best; after `best`, so that it holds its state.
    last = ModelCheckpoint(folder, filename="last", enable_version_counter=False)
    stop = EarlyStopping(MONITOR, mode="max", patience=recipe.patience)
    try:
        return L.Trainer(
            max_epochs=recipe.stop_after or recipe.epochs,
            accelerator=recipe.accelerator,
            devices=recipe.devices,
            strategy=recipe.strategy,
            gradient_clip_val=recipe.clip,
            callbacks=[best, last, Progress(kind), *([] if recipe.stop_after else [stop])],
            logger=False,
            num_sanity_val_steps=0,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    except (MisconfigurationException, ImportError, TypeError, ValueError) as error:
        raise InputError(
            "`accelerator`, `devices` and `strategy` must suit the Lightning Trainer and this machine; "
            f"it says: {one_line(error)}"
        ) from None


def _is_whole(checkpoint: Path) -> bool:
    """Whether there is a checkpoint to go on from; one that was torn as it was written is not."""
    if not checkpoint.exists():
        return False
    try:
        torch.load(checkpoint, map_location="cpu", weights_only=True)
    except Exception as error:
        log.warning("%s cannot be read and is left aside: %s", checkpoint, one_line(error))
        return False
    return True


def _job(X: Tensor, Y: Tensor, start: AffineMap, judge: Judge, temperature: float, recipe: Recipe, loss: Loss) -> str:
    """What a run is made from, as a short hash: the recipe, the objective, the loss, the start and the rows."""
    said = (
        f"{temperature:.5f}",
        judge.objective,
        loss.of.__name__,
        loss.rate,
        replace(recipe, checkpoints=None),
        X.shape,
        Y.shape,
    )
    digest = hashlib.blake2b(repr(said).encode(), digest_size=6)
    for rows in (X, Y, judge.X, judge.Y, start.weight, start.bias):
        digest.update(rows.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def _quiet():
    """Keep the Trainer's advice about loggers, loaders and devices away from the user's terminal."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        warnings.filterwarnings("ignore", module="pytorch_lightning")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
