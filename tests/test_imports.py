"""The packages that each command and each public name imports, checked in fresh interpreters.

Importing torch takes seconds, and Lightning and transformers take longer, so nothing may import a package that it does
not need. Several names together load at least what each of them loads, so names with the same forbidden packages share
an interpreter.
"""

import numpy as np
import pytest
from helpers.imports import loaded_after
from helpers.spaces import affine_image

import repstitch

TRAINING = {"lightning", "timm", "torchvision", "transformers"}
SERVING = {"bentoml", "starlette", "uvicorn"}
ARRAYS = {"numpy", "pyarrow", "scipy", "torch"}
FORBIDDEN_TO_NAMES = {
    ("ConflictError", "InputError", "NotFoundError", "Space", "__version__"): ARRAYS | TRAINING | SERVING,
    ("AsyncClient", "Client"): {"pyarrow", "scipy", "torch", "matplotlib"} | TRAINING | SERVING,
    ("Embeddings", "embed", "read"): {"scipy", "torch", "matplotlib"} | TRAINING | SERVING,
    (
        "AlignmentScore",
        "Atlas",
        "Registry",
        "Scorecard",
        "Stitcher",
        "align",
        "atlas",
        "load",
        "score",
        "train",
        "translate_file",
    ): {"matplotlib", "sklearn"} | TRAINING | SERVING,
}


def test_importing_the_package_imports_nothing_heavy():
    assert loaded_after("import repstitch, repstitch.names, repstitch.spaces, repstitch.files") == set()


def test_help_imports_nothing_heavy():
    code = "from repstitch.cli.main import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass"
    assert loaded_after(code) == set()


def test_the_table_of_forbidden_imports_lists_every_public_name():
    assert sorted(name for group in FORBIDDEN_TO_NAMES for name in group) == sorted(repstitch.__all__)


@pytest.mark.parametrize("group", FORBIDDEN_TO_NAMES, ids=lambda group: group[0])
def test_a_public_name_imports_only_what_it_needs(group):
    loaded = loaded_after("import repstitch\n" + "\n".join(f"repstitch.{name}" for name in group))
    assert not loaded & FORBIDDEN_TO_NAMES[group]


@pytest.mark.parametrize(
    "package", ["alignment", "embeddings", "encoders", "evaluation", "fit", "metrics", "stitchers", "transfer"]
)
def test_importing_a_package_imports_nothing_heavy(package):
    assert loaded_after(f"import repstitch.{package}; dir(repstitch.{package})") == set()


BAD_ARGUMENTS = {
    "train --source old.npy --target new.npy --out there": "`--out` there exists",
    "train --source old.npy --target new.npy --out s --split half": "`--split` must be",
    "train --source old.npy --target new.npy --out s --split 0.5,0.6,0.1": "`--split` must be",
    "train --source old.npy --target new.npy --out s --seed -1": "`--seed` must be",
    "train --source old.npy --target new.npy --out s --retention 2": "`--retention` must be above 0",
    "train --source nowhere.npy --target new.npy --out s": "There is no file nowhere.npy",
    "train --source old.npy --target new.npy --out s --learning-curve curve.gif": "`--learning-curve` must end in",
    "score there --source nowhere.npy --target new.npy": "There is no file nowhere.npy",
    "translate there nowhere.npy --out y.parquet": "There is no file nowhere.npy",
    "translate there old.npy --out y.csv": "`--out` must end in .parquet",
    "transfer probe.npz --backward there --out probe.csv": "`--out` must end in",
    "align old.npy new.npy --metric nearness": "`--metric` must be",
    "align old.npy new.npy --out there": "`--out` there exists",
    "align old.npy nowhere.npy": "There is no file nowhere.npy",
    "embed --encoder E --data D --out x.csv": "`--out` must end in .parquet",
    "embed --encoder E --data D --out x --layers first": "`--layers` must be",
    "embed --encoder E --data there --out x.parquet --batch-size 0": "`--batch-size` must be at least 1; got 0.",
    "serve --workers 0": "`--workers` must be at least 1; got 0.",
    "serve --port 70000": "`--port` must be",
    "study prh --out r --only nothing": "`--only` must be one of the experiments of prh",
    "study prh --out r --batch-size 0": "`--batch-size` must be at least 1; got 0.",
}


def test_an_invalid_argument_is_reported_before_anything_heavy_is_imported(tmp_path):
    (tmp_path / "there").mkdir()
    for name in ("old.npy", "new.npy"):
        (tmp_path / name).touch()
    code = f"""
import contextlib, io, os
from repstitch.cli.main import main
os.chdir({str(tmp_path)!r})
for line, answer in {BAD_ARGUMENTS!r}.items():
    with contextlib.redirect_stderr(io.StringIO()) as err:
        status = main(line.split())
    assert (status, len(err.getvalue().splitlines())) == (2, 1) and answer in err.getvalue(), (line, err.getvalue())
"""
    assert not loaded_after(code) & (ARRAYS | TRAINING | SERVING)


COMMANDS = (
    "train --source old.npz --target new.npz --out s/canonical --method canonical --device cpu",
    "train --source new.npz --target old.npz --out s/back --method ridge --objective reconstruction --device cpu",
    "score s/canonical --source old.npz --target new.npz",
    "translate s/canonical old.npz --out y.parquet --device cpu",
    "transfer directions.npy --directions --forward s/canonical --out carried.npz",
    "align old.npz new.npz --permutations 20 --device cpu",
    "list --stitchers s",
    "promote canonical --stitchers s",
    "show canonical --stitchers s",
)


def test_a_command_imports_only_what_it_needs(tmp_path):
    X, Y, _, _ = affine_image(200, noise=0.2)
    ids = np.arange(200).astype(str)
    np.savez(tmp_path / "old.npz", old=X.astype(np.float32), ids=ids)
    np.savez(tmp_path / "new.npz", new=Y.astype(np.float32), ids=ids)
    np.save(tmp_path / "directions.npy", np.eye(X.shape[1], dtype=np.float32)[:2])
    forbidden = {"matplotlib", "sklearn"} | TRAINING | SERVING
    code = f"""
import contextlib, io, os
from repstitch.cli.main import main
os.chdir({str(tmp_path)!r})
for line in {COMMANDS!r}:
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(line.split()) == 0, line
    assert not {forbidden!r} & set(sys.modules), (line, {forbidden!r} & set(sys.modules))
"""
    loaded_after(code)


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("server.app", {"bentoml", "matplotlib"} | TRAINING),  # `serve`
        ("encoders.encoder", {"torch", "matplotlib", "lightning"} | SERVING),  # `embed`
        ("workflows.study", {"torch", "matplotlib", "lightning"} | SERVING),  # `study`
    ],
)
def test_the_module_behind_a_command_imports_only_what_it_needs(module, forbidden):
    assert not loaded_after(f"import repstitch.{module}") & forbidden
