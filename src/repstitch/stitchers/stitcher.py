"""A map with its two spaces, its normalisation and its proof: translate with it, save it, load it."""

import hashlib
import json
import os
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import overload

import numpy as np
import safetensors
import torch
from safetensors.torch import load_file, save_file

from repstitch.arguments import check_choice
from repstitch.errors import InputError, one_line
from repstitch.evaluation.scorecard import Scorecard
from repstitch.files import check_new_folder, check_stitcher_exists, written_whole
from repstitch.names import METHODS, NORMALISATIONS, OBJECTIVES
from repstitch.spaces import Space
from repstitch.stitchers.confidence import Confidence, confidence_from_tensors
from repstitch.stitchers.maps import Map, form_of, map_from_tensors
from repstitch.stitchers.model_card import model_card
from repstitch.stitchers.pipeline import Pipeline, PipelineOutput

FORMAT_VERSION = 1
FILES = ("config.json", "model.safetensors", "scorecard.json", "README.md")


@dataclass(frozen=True)
class Stitcher:
    """Translates rows of `source` into `target`: input normalisation, the map, output normalisation.

    `settings`, `split` and `provenance` say how it was made, `scorecard` how good it is. `source_mean` and
    `target_mean` are the means of the normalised training rows; `seen` holds int64 fingerprints, of the id
    and of the vectors, for every pair that training or selection used, so that scoring can leave them out.
    `calibration` tells how far to trust one translation, where there were enough pairs to learn it.
    """

    map: Map
    source: Space
    target: Space
    method: str
    objective: str
    input_norm: str
    output_norm: str
    source_mean: np.ndarray
    target_mean: np.ndarray
    seen: np.ndarray = field(repr=False)
    settings: dict = field(default_factory=dict)
    split: dict = field(default_factory=dict)
    provenance: dict = field(default_factory=dict)
    scorecard: Scorecard = field(default_factory=Scorecard, repr=False)
    calibration: Confidence | None = field(default=None, repr=False)

    def __post_init__(self):
        if (self.map.d_source, self.map.d_target) != (self.source.dim, self.target.dim):
            raise InputError(
                f"The map takes {self.map.d_source} dimensions to {self.map.d_target}, "
                f"but the spaces have {self.source.dim} and {self.target.dim}."
            )
        if self.source_mean.shape != (self.source.dim,) or self.target_mean.shape != (self.target.dim,):
            raise InputError("`source_mean` and `target_mean` must have the dimensions of their spaces.")
        if not (np.isfinite(self.source_mean).all() and np.isfinite(self.target_mean).all()):
            raise InputError("`source_mean` and `target_mean` must be finite.")
        if self.seen.ndim != 1 or self.seen.dtype != np.int64:
            raise InputError(f"`seen` must be a list of int64; got {self.seen.dtype} of shape {self.seen.shape}.")
        for name in ("settings", "split", "provenance"):
            if not isinstance(getattr(self, name), dict):
                raise InputError(f"`{name}` must be a dict; got {type(getattr(self, name)).__name__}.")
        if not isinstance(self.scorecard, Scorecard):
            raise InputError(f"`scorecard` must be a Scorecard; got {type(self.scorecard).__name__}.")
        if self.calibration is not None and len(self.calibration.mean) != self.source.dim:
            found = len(self.calibration.mean)
            raise InputError(f"`calibration` must have the source's {self.source.dim} dimensions; it has {found}.")
        check_choice("method", self.method, METHODS)
        check_choice("objective", self.objective, OBJECTIVES)
        check_choice("input_norm", self.input_norm, NORMALISATIONS)
        check_choice("output_norm", self.output_norm, NORMALISATIONS)

    def to(self, device) -> "Stitcher":
        """The same stitcher with its weights on `device`."""
        calibration = None if self.calibration is None else self.calibration.to(device)
        return replace(self, map=self.map.to(device), calibration=calibration)

    @property
    def device(self) -> torch.device:
        return self.map.weight.device

    @overload
    def translate(self, X: np.ndarray) -> np.ndarray: ...
    @overload
    def translate(self, X: torch.Tensor) -> torch.Tensor: ...
    def translate(self, X):
        """Rows (n, d_source) or one vector (d_source,) into the target space, same kind out: NumPy float32 or torch.

        Raises InputError on the wrong width, and on rows with NaN, Inf or (where a direction is needed) only zeros.
        """
        if isinstance(X, torch.Tensor):
            if not X.is_floating_point():
                raise InputError(f"`X` must hold floats; got {X.dtype}.")
            return self._pass(X.to(self.device)).translated.to(X.device)
        return self._pass(self._rows(X)).translated.cpu().numpy()

    def confidence(self, X: np.ndarray) -> dict[str, np.ndarray]:
        """How far to trust the translation of each row: float32 (n,) by name, see `Confidence.measure`.

        Raises InputError as `translate` does, and where the stitcher was never calibrated.
        """
        return self.translate_with_confidence(X)[1]

    def translate_with_confidence(self, X: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """What `translate` and `confidence` give of rows (n, d_source) or one vector, the map applied once."""
        if self.calibration is None:
            raise InputError(
                "This stitcher has no calibration, so it cannot tell confidence; train it again on more pairs."
            )
        translated, known, bare, _ = self._pass(self._rows(X))
        measured = self.calibration.measure(torch.atleast_2d(known), torch.atleast_2d(bare))
        shape = known.shape[:-1]
        return translated.cpu().numpy(), {k: v.reshape(shape).cpu().numpy() for k, v in measured.items()}

    def _rows(self, X) -> torch.Tensor:
        try:
            X = np.asarray(X)
        except ValueError:
            raise InputError("`X` must be one vector or rows of one length; its rows have different lengths.") from None
        if X.dtype.kind != "f":
            raise InputError(f"`X` must hold floats; got {X.dtype}.")
        width = np.float64 if X.dtype.itemsize > 4 else np.float32  # float32 cannot hold them all
        rows = torch.from_numpy(np.require(X, width, ("C", "W")))  # copied only when it must be
        return rows.to(self.device)

    @torch.no_grad()  # not inference mode, whose tensors a caller could not train a probe on
    def _pass(self, rows: torch.Tensor) -> PipelineOutput:
        if rows.ndim not in (1, 2) or rows.shape[-1] != self.source.dim:
            raise InputError(
                f"`X` must be (n, {self.source.dim}) or ({self.source.dim},), the dimensions of space "
                f"{self.source.name!r}; got {tuple(rows.shape)}."
            )
        return self.pipeline(rows)

    @cached_property
    def pipeline(self) -> Pipeline:
        """What translating computes, to be joined with that of another stitcher."""
        return Pipeline((self.input_norm, self.output_norm), (self.map,))

    @cached_property
    def version(self) -> str:
        """A hash of the content: twelve hex digits, the same for the same weights, settings and scores."""
        digest = hashlib.sha256(json.dumps(self._config(), sort_keys=True).encode())
        digest.update(json.dumps(self.scorecard.to_dict(), sort_keys=True).encode())
        for name, tensor in sorted(self._tensors().items()):
            digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()[:12]

    def _config(self) -> dict:
        config = {
            "format_version": FORMAT_VERSION,
            "form": form_of(self.map),
            "source": self.source.to_dict(),
            "target": self.target.to_dict(),
            "input_norm": self.input_norm,
            "output_norm": self.output_norm,
            "method": self.method,
            "objective": self.objective,
            "settings": self.settings,
            "split": self.split,
            "provenance": self.provenance,
        }
        if self.calibration is not None:
            config["confidence"] = {"pool": self.calibration.pool, "level": self.calibration.level}
        return config

    def _tensors(self) -> dict[str, torch.Tensor]:
        tensors = {f"map.{name}": tensor.cpu() for name, tensor in self.map.tensors().items()}
        if self.calibration is not None:
            tensors |= {f"confidence.{name}": tensor.cpu() for name, tensor in self.calibration.tensors().items()}
        tensors["source_mean"] = torch.from_numpy(self.source_mean)
        tensors["target_mean"] = torch.from_numpy(self.target_mean)
        tensors["seen"] = torch.from_numpy(self.seen)
        return tensors

    def save(self, out: str | os.PathLike) -> Path:
        """Write the stitcher's folder; it appears whole or not at all, and an existing one is never overwritten."""
        target = check_new_folder(out)
        config = self._config()
        with written_whole(target) as folder:
            folder.mkdir(parents=True)
            (folder / "config.json").write_text(_json(config), encoding="utf-8")
            (folder / "scorecard.json").write_text(_json(self.scorecard.to_dict()), encoding="utf-8")
            (folder / "README.md").write_text(model_card(config, self.scorecard), encoding="utf-8")
            tensors = {k: v.clone(memory_format=torch.contiguous_format) for k, v in self._tensors().items()}
            save_file(tensors, folder / "model.safetensors")
            check_new_folder(out)  # it may have appeared meanwhile
        return target

    def push_to_hub(self, repo_id: str, token: str | None = None) -> str:
        """Upload the stitcher's folder as a model of the Hugging Face Hub and return its address."""
        import tempfile

        from huggingface_hub import HfApi

        api = HfApi(token=token)
        with tempfile.TemporaryDirectory() as folder:
            self.save(Path(folder) / "stitcher")
            api.create_repo(repo_id, exist_ok=True)
            return str(api.upload_folder(repo_id=repo_id, folder_path=Path(folder) / "stitcher"))


def load(path: str | os.PathLike) -> Stitcher:
    """Read a stitcher's folder, or `hf://owner/name` from the Hugging Face Hub.

    Raises InputError when the folder is not a whole stitcher of a known format version.
    """
    check_stitcher_exists(path)
    folder = _from_hub(str(path)) if str(path).startswith("hf://") else Path(path)
    config = _read_json(folder / "config.json")
    version = config.get("format_version")
    if version != FORMAT_VERSION:
        raise InputError(
            f"{folder} has format_version {version!r}; this release reads {FORMAT_VERSION}. "
            "Upgrade repstitch, or retrain."
        )
    scores = _read_json(folder / "scorecard.json")
    try:
        card = Scorecard.from_dict(scores)
        # Copied, for what is mapped from the file would change, or end the process, when the file is written over.
        tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
        part = lambda of: {k.removeprefix(of): v for k, v in tensors.items() if k.startswith(of)}  # noqa: E731
        measures = part("confidence.")
        if bool(measures) != ("confidence" in config):
            raise InputError("its config and its tensors disagree on whether it has a confidence.")
        return Stitcher(
            map=map_from_tensors(config["form"], part("map.")),
            source=Space.from_dict(config["source"]),
            target=Space.from_dict(config["target"]),
            source_mean=tensors["source_mean"].numpy(),
            target_mean=tensors["target_mean"].numpy(),
            seen=tensors["seen"].numpy(),
            scorecard=card,
            calibration=confidence_from_tensors(config["confidence"], measures) if measures else None,
            **{
                key: config[key]
                for key in ("method", "objective", "input_norm", "output_norm", "settings", "split", "provenance")
            },
        )
    except KeyError as error:
        raise InputError(f"{folder} is not a whole stitcher: {error} is missing.") from None
    except (OSError, safetensors.SafetensorError, AttributeError, IndexError, TypeError, ValueError) as error:
        raise InputError(f"{folder} is not a whole stitcher: {one_line(error)}") from None


def _json(value: dict) -> str:
    return json.dumps(value, indent=2, sort_keys=True) + "\n"


def _read_json(path: Path) -> dict:
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, RecursionError, ValueError) as error:
        raise InputError(f"{path.parent} is not a whole stitcher: {path.name}: {one_line(error)}") from None
    if not isinstance(loaded, dict):
        raise InputError(f"{path.parent} is not a whole stitcher: {path.name} must be a JSON object.")
    return loaded


def _from_hub(address: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(address.removeprefix("hf://"), allow_patterns=list(FILES)))
    except Exception as error:
        raise InputError(f"{address} could not be fetched from the Hub: {one_line(error)}") from None
