import ast
from pathlib import Path

import pytest

from repstitch import names

PACKAGE = Path(names.__file__).parent
# A module imports only from rows above its own; inside a package only from files listed before it.
ROWS = (
    ("redaction",),
    ("errors", "lazy", "names", "text"),
    ("addresses", "arguments", "devices", "files", "lines", "precision", "records", "spaces"),
    ("stores",),
    ("embeddings",),
    ("metrics", "encoders"),
    ("evaluation", "mixing"),
    ("stitchers",),
    ("fit", "bulk"),
    ("transfer", "alignment"),
    ("plots", "wire"),
    ("workflows", "client"),
    ("server",),
    ("cli",),
    ("__main__",),
)
INSIDE = {
    "stores": (
        "store",
        "arrow_columns",
        "checksums",
        "local_folders",
        "lancedb",
        "lancedb.opening",
        "lancedb.states",
        "lancedb.job",
        "lancedb.fragments",
        "lancedb.history",
        "lancedb.filling",
        "lancedb.native",
        "lancedb.indexing",
        "lancedb.reading",
        "lancedb.swapping",
        "lancedb.remains",
        "lancedb.table",
        "parquet",
        "parquet.files",
        "parquet.native",
        "parquet.translating",
        "parquet.job",
        "parquet.filling",
        "parquet.reading",
        "parquet.folder",
        "postgresql",
        "postgresql.copying",
        "postgresql.connection",
        "postgresql.catalog",
        "postgresql.job",
        "postgresql.layout",
        "postgresql.settings",
        "postgresql.view",
        "postgresql.guard",
        "postgresql.column",
        "postgresql.side",
        "postgresql.arming",
        "postgresql.facts",
        "postgresql.checks",
        "postgresql.cutover",
        "postgresql.indexing",
        "postgresql.rows",
        "postgresql.native",
        "postgresql.comparing",
        "postgresql.rehearsal",
        "postgresql.remains",
        "postgresql.table",
        "opening",
    ),
    "embeddings": (
        "cells",
        "fingerprints",
        "plain_types",
        "ids",
        "rows",
        "tables",
        "columns",
        "arrays",
        "normalising",
        "sampling",
        "shards",
        "streaming",
        "arrow_tables",
        "stored",
        "reading",
        "sides",
        "parts",
        "exporting",
        "writing",
        "exchange",
        "pairs",
        "pair_columns",
        "likeness",
        "splitting",
        "near_duplicates",
        "checks",
        "matching",
    ),
    "encoders": ("catalogue", "images", "items", "vectors", "sentence", "folders", "loading", "encoder"),
    "metrics": (
        "matrices",
        "moments",
        "neighbours",
        "neighbour_lists",
        "delete_one",
        "overlaps",
        "cache",
        "retrieval",
        "resample",
        "classification",
        "pearson",
        "null",
        "kernels",
        "nearest_kernels",
        "subspaces",
        "streams",
        "alignment",
        "__init__",
    ),
    "evaluation": (
        "thresholds",
        "relevance_data",
        "use_scores",
        "scorecard_parts",
        "report",
        "summary",
        "scorecard",
        "verdict",
        "qrels",
        "relevance",
        "pool",
        "score_scale",
        "scoring",
    ),
    "mixing": ("mixed_index", "placement", "reembedding", "merging"),
    "stitchers": (
        "maps",
        "pipeline",
        "confidence",
        "model_card",
        "held_out_rows",
        "stitcher",
        "held_out",
        "routing",
        "registry",
    ),
    "fit": (
        "ranks",
        "recipe",
        "objective",
        "closed_form",
        "losses",
        "spectrum",
        "lightning_modules",
        "contrastive",
        "selection",
        "learning_curve",
        "calibration",
        "__init__",
    ),
    "bulk": (
        "settings",
        "job",
        "translation",
        "mixed_scores",
        "choosing",
        "quality",
        "filling",
        "exact_search",
        "row_check",
        "native_rows",
        "running",
        "planning",
        "verification",
        "old_looking",
        "finishing",
        "report",
        "__init__",
    ),
    "transfer": (
        "kinds",
        "linear",
        "rules",
        "labels",
        "formats",
        "settings",
        "files",
        "probes",
        "task",
        "proof",
        "label_curve",
        "probe_evaluation",
        "dictionary_evaluation",
        "zero_shot",
        "context",
        "run",
        "__init__",
    ),
    "alignment": (
        "lineage",
        "report",
        "hypothesis_results",
        "result",
        "inputs",
        "layers",
        "layout",
        "scores",
        "sizes",
        "measuring",
        "pair",
        "model_scores",
        "trend",
        "lineage_control",
        "asymmetry",
        "hypotheses",
        "files",
        "__init__",
    ),
    "plots": ("canvas", "labels", "legends", "stitchers", "convergence", "alignment", "transfer", "mixing"),
    "wire": ("rows", "lists", "fields", "arrow"),
    "workflows": (
        "preparing",
        "unseen",
        "proving",
        "training",
        "scoring",
        "translating",
        "converting",
        "drawing",
        "study_file",
        "study_report",
        "study",
        "demo",
    ),
    "client": ("errors", "arguments", "responses", "receiving", "core", "clients"),
    "server": (
        "settings",
        "responses",
        "guards",
        "negotiation",
        "telemetry",
        "compute",
        "served",
        "batching",
        "texts",
        "service",
        "endpoint",
        "translate",
        "score",
        "openai",
        "listing",
        "schemas",
        "openapi",
        "docs",
        "app",
        "protocol",
        "workers",
        "run",
    ),
    "cli": (
        "arguments",
        "output",
        "align",
        "convert",
        "demo",
        "embed",
        "migrate_arguments",
        "migrate",
        "registry",
        "sample",
        "score",
        "serve",
        "study",
        "train",
        "transfer",
        "translate",
        "main",
    ),
}


