"""Load an encoder, embed items in memory, and embed a data set into files."""

import hashlib
import inspect
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq

from repstitch.arguments import check_choice, check_keywords, check_positive
from repstitch.devices import open_device
from repstitch.embeddings.ids import IdColumn
from repstitch.embeddings.parts import Job
from repstitch.embeddings.writing import write_layers, write_stream
from repstitch.encoders import catalogue
from repstitch.encoders.catalogue import RESOLVE_PARAMETERS, Card, modality, resolve
from repstitch.encoders.items import Items, hash_items, load_ahead, load_and_hash, read_items
from repstitch.encoders.loading import LIBRARIES, digest, settings_digest
from repstitch.encoders.vectors import image_steps, pick_layers, static_steps, text_steps, vision_steps
from repstitch.errors import InputError, one_line
from repstitch.files import check_embeddings_file, check_layers_folder, written_whole
from repstitch.spaces import Space

if TYPE_CHECKING:
    from torch import Tensor, nn

log = logging.getLogger(__name__)

TEXT_PART = 16  # texts are sorted by length within this many batches, to reduce padding
COUNTED = 4096  # texts whose tokens are in memory at once while they are counted
TRUNCATED_KEY = "repstitch.truncated"  # in the metadata of a file: how many of its texts were truncated


@dataclass(frozen=True, eq=False)
class Encoder:
    """A loaded model with its preprocessing, and the `space` of its vectors.

    `card` is the encoder's card with all settings resolved. `layers` is the range of the numbers of its layers. `load`
    preprocesses one item and is thread-safe; `sample` is a preprocessed item. `run` returns the vectors (n, dim) of a
    batch of preprocessed items. `run_layers` returns one such tensor for each of several layers, from one forward pass.
    `count` returns the number of tokens of each preprocessed text; it is None for images. `settings_hash` is the hash
    of the files beside the weights, if the model was loaded from a local folder.
    """

    card: Card
    space: Space
    model: Any = field(repr=False)
    precision: str
    layers: range
    sample: Any = field(repr=False)
    load: Callable[[Any], Any] = field(repr=False)
    run: Callable[[list], "Tensor"] = field(repr=False)
    run_layers: Callable[[list, Sequence[int]], list["Tensor"]] = field(repr=False)
    count: Callable[[list[str]], list[int]] | None = field(repr=False, default=None)
    settings_hash: str | None = field(repr=False, default=None)

    def encode(self, items: Sequence, batch_size: int = 64) -> np.ndarray:
        """Return float32 vectors (n, dim) of texts, or of images (paths, bytes, PIL images, uint8 arrays (h, w, 3))."""
        return self.encode_loaded([self.load(item) for item in items], batch_size)

    def encode_loaded(self, items: Sequence, batch_size: int = 64) -> np.ndarray:
        """Return float32 vectors (n, dim) of preprocessed items. Raises InputError if the model returns NaN or Inf."""
        [rows] = _encode(self, lambda batch: [self.run(batch)], [self.space], items, batch_size)
        return rows

    def encode_layers(self, items: Sequence, spaces: Sequence[Space], batch_size: int = 64) -> list[np.ndarray]:
        """Return float32 vectors (n, dim) of preprocessed items, one array for each space from `layer_spaces`."""
        layers = tuple(space.layer for space in spaces if space.layer is not None)
        return _encode(self, lambda batch: self.run_layers(batch, layers), spaces, items, batch_size)

    def count_tokens(self, texts: Sequence[str]) -> np.ndarray:
        """Return the number of tokens of each text before truncation, with the prompt and all special tokens.

        A text with more tokens than `card.max_length` is truncated to that number. If that is None, none is truncated.
        """
        if self.count is None:
            raise InputError(f"`encoder` {self.card.name!r} must be a text encoder to count tokens.")
        parts = [texts[at : at + COUNTED] for at in range(0, len(texts), COUNTED)]
        counts = [self.count([self.load(text) for text in part]) for part in parts]
        return np.array([n for part in counts for n in part], dtype=np.int64)

    def layer_spaces(self, layers: str | Sequence[int] = "all") -> list[Space]:
        """Return the spaces of the chosen layers, in the order of the model. Negative layers count from the end.

        The space of layer 7 differs from the encoder's space in its `layer`, `dim` and name (NAME.layer07). Raises
        InputError if the model does not have a layer.
        """
        chosen = self.layers if layers == "all" else () if isinstance(layers, str) else layers
        picked = sorted(set(pick_layers(self.card, chosen, self.layers)))
        if not picked:
            raise InputError(f"`layers` must be 'all' or a list of layer numbers; got {layers!r}.")
        rows = self.run_layers([self.sample], picked)
        named = zip(picked, rows, strict=True)
        name = self.space.name
        return [replace(self.space, name=f"{name}.layer{n:02d}", layer=n, dim=row.shape[1]) for n, row in named]


