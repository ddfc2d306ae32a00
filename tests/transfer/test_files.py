import json
import os
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from helpers.contexts import content, content_and_layout, dictionary, directions, probe
from helpers.spaces import card, gaussian
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch

from repstitch.errors import InputError
from repstitch.transfer import files
from repstitch.transfer.kinds import Dictionary, Directions, Probe


def same(a, b) -> None:
    """Assert that all fields of the two are equal, arrays up to the precision of float32."""
    assert type(a) is type(b)
    for name in vars(a):
        mine, theirs = getattr(a, name), getattr(b, name)
        if isinstance(mine, np.ndarray):
            np.testing.assert_allclose(mine, theirs, rtol=1e-6, atol=1e-7)
        else:
            assert mine == theirs, name


TRANSFERABLES = {
    "directions": directions(),
    "probe": probe(),
    "binary probe": probe(k=1),
    "probe without classes": Probe(np.ones((2, 3)), np.ones(2)),
    "dictionary": dictionary(),
    "b_dec not subtracted": dictionary(subtract=False),
    "topk": dictionary(activation="topk", k=4),
    "jumprelu": dictionary(activation="jumprelu", threshold=np.ones(10)),
    "directions with a space": Directions(np.eye(3), None, card("old", 3)),
}


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize("name", list(TRANSFERABLES))
def test_a_file_is_read_as_it_was_written(tmp_path, name, suffix):
    path = files.write(tmp_path / f"x{suffix}", TRANSFERABLES[name], notes={"forward": "abc"})
    same(content(path), TRANSFERABLES[name])


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".npy"])
def test_a_file_has_the_permissions_of_the_umask(tmp_path, suffix):
    before = os.umask(0o022)
    try:
        path = files.write(tmp_path / f"x{suffix}", Directions(np.eye(3)))
    finally:
        os.umask(before)
    assert oct(path.stat().st_mode & 0o777) == "0o644"


def test_directions_can_be_one_bare_array(tmp_path, caplog):
    files.write(tmp_path / "named.npy", directions())
    assert "cannot store the names of directions" in caplog.text
    path = files.write(tmp_path / "v.npy", Directions(np.eye(3)))
    same(content(path), Directions(np.eye(3)))
    np.save(tmp_path / "one.npy", np.ones(4))
    assert content(tmp_path / "one.npy").values.shape == (1, 4)


@pytest.mark.parametrize("names", [("joy", "fear"), ("refusal",)])
def test_named_vectors_are_read_as_named_directions_with_the_directions_option(tmp_path, names):
    arrays = {name: np.full(4, i + 1, np.float16) for i, name in enumerate(names)}
    save_file(arrays, tmp_path / "v.safetensors")
    vectors, layout = content_and_layout(tmp_path / "v.safetensors", directions=True)
    assert vectors.names == tuple(sorted(names))
    again = load_file(files.write(tmp_path / "again.safetensors", vectors, layout))
    assert set(again) == set(names)
    for name, value in again.items():
        np.testing.assert_array_equal(value, arrays[name])
        assert value.dtype == np.float16
    with pytest.raises(InputError, match="pass `directions` if it contains one matrix of directions"):
        content_and_layout(tmp_path / "v.safetensors")
    assert content(tmp_path / "again.safetensors").names == vectors.names  # the file's own metadata states its kind


@pytest.mark.parametrize("names", [("joy", "fear"), ("file", "repstitch"), ("weight", "bias")])
@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors"])
def test_directions_stored_as_separate_arrays_survive_every_format_and_any_name(tmp_path, suffix, names):
    save_file({name: np.full(4, i + 1.0) for i, name in enumerate(names)}, tmp_path / "v.safetensors")
    vectors, layout = content_and_layout(tmp_path / "v.safetensors", directions=True)
    again = content(files.write(tmp_path / f"again{suffix}", vectors, layout))
    np.testing.assert_array_equal(again.values, vectors.values)
    assert again.names == (None if suffix == ".npy" else vectors.names)


def test_decoder_rows_are_read_as_directions_with_the_directions_option(tmp_path):
    path = files.write(tmp_path / "sae.npz", dictionary())
    np.testing.assert_allclose(content(f"{path}:W_dec", directions=True).values, dictionary().W_dec, atol=1e-6)
    with pytest.raises(InputError, match="'W_dec' is a single array; pass `directions`"):
        content(f"{path}:W_dec")
    with pytest.raises(InputError, match="Directions must be one matrix, or named vectors of one width"):
        content(path, directions=True)


