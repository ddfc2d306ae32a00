"""Run every step on small real data: train two encoders, learn a stitcher, score it, serve it, send it a request."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from repstitch.embeddings.pairs import pair
from repstitch.embeddings.reading import read
from repstitch.embeddings.rows import Embeddings
from repstitch.embeddings.splitting import split
from repstitch.encoders import embed, from_module, load_encoder, save
from repstitch.encoders.catalogue import Card
from repstitch.errors import InputError
from repstitch.evaluation.scorecard import Scorecard
from repstitch.files import DEMO_MARK, check_demo_folder
from repstitch.metrics.neighbour_lists import mutual_knn
from repstitch.plots.canvas import BLUE, GREEN, GREY, ORANGE, figure
from repstitch.plots.canvas import save as save_picture
from repstitch.plots.stitchers import plot_alignment, plot_retrieval
from repstitch.stitchers.stitcher import Stitcher
from repstitch.workflows.training import train
from repstitch.workflows.translating import translate_file

ENCODERS = ("test_resnet", "test_convnext")
STAGES = ("untrained", "trained")
EPOCHS, SIDE, BATCH = 10, 32, 64
SHARES = (0.5, 0.2, 0.3)
Say = Callable[[str], None]
Rows = dict[tuple[str, str], Embeddings]  # keys are (stage, encoder)


def demo(out: Path, seed: int = 0) -> None:
    """Run every step from images to an HTTP response, and print progress. All files are written to the folder `out`."""
    _clear(out)
    say = _timed_print()
    say("Writing 1,797 real images of handwritten digits (scikit-learn's load_digits) as PNG files.")
    digits = _write_images(out / "images", out / "labels.csv")
    files = _embed_images(out, digits, seed, say)
    rows = {key: read(path) for key, path in files.items()}
    say(
        f"Embedded {len(rows['trained', ENCODERS[0]])} images with both encoders. "
        "Neither encoder was trained on these images."
    )

    say("Learning a stitcher: fitting every method, choosing one on validation pairs, scoring it on test pairs.")
    source, target = (files["trained", name] for name in ENCODERS)
    labels = f"{out / 'labels.csv'}:digit"
    stitcher = train(source, target, objective="neighbours", split_shares=SHARES, labels=labels, seed=seed)
    folder = stitcher.save(out / "stitchers" / f"{ENCODERS[0]}-to-{ENCODERS[1]}")
    print(f"\n{stitcher.scorecard}\n")
    say(f"Chose the method {stitcher.method} and saved the stitcher in {folder} (version {stitcher.version}).")
    translate_file(stitcher, source, out / "translated.parquet")

    picture = _compare_stages(out / "demo.png", rows, stitcher.scorecard, say)
    _call_service(out / "stitchers", stitcher, rows, digits, say)
    say(f"Done. The figure is in {picture}.")
    print(NEXT.format(out=out))


def _timed_print() -> Say:
    start = time.perf_counter()

    def say(text: str) -> None:
        print(f"[{time.perf_counter() - start:5.1f} s] {text}", flush=True)

    return say


def _clear(out: Path) -> None:
    check_demo_folder(out)
    if out.exists():
        shutil.rmtree(out)
    out.mkdir(parents=True)
    (out / DEMO_MARK).touch()


def _embed_images(out: Path, digits: np.ndarray, seed: int, say: Say) -> dict[tuple[str, str], Path]:
    """Embed half of the images with both encoders, before and after training the encoders on the other half.

    Returns the file of each stage and encoder.
    """
    training_half = np.arange(len(digits)) % 2 == 0
    (out / "paired").mkdir()
    for path in sorted((out / "images").iterdir()):
        if not training_half[int(path.stem)]:
            shutil.copy(path, out / "paired" / path.name)
    files = {}
    for stage in STAGES:
        for name in ENCODERS:
            if stage == "trained":
                say(f"Training {name} to classify the digits: {EPOCHS} epochs on {int(training_half.sum())} images.")
            epochs = EPOCHS if stage == "trained" else 0
            card = _make_encoder(name, out / "encoders" / stage, out / "images", digits, training_half, seed, epochs)
            files[stage, name] = out / f"{name}.{stage}.parquet"
            embed(str(card), str(out / "paired"), str(files[stage, name]))
    return files


def _compare_stages(path: Path, rows: Rows, scorecard: Scorecard, say: Say) -> Path:
    """Print and plot how many neighbours the two spaces share: untrained, trained and translated."""
    agreement = {stage: mutual_knn(*_test_rows(rows, stage)) for stage in STAGES}
    after = scorecard.alignment.mutual_knn.after
    overlap = scorecard.query.overlap.score
    agreement |= {"translated": after.score, "translated,\nnative index": overlap}
    say(
        f"Share of the ten nearest neighbours that the two spaces have in common (mutual_knn): "
        f"{agreement['untrained']:.2f} before the encoders were trained, {agreement['trained']:.2f} after training, "
        f"{after.score:.2f} after translation; unrelated spaces share {after.null:.2f}. Among the target "
        f"encoder's rows, a translated row and its counterpart share {overlap:.2f} of their neighbours."
    )
    picture, axes = figure(2, width=5.6)
    title = "Neighbours that both spaces share (mutual_knn)"
    plot_alignment(axes[0], agreement, after.null, title, (GREY, BLUE, ORANGE, GREEN))
    plot_retrieval(axes[1], scorecard)
    return save_picture(picture, path)


def _call_service(folder: Path, stitcher: Stitcher, rows: Rows, digits: np.ndarray, say: Say) -> None:
    """Serve the stitcher, translate one vector over HTTP and print the nearest target rows."""
    say("Starting the service and sending it one vector to translate over HTTP.")
    source, target = (rows["trained", name] for name in ENCODERS)
    reply, request = _serve_and_call(folder, source.vectors[0])
    translated = np.asarray(reply["embedding"], dtype=np.float32)
    difference = float(np.abs(translated - stitcher.translate(source.vectors[0])).max())
    if difference > 1e-4:
        raise InputError(
            f"The service and the stitcher must return the same translation; they differ by {difference}. "
            "Reinstall repstitch."
        )
    say(f"{request}: {reply['dim']} numbers, {np.round(reply['embedding'][:4], 3).tolist()} …")
    assert source.ids is not None
    image, nearest = source.ids[0], ", ".join(_name(key, digits) for key in _nearest(target, translated))
    say(f"The vector was that of {image} (a {digits[int(image[:-4])]}). Images nearest to its translation: {nearest}.")


def _write_images(folder: Path, table: Path) -> np.ndarray:
    from PIL import Image
    from sklearn.datasets import load_digits

    images, digits = load_digits(return_X_y=True)
    folder.mkdir()
    for i, image in enumerate(np.asarray(images).reshape(-1, 8, 8)):
        pixels = np.clip(image * 16, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).resize((SIDE, SIDE)).convert("RGB").save(folder / f"{i:04d}.png")
    lines = ["id,digit", *(f"{i:04d}.png,{digit}" for i, digit in enumerate(digits))]
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return np.asarray(digits)


def _make_encoder(
    name: str, folder: Path, images: Path, digits: np.ndarray, training_half: np.ndarray, seed: int, epochs: int
) -> Path:
    """Train a timm encoder as a classifier (0 epochs: not at all), save its checkpoint, and return its card's path."""
    import timm

    torch.manual_seed(seed + ENCODERS.index(name))
    model: Any = timm.create_model(name, num_classes=10)
    mean = (0.5, 0.5, 0.5)
    card = Card(
        f"{name}-{'trained' if epochs else 'untrained'}",
        f"timm:{name}",
        input_size=(3, SIDE, SIDE),
        mean=mean,
        std=mean,
        crop_pct=1.0,
        crop_mode="squash",
        pooling="gap",
        training_data="digits",
    )
    if epochs:
        _train_classifier(model, images, digits, np.flatnonzero(training_half), seed, epochs)
    model.reset_classifier(0)
    folder.mkdir(parents=True, exist_ok=True)
    encoder = from_module(model, card)
    save(encoder, folder)
    load_encoder(str(folder / f"{card.name}.toml"))
    return folder / f"{card.name}.toml"