def _encode(
    encoder: Encoder,
    run: Callable[[list], list["Tensor"]],
    spaces: Sequence[Space],
    items: Sequence,
    batch_size: int,
) -> list[np.ndarray]:
    """Return one array (n, dim) float32 per space. Raises InputError if the model returns NaN or Inf."""
    order = np.arange(len(items))
    if encoder.space.modality == "text":
        order = np.argsort([len(text) for text in items], kind="stable")
    rows = [np.empty((len(items), space.dim), dtype=np.float32) for space in spaces]

    def fetch(batch: np.ndarray, computed: list["Tensor"]) -> None:
        for space_rows, vectors in zip(rows, computed, strict=True):
            space_rows[batch] = vectors.cpu().numpy()

    pending: tuple[np.ndarray, list[Tensor]] | None = None
    for at in range(0, len(items), batch_size):
        batch = order[at : at + batch_size]
        computed = run([items[i] for i in batch])
        if pending is not None:
            fetch(*pending)  # the next batch is already queued, so the device computes it while this one is copied
        pending = batch, computed
    if pending is not None:
        fetch(*pending)
    for space_rows, space in zip(rows, spaces, strict=True):
        invalid = ~np.isfinite(space_rows).all(axis=1)
        if invalid.any():
            raise InputError(
                f"`encoder` {space.name!r} returned NaN or Inf for {int(invalid.sum())} of {len(items)} items (first: "
                f"{int(invalid.argmax())}) in {encoder.precision}; check the weights, or set `precision` to float32."
            )
    return rows


