"""The real paired embeddings of the benchmarks. They are not part of the project; REPSTITCH_DATA names their folder."""

import argparse
import csv
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from repstitch.embeddings.pairs import Pairs, pair
from repstitch.embeddings.reading import read
from repstitch.embeddings.rows import Embeddings
from repstitch.errors import InputError

DATA = Path(os.environ.get("REPSTITCH_DATA") or Path(__file__).parents[2] / "shared" / "data")


@dataclass(frozen=True)
class RealPair:
    """Two files of matched rows, and the files of their ids and groups."""

    source: str
    target: str
    ids: str | None = None
    groups: str | None = None


def load(real: RealPair) -> Pairs:
    """Read the pairs, without invalid rows and duplicate pairs; captions are grouped by photo."""
    if not DATA.is_dir():
        raise InputError(f"There is no folder {DATA}; set REPSTITCH_DATA to the folder of real paired embeddings.")
    group = _photos() if real.source.startswith("captions/") else real.groups and DATA / real.groups
    source, target = (_read(side, real.ids, group) for side in (real.source, real.target))
    return pair(source, target, drop_invalid=True)


def _read(path: str, ids: str | None, group) -> Embeddings:
    return read(DATA / path, ids=None if ids is None else DATA / ids, group=group)


def _photos() -> np.ndarray:
    with open(DATA / "captions" / "captions.tsv", newline="", encoding="utf-8") as file:
        return np.array([row[0] for row in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)], dtype=object)


def arguments(about: str | None, seeds: int, real: dict[str, RealPair] | None = None) -> argparse.ArgumentParser:
    """Return a parser of the arguments that all benchmarks on the pairs share. `real` are by default PAIRS."""
    real = PAIRS if real is None else real
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--pairs", nargs="*", default=list(real), choices=list(real))
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument(
        "--raw", type=Path, help="JSON file of all runs; runs that it already contains are not repeated"
    )
    return parser


def every_split(args, measure: Callable[[Pairs, int], Any], what: str = "") -> dict[str, list]:
    """Return the results of `measure(pairs, seed)` by pair, one for each split seed.

    `what` is a prefix that distinguishes runs in the file --raw.
    """
    kept = json.loads(args.raw.read_text()) if args.raw and args.raw.exists() else {}
    results: dict[str, list] = {}
    for name in args.pairs:
        pairs = load((PAIRS | TEXTS)[name])
        for seed in range(args.seeds):
            key = f"{what}{name}/{seed}"
            if key not in kept:
                kept[key] = measure(pairs, seed)
                if args.raw:
                    args.raw.write_text(json.dumps(kept))
            results.setdefault(name, []).append(kept[key])
            print(key, file=sys.stderr, flush=True)
    return results


FASHION, EMOJI, CLIP = "fashion/ids.txt", "emoji/emoji_minilm_emoji2vec.npz", "clip_text/union_rn50_vitb32.npz"
WORDS = "words/aligned_glove50_word2vec300.npz"
MNV2 = "fashion/mobilenetv2_slim_imagenet.npy"

PAIRS = {
    "fashion mnv1→mnv2": RealPair("fashion/mobilenetv1_slim_imagenet_embed.npy", MNV2, FASHION),
    "fashion squeeze→mnv2": RealPair("fashion/squeezenet1_0_deepcomp.npy", MNV2, FASHION),
    "fashion mnv1-.25→mnv2": RealPair("fashion/mobilenetv1_025_224_imagenet.npy", MNV2, FASHION),
    "fashion mnv2→title w2v": RealPair(MNV2, "fashion/text_word2vec300_mean.npy", FASHION),
    "cifar r20→r56": RealPair("cifar10/resnet20_aka.npy", "cifar10/resnet56_aka.npy", "cifar10/files.txt"),
    "cifar r20→ae128": RealPair("cifar10/resnet20_aka.npy", "cifar10/autoencoder128_uva.npy", "cifar10/files.txt"),
    "cifar googlenet→densenet": RealPair("cifar10/googlenet_uva.npy", "cifar10/densenet_uva.npy", "cifar10/files.txt"),
    "captions stories→w2v": RealPair("captions/stories260K_meanpool.npy", "captions/word2vec300_mean.npy"),
    "clip text rn50→b32": RealPair(f"{CLIP}:clip_rn50", f"{CLIP}:clip_vitb32", f"{CLIP}:names"),
    "emoji minilm→emoji2vec": RealPair(f"{EMOJI}:minilm_l6_v2", f"{EMOJI}:emoji2vec", f"{EMOJI}:emoji"),
    "words glove50→w2v": RealPair(f"{WORDS}:glove50", f"{WORDS}:word2vec300", f"{WORDS}:words"),
}

POOL = "text_modern/pool"
MINILM, E5, POOL_IDS = f"{POOL}/minilm_l6.npy", f"{POOL}/e5_small_multi_q4.npy", f"{POOL}/ids.txt"
TEXTS = {
    "texts minilm→e5": RealPair(MINILM, E5, POOL_IDS, f"{POOL}/groups.txt"),
    "texts paraphrase→minilm": RealPair(f"{POOL}/paraphrase_l3.npy", MINILM, POOL_IDS, f"{POOL}/groups.txt"),
    "texts wordllama→e5": RealPair(f"{POOL}/wordllama_256.npy", E5, POOL_IDS, f"{POOL}/groups.txt"),
}