def test_a_dictionary_of_layers_without_biases_is_written_with_biases(tmp_path):
    original = dictionary()
    arrays = {"sae.encoder.weight": original.W_enc.T, "sae.decoder.weight": original.W_dec.T}
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, tmp_path / "sae.safetensors")
    read_back, layout = content_and_layout(tmp_path / "sae.safetensors", subtract_b_dec=False)
    path = files.write(tmp_path / "again.safetensors", read_back, layout)
    assert set(load_file(path)) == {*arrays, "sae.encoder.bias", "sae.decoder.bias"}
    same(content(path), read_back)


def test_the_files_own_metadata_takes_precedence_over_a_config_next_to_it(tmp_path):
    path = files.write(tmp_path / "sae.safetensors", dictionary(activation="topk", k=2))
    (tmp_path / "cfg.json").write_text(json.dumps({"activation_fn": "topk", "k": 5, "apply_b_dec_to_input": False}))
    assert (content(path).k, content(path).subtract_b_dec) == (2, True)


def test_integer_classes_are_read_as_the_same_text_whatever_their_dtype(tmp_path):
    for i, classes in enumerate(
        (np.arange(3.0), np.arange(3), np.array(["0", "1", "2"]), np.array([b"0", b"1", b"2"]))
    ):
        np.savez(tmp_path / f"{i}.npz", coef=np.eye(3), intercept=np.ones(3), classes=classes)
        assert content(tmp_path / f"{i}.npz").classes == ("0", "1", "2")


def test_one_array_of_several_is_selected_after_a_colon(tmp_path):
    np.savez(tmp_path / "v.npz", steer=np.eye(3), other=np.ones((4, 4)))
    vectors, layout = content_and_layout(f"{tmp_path}/v.npz:steer", directions=True)
    np.testing.assert_array_equal(vectors.values, np.eye(3))
    assert "steer" in np.load(files.write(tmp_path / "again.npz", vectors, layout)).files


def test_integers_and_float16_are_widened_when_they_cannot_represent_the_values(tmp_path):
    np.save(tmp_path / "v.npy", np.eye(3, dtype=int))
    _, layout = content_and_layout(tmp_path / "v.npy")
    again = np.load(files.write(tmp_path / "again.npy", Directions(np.eye(3) / 3), layout))
    np.testing.assert_allclose(again, np.eye(3) / 3)
    np.savez(tmp_path / "p.npz", coef=np.ones((2, 3), np.float16), intercept=np.ones(2, np.float16))
    _, layout = content_and_layout(tmp_path / "p.npz")
    wide = content(files.write(tmp_path / "wide.npz", Probe(np.full((2, 3), 1e6), np.ones(2)), layout))
    np.testing.assert_array_equal(wide.coef, 1e6)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
@pytest.mark.parametrize("prefix", ["", "head.", "model.head."])
def test_a_torch_linear_layer_is_read_as_a_probe(tmp_path, suffix, prefix, bias):
    layer = torch.nn.Linear(5, 3, bias=bias)
    state = {prefix + name: tensor for name, tensor in layer.state_dict().items()}
    path = tmp_path / f"layer{suffix}"
    save_torch(state, path) if suffix == ".safetensors" else torch.save(state, path)
    read_probe, layout = content_and_layout(path)
    rows = torch.from_numpy(gaussian(7, 5))
    np.testing.assert_allclose(read_probe.scores(rows.numpy()), layer(rows).detach().numpy(), atol=1e-6)
    again = load_file(files.write(tmp_path / "again.safetensors", read_probe, layout))
    assert set(again) == {f"{prefix}weight", f"{prefix}bias"}
    assert again[f"{prefix}weight"].dtype == np.float32


def test_one_layer_of_several_is_selected_after_a_colon(tmp_path):
    model: Any = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3))
    torch.save({"state_dict": model.state_dict()}, tmp_path / "model.pt")
    read_probe = content(f"{tmp_path}/model.pt:2")
    np.testing.assert_allclose(read_probe.coef, model[2].weight.detach().numpy(), atol=1e-7)
    with pytest.raises(InputError, match=r"several layers; name one after a colon: 0, 2"):
        files.read(tmp_path / "model.pt")
    with pytest.raises(InputError, match="The file has no layer or array 'head'"):
        files.read(f"{tmp_path}/model.pt:head")


