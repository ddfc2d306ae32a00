import json
import logging
import re
import subprocess
import sys

import pytest
from helpers.command_line import FAST, run
from helpers.imports import HEAVY, loaded_after

from repstitch import __version__
from repstitch.alignment.result import AlignmentScore
from repstitch.cli.main import main, parser, with_flags
from repstitch.encoders import catalogue
from repstitch.errors import InputError
from repstitch.spaces import Space
from repstitch.workflows.study_file import read_study


@pytest.mark.parametrize("command", ["score", "translate", "show", "promote"])
def test_an_unknown_stitcher_is_reported_in_one_line(capsys, tmp_path, shelf, files, command):
    rest = {
        "score": ["old-nwe", *files],
        "translate": ["old-nwe", shelf / "old.parquet", "--out", tmp_path / "y.parquet"],
        "show": ["old-nwe", "--stitchers", shelf / "stitchers"],
        "promote": ["old-nwe", "--stitchers", shelf / "stitchers"],
    }[command]
    status, out, err = run(capsys, command, *rest)
    assert (status, out, len(err)) == (2, "", 1)
    assert "There is no stitcher" in err[0]
    assert "old-nwe" in err[0]
    if command in ("show", "promote"):
        assert "Nearest: old-new" in err[0]
    assert list(tmp_path.iterdir()) == []


def test_an_operating_system_error_is_reported_in_one_line(capsys, tmp_path, files, monkeypatch):
    from repstitch.stitchers.stitcher import Stitcher

    def full(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Stitcher, "save", full)
    status, _, err = run(capsys, "train", *files, "--out", tmp_path / "s", *FAST)
    assert (status, err) == (2, ["repstitch train: [Errno 28] No space left on device"])


@pytest.mark.parametrize(
    ("module", "extra", "argv"),
    [
        ("matplotlib", "plot", ["show", "STITCHER", "--plot", "card.png"]),
        ("uvicorn", "serve", ["serve"]),
        ("sklearn.datasets", "demo", ["demo"]),
        ("transformers", "encoders", ["embed", "--encoder", "E", "--data", "D", "--out", "X.parquet"]),
    ],
)
def test_a_missing_package_is_named_with_the_extra_that_installs_it(capsys, monkeypatch, module, extra, argv):
    def missing(_args):
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    monkeypatch.setattr(
        "repstitch.cli.registry.run_show" if argv[0] == "show" else f"repstitch.cli.{argv[0]}.run", missing
    )
    status, out, err = run(capsys, *argv)
    message = f"`{argv[0]}` needs {module}; install it with: pip install 'repstitch[{extra}]'"
    assert (status, out, err) == (2, "", [f"repstitch {argv[0]}: {message}"])


def test_a_missing_module_of_repstitch_itself_is_not_hidden(monkeypatch):
    def missing(_args):
        raise ModuleNotFoundError("No module named 'repstitch.gone'", name="repstitch.gone")

    monkeypatch.setattr("repstitch.cli.registry.run_list", missing)
    with pytest.raises(ModuleNotFoundError, match=r"repstitch\.gone"):
        main(["list"])


def test_control_c_exits_130_in_one_line(capsys, monkeypatch):
    def interrupt(_args):
        raise KeyboardInterrupt

    monkeypatch.setattr("repstitch.cli.train.run", interrupt)
    monkeypatch.setattr("repstitch.cli.translate.run", interrupt)
    train = ("train", "--source", "x", "--target", "y", "--out", "z")
    for words, hint in (
        (train, ""),
        ((*train, "--checkpoints", "c"), " Run the same command again to continue."),
        (("translate", "s", "x", "--out", "y.parquet"), " Run the same command again to continue."),
    ):
        status, out, err = run(capsys, *words)
        assert (status, out) == (130, "")
        assert err == [f"repstitch {words[0]}: interrupted.{hint}"]


COMMANDS = next(action for action in parser()._actions if action.dest == "command").choices or ()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_ends_with_example_commands_that_parse(capsys, command):
    with pytest.raises(SystemExit) as exit_info:
        main([command, "--help"])
    printed = capsys.readouterr().out
    assert exit_info.value.code == 0
    examples = printed.partition("\nexample:\n")[2].replace("\\\n", " ").strip().splitlines()
    assert examples
    for words in map(str.split, examples):
        assert words[:2] == ["repstitch", command]
        assert parser().parse_args(words[1:]).command == command


