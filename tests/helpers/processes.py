"""A callback for training with several processes. It is in a module so that each process can import it."""

import json
from pathlib import Path

import torch
from lightning.pytorch.callbacks import Callback


class Spy(Callback):
    """Saves the rows of each rank, and the gradients of the first step after they were averaged over the ranks."""

    def __init__(self, folder: Path):
        self.folder, self.rows = folder, []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.rows.append((trainer.current_epoch, batch[0].tolist()))

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        if trainer.global_step == 0:
            named = {name: p.grad.clone() for name, p in pl_module.named_parameters() if p.requires_grad}  # type: ignore[union-attr]
            torch.save(named, self.folder / f"gradients-{trainer.global_rank}.pt")

    def on_train_end(self, trainer, pl_module) -> None:
        (self.folder / f"rows-{trainer.global_rank}.json").write_text(json.dumps(self.rows))