def test_bfloat16_is_read(tmp_path):
    torch.save(dict(torch.nn.Linear(5, 3).bfloat16().named_parameters()), tmp_path / "layer.pt")
    assert content(tmp_path / "layer.pt").coef.shape == (3, 5)


def fitted(model, k: int = 3):
    X, y = gaussian(90, 5), np.arange(90) % k
    return model.fit(X, np.array([f"kind {label}" for label in y]) if hasattr(model, "predict_proba") else y), X


def models():
    from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge, RidgeClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import LinearSVC

    return {
        "LogisticRegression": (LogisticRegression(), 3),
        "two classes": (LogisticRegression(), 2),
        "no intercept": (LogisticRegression(fit_intercept=False), 3),
        "LinearSVC": (LinearSVC(), 3),
        "Ridge": (Ridge(), 3),
        "LinearRegression": (LinearRegression(), 3),
        "RidgeClassifier": (RidgeClassifier(), 3),
        "scaled": (make_pipeline(StandardScaler(), LinearSVC()), 3),
        "scaled without centring": (make_pipeline(StandardScaler(with_mean=False), LogisticRegression()), 3),
    }


@pytest.mark.parametrize("name", list(models()))
def test_scikit_learn_models_give_the_same_scores_when_read_as_probes(tmp_path, name):
    from skops.io import dump

    model, k = models()[name]
    model, X = fitted(model, k)
    dump(model, tmp_path / "model.skops")
    read_probe = content(tmp_path / "model.skops")
    scores = model.decision_function(X) if hasattr(model, "decision_function") else model.predict(X)
    np.testing.assert_allclose(read_probe.scores(X), scores.reshape(len(X), -1), atol=1e-5)
    if hasattr(model, "classes_"):
        assert [read_probe.classes[i] for i in read_probe.class_scores(X).argmax(1)] == [
            str(c) for c in model.predict(X)
        ]


@pytest.mark.parametrize("underscore", ["", "_"])
def test_coefficients_in_an_npz_are_read_as_a_probe(tmp_path, underscore):
    arrays = {"coef": gaussian(3, 5), "intercept": np.ones(3), "classes": np.array([1, 2, 3])}
    np.savez(tmp_path / "p.npz", **{name + underscore: value for name, value in arrays.items()})
    read_probe, layout = content_and_layout(tmp_path / "p.npz")
    assert read_probe.classes == ("1", "2", "3")
    again = np.load(files.write(tmp_path / "again.npz", read_probe, layout))
    assert {"coef" + underscore, "intercept" + underscore, "classes" + underscore} <= set(again.files)
    np.testing.assert_array_equal(again["classes" + underscore], [1, 2, 3])


def test_classes_can_be_passed_for_a_file_without_them(tmp_path):
    np.savez(tmp_path / "p.npz", coef=np.eye(2), intercept=np.ones(2))
    assert content(tmp_path / "p.npz", classes=["a", "b"]).classes == ("a", "b")


LAYOUTS = {
    "sae lens": {"W_enc": 0, "b_enc": 0, "W_dec": 0, "b_dec": 0},
    "linear layers": {"encoder.weight": 1, "encoder.bias": 0, "decoder.weight": 1, "decoder.bias": 0},
    "mixed": {"encoder.weight": 1, "encoder.bias": 0, "W_dec": 0, "b_dec": 0},
    "pre bias": {"encoder.weight": 1, "latent_bias": 0, "decoder.weight": 1, "pre_bias": 0},
}


@pytest.mark.parametrize("name", list(LAYOUTS))
@pytest.mark.parametrize("prefix", ["", "sae."])
def test_a_dictionary_is_written_with_the_names_and_dtypes_of_its_file(tmp_path, name, prefix):
    original = dictionary()
    arrays = {}
    for ours, (theirs, turned) in zip(("W_enc", "b_enc", "W_dec", "b_dec"), LAYOUTS[name].items(), strict=True):
        value = getattr(original, ours).astype(np.float16)
        arrays[prefix + theirs] = np.ascontiguousarray(value.T if turned else value)
    save_file(arrays, tmp_path / "sae.safetensors")
    read_back, layout = content_and_layout(tmp_path / "sae.safetensors", subtract_b_dec=True)
    np.testing.assert_allclose(read_back.W_enc, original.W_enc, atol=3e-3)
    np.testing.assert_allclose(read_back.b_dec, original.b_dec, atol=3e-3)
    again = load_file(files.write(tmp_path / "again.safetensors", read_back, layout))
    assert set(again) == set(arrays)
    for theirs, value in again.items():
        np.testing.assert_array_equal(value, arrays[theirs])
        assert value.dtype == np.float16