def embed(  # noqa: PLR0913 - the whole job in one call
    encoder: str | Encoder,
    data: str | os.PathLike[str] | Items,
    out: str | os.PathLike[str],
    *,
    batch_size: int = 64,
    device: str = "auto",
    precision: str = "auto",
    dtype: str = "float32",
    layers: str | Sequence[int] | None = None,
    limit: int | None = None,
    id_column: IdColumn | None = None,
    **settings: Any,
) -> int:
    """Embed every item of `data` and write the vectors, with their ids, to the Parquet file `out`.

    If the call is interrupted, the same call continues where it stopped. The file appears once all rows are written.

    Texts with more tokens than the encoder reads are truncated. Their number is logged, and stored in the metadata of
    the file under `repstitch.truncated`. Images are turned as their EXIF tag says, and transparent parts show white.

    With `layers`, the folder `out` gets one file per layer, such as NAME.layer07.parquet. Each batch needs only one
    forward pass. The vectors of block 7 are the same as with `layer=7`. For an image encoder, they are taken before any
    norm that follows the block. For a text encoder, they are the hidden states of transformers: layer 0 is the input of
    the first block, and the last layer is after the final norm, if the model has one.

    Args:
        encoder: A name in the catalogue, a card, a Hub id, a folder or a file of weights (see `encoders.catalogue`), or
            a loaded `Encoder`. `device`, `precision` and `settings` are ignored for a loaded one.
        data: A folder or .zip of images (ids: paths inside it), a .txt with one text per line (ids: line numbers from
            0), or `table.parquet:column` (also .csv, .tsv) with texts, image bytes or image paths (ids: see
            `id_column`; without such a column, row numbers), or the `Items` that `read_items` has listed.
        out: The file to write, or the folder if `layers` is set. It must not exist.
        batch_size: Number of items per forward pass.
        device: `auto` (CUDA if available, else Apple's MPS, else the CPU), or a PyTorch device such as `cuda:1`.
        precision: `auto` (bfloat16 on a CUDA GPU, else float32), `float32`, `bfloat16` or `float16`. Weights stay
            float32; the arithmetic runs under autocast.
        dtype: Type in which vectors are stored: `float32` or `float16`.
        layers: `all`, or the numbers of layers; negative numbers count from the end.
        limit: Maximum number of items to embed, evenly spaced over the data. Default: None, embed all items.
        id_column: The column of the table that contains the ids. By default, it is chosen as by `repstitch.read`: the
            column `id`, else one with another usual name.
        **settings: Settings that replace those of the card: `name`, `pooling`, `layer`, `role`, `prompt`, `normalise`,
            `skip_first`, `max_length`, `modality`, `input_size`, `model_args`, `checkpoint` and `architecture` (see
            `catalogue.resolve`).

    Returns:
        The number of rows that each file contains.

    Raises:
        InputError: If an argument is invalid, `out` exists, the encoder cannot be loaded, an item cannot be read, or
            the model fails or returns NaN or Inf. Finished batches are kept.
    """
    check_keywords("embed", settings, EMBED_PARAMETERS)
    check_embeddings_file(out) if layers is None else check_layers_folder(out)
    check_choice("dtype", dtype, DTYPES)
    check_choice("precision", precision, PRECISIONS)
    check_positive(batch_size, "`batch_size`")
    if layers is not None:
        if settings.get("layer") is not None:
            raise InputError("`layer` and `layers` cannot be combined; omit one of them.")
        settings["layer"] = -1  # so that the defaults for a single layer, such as its pooling, apply to each
    if isinstance(encoder, Encoder):
        model, items = encoder, _items(data, encoder.space.modality, limit, id_column)
    else:
        card = resolve(encoder, **settings)
        # Items are read before the model is loaded, so that errors appear at once.
        items = _items(data, modality(card), limit, id_column)
        model = load_encoder(card, device=device, precision=precision)
    spaces = None if layers is None else model.layer_spaces(layers)
    part = batch_size * (TEXT_PART if model.space.modality == "text" else 1)

    def produce(start: int) -> Iterator[tuple]:
        from tqdm import tqdm

        with tqdm(total=len(items.ids), initial=start, delay=1, unit="row", desc=model.space.name) as progress:
            for batch in load_ahead(items.values[start:], partial(load_and_hash, model.load), part):
                hashes, loaded = zip(*batch, strict=True)
                ids = items.ids[start : start + len(loaded)]
                vectors = _vectors(model, loaded, spaces, batch_size, start)
                yield hash_items(ids, hashes), np.array(ids, dtype=object), vectors
                start += len(loaded)
                progress.update(len(loaded))

    made_by = {"space": model.space.to_dict(), "card": asdict(replace(model.card, checkpoint=None))}
    made_by |= {"weights": model.card.revision or _fingerprint(model.model), "precision": model.precision}
    made_by |= {} if model.settings_hash is None else {"settings": model.settings_hash}
    made_by |= {"dtype": dtype} | ({} if spaces is None else {"layers": [space.layer for space in spaces]})
    job = Job(made_by, len(items.ids), produce, items.hashes)
    metadata = _truncated(model, items)
    if spaces is None:
        return write_stream(out, model.space, job, dtype=dtype, metadata=metadata)
    return write_layers(out, spaces, job, dtype=dtype, metadata=metadata)


