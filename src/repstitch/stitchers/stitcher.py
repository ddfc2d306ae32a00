"""The stitcher: a map with its two spaces, its normalisations and its scorecard. Translate rows, save and load."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors

from repstitch.arguments import check_choice
from repstitch.embeddings.fingerprints import KEY_BYTES
from repstitch.errors import InputError, one_line
from repstitch.evaluation.scorecard import Scorecard
from repstitch.files import check_new_folder, check_regular, check_stitcher_exists, read_json, written_whole
from repstitch.names import METHODS, NORMALISATIONS, OBJECTIVES
from repstitch.spaces import Space
from repstitch.stitchers.confidence import Calibration, Confidence, calibration_from_tensors
from repstitch.stitchers.held_out_rows import HeldOutRows
from repstitch.stitchers.maps import Map, form_of, map_from_tensors
from repstitch.stitchers.model_card import model_card
from repstitch.stitchers.pipeline import Pipeline, PipelineOutput, Rows, as_floats
from repstitch.text import is_deeper, num

FORMAT_VERSION = 1
FILES = ("config.json", "model.safetensors", "scorecard.json", "README.md")
MAX_DEPTH = 64  # of JSON; what is nested much deeper can be read but not copied or written again
MAX_WEIGHTS_BYTES = 2**32  # a sparse file takes no space on the disk, but all of its size in memory
LONGEST_NAME = 40  # maximum number of characters of a space's name in a repr


@dataclass(frozen=True, eq=False, repr=False)
class Stitcher:
    """A learned translation from one embedding space to another. `train` and `load` return stitchers.

    A translation normalises the input rows, applies the map, and normalises the output. Two stitchers are equal only if
    they are the same object; compare their `version` to compare their content.

    Args:
        map: The learned map from d_source to d_target dimensions.
        source: The card of the source space.
        target: The card of the target space.
        method: The method that the map was learned by, such as `ridge`.
        objective: The objective that the map was selected for, such as `match`.
        input_norm: The normalisation of input rows, `unit` or `none`.
        output_norm: The normalisation of translated rows, `unit` or `none`.
        source_mean: The mean (d_source,) of the normalised source rows of training.
        target_mean: The mean (d_target,) of the normalised target rows of training.
        seen: int64 fingerprints (m,) of the id and of the vectors of every pair that training or selection used, so
            that scoring can leave these pairs out.
        settings: The settings of the method.
        split: The shares, the seed and the group of the split.
        provenance: The versions of the software, how rows were paired, and the number of pairs.
        scorecard: The scores on held-out pairs. Default: an empty scorecard.
        calibration: The calibration of the confidence. Default: None, which means that confidence is not available.
        created: When the stitcher was created, in the ISO 8601 format, such as `2026-05-17T09:30:00+00:00`. It decides
            which of several stitchers serves a pair, and is no part of the version. Default: None, for not recorded.
        seen_rows: uint8 keys (m, 16) of the vectors of the pairs of `seen`, which are recognised by them after scaling
            and rounding. Default: None, as in stitchers of earlier releases.
        held_out: Native rows of held-out pairs, which `save` writes beside the folder. Default: None.

    Raises:
        InputError: If the arguments do not fit together.
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
    created: str | None = None
    seen_rows: np.ndarray | None = None
    held_out: HeldOutRows | None = None

    def __post_init__(self):
        if (self.map.d_source, self.map.d_target) != (self.source.dim, self.target.dim):
            raise InputError(
                f"`map` must have {self.source.dim} input and {self.target.dim} output dimensions, like its spaces; "
                f"got {self.map.d_source} and {self.map.d_target}."
            )
        if self.source_mean.shape != (self.source.dim,) or self.target_mean.shape != (self.target.dim,):
            raise InputError("`source_mean` and `target_mean` must have the dimensions of their spaces.")
        if not (np.isfinite(self.source_mean).all() and np.isfinite(self.target_mean).all()):
            raise InputError("`source_mean` and `target_mean` must be finite.")
        if self.seen.ndim != 1 or self.seen.dtype != np.int64:
            raise InputError(f"`seen` must be an int64 array (m,); got {self.seen.dtype} of shape {self.seen.shape}.")
        keys = self.seen_rows
        if keys is not None and (keys.dtype != np.uint8 or keys.ndim != 2 or keys.shape[1] != KEY_BYTES):
            raise InputError(f"`seen_rows` must be a uint8 array (m, 16); got {keys.dtype} of shape {keys.shape}.")
        for name in ("settings", "split", "provenance"):
            if not isinstance(getattr(self, name), dict):
                raise InputError(f"`{name}` must be a dict; got {type(getattr(self, name)).__name__}.")
        if not isinstance(self.scorecard, Scorecard):
            raise InputError(f"`scorecard` must be a Scorecard; got {type(self.scorecard).__name__}.")
        if self.calibration is not None and len(self.calibration.mean) != self.source.dim:
            dim = len(self.calibration.mean)
            raise InputError(f"`calibration` must have the source's {self.source.dim} dimensions; got {dim}.")
        try:
            _ = self.created_at
        except (TypeError, ValueError):
            raise InputError(f"`created` must be a date and a time in ISO 8601; got {self.created!r}.") from None
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
        """Return a copy of the stitcher with its weights on another device.

        Args:
            device: A PyTorch device, such as `cpu` or `cuda`.

        Returns:
            The copy.
        """
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
        """Translate rows into the target space.

        The precision of float32 products follows PyTorch's setting (`torch.set_float32_matmul_precision`).

        Args:
            X: Rows (n, d_source) or one vector (d_source,) of the source space, as an array, a list or a tensor of
                floats or integers. Integers must be smaller than 2**53 in absolute value.

        Returns:
            The translated rows (n, d_target) or vector (d_target,), in float32: a tensor on the same device if `X` is a
            tensor, otherwise a NumPy array.

        Raises:
            InputError: If `X` has the wrong shape or type, or rows with NaN, Inf or (if rows are scaled to unit length)
                only zeros.
        """
        translated = self._run(X).translated
        return translated.to(X.device) if isinstance(X, torch.Tensor) else translated.cpu().numpy()

    def confidence(self, X: Rows | torch.Tensor) -> Confidence:
        """Estimate for each row how far its translation can be trusted.

        Args:
            X: Rows (n, d_source) or one vector (d_source,), as in `translate`.

        Returns:
            The confidence: arrays (n,) such as `p_match`, the probability that the true counterpart is among the ten
            nearest target rows in a pool of the stated size.

        Raises:
            InputError: If the stitcher has no calibration, or if `X` cannot be translated.
        """
        return self.translate_with_confidence(X)[1]

    def translate_with_confidence(self, X: Rows | torch.Tensor) -> tuple[np.ndarray, Confidence]:
        """Return the results of `translate` and `confidence` together. The map is applied only once.

        Args:
            X: Rows (n, d_source) or one vector (d_source,), as in `translate`.

        Returns:
            The translated rows, always a NumPy array, and their confidence.

        Raises:
            InputError: If the stitcher has no calibration, or if `X` cannot be translated.
        """
        if self.calibration is None:
            raise InputError(
                "This stitcher has no calibration, so it cannot compute confidence; train it again on more pairs."
            )
        output = self._run(X)
        return output.translated.cpu().numpy(), self.calibration.confidence(output.inputs, output.raw)

    @torch.no_grad()  # not inference mode, whose tensors autograd rejects, for example when a probe is trained on them
    def _run(self, X: Rows | torch.Tensor) -> PipelineOutput:
        rows = as_floats(X).to(self.device)
        if rows.ndim not in (1, 2) or rows.shape[-1] != self.source.dim:
            raise InputError(
                f"`X` must be (n, {self.source.dim}) or ({self.source.dim},), the dimensions of space "
                f"{self.source.name!r}; got {tuple(rows.shape)}."
            )
        return self.pipeline(rows)

    @cached_property
    def created_at(self) -> datetime:
        """When the stitcher was created; the earliest time that there is if this was not recorded."""
        if self.created is None:
            return datetime.min.replace(tzinfo=UTC)
        moment = datetime.fromisoformat(self.created)
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)

    @cached_property
    def pipeline(self) -> Pipeline:
        """The computation of a translation. It can be joined with the pipeline of another stitcher."""
        return Pipeline((self.input_norm, self.output_norm), (self.map,))

    @cached_property
    def version(self) -> str:
        """A hash of the content, twelve hex digits. It is the same for the same weights, settings and scores."""
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
        if self.seen_rows is not None:
            tensors["seen_rows"] = torch.from_numpy(self.seen_rows)
        return tensors

    def save(self, out: str | os.PathLike[str]) -> Path:
        """Save the stitcher to a new folder, which appears only when it is complete.

        Held-out rows are written to `NAME.held-out.parquet` beside it (see `repstitch migrate verify`).

        Args:
            out: The folder to create, with its parents. It must not exist yet.

        Returns:
            The path of the folder.

        Raises:
            InputError: If the folder exists or cannot be written.
        """
        target = check_new_folder(out)
        config = self._config() | ({} if self.created is None else {"created": self.created})
        with written_whole(target, parents=True) as folder:
            folder.mkdir()
            (folder / "config.json").write_text(_json(config), encoding="utf-8")
            (folder / "scorecard.json").write_text(_json(self.scorecard.to_dict()), encoding="utf-8")
            (folder / "README.md").write_text(model_card(config, self.scorecard), encoding="utf-8")
            tensors = {k: v.clone(memory_format=torch.contiguous_format) for k, v in self._tensors().items()}
            # Not `save_file`, which makes a file that only its owner can read, whatever the umask.
            (folder / "model.safetensors").write_bytes(to_safetensors(tensors))
            check_new_folder(out)  # another process may have created it in the meantime
        if self.held_out is not None:
            self.held_out.write(target, self.version)
        return target

    def push_to_hub(self, repo_id: str, token: str | None = None) -> str:
        """Upload the stitcher's folder to the Hugging Face Hub as a model.

        Args:
            repo_id: The repository, `owner/name`. It is created if it does not exist.
            token: A token of the Hub with write access. Default: the token of the local login.

        Returns:
            The URL of the upload.

        Raises:
            HfHubHTTPError: If the Hub refuses the upload. The class is in `huggingface_hub.errors`.
        """
        import tempfile

        from huggingface_hub import HfApi

        api = HfApi(token=token)
        with tempfile.TemporaryDirectory() as folder:
            self.save(Path(folder) / "stitcher")
            api.create_repo(repo_id, exist_ok=True)
            return str(api.upload_folder(repo_id=repo_id, folder_path=Path(folder) / "stitcher"))