def test_without_a_decoder_bias_too_it_must_be_stated_whether_b_dec_is_subtracted(tmp_path):
    arrays = {n: np.asarray(getattr(dictionary(), n), np.float16) for n in ("W_enc", "W_dec")}
    save_file(arrays, tmp_path / "sae.safetensors")
    with pytest.raises(InputError, match="does not state whether b_dec is subtracted"):
        content(tmp_path / "sae.safetensors")
    read_back, layout = content_and_layout(tmp_path / "sae.safetensors", subtract_b_dec=True)
    assert not read_back.b_dec.any()
    again = load_file(files.write(tmp_path / "again.safetensors", read_back, layout))
    assert {value.dtype for value in again.values()} == {np.dtype(np.float16)}


class Evil:
    def __reduce__(self):
        return (print, ("run",))


def unpickled(path):
    path.write_bytes(pickle.dumps(Evil()))


def objects(path):
    np.savez(path, coef=np.array([Evil()], dtype=object))


def evil_torch(path):
    torch.save({"weight": Evil()}, path)


def untrusted(path):
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer
    from skops.io import dump

    dump(make_pipeline(FunctionTransformer(exec), LogisticRegression()), path)


def forest(path):
    from sklearn.cluster import KMeans
    from skops.io import dump

    dump(KMeans(2).fit(gaussian(9, 2)), path)


def poisson(path):
    from sklearn.linear_model import PoissonRegressor
    from skops.io import dump

    dump(PoissonRegressor().fit(gaussian(9, 2), np.arange(9)), path)


def one_against_one(path):
    from sklearn.svm import SVC
    from skops.io import dump

    dump(SVC(kernel="linear").fit(gaussian(9, 2), np.arange(9) % 3), path)


def named_npy(path):
    np.savez(path.with_suffix(".npz"), coef=np.eye(2))
    path.with_suffix(".npz").rename(path)


def noted(path, **notes):
    save_file({"coef": np.eye(2, dtype=np.float32)}, path, metadata=notes)


def unfitting(path):
    notes = np.array(json.dumps({"subtract_b_dec": "true"}))
    np.savez(path, W_enc=np.eye(2), W_dec=np.eye(3), repstitch=notes)