def _items(data: str | os.PathLike[str] | Items, *options: Any) -> Items:
    return data if isinstance(data, Items) else read_items(data, *options)


def _vectors(model: Encoder, loaded: Sequence, spaces: Sequence[Space] | None, batch_size: int, first: int) -> Any:
    """Return the vectors of preprocessed items, of which the first is item `first`, or those of several spaces."""
    try:
        if spaces is None:
            return model.encode_loaded(loaded, batch_size)
        return model.encode_layers(loaded, spaces, batch_size)
    except InputError:
        raise
    except Exception as error:  # models raise nearly every exception, for example if memory is short
        raise InputError(
            f"`encoder` {model.space.name!r} failed on items {first} to {first + len(loaded) - 1}: {one_line(error)} "
            "If memory is short, set a smaller `batch_size`; the vectors of the items before them are kept."
        ) from error


def _truncated(model: Encoder, items: Items) -> dict[str, str]:
    """Count the texts that the encoder will truncate, and warn of them. Return the count as metadata of the file."""
    if model.count is None:
        return {}
    limit = model.card.max_length
    counts = model.count_tokens(items.values)
    n_cut = 0 if limit is None else int((counts > limit).sum())
    if n_cut:
        log.warning(
            "%s: %d of %d texts are truncated to %d tokens (the longest has %d); what follows has no effect on their "
            "vectors. Split these texts, or set `max_length` if the model has room for more.",
            items.data,
            n_cut,
            len(items.values),
            limit,
            counts.max(),
        )
    return {TRUNCATED_KEY: str(n_cut)}


def n_truncated(out: str | os.PathLike[str]) -> int | None:
    """Return how many texts were truncated for the file or folder that `embed` wrote; None for images."""
    file = next(Path(out).glob("*.parquet")) if Path(out).is_dir() else out
    stated = pq.read_schema(file).metadata.get(TRUNCATED_KEY.encode())
    return None if stated is None else int(stated)


def load_encoder(encoder: str | Card, *, device: str = "auto", precision: str = "auto", **settings: Any) -> Encoder:
    """Load an encoder by its name (see `encoders.catalogue`) or from its card.

    `device` is `auto` (CUDA if available, else Apple's MPS, else the CPU), or a PyTorch device such as `cuda:1`.
    `precision` is `auto` (bfloat16 on a CUDA GPU, else float32), `float32`, `bfloat16` or `float16`. Weights stay
    float32; the arithmetic runs under autocast. `settings` replace those of a card that is passed by name, as in
    `catalogue.resolve`. Raises InputError if the encoder cannot be loaded.
    """
    card = encoder if isinstance(encoder, Card) else resolve(encoder, **settings)
    library = card.encoder.partition(":")[0]
    if library not in LIBRARIES:
        raise InputError(f"'encoder' of card {card.name!r} must begin with one of {', '.join(LIBRARIES)} and a colon.")
    try:
        settings_hash = settings_digest(catalogue.weights(card)) if card.checkpoint else None
        model, card, tokenizer = LIBRARIES[library](card)
        opened = from_module(model, card, tokenizer, device=device, precision=precision)
        return replace(opened, settings_hash=settings_hash)
    except InputError:
        raise
    except ImportError as error:
        raise InputError(
            f"`encoder` {card.encoder} requires {error.name}; install it with `pip install 'repstitch[encoders]'`."
        ) from error
    except Exception as error:  # the libraries raise nearly every exception, including their own
        raise InputError(
            f"`encoder` {card.encoder} cannot be loaded: {one_line(error)} Check the name and the settings. If the Hub "
            "cannot be reached, pass a local folder or checkpoint."
        ) from error