def test_help_names_every_command_and_version_is_the_packages(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    printed = capsys.readouterr().out
    assert set(COMMANDS) >= {
        "embed",
        "train",
        "score",
        "translate",
        "transfer",
        "align",
        "study",
        "list",
        "serve",
        "demo",
    }
    assert all(f"\n    {command}" in printed for command in COMMANDS)
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"repstitch {__version__}\n"


@pytest.mark.parametrize("argv", [[], ["magic"], ["train"], ["train", "--method", "magic"]], ids=" ".join)
def test_a_command_line_that_does_not_parse_exits_2_with_one_line(capsys, argv):
    with pytest.raises(SystemExit) as exit_info:
        main(argv)
    assert exit_info.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert re.match(r"repstitch( train)?: .*; see repstitch( train)? --help\n", err)


def test_help_imports_nothing_heavy():
    code = f"""
from repstitch.cli.main import main
for command in {list(COMMANDS)!r}:
    try: main([command, '--help'])
    except SystemExit: pass"""
    assert loaded_after(code) == set()


SIDES = ("--source", "old.npy", "--target", "new.npy")
BAD = {
    "train into a folder that exists": ["train", *SIDES, "--out", "taken"],
    "train with shares that are not numbers": ["train", *SIDES, "--out", "s", "--split", "half"],
    "train with shares that do not sum to 1": ["train", *SIDES, "--out", "s", "--split", "0.5,0.2,0.2"],
    "train with a bad seed": ["train", *SIDES, "--out", "s", "--seed", "-1"],
    "train with a bad threshold": ["train", *SIDES, "--out", "s", "--retention", "2"],
    "train with bad epochs": ["train", *SIDES, "--out", "s", "--epochs", "0"],
    "train from a file that does not exist": ["train", "--source", "no.npy", "--target", "new.npy", "--out", "s"],
    "train with an ids file that does not exist": ["train", *SIDES, "--out", "s", "--source-ids", "no.txt"],
    "train with an unknown curve format": ["train", *SIDES, "--out", "s", "--learning-curve", "curve.txt"],
    "score a stitcher that does not exist": ["score", "no", *SIDES],
    "score with a bad threshold": ["score", "taken", *SIDES, "--first-stage", "0"],
    "score with judgements but no queries": ["score", "taken", *SIDES, "--qrels", "rel.tsv"],
    "score with query files that do not exist": [
        *("score", "taken", *SIDES, "--qrels", "rel.tsv"),
        *("--source-queries", "no.npy", "--target-queries", "no.npy"),
    ],
    "translate into a file that exists": ["translate", "taken", "old.npy", "--out", "old.parquet"],
    "translate into a file of an unsupported type": ["translate", "taken", "old.npy", "--out", "y.csv"],
    "translate a file that does not exist": ["translate", "taken", "no.npy", "--out", "y.parquet"],
    "translate with a stitcher that does not exist": ["translate", "no", "old.npy", "--out", "y.parquet"],
    "align one file": ["align", "old.npy"],
    "align by a metric that does not exist": ["align", "old.npy", "new.npy", "--metric", "magic"],
    "align a file that does not exist": ["align", "old.npy", "no.npy"],
    "embed into a file that exists": ["embed", "--encoder", "E", "--data", "taken", "--out", "old.parquet"],
    "embed with invalid layers": ["embed", "--encoder", "E", "--data", "taken", "--out", "x", "--layers", "first"],
    "embed data that does not exist": ["embed", "--encoder", "E", "--data", "no.csv:text", "--out", "x.parquet"],
    "embed with model arguments that are not a JSON object": [
        *("embed", "--encoder", "E", "--data", "taken", "--out", "x.parquet", "--model-args", "[1]")
    ],
    "list a folder that does not exist": ["list", "--stitchers", "no"],
    "promote in a folder that does not exist": ["promote", "x", "--stitchers", "no"],
    "show from a folder that does not exist": ["show", "x", "--stitchers", "no"],
    "show with an unknown picture format": ["show", "taken", "--plot", "card.txt"],
    "transfer nothing": ["transfer"],
    "transfer with a bad seed": ["transfer", "--labels", "l.csv:a", "--target", "new.npy", "--seed", "-1"],
    "transfer by a stitcher that does not exist": ["transfer", "old.npy", "--forward", "no", "--out", "y.npy"],
    "study a file that does not exist": ["study", "no.toml", "--out", "results"],
    "serve on an invalid port": ["serve", "--port", "99999"],
    "demo into a folder with other files": ["demo", "--out", "taken"],
    "demo with a bad seed": ["demo", "--seed", "-1"],
}


@pytest.fixture(scope="module")
def bad_runs(tmp_path_factory) -> dict[str, tuple[int, str, list[str], list[str]]]:
    """Return the exit status, stdout, stderr and imported heavy modules of each bad command line."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "taken").mkdir()
    for name in ("old.npy", "new.npy", "old.parquet", "rel.tsv", "taken/photo.jpg"):
        (folder / name).touch()
    code = f"""
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout
from repstitch.cli.main import main
runs = {{}}
for name, argv in {BAD!r}.items():
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        status = main(argv)
    heavy = [module for module in {HEAVY!r} if module in sys.modules]
    runs[name] = status, out.getvalue(), err.getvalue().splitlines(), heavy
print(json.dumps(runs))"""
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", BAD)
def test_a_bad_argument_is_refused_in_one_line_before_heavy_imports(bad_runs, name):
    status, out, err, heavy = bad_runs[name]
    assert (status, out, len(err), heavy) == (2, "", 1, [])
    assert err[0].startswith(f"repstitch {BAD[name][0]}: ")


@pytest.mark.parametrize(
    ("command", "message", "expected"),
    [
        (
            "train",
            "leave them out with `drop_invalid`, or `group` them",
            "leave them out with `--drop-invalid`, or `--group` them",
        ),
        (
            "train",
            "set different names with `source_space` and `target_space`",
            "set different names with `--source-space` and `--target-space`",
        ),
        (
            "train",
            "`uses` must be a tuple; `a b` and drop_invalid stay",
            "`uses` must be a tuple; `a b` and drop_invalid stay",
        ),
        (
            "translate",
            "`drop_invalid` is no flag here, `stitcher` is none anywhere",
            "`drop_invalid` is no flag here, `stitcher` is none anywhere",
        ),
        ("transfer", "`subtract_b_dec` is to be said", "`--subtract-b-dec` is to be said"),
    ],
)
def test_messages_name_an_argument_by_the_flag_that_sets_it(command, message, expected):
    choices = next(action for action in parser()._actions if action.dest == "command").choices or {}
    assert with_flags(message, dict(choices)[command]) == expected


def unknown_key_of_a_study(folder):
    (folder / "s.toml").write_text('[[experiment]]\nname = "a"\ndevice = "cpu"\ngroup = []\n')
    read_study(folder / "s.toml")


def group_of_a_study_without_data(folder):
    text = '[[experiment]]\nname = "a"\n[[experiment.group]]\nname = "b"\nencoders = ["e5-base-v2"]\n'
    (folder / "s.toml").write_text(text)
    read_study(folder / "s.toml")


def unknown_field_of_an_encoders_card(folder):
    (folder / "card.toml").write_text('[[space]]\nname = "a"\nencoder = "timm:x"\ndevice = "cpu"\n')
    catalogue.read(folder / "card.toml")


def bad_field_of_an_encoders_card(folder):
    (folder / "card.toml").write_text('[[space]]\nname = "a"\nencoder = "timm:x"\npooling = "median"\n')
    catalogue.read(folder / "card.toml")


def unknown_field_of_a_space_card(_folder):
    Space.from_json('{"name": "a", "dim": 4, "seed": 1}')


def bad_field_of_a_space_card(_folder):
    Space.from_json('{"name": "a", "dim": 4, "role": "key"}')


def missing_field_of_a_record(_folder):
    AlignmentScore.from_dict({"source": "a", "target": "b"})


@pytest.mark.parametrize(
    ("command", "refused", "expected"),
    [
        ("study", unknown_key_of_a_study, "has the unknown key 'device'; allowed keys are name,"),
        ("study", group_of_a_study_without_data, "group 'b' must have 'data', the items that its encoders read."),
        ("embed", unknown_field_of_an_encoders_card, "has the unknown field 'device'; allowed fields are name,"),
        ("embed", bad_field_of_an_encoders_card, "'pooling' of card 'a' must be one of cls,"),
        ("train", unknown_field_of_a_space_card, "A space card has the unknown field 'seed'; allowed fields are"),
        ("embed", bad_field_of_a_space_card, "'role' of space 'a' must be one of query, document, none; got 'key'."),
        ("align", missing_field_of_a_record, "An AlignmentScore must have the key 'metric'; it has source, target."),
    ],
)
def test_keys_of_files_are_named_as_the_file_spells_them(tmp_path, command, refused, expected):
    with pytest.raises(InputError) as error:
        refused(tmp_path)
    choices = next(action for action in parser()._actions if action.dest == "command").choices or {}
    message = with_flags(str(error.value), dict(choices)[command])
    assert expected in message
    assert "--" not in message


def test_warnings_name_an_argument_by_the_flag_that_sets_it(capsys, files, tmp_path, monkeypatch):
    def warn(_args):
        logging.getLogger("repstitch.any").warning("The mlp fit diverged; lower `%s`, not `k`.", "learning_rate")

    monkeypatch.setattr("repstitch.cli.train.run", warn)
    status, _, err = run(capsys, "train", *files, "--out", tmp_path / "s")
    assert (status, err) == (0, ["WARNING: The mlp fit diverged; lower `--learning-rate`, not `k`."])


def test_a_refusal_exits_with_status_2_and_without_a_traceback(tmp_path):
    command = [sys.executable, "-m", "repstitch", "train", "--source", "no", "--target", "no", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
