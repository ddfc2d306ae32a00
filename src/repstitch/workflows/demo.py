"""The whole job on small real data: two encoders trained on the spot, stitched, proven, served and called."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import torch

from repstitch.embeddings.pairs import pair
from repstitch.embeddings.reading import read
from repstitch.embeddings.splitting import split
from repstitch.encoders import embed, from_module, load_encoder, save
from repstitch.encoders.catalogue import Card
from repstitch.errors import InputError
from repstitch.evaluation.report import table
from repstitch.metrics.neighbour_lists import mutual_knn
from repstitch.plots.canvas import BLUE, GREEN, GREY, ORANGE, figure
from repstitch.plots.canvas import save as save_picture
from repstitch.plots.stitchers import plot_alignment, plot_retrieval
from repstitch.workflows.training import train
from repstitch.workflows.translating import translate_file

ENCODERS = ("test_resnet", "test_convnext")
EPOCHS, SIDE, BATCH = 10, 32, 64
SHARES = (0.5, 0.2, 0.3)
MARK = "made-by-repstitch-demo"


def demo(out: Path, seed: int = 0) -> None:
    """Run the main job from images to an HTTP answer, saying each step; everything it makes lies in `out`."""
    _clear(out)
    began = time.perf_counter()

    def say(text: str) -> None:
        print(f"[{time.perf_counter() - began:5.1f} s] {text}", flush=True)

    say("Writing 1,797 real images of handwritten digits (scikit-learn's load_digits) as PNG files.")
    labels = _write_images(out / "images", out / "labels.csv")
    first = np.arange(len(labels)) % 2 == 0  # encoders learn from one half, everything else uses the other
    (out / "paired").mkdir()
    for path in sorted((out / "images").iterdir()):
        if not first[int(path.stem)]:
            shutil.copy(path, out / "paired" / path.name)

    files = {}
    for stage in ("untrained", "trained"):
        for name in ENCODERS:
            folder = out / "encoders" / stage
            if stage == "trained":
                say(f"Training {name} to tell the digits apart: {EPOCHS} epochs on {int(first.sum())} images.")
            card = _make_encoder(name, folder, out / "images", labels, first, seed, EPOCHS if stage == "trained" else 0)
            files[stage, name] = out / f"{name}.{stage}.parquet"
            embed(str(card), str(out / "paired"), str(files[stage, name]))
    rows = {key: read(path) for key, path in files.items()}
    source, target = (files["trained", name] for name in ENCODERS)
    say(f"Embedded {len(rows['trained', ENCODERS[0]])} images that neither encoder has seen, with each of the two.")

    say("Learning a stitcher between the two spaces: every method, chosen on validation pairs, proven on test pairs.")
    digits = f"{out / 'labels.csv'}:digit"
    stitcher = train(source, target, objective="neighbours", split_shares=SHARES, labels=digits, seed=seed)
    place = stitcher.save(out / "stitchers" / f"{ENCODERS[0]}-to-{ENCODERS[1]}")
    print(f"\n{table(stitcher.scorecard)}\n")
    say(f"Kept {stitcher.method} as {place} (version {stitcher.version}).")
    translate_file(stitcher, source, out / "translated.parquet")

    held = _test_rows(rows, "untrained"), _test_rows(rows, "trained")
    before, trained = (mutual_knn(torch.from_numpy(x), torch.from_numpy(y)) for x, y in held)
    after = stitcher.scorecard["alignment"]["mutual_knn"]["after"]
    among = stitcher.scorecard["query"]["overlap@10"]
    stages = {
        "untrained": before,
        "trained": trained,
        "translated": after["score"],
        "translated,\namong natives": among,
    }
    say(
        f"Neighbours that both sides agree on (mutual_knn): {before:.2f} before the encoders were trained, "
        f"{trained:.2f} after, {after['score']:.2f} after translation, {among:.2f} when a translated row searches the "
        f"native ones; unrelated spaces {after['null']:.2f}."
    )
    picture = _draw(out / "demo.png", stages, after["null"], stitcher.scorecard)

    say("Serving the stitcher, and asking for one translation over HTTP.")
    vector = rows["trained", ENCODERS[0]].vectors[0]
    answer, request = _serve_and_call(out / "stitchers", vector)
    expected = stitcher.translate(vector)
    apart = float(np.abs(np.asarray(answer["embedding"], dtype=np.float32) - expected).max())
    if apart > 1e-4:
        raise InputError(f"The service's answer differs from the stitcher's by {apart}; the installation is broken.")
    say(f"{request} -> {answer['dim']} numbers, {np.round(answer['embedding'][:4], 3).tolist()} …")
    nearest = _nearest(rows["trained", ENCODERS[1]], np.asarray(answer["embedding"]))
    own = rows["trained", ENCODERS[0]].ids[0]  # type: ignore[index]
    say(f"It is the translation of {own}, a {labels[int(own[:-4])]}; nearest natives: {_named(nearest, labels)}.")
    say(f"Done. The picture is {picture}.")
    print(NEXT.format(out=out))


def _clear(out: Path) -> None:
    if out.exists():
        if not (out / MARK).exists() and any(out.iterdir()):
            raise InputError(f"`out` {out} exists and is not a demo's folder; give another one.")
        shutil.rmtree(out)
    out.mkdir(parents=True)
    (out / MARK).touch()


def _write_images(folder: Path, table: Path) -> np.ndarray:
    from PIL import Image
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    folder.mkdir()
    for i, image in enumerate(np.asarray(images).reshape(-1, 8, 8)):
        pixels = np.clip(image * 16, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).resize((SIDE, SIDE)).convert("RGB").save(folder / f"{i:04d}.png")
    lines = ["id,digit", *(f"{i:04d}.png,{digit}" for i, digit in enumerate(labels))]
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return np.asarray(labels)


def _make_encoder(name, folder, images, labels, rows, seed, epochs) -> Path:
    """A timm encoder, trained as a classifier for some epochs, saved as a checkpoint with a card beside it."""
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
        _train_classifier(model, images, labels, np.flatnonzero(rows), seed, epochs)
    model.reset_classifier(0)
    folder.mkdir(parents=True, exist_ok=True)
    encoder = from_module(model, card)
    save(encoder, folder)
    load_encoder(str(folder / f"{card.name}.toml"))
    return folder / f"{card.name}.toml"


def _train_classifier(model, images: Path, labels, rows, seed: int, epochs: int) -> None:
    from PIL import Image

    pixels = np.stack([np.asarray(Image.open(images / f"{i:04d}.png")) for i in rows])
    X = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    y = torch.from_numpy(labels[rows]).long()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    random = torch.Generator().manual_seed(seed)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(X), generator=random).split(BATCH):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(X[batch]), y[batch]).backward()
            optimizer.step()
    model.eval()


def _test_rows(rows: dict, stage: str) -> tuple[np.ndarray, np.ndarray]:
    pairs = pair(*(rows[stage, name] for name in ENCODERS))
    test = split(pairs, SHARES).test
    return pairs.X[test], pairs.Y[test]


def _draw(path: Path, stages: dict, null: float, card: dict) -> Path:
    made, axes = figure(2, width=5.6)
    plot_alignment(axes[0], stages, null, "Neighbours both sides agree on (mutual_knn)", (GREY, BLUE, ORANGE, GREEN))
    plot_retrieval(axes[1], card)
    return save_picture(made, path)


def _serve_and_call(stitchers: Path, vector: np.ndarray) -> tuple[dict, str]:
    """Start `repstitch serve` as a user would, post one vector, stop it again."""
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
    until = time.monotonic() + seconds
    while time.monotonic() < until and server.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=1)
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise InputError(f"The server did not become ready at {address}; run `repstitch serve` to see why.")


def _nearest(native, vector: np.ndarray) -> list[str]:
    unit = native.vectors / np.linalg.norm(native.vectors, axis=1, keepdims=True)
    return [native.ids[i] for i in np.argsort(-unit @ vector)[:5]]


def _named(ids: list[str], labels: np.ndarray) -> str:
    return ", ".join(f"{name} (a {labels[int(name[:-4])]})" for name in ids)


NEXT = """
Now on your own data:
  repstitch embed --encoder timm:resnet50 --data photos/ --out old.parquet
  repstitch embed --encoder timm:convnext_tiny --data photos/ --out new.parquet
  repstitch train --source old.parquet --target new.parquet --out models/stitchers/old-new
  repstitch show models/stitchers/old-new --plot card.png
  repstitch translate models/stitchers/old-new old.parquet --out translated.parquet
  repstitch serve --stitchers models/stitchers

What this run made can be used the same way, for example:
  repstitch show {out}/stitchers/test_resnet-to-test_convnext
  repstitch serve --stitchers {out}/stitchers
"""