def modules() -> dict[str, Path]:
    """Return the path of every module by its dotted name inside repstitch; a package has its own name."""
    paths = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        paths[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return {name: path for name, path in paths.items() if name}


def imports(path: Path, all_modules: set[str]) -> set[str]:
    """Return the modules of the package that a file imports, including imports inside functions."""
    imported = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.name} imports relatively"
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            whole = [name if name.removeprefix("repstitch.") in all_modules else node.module or "" for name in whole]
        elif isinstance(node, ast.Import):
            whole = [alias.name for alias in node.names]
        else:
            continue
        imported |= {name.removeprefix("repstitch.") for name in whole if name.startswith("repstitch.")}
    return imported & all_modules


def row_of(module: str) -> int:
    for row, members in enumerate(ROWS):
        if module in members or module.partition(".")[0] in members:
            return row
    raise AssertionError(f"{module} has no row in the layers; place it in ROWS")


def place_in(package: str, module: str) -> int:
    name = module.partition(".")[2]
    assert name in INSIDE[package], f"{module} has no place in the order of {package}/"
    return INSIDE[package].index(name)


MODULES = modules()


def test_modules_and_their_imports_are_detected():
    assert {"errors", "metrics.null", "fit.selection", "encoders", "cli.main"} <= set(MODULES)
    assert imports(MODULES["fit.selection"], set(MODULES)) >= {
        "errors",
        "fit.objective",
        "stitchers.maps",
        "metrics.moments",
    }
    assert "workflows.demo" in imports(MODULES["cli.demo"], set(MODULES))  # imported inside a function


@pytest.mark.parametrize("module", [module for module in MODULES if module not in INSIDE])
def test_a_module_imports_only_from_rows_above_its_own(module):
    package = module.partition(".")[0]
    for imported in imports(MODULES[module], set(MODULES)):
        if package in INSIDE and imported.partition(".")[0] == package:
            assert place_in(package, imported) < place_in(package, module), f"{module} imports {imported}"
        else:
            assert row_of(imported) < row_of(module), f"{module} imports {imported}"


@pytest.mark.parametrize("package", INSIDE)
def test_a_package_reexports_only_its_own_names(package):
    imported = imports(MODULES[package], set(MODULES)) - {"lazy"}
    assert {module.partition(".")[0] for module in imported} <= {package}


def test_the_tuples_of_names_equal_the_keys_of_the_dicts():
    from repstitch.encoders.vectors import POOLS
    from repstitch.fit.closed_form import FITS
    from repstitch.fit.objective import OBJECTIVES
    from repstitch.fit.selection import METHODS
    from repstitch.metrics.alignment import METRICS
    from repstitch.transfer.probes import BY

    assert tuple(METHODS) == names.METHODS
    assert tuple(FITS) == names.METHODS[: len(FITS)]
    assert tuple(OBJECTIVES) == names.OBJECTIVES
    assert tuple(METRICS) == names.METRICS
    assert tuple(BY) == names.CONCEPTS
    assert set(POOLS) <= set(names.POOLINGS)


def test_every_named_normalisation_is_implemented():
    import torch

    from repstitch.embeddings.normalising import normalise

    rows = torch.tensor([[3.0, 4.0]])
    assert {how: normalise(rows, how).tolist() for how in names.NORMALISATIONS} == {
        "unit": [[pytest.approx(0.6), pytest.approx(0.8)]],
        "none": [[3.0, 4.0]],
    }
