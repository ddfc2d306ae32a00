"""A map with its two spaces, its normalisation and its scorecard: translate with it, save it, load it."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, overload

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
from repstitch.stitchers.confidence import Calibration, Confidence, calibration_from_tensors
from repstitch.stitchers.maps import Map, form_of, map_from_tensors
from repstitch.stitchers.model_card import model_card
from repstitch.stitchers.pipeline import Pipeline, PipelineOutput
from repstitch.text import num

FORMAT_VERSION = 1
FILES = ("config.json", "model.safetensors", "scorecard.json", "README.md")
LONGEST_NAME = 40  # of a space in a repr
BEYOND_EXACT = 2**53  # float64 holds every smaller integer
Rows = np.ndarray | Sequence[Sequence[float]] | Sequence[float]


@dataclass(frozen=True, eq=False, repr=False)
class Stitcher:
    """Translates rows of `source` into `target`: input normalisation, the map, output normalisation.

    `settings`, `split` and `provenance` say how it was made, `scorecard` how good it is. `source_mean` and
    `target_mean` are the means of the normalised training rows. `seen` holds int64 fingerprints of the id and of the
    vectors of every pair that training or selection used, so that scoring can leave those pairs out. `calibration`
    measures how far to trust one translation, where there were enough pairs to calibrate. Two stitchers are equal only
    where they are one object; `version` compares their content.
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
    seen: np.ndarray
    settings: dict[str, Any] = field(default_factory=dict)
    split: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    scorecard: Scorecard = field(default_factory=Scorecard)
    calibration: Calibration | None = None

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
            dim = len(self.calibration.mean)
            raise InputError(f"`calibration` must have the source's {self.source.dim} dimensions; it has {dim}.")
        check_choice("method", self.method, METHODS)
        check_choice("objective", self.objective, OBJECTIVES)
        check_choice("input_norm", self.input_norm, NORMALISATIONS)
        check_choice("output_norm", self.output_norm, NORMALISATIONS)

    def __repr__(self) -> str:
        source, target = (f"{_shortened(space.name)}[{space.dim}]" for space in (self.source, self.target))
        parts = [f"{source} -> {target}", f"method={self.method!r}"]
        if self.scorecard.query_recall is not None:
            parts.append(f"recall@1={num(self.scorecard.query_recall)}")
            if "verdict" in self.scorecard.query:
                parts.append(f"verdict query={str(self.scorecard.query.verdict)!r}")
        return f"Stitcher({', '.join(parts)})"

    def _repr_markdown_(self) -> str:
        return f"`{self!r}`\n\n{self.scorecard._repr_markdown_()}"

    def to(self, device: torch.device | str) -> "Stitcher":
        """The same stitcher with its weights on `device`."""
        calibration = None if self.calibration is None else self.calibration.to(device)
        return replace(self, map=self.map.to(device), calibration=calibration)

    @property
    def device(self) -> torch.device:
        return self.map.weight.device

    @overload
    def translate(self, X: torch.Tensor) -> torch.Tensor: ...
    @overload
    def translate(self, X: Rows) -> np.ndarray: ...
    def translate(self, X: Rows | torch.Tensor) -> np.ndarray | torch.Tensor:
        """Rows (n, d_source) or one vector (d_source,) in the target space.

        Tensors give tensors; NumPy arrays and lists give NumPy arrays; all float32. Integers are converted where
        floats hold them exactly. Float32 products are computed as PyTorch is set (`repstitch.precision`). Raises
        InputError on the wrong width, and on rows with NaN, Inf or (where a direction is needed) only zeros.
        """
        translated = self._run(X).translated
        return translated.to(X.device) if isinstance(X, torch.Tensor) else translated.cpu().numpy()

    def confidence(self, X: Rows | torch.Tensor) -> Confidence:
        """How far to trust the translation of each row.

        Raises InputError as `translate` does, and where the stitcher was never calibrated.
        """
        return self.translate_with_confidence(X)[1]

    def translate_with_confidence(self, X: Rows | torch.Tensor) -> tuple[np.ndarray, Confidence]:
        """What `translate` and `confidence` give for rows (n, d_source) or one vector; the map is applied once."""
        if self.calibration is None:
            raise InputError(
                "This stitcher has no calibration, so it cannot tell confidence; train it again on more pairs."
            )
        output = self._run(X)
        return output.translated.cpu().numpy(), self.calibration.confidence(output.inputs, output.raw)

    @torch.no_grad()  # not inference mode, whose tensors a caller could not train a probe on
    def _run(self, X: Rows | torch.Tensor) -> PipelineOutput:
        rows = _as_floats(X).to(self.device)
        if rows.ndim not in (1, 2) or rows.shape[-1] != self.source.dim:
            raise InputError(
                f"`X` must be (n, {self.source.dim}) or ({self.source.dim},), the dimensions of space "
                f"{self.source.name!r}; got {tuple(rows.shape)}."
            )
        return self.pipeline(rows)

    @cached_property
    def pipeline(self) -> Pipeline:
        """The computation of a translation, which can be joined with that of another stitcher."""
        return Pipeline((self.input_norm, self.output_norm), (self.map,))

    @cached_property
    def version(self) -> str:
        """A hash of the content: twelve hex digits, the same for the same weights, settings and scores."""
        digest = hashlib.sha256(json.dumps(self._config(), sort_keys=True).encode())
        digest.update(json.dumps(self.scorecard.to_dict(), sort_keys=True).encode())
        for name, tensor in sorted(self._tensors().items()):
            digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()[:12]

    def _config(self) -> dict[str, Any]:
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

    def save(self, out: str | os.PathLike[str]) -> Path:
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