def load(path: str | os.PathLike[str]) -> Stitcher:
    """Load a stitcher from its folder or from the Hugging Face Hub.

    Args:
        path: The folder of a saved stitcher, or `hf://owner/name` for a model on the Hub.

    Returns:
        The stitcher, on the CPU.

    Raises:
        InputError: If the folder does not exist, is incomplete or damaged, or has a format version that this release
            cannot read, or if the download fails.
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
        check_regular(folder / "model.safetensors", MAX_WEIGHTS_BYTES)
        card = Scorecard.from_dict(scores)
        # The tensors are copied: memory-mapped ones would change, or crash the process, if the file is overwritten.
        tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
        calibration = _under("confidence.", tensors)
        if bool(calibration) != ("confidence" in config):
            raise InputError(
                "config.json and model.safetensors disagree on whether the stitcher has a confidence calibration."
            )
        return Stitcher(
            map=map_from_tensors(config["form"], _under("map.", tensors)),
            source=Space.from_dict(config["source"]),
            target=Space.from_dict(config["target"]),
            source_mean=tensors["source_mean"].numpy(),
            target_mean=tensors["target_mean"].numpy(),
            seen=tensors["seen"].numpy(),
            scorecard=card,
            calibration=calibration_from_tensors(config["confidence"], calibration) if calibration else None,
            seen_rows=tensors["seen_rows"].numpy() if "seen_rows" in tensors else None,
            created=config.get("created"),
            **{
                key: config[key]
                for key in ("method", "objective", "input_norm", "output_norm", "settings", "split", "provenance")
            },
        )
    except KeyError as error:
        raise InputError(f"{folder} is not a complete stitcher: {error} is missing.") from None
    except Exception as error:  # no list of types is complete: the files can contain anything
        raise InputError(f"{folder} is not a complete stitcher: {one_line(error)}") from None


def _shortened(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def _under(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors whose names begin with `prefix`, by the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2, sort_keys=True) + "\n"


def _read_json(path: Path) -> dict:
    try:
        loaded = read_json(path)
    except Exception as error:
        raise InputError(f"{path.parent} is not a complete stitcher: {path.name}: {one_line(error)}") from None
    if not isinstance(loaded, dict):
        raise InputError(f"{path.parent} is not a complete stitcher: {path.name} must be a JSON object.")
    if is_deeper(loaded, MAX_DEPTH):
        raise InputError(f"{path.parent} is not a complete stitcher: {path.name} must be nested less deeply.")
    return loaded


def _from_hub(address: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(address.removeprefix("hf://"), allow_patterns=list(FILES)))
    except Exception as error:
        raise InputError(f"{address} could not be downloaded from the Hub: {one_line(error)}") from None
