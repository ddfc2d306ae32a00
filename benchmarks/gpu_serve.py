"""Sections of gpu.py: the HTTP service, and embedding with randomly initialised models."""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_run import Run, Table, affine_map, brief, rate, seconds, stitcher, unit_rows
from load import Connection, Load, Request, in_turn
from servers import Server, running

from repstitch.encoders import from_module
from repstitch.encoders.catalogue import Card
from repstitch.encoders.encoder import Encoder
from repstitch.stitchers.stitcher import Stitcher

ROWS = (1, 64, 1_000, 10_000)
CONNECTIONS = (1, 16, 64)
OCTETS = "application/octet-stream"
BENTOML_S = 35  # to start it, measure it and stop it


# --- served -----------------------------------------------------------------------------------------------------------


def served(run: Run) -> None:
    d, e = run.size("d_source"), run.size("d_target")
    one = stitcher(affine_map(d, e))
    columns = (
        "device",
        "rows a request",
        "connections",
        "requests/s",
        "vectors/s",
        "p50",
        "worst 1 − cosine to the CPU",
    )
    note = (
        f"Raw float32 over HTTP, {d} → {e}, `repstitch serve`. One Python process asks, on the cores of the server, so "
        "at many small requests the client is a part of the time."
    )
    table = run.table("The service, by the device that it computes on", *columns, note=note)
    spent = 0.8 if run.gpu and run.budget >= 240 else 0.2
    with tempfile.TemporaryDirectory(prefix="repstitch-gpu-") as temporary:
        folder = Path(temporary)
        one.save(folder / "stitchers" / "old-new")
        with _server(folder, run.device) as server:
            _asked_all(table, run.device, server, one, spent)
        if run.left() < BENTOML_S or run.budget < 120:
            table.note(f"BentoML was left out, for it may take {BENTOML_S} s.")
        else:
            with _server(folder, run.device, "bentoml") as server:
                for n in (1, 1_000):
                    _asked(table, f"{run.device}, BentoML", server, one, n, 1, spent)
        if run.gpu:
            with _server(folder, "cpu") as server:
                _asked_all(table, "cpu", server, one, spent)


def _asked_all(table: Table, device: str, server: Server, one: Stitcher, spent: float) -> None:
    for n in ROWS:
        _asked(table, device, server, one, n, 1, spent)
    for connections in CONNECTIONS[1:]:
        _asked(table, device, server, one, 1, connections, spent)


@contextmanager
def _server(folder: Path, device: str, engine: str = "uvicorn") -> Iterator[Server]:
    command = [sys.executable, "-m", "repstitch", "serve", "--stitchers", str(folder / "stitchers")]
    command += ["--port", "{port}", "--engine", engine]
    cores = os.sched_getaffinity(0)
    threads = str(len(cores))
    env = {"REPSTITCH_DEVICE": device, "BENTOML_HOME": str(folder / "bentoml"), "BENTOML_DO_NOT_TRACK": "True"}
    env |= {f"{name}_NUM_THREADS": threads for name in ("OMP", "MKL", "OPENBLAS")}
    try:
        with running(command, env, cores, folder / f"{engine}-{device}.log", "/readyz") as server:
            yield server
    except SystemExit as error:
        raise RuntimeError(str(error).strip().replace("\n", " ")[-600:]) from None


def _asked(table: Table, device: str, server: Server, one: Stitcher, n: int, connections: int, spent: float) -> None:
    rows = unit_rows(n, one.source.dim, seed=n)
    request = Request("/v1/translate?source=old&target=new", {"Content-Type": OCTETS, "Accept": OCTETS}, rows.tobytes())
    raw = request.raw()
    with Connection(server.port) as connection:
        _, body = connection.ask(raw)
        translated = np.frombuffer(bytes(body), "<f4").reshape(n, one.target.dim).astype(np.float64)
    worst = 1 - float((translated * one.translate(rows)).sum(1).min())
    in_turn(server.port, raw, connections, spent / 4)
    load: Load = in_turn(server.port, raw, connections, spent)
    table.row(device, f"{n:,}", connections, rate(load.rate), rate(n * load.rate), f"{load.p50:.2f} ms", f"{worst:.1e}")


# --- embed ------------------------------------------------------------------------------------------------------------


def embed(run: Run) -> None:
    columns = (
        "model",
        "precision",
        "items",
        "batch",
        "items/s",
        "tokens/s",
        "forward alone, items/s",
        "ratio",
        "device memory",
    )
    note = (
        "Random weights. “items/s” is the loop of `repstitch.encoders` on prepared items (`Encoder.encode_loaded`: "
        "batches, copies to the device and back, pooling; for texts the tokenizer too); beside it the model alone on "
        "tensors that lie on the device already."
    )
    table = run.table("Encoders", *columns, note=note)
    for make in (_image_encoder, _text_encoder):
        for precision in ("bfloat16", "float32"):
            make(run, table, precision)
            if run.gpu:
                torch.cuda.empty_cache()