def load(path: str | os.PathLike[str]) -> Stitcher:
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
        # Copied: memory mapped from the file would change, or end the process, when the file is written over.
        tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
        calibration = _under("confidence.", tensors)
        if bool(calibration) != ("confidence" in config):
            raise InputError("its config and its tensors disagree on whether it has a confidence.")
        return Stitcher(
            map=map_from_tensors(config["form"], _under("map.", tensors)),
            source=Space.from_dict(config["source"]),
            target=Space.from_dict(config["target"]),
            source_mean=tensors["source_mean"].numpy(),
            target_mean=tensors["target_mean"].numpy(),
            seen=tensors["seen"].numpy(),
            scorecard=card,
            calibration=calibration_from_tensors(config["confidence"], calibration) if calibration else None,
            **{
                key: config[key]
                for key in ("method", "objective", "input_norm", "output_norm", "settings", "split", "provenance")
            },
        )
    except KeyError as error:
        raise InputError(f"{folder} is not a whole stitcher: {error} is missing.") from None
    except (OSError, safetensors.SafetensorError, AttributeError, IndexError, TypeError, ValueError) as error:
        raise InputError(f"{folder} is not a whole stitcher: {one_line(error)}") from None


def _as_floats(X: Rows | torch.Tensor) -> torch.Tensor:
    """Rows as a tensor of floats that holds every number exactly; long doubles are rounded to float64."""
    rows = X if isinstance(X, torch.Tensor) else _as_tensor(X)
    if rows.is_floating_point():
        return rows
    if rows.is_complex() or rows.dtype == torch.bool:
        raise InputError(f"`X` must hold floats or integers; got {rows.dtype}.")
    floats = rows.double()
    if floats.numel() and float(floats.abs().max()) >= BEYOND_EXACT:
        raise InputError("`X` must hold integers below 2**53, which floats hold exactly.")
    return floats


def _as_tensor(X: Rows) -> torch.Tensor:
    try:
        array = np.asarray(X)
    except ValueError:
        raise InputError("`X` must be one vector or rows of one length; its rows have different lengths.") from None
    if array.dtype.kind not in "fiu":
        raise InputError(f"`X` must hold floats or integers; got {array.dtype}.")
    if array.dtype.kind == "f":
        dtype = np.float64 if array.dtype.itemsize > 4 else np.float32  # float32 cannot hold them all
    else:
        dtype = array.dtype.newbyteorder("=")
    return torch.from_numpy(np.require(array, dtype, ("C", "W")))  # copied only where it must be


def _shortened(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def _under(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors whose names begin with `prefix`, by the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _json(value: Mapping[str, Any]) -> str:
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