def _train_classifier(
    model: torch.nn.Module, images: Path, digits: np.ndarray, rows: np.ndarray, seed: int, epochs: int
) -> None:
    from PIL import Image

    pixels = np.stack([np.asarray(Image.open(images / f"{i:04d}.png")) for i in rows])
    X = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    y = torch.from_numpy(digits[rows]).long()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    random = torch.Generator().manual_seed(seed)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(X), generator=random).split(BATCH):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(X[batch]), y[batch]).backward()
            optimizer.step()
    model.eval()


def _test_rows(rows: Rows, stage: str) -> tuple[np.ndarray, np.ndarray]:
    source, target = (rows[stage, name] for name in ENCODERS)
    pairs = pair(source, target)
    test = split(pairs, SHARES).test
    return pairs.X[test], pairs.Y[test]


def _serve_and_call(stitchers: Path, vector: np.ndarray) -> tuple[dict, str]:
    """Start `repstitch serve` in a new process, post one vector, and stop the process.

    Returns the response body and a description of the request.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "repstitch", "serve", "--stitchers", str(stitchers), "--port", str(port)]
    server = subprocess.Popen(command, env=os.environ | {"PYTHONUNBUFFERED": "1"}, stderr=subprocess.DEVNULL)
    try:
        root = f"http://127.0.0.1:{port}"
        _wait_until_ready(f"{root}/readyz", server)
        with urllib.request.urlopen(f"{root}/v1/stitchers", timeout=10) as reply:
            served = json.load(reply)["stitchers"][0]
        body = {"embedding": vector.tolist(), "source": served["source"], "target": served["target"]}
        request = urllib.request.Request(
            f"{root}/v1/translate", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=10) as reply:
            return json.load(reply), f"POST {root}/v1/translate {served['source']} -> {served['target']}"
    finally:
        server.terminate()
        server.wait(30)


def _wait_until_ready(address: str, server: subprocess.Popen, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and server.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=1)
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise InputError(f"The server did not become ready at {address}; run `repstitch serve` to see why.")


def _nearest(native: Embeddings, vector: np.ndarray) -> list[str]:
    assert native.ids is not None
    unit = native.vectors / np.linalg.norm(native.vectors, axis=1, keepdims=True)
    return [str(native.ids[row]) for row in np.argsort(-unit @ vector)[:5]]


def _name(image: str, digits: np.ndarray) -> str:
    return f"{image} (a {digits[int(image[:-4])]})"


NEXT = """
To do the same with your own data:
  repstitch embed --encoder timm:resnet50 --data photos/ --out old.parquet
  repstitch embed --encoder timm:convnext_tiny --data photos/ --out new.parquet
  repstitch train --source old.parquet --target new.parquet --out models/stitchers/old-new
  repstitch show models/stitchers/old-new --plot card.png
  repstitch translate models/stitchers/old-new old.parquet --out translated.parquet
  repstitch serve --stitchers models/stitchers

The same commands work on the files of this demo, for example:
  repstitch show {out}/stitchers/test_resnet-to-test_convnext
  repstitch serve --stitchers {out}/stitchers
"""
