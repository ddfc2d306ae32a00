"""Evaluate transferred probes, names and dictionaries: `python benchmarks/transfer.py`. Writes results/transfer.md.

Probes on labels of real data are transferred between every ordered pair of a family's spaces by stitchers trained for
the objective `reconstruction`, and compared with native probes, shuffled pairs and chance. The same is measured for the
objective `match`, for an MLP, and with Jacobians. Two more tables cover classifiers from class names alone and sparse
dictionaries.
"""

import argparse
import csv
import sys
import tempfile
from itertools import permutations
from pathlib import Path

import numpy as np
import torch
from machine import header, markdown
from real_pairs import DATA, FASHION

from repstitch.embeddings.normalising import normalise
from repstitch.embeddings.reading import read
from repstitch.embeddings.rows import Embeddings
from repstitch.encoders import embed
from repstitch.errors import InputError
from repstitch.plots.canvas import save
from repstitch.plots.transfer import plot_transfer
from repstitch.records import Estimate
from repstitch.stitchers.stitcher import Stitcher
from repstitch.transfer.context import TransferContext, build_context
from repstitch.transfer.kinds import Dictionary, Probe
from repstitch.transfer.label_curve import first_match, label_efficiency
from repstitch.transfer.linear import affine_part
from repstitch.transfer.probe_evaluation import compare_class_directions, evaluate_probe
from repstitch.transfer.proof import LabelEfficiency, Proof
from repstitch.transfer.run import labelled_task, probe_from_names, prove_dictionary, prove_probe
from repstitch.workflows.training import train

RESULTS = Path(__file__).parent / "results"
CIFAR = {
    "r20": "resnet20_aka", "r56": "resnet56_aka", "googlenet": "googlenet_uva", "densenet": "densenet_uva",
    "ae128": "autoencoder128_uva",
}  # fmt: skip
PHOTOS = {
    "mnv1": "mobilenetv1_slim_imagenet_embed", "mnv2": "mobilenetv2_slim_imagenet",
    "squeeze": "squeezenet1_0_deepcomp", "mnv1-.25": "mobilenetv1_025_224_imagenet",
}  # fmt: skip
NOT_A_CLASSIFIER = "ae128"
LEAST_ITEMS = 20  # an article type with fewer items is left out


def family(files: dict[str, str], folder: str, ids: str) -> dict[str, Embeddings]:
    if not DATA.is_dir():
        raise InputError(f"There is no folder {DATA}; set REPSTITCH_DATA to the folder of real paired embeddings.")
    return {name: read(DATA / folder / f"{file}.npy", ids=DATA / ids, space=name) for name, file in files.items()}


def ids_of(rows: Embeddings) -> list[str]:
    return [] if rows.ids is None else list(rows.ids)


