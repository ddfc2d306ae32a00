"""Refine a map by gradient descent: start from a closed form, then minimise the loss of the objective.

The weights are learned in the whitened coordinates of the source, where every direction learns at the same rate. At the
end they are converted to a map of unwhitened rows.
"""

import hashlib
import logging
import tempfile
import warnings
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor
from torch.nn import functional as F

from repstitch.errors import InputError, one_line
from repstitch.fit.closed_form import Decomposition
from repstitch.fit.lightning_modules import MONITOR, PairsModule, Progress, RefineModule, Refiner
from repstitch.fit.losses import LOSSES, Loss, native_scale
from repstitch.fit.objective import ValidationObjective
from repstitch.fit.ranks import from_first_rank, rank
from repstitch.fit.recipe import Recipe
from repstitch.precision import check_set_as_a_whole
from repstitch.stitchers.maps import AffineMap, Map

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Refined:
    """A refined map with its validation score, epoch and temperature. Epoch 0 is the map before refinement."""

    map: Map
    score: float
    epoch: int
    temperature: float


def refine(
    X: Tensor,
    Y: Tensor,
    start: AffineMap,
    decomposition: Decomposition,
    objective: ValidationObjective,
    recipe: Recipe,
    loss: Loss | None = None,
    weights: Tensor | None = None,
) -> Refined:
    """Refine `start` on pairs X (n, d_source), Y (n, d_target) and return the map of the best epoch by the objective.

    The default `loss` is that of the objective. On the rows of the objective, the result never scores lower than the
    start. If the recipe has `stop_after`, the map after that many epochs is returned whatever its score; refits use
    this. The same seed gives the same map on the same machine. `weights` (n,) weigh the losses of the pairs.
    """
    loss = loss or LOSSES[objective.name]
    base, multiples = objective.temperature(start), recipe.temperatures
    if loss.temperature != "held out":
        base, multiples = 1 / native_scale(F.normalize(Y, dim=1)), (1.0,)
    best = Refined(start, objective.score(start), 0, base)
    for multiple in multiples:
        run = _run((X, Y, weights), start, decomposition, objective, base * multiple, recipe, loss)
        if recipe.stop_after is not None or run.score > best.score:
            best = run
    return best


def _run(
    pairs: tuple[Tensor, Tensor, Tensor | None],
    start: AffineMap,
    decomposition: Decomposition,
    objective: ValidationObjective,
    temperature: float,
    recipe: Recipe,
    loss: Loss,
) -> Refined:
    X, Y, weights = pairs
    with ExitStack() as stack:
        stack.enter_context(_quiet())
        stack.enter_context(torch.random.fork_rng())
        torch.manual_seed(recipe.seed)
        kind = "mlp" if recipe.width else "linear"
        if recipe.checkpoints:
            folder = (
                Path(recipe.checkpoints) / f"{kind}-{_job(X, Y, start, objective, temperature, recipe, loss, weights)}"
            )
        else:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / kind
        last, done = folder / "last.ckpt", folder / "done"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"`checkpoints` must be a folder that can be written to: {one_line(error)}") from None
        if not done.exists():
            refiner = Refiner(start, decomposition, recipe)
            module = RefineModule(refiner, X, Y, objective, temperature, recipe, loss, weights)
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
            path = last if recipe.stop_after else folder / "best.ckpt"
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
            state = {"epoch": int(checkpoint["epoch"]) + 1, "weights": checkpoint["state_dict"]}
            done.touch()
        state = from_first_rank(state)
        refiner = Refiner(start, decomposition, recipe)
        refiner.load_state_dict(
            {k.removeprefix("refiner."): v for k, v in state["weights"].items() if k.startswith("refiner.")}
        )
        try:
            map = refiner.eval().map()
            return Refined(map, objective.score(map), state["epoch"], temperature)
        except InputError:
            log.warning("The %s fit diverged and is left out; lower `learning_rate`.", kind)
            return Refined(start, objective.score(start), 0, temperature)


def _trainer(folder: Path, kind: str, recipe: Recipe) -> L.Trainer:
    if recipe.accelerator != "cpu" and torch.cuda.is_available():
        check_set_as_a_whole()
    best = ModelCheckpoint(folder, filename="best", monitor=MONITOR, mode="max", enable_version_counter=False)
    # A second callback, because `save_last` skips epochs that are not the best. It follows `best`, to save its state.
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
            f"Lightning reports: {one_line(error)}"
        ) from None


def _is_whole(checkpoint: Path) -> bool:
    """Return whether there is a complete checkpoint to resume from. A partly written checkpoint is ignored."""
    if not checkpoint.exists():
        return False
    try:
        torch.load(checkpoint, map_location="cpu", weights_only=True)
    except Exception as error:
        log.warning("%s cannot be read and is ignored: %s", checkpoint, one_line(error))
        return False
    return True


def _job(
    X: Tensor,
    Y: Tensor,
    start: AffineMap,
    objective: ValidationObjective,
    temperature: float,
    recipe: Recipe,
    loss: Loss,
    weights: Tensor | None,
) -> str:
    """Return a short hash of everything that determines a run: recipe, objective, loss, start and rows."""
    settings = (
        f"{temperature:.5f}",
        objective.name,
        objective.use,
        loss.function.__name__,
        loss.rate,
        replace(recipe, checkpoints=None),
        X.shape,
        Y.shape,
    )
    digest = hashlib.blake2b(repr(settings).encode(), digest_size=6)
    for rows in (X, Y, objective.X, objective.Y, start.weight, start.bias, weights, objective.weights):
        if rows is not None:
            digest.update(rows.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def _quiet():
    """Suppress the Trainer's messages about loggers, data loaders and devices."""
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