def from_module(
    model: "nn.Module", card: Card, tokenizer: Any = None, *, device: str = "auto", precision: str = "auto"
) -> Encoder:
    """Create an encoder from a loaded model: of timm or torchvision, or of transformers together with its `tokenizer`.

    `device` and `precision` are as in `load_encoder`. Settings that the card does not state are taken from the model.
    The model is put in eval mode and moved to the device. One item is embedded to determine `dim`. Raises InputError if
    the card states another `dim`.
    """
    import torch

    check_choice("precision", precision, PRECISIONS)
    opened = open_device(device)
    precision = ("bfloat16" if opened.type == "cuda" else "float32") if precision == "auto" else precision
    model = model.eval().to(opened)
    if tokenizer is None:
        make_steps = image_steps
    elif isinstance(model, torch.nn.EmbeddingBag):
        make_steps = static_steps
    else:
        make_steps = vision_steps if modality(card) == "image" else text_steps
    card, layers, sample, load, forward, count = make_steps(model, card, tokenizer, opened)

    @torch.inference_mode()
    def run_layers(batch: list, chosen: Sequence[int | None]) -> list["Tensor"]:
        with torch.autocast(opened.type, getattr(torch, precision), enabled=precision != "float32"):
            rows = [vectors.float() for vectors in forward(batch, tuple(chosen))]
        return [torch.nn.functional.normalize(vectors, dim=-1) if card.normalised else vectors for vectors in rows]

    def run(batch: list) -> "Tensor":
        return run_layers(batch, (card.layer,))[0]

    sample = load(sample)
    shape = tuple(run([sample]).shape[1:])
    if len(shape) != 1 or card.dim not in (None, shape[0]):
        raise InputError(f"`encoder` {card.name!r} must return vectors of `dim` {card.dim or 'n'}; got shape {shape}.")
    card = replace(card, dim=shape[0])
    return Encoder(card, _space(card, model), model, precision, layers, sample, load, run, run_layers, count)


def save(encoder: Encoder, folder: str | os.PathLike) -> Path:
    """Save an image encoder as `NAME.safetensors` and its card as `NAME.toml`, and return the path of the card."""
    from safetensors.torch import save as to_safetensors

    card, folder = encoder.card, Path(folder)
    if encoder.space.modality != "image":
        raise InputError(f"`encoder` {card.name!r} must be an image encoder; save a text encoder with transformers.")
    weights = folder / f"{card.name}.safetensors"
    if weights.exists() or not folder.is_dir():
        raise InputError(
            f"`folder` must exist and not contain {weights.name}, which is never overwritten; got {folder}."
        )
    state = {name: value.detach().cpu().contiguous() for name, value in encoder.model.state_dict().items()}
    with written_whole(weights, "folder") as path:
        path.write_bytes(to_safetensors(state))  # `save_file` ignores the umask
    catalogue.write(folder / f"{card.name}.toml", [replace(card, checkpoint=weights.name, revision=digest(weights))])
    return folder / f"{card.name}.toml"


def _space(card: Card, model: "nn.Module") -> Space:
    return Space(
        name=card.name,
        dim=card.dim or 0,
        encoder=card.encoder,
        revision=card.revision,
        pooling="".join([card.pooling or "", *(words for field, words in LEFT_OUT.items() if getattr(card, field))]),
        layer=card.layer,
        normalised=bool(card.normalised),
        modality=modality(card),
        role=card.role,
        prompt=card.prompt,
        family=card.family,
        architecture=card.architecture or card.encoder.partition(":")[2],
        objective=card.objective,
        training_data=card.training_data,
        parameters=card.parameters or sum(p.numel() for p in model.parameters()),
    )


def _fingerprint(model: "nn.Module") -> str:
    """Return a hash of the weights, for a model that was not loaded from a file."""
    total = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        total.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()


LEFT_OUT = {"skip_first": ", first token left out", "skip_prompt": ", prompt left out"}
DTYPES = ("float32", "float16")
PRECISIONS = ("auto", "float32", "bfloat16", "float16")


EMBED_PARAMETERS = {*inspect.signature(embed).parameters, *RESOLVE_PARAMETERS} - {"settings"}