def fashion_columns() -> dict[str, dict[str, str]]:
    """Return the columns of the table of products, each as a dict by id."""
    with open(DATA / "fashion" / "titles.tsv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return {column: {row["id"]: row[column] for row in rows} for column in rows[0] if column != "id"}


def stitch(spaces: dict[str, Embeddings], **settings) -> dict[tuple[str, str], Stitcher]:
    made = {}
    for a, b in permutations(spaces, 2):
        made[a, b] = train(spaces[a], spaces[b], drop_invalid=True, **settings)
        print(f"trained {a} -> {b} {settings}", file=sys.stderr, flush=True)
    return made


def over(spaces, stitchers, a: str, b: str, labels: dict[str, str], tangent: bool = False) -> TransferContext:
    """Return the context of a transfer from a to b, with labels for b's rows."""
    labels_of_b = np.array([labels.get(key) for key in ids_of(spaces[b])], dtype=object)
    return build_context(
        stitchers[a, b], stitchers[b, a], spaces[a], spaces[b], labels_of_b, drop_invalid=True, tangent=tangent
    )


def carry_all(
    title: str, spaces, stitchers, labels: dict[str, str], proofs: dict[tuple[str, str], Proof]
) -> list[list]:
    """Return a table row for each ordered pair, and add each pair's proof to `proofs`, for the means."""
    probes: dict[str, Probe] = {}
    natives: dict[str, Probe] = {}
    curves: dict[str, LabelEfficiency] = {}
    table = []
    for a, b in permutations(spaces, 2):
        context = over(spaces, stitchers, a, b, labels)
        task = labelled_task(context)
        if a not in probes:
            probes[a] = task.fit_probe(task.source)
        if b not in curves:
            curves[b], natives[b] = label_efficiency(task), task.fit_probe(task.target)
        proof = evaluate_probe(stitchers[b, a], task, probes[a], context.backward_map, native=natives[b])
        proofs[a, b] = proof
        directions = compare_class_directions(affine_part(stitchers[a, b].map), task)
        needs = first_match(curves[b].sizes, curves[b].accuracy, proof.accuracy("carried").score)
        shown = "more than all" if needs is None else f"{needs:,}"
        scores = [f"{proof.accuracy(name).score:.3f}" for name in ("carried", "whole", "native", "home")]
        low = [f"{proof.accuracy(name).score:.3f}" for name in ("shuffled", "random", "majority")]
        table.append([
            f"{title} {a}→{b}", *scores, span(proof.retention), *low, span(proof.above_shuffled),
            f"{proof.auroc('carried').score:.3f} / {proof.auroc('native').score:.3f}",
            f"{proof.cosine.mean:.2f} / {proof.cosine.shuffled:.2f}",
            f"{proof.score_correlation:.2f}", f"{directions.cosine:.2f}", shown,
        ])  # fmt: skip
        print(table[-1], file=sys.stderr, flush=True)
    return table


def span(estimate: Estimate | None) -> str:
    return "" if estimate is None else str(estimate)


def mean_line(name: str, proofs: list[Proof]) -> list:
    def mean(measure: str, contender: str) -> float:
        return float(np.mean([proof.measure(measure, contender).score for proof in proofs]))

    kept = [proof.retention.score for proof in proofs if proof.retention is not None]
    lead = [proof.above_shuffled.interval[0] for proof in proofs if proof.above_shuffled.interval is not None]
    return [
        name, len(proofs), f"{mean('accuracy', 'carried'):.3f}", f"{mean('accuracy', 'native'):.3f}",
        f"{np.mean(kept):.4f}", f"{min(kept):.3f}", f"{mean('accuracy', 'shuffled'):.3f}", f"{min(lead):.3f}",
        f"{mean('auroc', 'carried'):.3f}", f"{mean('auroc', 'native'):.3f}",
    ]  # fmt: skip


def variants(spaces, labels: dict[str, str], made: dict[str, tuple[dict, bool]]) -> list[list]:
    """Return the means over pairs for other kinds of stitchers, and for Jacobians instead of bare maps."""
    rows = []
    for name, (stitchers, tangent) in made.items():
        proofs = []
        for a, b in stitchers:
            if (b, a) not in stitchers or NOT_A_CLASSIFIER in (a, b):
                continue
            proofs.append(prove_probe(over(spaces, stitchers, a, b, labels, tangent), curve=False)[1])
        rows.append(mean_line(name, proofs))
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


def named(columns) -> list[list]:
    """Classify article types from their names alone, embedded by the same text encoder as the product texts."""
    photos = family(PHOTOS, "fashion", FASHION)
    texts = read(DATA / "fashion" / "text_stories260K_meanpool.npy", ids=DATA / FASHION, space="stories260K")
    types = columns["articleType"]
    counts = {name: sum(1 for one in types.values() if one == name) for name in sorted(set(types.values()))}
    names = [name for name, count in counts.items() if count >= LEAST_ITEMS]
    with tempfile.TemporaryDirectory() as folder:
        lines = Path(folder) / "names.txt"
        lines.write_text("\n".join(names) + "\n", encoding="utf-8")
        embed(
            str(DATA / "text_encoders" / "stories260K"), str(lines), f"{folder}/prompts.parquet", name="stories260K",
            pooling="mean", skip_first=True, normalise=False,
        )  # fmt: skip
        prompts = read(f"{folder}/prompts.parquet").vectors
    rows = []
    for name, space in photos.items():
        for objective in ("reconstruction", "match"):
            forward = train(texts, space, method="canonical", objective=objective, drop_invalid=True)
            context = build_context(
                forward, None, None, space, np.array([types.get(key) for key in ids_of(space)], dtype=object)
            )
            _, proof = probe_from_names(context, Embeddings(prompts, texts.space, declared=False), np.array(names))
            assert proof is not None
            balanced = proof.balanced_accuracy("carried")
            rows.append([
                name, objective, proof.n_test, len(proof.classes), span(proof.accuracy("carried")),
                span(proof.accuracy("majority")), span(proof.accuracy("shuffled")), span(proof.measure("top5")),
                span(balanced), f"{balanced.score / proof.chance('balanced_accuracy'):.1f}x",
            ])  # fmt: skip
            print(rows[-1], file=sys.stderr, flush=True)
    return rows


def normalised(rows: np.ndarray, norm: str) -> np.ndarray:
    return normalise(torch.from_numpy(rows), norm).numpy()


def sparse_dictionary(X: np.ndarray, features: int, seed: int = 0) -> Dictionary:
    """Train a small sparse autoencoder of unit rows: ReLU, decoder rows of unit length, L1 penalty, Adam."""
    torch.manual_seed(seed)
    x = torch.from_numpy(X)
    mean, spread = x.mean(0), (x - x.mean(0)).square().sum(1).mean().sqrt()
    decoder = torch.nn.functional.normalize(torch.randn(features, x.shape[1]), dim=1).requires_grad_()
    encoder = decoder.detach().T.clone().requires_grad_()
    offset = torch.zeros(features, requires_grad=True)
    optimizer = torch.optim.Adam([decoder, encoder, offset], lr=2e-3)
    for _ in range(60):
        for rows in torch.randperm(len(x)).split(256):
            batch = (x[rows] - mean) / spread
            active = torch.relu(batch @ encoder + offset)
            unit = torch.nn.functional.normalize(decoder, dim=1)
            loss = (batch - active @ unit).square().sum(1).mean() + 0.03 * active.sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        unit = torch.nn.functional.normalize(decoder, dim=1)
        return Dictionary(
            encoder.numpy(), offset.numpy() * float(spread), unit.numpy(), mean.numpy(), subtract_b_dec=True
        )


def dictionaries(spaces, stitchers) -> list[list]:
    rows = []
    for a in spaces:
        first = next(b for b in spaces if b != a)
        paired = build_context(
            stitchers[a, first], stitchers[first, a], spaces[a], spaces[first], paired=True
        ).paired_rows
        assert paired is not None
        norm = stitchers[a, first].input_norm
        dictionary = sparse_dictionary(normalised(paired.source, norm)[paired.split.train], 256)
        for b in spaces:
            if b == a:
                continue
            context = build_context(
                stitchers[a, b], stitchers[b, a], spaces[a], spaces[b], paired=True, drop_invalid=True
            )
            proof = prove_dictionary(context, dictionary)
            assert context.paired_rows is not None
            assert proof.correlation is not None
            source = normalised(context.paired_rows.source, stitchers[a, b].input_norm)
            active = (dictionary.encode(source[:2000]) > 0).sum(1).mean()
            r, same, explained = proof.correlation, proof.same_active, proof.explained
            rows.append([
                f"{a}→{b}", proof.compared, f"{active:.0f}", f"{r.mean:.2f} / {r.median:.2f}",
                f"{proof.shuffled:.2f}", f"{same.share:.2f} / {same.chance:.2f}",
                *(f"{share:.2f}" for share in (explained.target, explained.source, explained.maps_alone)),
            ])  # fmt: skip
            print(rows[-1], file=sys.stderr, flush=True)
    return rows


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    columns = fashion_columns()
    pictures = family(CIFAR, "cifar10", "cifar10/files.txt")
    classes = {key: key.split("/")[0] for key in ids_of(pictures["r20"])}
    photos = family(PHOTOS, "fashion", FASHION)
    least = {"method": "canonical", "objective": "reconstruction"}
    for_cifar, for_fashion = stitch(pictures, **least), stitch(photos, **least)
    kinds = {
        "CIFAR classes": (pictures, for_cifar, classes),
        "fashion masterCategory": (photos, for_fashion, columns["masterCategory"]),
        "fashion subCategory": (photos, for_fashion, columns["subCategory"]),
        "fashion articleType": (photos, for_fashion, columns["articleType"]),
    }
    table, means = [], []
    for name, (spaces, stitchers, labels) in kinds.items():
        proofs: dict[tuple[str, str], Proof] = {}
        table += carry_all(name, spaces, stitchers, labels, proofs)
        between = [proof for pair, proof in proofs.items() if NOT_A_CLASSIFIER not in pair]
        means.append(mean_line(f"{name}, between classifiers", between))
        if len(between) < len(proofs):
            for end, words in enumerate(("from", "to")):
                some = [proof for pair, proof in proofs.items() if pair[end] == NOT_A_CLASSIFIER]
                means.append(mean_line(f"{name}, {words} the autoencoder", some))
    few = {name: pictures[name] for name in ("r20", "r56", "densenet")}
    matched = {**stitch(few, method="canonical", objective="match")}
    bent = stitch(few, method="mlp", objective="reconstruction")
    exact = {pair: for_cifar[pair] for pair in permutations(few, 2)}
    ways = variants(few, classes, {
        "canonical for reconstruction, bare map": (exact, False),
        "the same by mean Jacobian, normalisation included": (exact, True),
        "canonical for match, bare map": (matched, False),
        "mlp for reconstruction, mean Jacobian": (bent, False),
    })  # fmt: skip
    pairs_head = [
        "labels, from→to", "carried", "whole", "native", "home", "share of native", "shuffled", "random", "majority",
        "above shuffled", "AUROC carried / native", "cosine carried / shuffled", "scores' correlation",
        "class directions", "labels to match",
    ]  # fmt: skip
    means_head = [
        "mean over", "pairs", "carried", "native", "share of native", "least share", "shuffled",
        "least lower bound above shuffled", "AUROC carried", "AUROC native",
    ]  # fmt: skip
    names_head = [
        "space", "objective", "rows", "names", "top-1", "majority", "shuffled", "top-5", "balanced accuracy",
        "balanced / chance",
    ]  # fmt: skip
    dictionaries_head = [
        "from→to", "features", "active a row", "correlation", "shuffled", "active", "explained, target", "source",
        "maps alone",
    ]  # fmt: skip
    text = "\n\n".join(
        (
            header("What is carried to another model", "python benchmarks/transfer.py"),
            ABOUT,
            "## Means over pairs",
            markdown(means_head, means),
            "## Ways to stitch",
            "On the CIFAR classes, between r20, r56 and densenet.",
            markdown(means_head, ways),
            "## Every pair",
            ABOUT_PAIRS,
            markdown(pairs_head, table),
            "## From names alone",
            ABOUT_NAMES,
            markdown(names_head, named(columns)),
            "## Dictionaries",
            ABOUT_DICTIONARIES,
            markdown(dictionaries_head, dictionaries(pictures, for_cifar)),
        )
    )
    (RESULTS / "transfer.md").write_text(text, encoding="utf-8")
    _, proof = prove_probe(over(pictures, for_cifar, "r20", "densenet", classes))
    save(plot_transfer(proof), RESULTS / "transfer.png")
    print(text)


ABOUT = """Stitchers: `canonical` for the objective `reconstruction`, each way, unless said otherwise; one split by
hashed id. Probes: multinomial logistic regression, its strength chosen on validation rows, the same for carried and
native ones. All scores are of test rows that neither stitchers nor probes saw. Intervals are 95 %, of 1,000 times the
same resampled rows; for `random`, one hundred draws."""
ABOUT_PAIRS = """Accuracy of the source's probe on the target's rows: `carried` by the bare map, after the `whole`
stitcher; a `native` one; on its own space (`home`); through `shuffled` pairs; `random` directions; the `majority`
class. `class directions`: cosine of the classes' mean directions, carried forward, to the target's own. `labels to
match`: labelled target rows that a native probe needs for the carried one's accuracy."""
ABOUT_NAMES = f"""Fashion article types of at least {LEAST_ITEMS} items, their bare names embedded by stories260K,
which embedded the products' texts too, and carried to each vision space. `shuffled`: the same with names shuffled, a
hundred times."""
ABOUT_DICTIONARIES = """Sparse autoencoders of 256 ReLU features, trained on each CIFAR space and carried to the
others. Correlation of each feature on unseen rows with the original's on the same items: mean / median over features;
through `shuffled` pairs. `active`: features active for a row that are active for its counterpart / as many as would
be if features were active as often, but independently. Variance explained: of the target by the carried dictionary,
of the source by the original, and of the target by both maps alone, there and back."""

if __name__ == "__main__":
    main()