BROKEN = {
    "pickle": ("x.pkl", unpickled, "Pickle files can run code when opened, so they are never read"),
    "joblib": ("x.joblib", unpickled, "never read"),
    "text": ("x.txt", lambda p: p.write_text("1"), "x.txt must end in one of .npz, .safetensors"),
    "pickled objects in npz": ("x.npz", objects, "cannot be read"),
    "code in a state dict": ("x.pt", evil_torch, "cannot be read"),
    "code in skops": ("x.skops", untrusted, "cannot be read|must contain a linear model"),
    "not a linear model": ("x.skops", forest, "must contain a linear model, .*; it contains KMeans"),
    "not a safetensors file": ("x.safetensors", lambda p: p.write_bytes(b"x" * 99), "cannot be read"),
    "truncated npy": ("x.npy", lambda p: p.write_bytes(b"\x93NUMPY"), "cannot be read"),
    "empty npz": ("x.npz", lambda p: np.savez(p), "The file contains nothing"),
    "a state dict without tensors": ("x.pt", lambda p: torch.save({"epoch": 3}, p), "must contain a state dict"),
    "NaN": ("x.npz", lambda p: np.savez(p, coef=np.full((1, 2), np.nan), intercept=np.ones(1)), "must be finite"),
    "a three-dimensional array": ("x.npy", lambda p: np.save(p, np.ones((2, 2, 2))), "`values` must have the shape"),
    "text in npz": ("x.npz", lambda p: np.savez(p, coef=np.array([["a"]])), "must contain numbers"),
    "a regression with a link": ("x.skops", poisson, "must contain a linear model"),
    "one against one": ("x.skops", one_against_one, "must contain a linear model"),
    "unknown names": ("x.npz", lambda p: np.savez(p, w=np.eye(3)), "pass `directions`"),
    "an npz called npy": ("x.npy", lambda p: named_npy(p), "must contain named arrays"),
    "numbers instead of names": ("x.pt", lambda p: torch.save({1: torch.ones(3)}, p), "must contain named arrays"),
    "classes that are not a list": ("x.safetensors", lambda p: noted(p, classes="3"), "`classes` must be"),
    "classes that are not JSON": ("x.safetensors", lambda p: noted(p, classes="cat, dog"), "cannot be read"),
    "deeply nested classes": ("x.safetensors", lambda p: noted(p, classes="[" * 100_000), "cannot be read: "),
    "deeply nested card": ("x.safetensors", lambda p: noted(p, **{files.SPACE: "[" * 100_000}), "card must be JSON"),
    "deeply nested notes": (
        "x.npz", lambda p: np.savez(p, coef=np.eye(2), repstitch=np.array("[" * 100_000)), "cannot be read: ",
    ),
    "space not an object": ("x.safetensors", lambda p: noted(p, **{files.SPACE: "[]"}), "must be a JSON object"),
    "notes not an object": ("x.npz", lambda p: np.savez(p, coef=np.eye(2), repstitch=np.array(3)), "JSON object"),
    "text instead of a threshold": (
        "x.npz", lambda p: np.savez(p, W_enc=np.eye(2), W_dec=np.eye(2), log_threshold=np.array(["a"])), "cannot be",
    ),
    "two matrices": ("x.npz", lambda p: np.savez(p, a=np.eye(2), b=np.eye(2)), "neither a probe .* nor a dictionary"),
    "a probe and an extra array": (
        "x.npz", lambda p: np.savez(p, coef=np.eye(2), intercept=np.ones(2), scale=np.ones(2)), "'scale' that is",
    ),
    "half a dictionary": ("x.npz", lambda p: np.savez(p, W_enc=np.eye(2)), "W_dec is missing"),
    "a gated dictionary": (
        "x.npz", lambda p: np.savez(p, W_enc=np.eye(2), W_dec=np.eye(2), b_gate=np.ones(2)), "'b_gate' that is",
    ),
    "a dictionary with mismatched shapes": ("x.npz", unfitting, "`W_dec` must have the"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(BROKEN))
def test_invalid_and_unsafe_files_are_refused_in_one_line(tmp_path, capsys, name):
    file, make, message = BROKEN[name]
    make(tmp_path / file)
    with pytest.raises(InputError, match=message) as refused:
        files.read(tmp_path / file)
    assert "\n" not in str(refused.value)
    assert capsys.readouterr().out == ""


def test_options_for_another_kind_of_object_are_refused(tmp_path):
    path = files.write(tmp_path / "p.npz", probe())
    with pytest.raises(InputError, match="`subtract_b_dec` applies only to a dictionary"):
        files.read(path, subtract_b_dec=True)
    with pytest.raises(InputError, match="`classes` differ from those stored in the file"):
        files.read(path, classes=["a", "b", "c"])
    with pytest.raises(InputError, match="`classes` applies only to a probe"):
        files.read(files.write(tmp_path / "v.npz", directions()), classes=["a"])
    with pytest.raises(InputError, match="There is no file"):
        files.read(tmp_path / "none.npz")


def test_existing_files_and_unreadable_endings_are_refused_as_output(tmp_path):
    path = files.write(tmp_path / "p.npz", probe())
    before = path.read_bytes()
    with pytest.raises(InputError, match="exists and is never overwritten"):
        files.write(path, probe(seed=3))
    assert path.read_bytes() == before
    for out, transferable, endings in (
        ("p.pt", probe(), ".safetensors or .npz"),
        ("p.npy", probe(), ".safetensors or .npz"),
        ("p", directions(), ".safetensors, .npz or .npy"),
    ):
        with pytest.raises(InputError, match=f"must end in {endings};"):
            files.write(tmp_path / out, transferable)
    with pytest.raises(InputError, match="be in an existing folder"):
        files.write(tmp_path / "nowhere" / "p.npz", probe())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p.npz"]


def test_a_failed_write_leaves_no_file(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(InputError, match=r"cannot be written: .*No space left"):
        files.write(tmp_path / "p.npz", probe())
    assert not list(tmp_path.iterdir())


def test_the_kind_of_an_object_is_recognised_by_its_array_names(tmp_path):
    kinds = {type(content(files.write(tmp_path / f"{i}.npz", thing))) for i, thing in enumerate(TRANSFERABLES.values())}
    assert kinds == {Directions, Probe, Dictionary}
