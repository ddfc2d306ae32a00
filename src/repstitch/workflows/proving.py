"""Evaluate the selected map: its scorecard on held-out pairs, and its calibrated confidence."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from repstitch.embeddings.fingerprints import id_fingerprints
from repstitch.embeddings.likeness import Likeness
from repstitch.embeddings.normalising import normalise
from repstitch.evaluation.pool import TranslatedPairs
from repstitch.evaluation.score_scale import fit_score_scale
from repstitch.evaluation.scorecard import Scorecard
from repstitch.evaluation.scoring import MAX_POOL, score_pairs
from repstitch.evaluation.thresholds import Thresholds
from repstitch.evaluation.use_scores import Verdict
from repstitch.evaluation.verdict import not_judged
from repstitch.fit.calibration import CalibrationRows, Directions, calibrate, calibrate_folds, directions_of, evaluate
from repstitch.fit.closed_form import FITS, fit_closed, fit_shuffled
from repstitch.fit.learning_curve import draw_curve
from repstitch.fit.selection import Candidate, Problem
from repstitch.fit.spectrum import shared_spectrum
from repstitch.metrics.retrieval import ranks, recall, search_similar
from repstitch.names import USES
from repstitch.precision import exact_products
from repstitch.stitchers.confidence import LEAST_ROWS, Calibration
from repstitch.workflows.preparing import PreparedPairs
from repstitch.workflows.unseen import scored_rows, unseen_similarities

log = logging.getLogger(__name__)


def evaluate_selection(
    prepared: PreparedPairs,
    problem: Problem,
    chosen: Candidate,
    tried: Sequence[Candidate],
    thresholds: Thresholds,
    likeness: Likeness | None = None,
    *,
    learning_curve: bool,
    seed: int,
) -> tuple[Scorecard, Calibration | None, TranslatedPairs]:
    """Return the scorecard of the chosen map on held-out pairs, its confidence, and the translated pairs.

    There is no confidence if pairs are too few, or if a corpus is unlike the pairs; then there is no verdict either.
    """
    rows = prepared.held_out
    X, Y = prepared.take(rows)
    proof = None if prepared.folds is None else prove_in_folds(prepared, chosen, problem)
    held_out = translate_held_out(prepared, chosen, proof)
    card = score_held_out(prepared, held_out, problem, thresholds)
    extras: dict = {}
    proof_folds = None if prepared.proof_folds is None else prepared.proof_folds[rows]
    scales = {use: fit_score_scale(held_out, use, proof_folds, seed) for use in USES}
    if all(scale is not None for scale in scales.values()):
        extras["score_scale"] = scales
    if likeness is not None and likeness.unlike:
        calibration, note = None, f"{likeness} So these scores, and a confidence, say little about it."
        extras |= {use: card[use] | {"verdict": _unknown(likeness, thresholds).to_dict()} for use in card.uses}
    else:
        calibration, note = calibrate_confidence(prepared, problem, chosen, proof)
    if likeness is not None:
        extras["corpus_sample"] = likeness.to_dict()
    if calibration is not None and len(prepared.parts.test):
        gallery = (prepared.Y[prepared.parts.select], prepared.Y[prepared.parts.calibrate], problem.Y)
        extras["confidence"] = evaluate(calibration, chosen.map, X, Y, gallery).to_dict()
    extras |= {
        "held_out": held_out_name(prepared),
        "spectrum": shared_spectrum(problem.decomposition, X, Y, seed=seed) if len(rows) >= 4 else None,
        "control_fit": shuffled_control(problem, chosen, X, Y, seed),
        "candidates": list_candidates(chosen, tried),
        "notes": prepared.notes + ([note] if note else []),
        "near_duplicates": int(prepared.near_duplicates[rows].sum()),
    }
    if learning_curve:
        extras["learning_curve"] = learn_curve(prepared, problem, chosen, seed)
    return Scorecard(card.to_dict() | extras), calibration, held_out


def _unknown(likeness: Likeness, thresholds: Thresholds) -> Verdict:
    """Return the verdict for a corpus that is unlike the pairs."""
    advice = (
        "Draw rows of the corpus with `repstitch sample`, embed them with the new model, and pass them as own pairs."
    )
    return not_judged(f"the quality on the corpus is unknown. {likeness} {advice}", thresholds)


@dataclass(frozen=True)
class FoldProof:
    """Own pairs of each proof fold, translated and read by a fit without them.

    `rows` are their positions among the own pairs, and `directions` those of the first of these fits. `similar` has the
    similarities of own pairs by maps that saw neither row, by use.
    """

    rows: list[torch.Tensor]
    parts: list[CalibrationRows]
    directions: Directions
    similar: dict[str, torch.Tensor] | None

    def raw(self) -> torch.Tensor:
        """Return the translations (n, d_target) in the order of the own pairs."""
        order = torch.cat(self.rows).argsort()
        return torch.cat([part.raw for part in self.parts])[order]

    def positions(self) -> torch.Tensor | None:
        """Return the rank (n,) of each counterpart among the targets, by maps that saw neither, in order of `parts`.

        None if not all pairs are scored.
        """
        order = torch.cat(self.rows).cpu()
        if self.similar is None or len(self.similar["query"]) < len(order):
            return None
        similar = self.similar["query"]
        return search_similar(similar, 1, torch.arange(len(similar)))[0][order]


@exact_products()
@torch.no_grad()
def prove_in_folds(prepared: PreparedPairs, chosen: Candidate, problem: Problem) -> FoldProof:
    """Fit the chosen settings once without each proof fold, and translate and read the pairs of the fold."""
    folds = torch.from_numpy(prepared.proof_folds).to(problem.X.device)
    proof, fold_of = replace(problem, folds=folds), folds[folds >= 0]
    rows: list[torch.Tensor] = []
    parts: list[CalibrationRows] = []
    directions: list[Directions] = []
    for fold in range(proof.n_folds):
        decomposition = proof.decompose_without((fold,), chosen.settings.get("own_share"))
        map = fit_closed(decomposition, chosen.method, chosen.settings)
        directions.append(directions_of(decomposition))
        rows.append((fold_of == fold).nonzero()[:, 0])
        X, Y = problem.objective.X[rows[fold]], problem.objective.Y[rows[fold]]
        parts.append(CalibrationRows.of(map, X, Y, directions[fold]))
    return FoldProof(rows, parts, directions[0], unseen_similarities(prepared, chosen, problem))


@exact_products()
def translate_held_out(prepared: PreparedPairs, chosen: Candidate, proof: FoldProof | None) -> TranslatedPairs:
    """Translate the held-out pairs, on the CPU: by the chosen map, or by fits of it without the fold of each pair."""
    X, Y = (side.cpu() for side in prepared.take(prepared.held_out))
    with torch.inference_mode():
        raw = chosen.map.to("cpu")(X) if proof is None else proof.raw().cpu()[scored_rows(prepared)]
        similar = None if proof is None else proof.similar
        return TranslatedPairs(X, Y, raw, normalise(raw, prepared.output_norm, "the translation"), similar)


def score_held_out(
    prepared: PreparedPairs, held_out: TranslatedPairs, problem: Problem, thresholds: Thresholds
) -> Scorecard:
    """Score the translations of the held-out pairs."""
    near_duplicates = prepared.near_duplicates[prepared.held_out]
    return score_pairs(
        held_out,
        problem.Y.cpu().mean(0),
        near_duplicates=near_duplicates if near_duplicates.any() else None,
        thresholds=thresholds,
    )


def held_out_name(prepared: PreparedPairs) -> str:
    """Return the scorecard's name for the pairs that were scored."""
    if prepared.folds is not None:
        return "own pairs in folds" if prepared.has_general else "pairs in folds"
    if len(prepared.parts.test):
        return "test pairs"
    return "validation pairs" if has_calibration_half(prepared) else "validation pairs that also chose the map"