def _measured(
    run: Run, table: Table, encoder: Encoder, items: list, ready: Callable[[], object], n_ready: int, tokens: int
) -> None:
    """Time the encoding loop on all items, and the forward pass alone on one batch that is already on the device."""
    batch = run.size("batch")
    repeats = run.repeats if run.gpu else 1

    def alone() -> None:
        with (
            torch.inference_mode(),
            torch.autocast(run.device, getattr(torch, encoder.precision), enabled=encoder.precision != "float32"),
        ):
            ready()

    bare = seconds(alone, repeats) / n_ready
    loop = seconds(lambda: encoder.encode_loaded(items, batch), min(3, repeats)) / len(items)
    memory = run.peak(lambda: encoder.encode_loaded(items[:batch], batch))
    tokens_s = "-" if not tokens else rate(tokens / len(items) / loop)
    table.row(encoder.card.name, encoder.precision, f"{len(items):,}", batch, rate(1 / loop), tokens_s, rate(1 / bare),
              f"{bare / loop:.2f}x", memory)  # fmt: skip


def _image_encoder(run: Run, table: Table, precision: str) -> None:
    import timm

    if run.gpu:
        name, size = "vit_base_patch16_224", 224
        model: Any = timm.create_model(name, num_classes=0)
    else:
        name, size = "test_vit", 32
        model = timm.create_model(name, num_classes=0, img_size=32)
    card = Card(name, f"timm:{name}", input_size=(3, size, size), crop_pct=1.0, interpolation="bilinear")
    encoder = from_module(model, card, device=run.device, precision=precision)
    n, batch = run.size("images"), run.size("batch")
    items = list(torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(0)))
    ready = torch.stack(items[:batch]).to(run.device)
    _measured(run, table, encoder, items, lambda: model(ready), len(ready), 0)
    if precision == "bfloat16":
        _prepared(table, encoder, size, n)


def _prepared(table: Table, encoder: Encoder, size: int, n: int) -> None:
    """Time how fast one thread prepares images, because the GPU may have to wait for them."""
    picture = np.random.default_rng(0).integers(0, 256, (size + 32, size + 64, 3), dtype=np.uint8)
    taken = seconds(lambda: [encoder.load(picture) for _ in range(min(32, n))], 3, 1) / min(32, n)
    cores = len(os.sched_getaffinity(0))
    table.note(
        f"One thread prepares a picture of {size + 64} × {size + 32} pixels in {brief(taken)}; `embed` uses up to "
        f"eight of the {cores} cores, at best {rate(min(8, cores) / taken)} pictures/s."
    )


def _text_encoder(run: Run, table: Table, precision: str) -> None:
    from transformers import BertConfig, BertModel

    tokenizer, words = _tokenizer()
    size: dict[str, Any] = {"vocab_size": 30_522}
    if not run.gpu:
        size = {"vocab_size": 200, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
        size |= {"intermediate_size": 32}
    model: Any = BertModel(BertConfig(**size))
    name = "bert-base" if run.gpu else "small BERT"
    card = Card(name, "transformers:bert", pooling="mean", max_length=128, normalised=True)
    encoder = from_module(model, card, tokenizer, device=run.device, precision=precision)
    random = np.random.default_rng(0)
    lengths = random.integers(8, 120, run.size("texts"))
    texts = [" ".join(random.choice(words, length)) for length in lengths]
    tokens = int(sum(len(ids) for ids in tokenizer(texts, truncation=True, max_length=128)["input_ids"]))
    # A batch of medium length represents all: the loop sorts texts by length, so that there is little padding.
    middle = sorted(texts, key=len)[len(texts) // 2 :][: run.size("batch")]
    ready = tokenizer(middle, padding=True, truncation=True, max_length=128, return_tensors="pt").to(run.device)
    inputs = {name: ready[name] for name in ("input_ids", "attention_mask")}
    _measured(run, table, encoder, texts, lambda: model(**inputs), len(middle), tokens)
    if precision == "bfloat16":
        taken = seconds(lambda: tokenizer(texts, padding=True, truncation=True, max_length=128), 2, 2)
        table.note(f"The tokenizer alone: {rate(tokens / taken)} tokens/s.")


def _tokenizer() -> tuple[Any, list[str]]:
    """Return a WordPiece tokenizer, and the three-letter words that make up its vocabulary with single letters."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    words = [a + b + c for a in "bdkt" for b in "aeio" for c in "lmnr"]
    pieces = [*words, *(f"##{letter}" for letter in "abdeiklmnort")]
    vocabulary = {piece: i for i, piece in enumerate([*special, *pieces])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"), words
