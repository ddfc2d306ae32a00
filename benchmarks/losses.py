"""Compare losses for refinement: `python benchmarks/losses.py`. Prints the tables and writes results/losses.md.

Every loss refines the same closed form (canonical with the source whitened, power 1/2 and the target's variance) as a
linear map on the same training rows, for ten epochs and at two learning rates. After each epoch the map is scored by
each objective on the half of validation that is used for selection. For each objective the best epoch and learning rate
of a loss are then scored on the test rows, so that no loss suffers from a rate or stopping point that suits another.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from machine import header, markdown
from real_pairs import PAIRS, arguments, every_split
from torch import Tensor
from torch.nn import functional as F

from repstitch.embeddings.normalising import normalise
from repstitch.embeddings.pairs import Pairs
from repstitch.embeddings.splitting import split
from repstitch.fit.closed_form import affine, canonical
from repstitch.fit.contrastive import refine
from repstitch.fit.losses import Batch, Loss, info_nce, listwise_distillation, squared_error
from repstitch.fit.objective import OBJECTIVES, ValidationObjective
from repstitch.fit.recipe import Recipe
from repstitch.fit.selection import Problem
from repstitch.metrics.neighbour_lists import overlap
from repstitch.metrics.neighbours import knn
from repstitch.metrics.retrieval import ranks, recall

RESULTS = Path(__file__).parent / "results"
RATES = (0.03, 0.2)
EPOCHS = 10
SHOWN = {"match": "recall@1", "neighbours": "overlap@10", "reconstruction": "r2"}


def _similarities(batch: Batch) -> Tensor:
    similar = F.normalize(batch.predicted, dim=1) @ batch.gallery.T * batch.scale
    return similar if batch.duplicate_mask is None else similar.masked_fill(batch.duplicate_mask, -torch.inf)


def both_ways(batch: Batch) -> Tensor:
    """Return the mean of InfoNCE in both directions, plus a tenth of the cosine loss.

    The backward direction is from each target to the translations of the batch.
    """
    logits = _similarities(batch)
    forwards = F.cross_entropy(logits, batch.positive_index)
    backwards = F.cross_entropy(logits[:, batch.positive_index].T, torch.arange(len(logits), device=logits.device))
    return (forwards + backwards) / 2 + 0.1 * cosine(batch)


def in_batch(batch: Batch) -> Tensor:
    """Return symmetric InfoNCE among the targets of the batch, as in CLIP."""
    logits = _similarities(batch)[:, batch.positive_index]
    diagonal = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, diagonal) + F.cross_entropy(logits.T, diagonal)) / 2


def hard_negatives(batch: Batch) -> Tensor:
    """Return InfoNCE against only the 64 most similar wrong targets."""
    logits = _similarities(batch)
    positive = logits.gather(1, batch.positive_index[:, None])
    wrong = logits.scatter(1, batch.positive_index[:, None], -torch.inf)
    hardest = wrong.topk(min(64, logits.shape[1] - 1), dim=1).values
    return F.cross_entropy(torch.cat([positive, hardest], dim=1), torch.zeros_like(batch.positive_index))


def queue(batch: Batch) -> Tensor:
    """Return InfoNCE against 1,024 random targets. Targets are constant, so a queue of older copies is not needed."""
    keep = torch.randperm(len(batch.gallery), device=batch.positive_index.device)[:1024]
    logits = _similarities(batch)
    positive = logits.gather(1, batch.positive_index[:, None])
    others = logits.scatter(1, batch.positive_index[:, None], -torch.inf)[:, keep]
    return F.cross_entropy(torch.cat([positive, others], dim=1), torch.zeros_like(batch.positive_index))


def cosine(batch: Batch) -> Tensor:
    """Return one minus the mean cosine to the targets."""
    return 1 - F.cosine_similarity(batch.predicted, batch.targets).mean()


def with_distillation(batch: Batch) -> Tensor:
    """Return the sum of InfoNCE in both directions and listwise distillation."""
    return both_ways(batch) + listwise_distillation(batch)


LOSSES = {
    "InfoNCE, both ways, all targets": (both_ways, "held out", (1.0,)),
    "the same, 2.5 times as soft": (both_ways, "held out", (2.5,)),
    "InfoNCE, one way": (info_nce, "held out", (1.0,)),
    "InfoNCE in the batch (512)": (in_batch, "held out", (1.0,)),
    "InfoNCE, 64 hardest negatives": (hard_negatives, "held out", (1.0,)),
    "InfoNCE, memory of 1,024": (queue, "held out", (1.0,)),
    "listwise distillation": (listwise_distillation, "native", (1.0,)),
    "InfoNCE + distillation": (with_distillation, "native", (1.0,)),
    "cosine": (cosine, "none", (1.0,)),
    "squared error": (squared_error, "none", (1.0,)),
}


@dataclass(frozen=True)
class EveryObjective(ValidationObjective):
    """Score each map by every objective and keep the best map for each; the score returned is constant."""

    best: dict = field(default_factory=dict)

    def score(self, map) -> float:
        for objective in OBJECTIVES:
            score = float(replace(self, name=objective).scores_per_row(map).mean())
            if objective not in self.best or score > self.best[objective][0]:
                self.best[objective] = score, map
        return float(len(self.best))


def test_scores(map, X: Tensor, Y: Tensor) -> dict:
    with torch.inference_mode():
        translated = map(X)
    native = knn(Y, Y, 10, exclude_self=True)
    return {
        "recall@1": recall(ranks(translated, Y), 1),
        "overlap@10": float(overlap(knn(translated, Y, 10, exclude_self=True), native).mean()),
        "r2": float(1 - (translated - Y).square().sum() / (Y - Y.mean(0)).square().sum()),
    }


def measure(pairs: Pairs, seed: int) -> dict:
    """Return the test scores by loss and objective, including those of the initial map."""
    X, Y = (normalise(torch.from_numpy(side), "unit") for side in (pairs.X, pairs.Y))
    parts = split(pairs, seed=seed)
    validation = ValidationObjective("match", X[parts.select], Y[parts.select], Y[parts.train])
    problem = Problem(X[parts.train], Y[parts.train], validation)
    d = problem.decomposition
    start = affine(d.moments, canonical(d, 0.1, None).weight(0.5), 1.0)
    scores = {"the closed form": dict.fromkeys(OBJECTIVES, test_scores(start, X[parts.test], Y[parts.test]))}
    for name, (function, temperature, multiples) in LOSSES.items():
        best: dict = {}
        for rate in RATES:
            every = EveryObjective("match", validation.X, validation.Y, validation.distractors)
            recipe = Recipe(epochs=EPOCHS, patience=EPOCHS, temperatures=multiples, seed=seed, accelerator="cpu")
            refine(problem.X, problem.Y, start, d, every, recipe, Loss(function, rate, temperature))
            for objective, (score, map) in every.best.items():
                if objective not in best or score > best[objective][0]:
                    best[objective] = score, map
        scores[name] = {o: test_scores(map, X[parts.test], Y[parts.test]) for o, (_, map) in best.items()}
    return scores


def report(measured: dict[str, dict], seeds: int) -> str:
    """Return a table for each objective, with a row for each loss and a column for each pair and for their mean.

    The best value of a column is bold.
    """
    text = (
        f"\nTest scores of a linear map (split seeds: {seeds}); epoch and learning rate chosen on validation rows by "
        "the objective of the table.\n"
    )
    pairs = list(measured)
    for objective, shown in SHOWN.items():
        values = {name: [measured[p][name][objective][shown] for p in pairs] for name in ("the closed form", *LOSSES)}
        columns = np.array(list(values.values()))
        columns = np.column_stack([columns, columns.mean(1)])
        top = columns.max(0)
        rows = [
            [name, *(f"**{v:.3f}**" if v >= t - 5e-4 else f"{v:.3f}" for v, t in zip(line, top, strict=True))]
            for name, line in zip(values, columns, strict=True)
        ]
        text += f"\n## `{objective}`: {shown}\n\n" + markdown(["loss", *pairs, "mean"], rows)
    return text


def main() -> None:
    args = arguments(__doc__, seeds=1).parse_args()
    torch.set_num_threads(args.threads)
    runs = every_split(args, measure)
    measured = {name: _mean(splits) for name, splits in runs.items()}
    text = header("Losses, from one start", "python benchmarks/losses.py") + report(measured, args.seeds)
    if args.pairs == list(PAIRS):
        (RESULTS / "losses.md").write_text(text, encoding="utf-8")
    print(text)


def _mean(runs: list[dict]) -> dict:
    return {
        loss: {o: {s: float(np.mean([r[loss][o][s] for r in runs])) for s in SHOWN.values()} for o in OBJECTIVES}
        for loss in runs[0]
    }


if __name__ == "__main__":
    main()