def has_calibration_half(prepared: PreparedPairs) -> bool:
    """Whether validation was split into two halves, so that calibration uses pairs that did not select the map."""
    return not np.isin(prepared.parts.calibrate, prepared.parts.select).any()


def calibrate_confidence(
    prepared: PreparedPairs, problem: Problem, chosen: Candidate, proof: FoldProof | None
) -> tuple[Calibration | None, str | None]:
    """Return the calibrated confidence, or None and a note with the reason."""
    if proof is not None:
        confidence = calibrate_folds(proof.directions, proof.parts, proof.positions())
        few = "There are fewer than 20 own pairs, so confidence is not calibrated."
        return confidence, few if confidence is None else None
    if not has_calibration_half(prepared):
        return None, "Validation could not be halved (too few pairs or groups), so confidence is not calibrated."
    selection, calibration = (prepared.take(rows) for rows in (prepared.parts.select, prepared.parts.calibrate))
    confidence = calibrate(chosen.map, problem.decomposition, selection, calibration, problem.Y)
    if confidence is None:
        return None, f"One half of validation has fewer than {LEAST_ROWS} pairs, so confidence is not calibrated."
    return confidence, None


@exact_products()
def shuffled_control(problem: Problem, chosen: Candidate, X: torch.Tensor, Y: torch.Tensor, seed: int) -> dict:
    """Recall on held-out pairs of a closed form fitted to shuffled training pairs, as a baseline.

    The closed form is that of the chosen map, or the one that its refinement started from.
    """
    closed = chosen.settings.get("start", chosen.settings)
    method = closed.get("method", chosen.method)
    map = fit_shuffled(problem.X, problem.Y, method, closed, seed)
    positions = ranks(map(X[:MAX_POOL]), Y[:MAX_POOL])
    return {"method": method, "recall@1": recall(positions, 1), "recall@10": recall(positions, 10)}


def list_candidates(chosen: Candidate, tried: Sequence[Candidate]) -> list[dict]:
    """List every map that was tried, with its validation score: None if it could not translate the validation rows."""
    return [
        {
            "method": candidate.method,
            "settings": settings,
            "validation": score if math.isfinite(score) else None,
            "chosen": candidate is chosen and settings == chosen.settings,
        }
        for candidate in tried
        for settings, score in candidate.tried
    ]


def learn_curve(prepared: PreparedPairs, problem: Problem, chosen: Candidate, seed: int) -> dict:
    """Compute the learning curve of the chosen closed form, or of `canonical` if the chosen map was refined."""
    pairs = prepared.pairs
    keys = (pairs.ids if pairs.groups is None else pairs.groups)[prepared.parts.train]
    method = chosen.method if chosen.method in FITS else "canonical"
    curve = draw_curve(problem, method, id_fingerprints(keys), seed)
    log.info("%s", curve["verdict"])
    return curve
