"""A working folder like the one that the documentation's examples are typed in, made in seconds from synthetic rows."""

import csv
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import uvicorn

from helpers.spaces import rotation
from repstitch.embeddings.reading import read
from repstitch.embeddings.rows import Embeddings
from repstitch.embeddings.writing import write
from repstitch.server.app import create_app
from repstitch.server.settings import Settings
from repstitch.spaces import Space
from repstitch.stitchers.registry import Registry
from repstitch.workflows.training import train

N, LATENT, DIMS = 898, 16, {"test_resnet": 48, "test_convnext": 32}


def write_demo(folder: Path) -> None:
    """Write the files of the demo that examples read: two trained and two untrained spaces, and labels.

    The trained spaces share a latent space in which ten digits are apart; the untrained ones share little.
    """
    random = np.random.default_rng(0)
    digits = np.arange(N) % 10
    centres = 1.5 * random.standard_normal((10, LATENT))
    latent = centres[digits] + random.standard_normal((N, LATENT))
    ids = np.array([f"{2 * row + 1:04}.png" for row in range(N)])
    folder.mkdir(parents=True)
    for turn, (name, dim) in enumerate(DIMS.items()):
        for state, noise in (("trained", 0.3), ("untrained", 4.0)):
            mixed = latent @ rotation(dim, turn)[:LATENT] + noise * random.standard_normal((N, dim))
            space = Space(
                name=f"{name}-{state}",
                encoder=f"demo:{name}",
                revision=state,
                dim=dim,
                modality="image",
                family="test",
                objective="supervised",
                training_data="digits",
                parameters=100_000,
            )
            rows = Embeddings(np.tanh(mixed / 3).astype(np.float32), space, ids)
            write(folder / f"{name}.{state}.parquet", rows)
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("id", "digit"), *zip(ids, digits, strict=True)])


def write_working_folder(folder: Path) -> None:
    """Complete a folder that has demo/: old.npy and new.npy, and two stitchers."""
    sources = [folder / "demo" / f"{name}.trained.parquet" for name in DIMS]
    for name, file in zip(("old", "new"), sources, strict=True):
        np.save(folder / f"{name}.npy", read(file).vectors)
    stitchers = folder / "models" / "stitchers"
    train(*sources, method="canonical").save(stitchers / "resnet-convnext")
    train(*reversed(sources), method="canonical", objective="reconstruction").save(stitchers / "convnext-resnet")


@contextmanager
def served(stitchers: Path) -> Iterator[str]:
    """Serve a folder of stitchers on a free port of this machine; yields the address."""
    server = uvicorn.Server(
        uvicorn.Config(create_app(Registry(stitchers), Settings()), host="127.0.0.1", port=0, log_level="warning")
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.01)
        assert thread.is_alive(), "the service did not start"
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
