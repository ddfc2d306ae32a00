"""Embedding to files: several layers in one pass, interrupting and resuming."""

import os
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from helpers.encoders import DATA, TEXTS, build, card, cosines, interrupted, needs_data, read, vit
from helpers.sentence_models import save_reader
from PIL import Image

from repstitch import encoders
from repstitch.encoders import loading
from repstitch.encoders.encoder import n_truncated
from repstitch.errors import InputError


def test_a_saved_encoder_is_loaded_from_its_card(tmp_path, photos):
    model = build("test_convnext", num_classes=10)
    made = encoders.from_module(
        model, card("test_convnext", pooling="gap", mean=(0.4,) * 3, std=(0.2,) * 3, family="tiny", objective="none")
    )
    path = encoders.save(made, tmp_path)

    n = encoders.embed(str(path), photos, tmp_path / "x.parquet")

    rows = read(tmp_path / "x.parquet")
    assert n == 6
    assert list(rows.ids) == ["0.png", "2.png", "4.png", "b/1.png", "b/3.png", "b/5.png"]
    np.testing.assert_allclose(rows.vectors, made.encode([photos / i for i in rows.ids]), atol=1e-5)
    assert rows.space.encoder == "timm:test_convnext"
    assert rows.space.family == "tiny"
    assert rows.space.revision == loading.digest(tmp_path / "tiny.safetensors")
    with pytest.raises(InputError, match="never overwritten"):
        encoders.save(made, tmp_path)


def test_settings_of_the_run_are_checked(tmp_path, photos):
    model = encoders.from_module(build("test_resnet", num_classes=0), card())
    out = tmp_path / "x.parquet"
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"batch_size": 0}, "`batch_size` must be at least 1; got 0"),
        ({"dtype": "int8"}, "`dtype` must be one of float32, float16; got 'int8'"),
        ({"precision": "half"}, "`precision` must be one of auto, float32"),
    ]
    for settings, message in wrong:
        with pytest.raises(InputError, match=message):
            encoders.embed(model, photos, out, **settings)
    with pytest.raises(InputError, match=r"`out` must end in \.parquet"):
        encoders.embed(model, photos, tmp_path / "x.npy")
    with pytest.raises(InputError, match="`device` must be auto, cpu, cuda or mps"):
        encoders.from_module(model.model, card(), device="abacus")


def test_nan_vectors_are_never_written(tmp_path, photos):
    model = encoders.from_module(build("test_resnet", num_classes=0), card())
    for weight in model.model.parameters():
        weight.data.fill_(float("nan"))
    with pytest.raises(InputError, match="`encoder` 'tiny' returned NaN or Inf for 6 of 6 items"):
        encoders.embed(model, photos, tmp_path / "x.parquet")
    assert not (tmp_path / "x.parquet").exists()


def test_an_unreadable_image_is_named_and_finished_batches_are_kept(tmp_path, photos):
    encoder = encoders.from_module(build("test_resnet", num_classes=0), card())
    bad = photos / "b" / "3.png"
    bad.write_bytes(bad.read_bytes()[:100])
    out = tmp_path / "x.parquet"

    with pytest.raises(InputError, match=r"b.3\.png must be an image that can be read"):
        encoders.embed(encoder, photos, out, batch_size=2)

    assert not out.exists()
    assert len(list((tmp_path / "x.parquet.partial").glob("part-*"))) == 2
    bad.unlink()  # the finished batches are before it
    assert encoders.embed(encoder, photos, out, batch_size=2) == 5


@pytest.mark.parametrize("layers", [None, "all"])
@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError, RuntimeError, ValueError])
def test_an_error_of_the_model_is_one_line_and_finished_batches_are_kept(tmp_path, photos, error, layers):
    encoder, _ = vit(pooling="cls")
    calls = []

    def fails(run):
        def run_or_fail(*args):
            calls.append(args)
            if len(calls) == 3 + (layers is not None):  # with layers, the first call determines their dimensions
                raise error("CUDA out of memory.\nTried to allocate 20 GiB")
            return run(*args)

        return run_or_fail

    failing = replace(encoder, run=fails(encoder.run), run_layers=fails(encoder.run_layers))
    out = tmp_path / ("x.parquet" if layers is None else "x")
    with pytest.raises(InputError, match=r"failed on items 4 to 5: CUDA out .*Tried .*set a smaller `batch_size`") as e:
        encoders.embed(failing, photos, out, batch_size=2, layers=layers)
    assert "\n" not in str(e.value)
    assert len(list((tmp_path / f"{out.name}.partial").glob("part-*"))) == 2
    assert encoders.embed(encoder, photos, out, batch_size=1, layers=layers) == 6


@pytest.mark.parametrize("architecture", ["test_vit", "test_resnet", "test_convnext"])
def test_every_layer_of_an_image_encoder_equals_a_run_for_that_layer(tmp_path, photos, architecture):
    args = {"img_size": 32} if architecture == "test_vit" else {}
    model = build(architecture, num_classes=0, **args)
    encoder = encoders.from_module(model, card(architecture, layer=-1), device="cpu")
    layers = range(1, len(model.feature_info) + 1)

    assert encoders.embed(encoder, photos, tmp_path / "x", batch_size=4, layers="all") == 6

    assert sorted(p.name for p in tmp_path.glob("x/*")) == [f"tiny.layer{layer:02d}.parquet" for layer in layers]
    assert not list(tmp_path.glob("*.partial"))
    for layer in layers:
        alone = encoders.from_module(model, card(architecture, layer=layer), device="cpu")
        encoders.embed(alone, photos, tmp_path / f"{layer}.parquet", batch_size=4)
        together, single = read(tmp_path / "x" / f"tiny.layer{layer:02d}.parquet"), read(tmp_path / f"{layer}.parquet")
        np.testing.assert_array_equal(together.vectors, single.vectors)
        assert list(together.ids) == list(single.ids)
        assert together.space == replace(single.space, name=f"tiny.layer{layer:02d}")


def test_every_layer_of_a_text_encoder_equals_a_run_for_that_layer(tmp_path, bert):
    (tmp_path / "t.txt").write_text("\n".join(TEXTS * 9))
    encoders.embed(str(bert), tmp_path / "t.txt", tmp_path / "x", batch_size=2, layers="all", skip_first=True)
    assert len(list(tmp_path.glob("x/*"))) == 3
    for layer in range(3):
        out = tmp_path / f"{layer}.parquet"
        encoders.embed(str(bert), tmp_path / "t.txt", out, batch_size=2, layer=layer, skip_first=True)
        together, single = read(tmp_path / "x" / f"tiny-bert.layer{layer:02d}.parquet"), read(out)
        np.testing.assert_array_equal(together.vectors, single.vectors)
        assert together.space == replace(single.space, name=f"tiny-bert.layer{layer:02d}")


def test_layer_0_of_a_text_encoder_is_the_input_of_its_first_block(tmp_path, bert):
    encoder = encoders.load_encoder(str(bert))
    entered = []
    encoder.model.encoder.layer[0].register_forward_hook(lambda block, inputs, output: entered.append(inputs[0]))
    [space] = encoder.layer_spaces([0])
    [rows] = encoder.encode_layers([TEXTS[1]], [space])
    np.testing.assert_allclose(rows[0], entered[-1][0].mean(0).numpy(), atol=1e-6)


def test_layers_are_counted_from_either_end_and_written_once(tmp_path, photos):
    encoder, model = vit(layer=-1, normalised=True)
    encoders.embed(encoder, photos, tmp_path / "x", layers=[-1, 2, len(model.blocks)], dtype="float16")
    files = sorted(tmp_path.glob("x/*"))
    assert [read(path).space.layer for path in files] == [2, len(model.blocks)]
    np.testing.assert_allclose(np.linalg.norm(read(files[0]).vectors.astype(np.float32), axis=1), 1, atol=1e-3)
    assert read(files[0]).vectors.dtype == np.float16


def test_an_interrupted_embed_of_layers_resumes_to_the_same_files(tmp_path, photos):
    encoder, _ = vit(layer=-1)
    with pytest.raises(KeyboardInterrupt):
        encoders.embed(interrupted(encoder, 3), photos, tmp_path / "x", batch_size=2, layers="all")
    assert not (tmp_path / "x").exists()
    with pytest.raises(InputError, match="unfinished rows of another job"):
        encoders.embed(encoder, photos, tmp_path / "x", batch_size=2, layers=[1])

    assert encoders.embed(interrupted(encoder, 2), photos, tmp_path / "x", batch_size=2, layers="all") == 6

    encoders.embed(encoder, photos, tmp_path / "y", batch_size=2, layers="all")
    files = sorted(tmp_path.glob("x/*"))
    assert [p.name for p in files] == sorted(p.name for p in tmp_path.glob("y/*"))
    for path in files:
        x, y = read(path), read(tmp_path / "y" / path.name)
        np.testing.assert_array_equal(x.vectors, y.vectors)
        assert (list(x.ids), x.space) == (list(y.ids), y.space)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["photos", "x", "y"]


def test_layers_interrupted_while_being_published_are_published_by_the_next_run(tmp_path, photos, monkeypatch):
    encoder, _ = vit(layer=-1)
    with monkeypatch.context() as patch:
        patch.setattr(pq.ParquetWriter, "write_table", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            encoders.embed(encoder, photos, tmp_path / "x", layers=[1, 2])
    assert not (tmp_path / "x").exists()
    encoders.embed(interrupted(encoder, 1), photos, tmp_path / "x", layers=[1, 2])
    assert [read(path).space.layer for path in sorted(tmp_path.glob("x/*"))] == [1, 2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": [9]}, "`layer` of 'tiny-bert' must be from 0 to 2, .* got 9"),
        ({"layers": []}, r"`layers` must be 'all' or a list of layer numbers; got \[\]"),
        ({"layers": "last"}, "`layers` must be 'all' or a list of layer numbers; got 'last'"),
        ({"layers": "all", "layer": 1}, "`layer` and `layers` cannot be combined"),
        ({"layers": "all", "limit": 0}, "`limit` must be at least 1; got 0"),
    ],
)
def test_invalid_layers_are_refused(tmp_path, bert, settings, message):
    (tmp_path / "t.txt").write_text("a\n")
    with pytest.raises(InputError, match=message):
        encoders.embed(str(bert), tmp_path / "t.txt", tmp_path / "x", **settings)


def test_stages_may_have_another_dim_than_the_card(tmp_path, photos):
    torch.manual_seed(0)
    made = encoders.from_module(build("test_resnet", num_classes=0), card(pooling="gap"))
    assert made.card.dim == 96
    path = encoders.save(made, tmp_path)
    encoders.embed(str(path), photos, tmp_path / "x", layers="all")
    widths = [read(file).space.dim for file in sorted(tmp_path.glob("x/*"))]
    assert widths == [info["num_chs"] for info in made.model.feature_info]


def test_layers_need_an_out_folder_that_does_not_exist(tmp_path, photos):
    encoder, _ = vit(layer=-1)
    with pytest.raises(InputError, match=r"`out` must be a folder, because .* is written; got 'x\.parquet'"):
        encoders.embed(encoder, photos, tmp_path / "x.parquet", layers="all")
    with pytest.raises(InputError, match=r"`out` .* exists and is never overwritten"):
        encoders.embed(encoder, photos, photos, layers="all")


def test_layers_without_pooling_or_of_an_unknown_network_are_refused(tmp_path, photos):
    pooled, _ = vit(pooling="none")
    with pytest.raises(InputError, match="with a `pooling` other than none"):
        encoders.embed(pooled, photos, tmp_path / "x", layers="all")
    flat = encoders.from_module(torch.nn.Flatten(), card())
    with pytest.raises(
        InputError, match="`layer` of 'tiny' must not be set, because its model does not list its blocks"
    ):
        encoders.embed(flat, photos, tmp_path / "x", layers="all")


# --- interrupting and resuming ----------------------------------------------------------------------------------------


def test_an_interrupted_embed_resumes_to_the_same_file(tmp_path, photos):
    encoder = encoders.from_module(build("test_resnet", num_classes=0), card())
    with pytest.raises(KeyboardInterrupt):
        encoders.embed(interrupted(encoder, 2), photos, tmp_path / "x.parquet", batch_size=2)
    assert not (tmp_path / "x.parquet").exists()

    assert encoders.embed(interrupted(encoder, 1), photos, tmp_path / "x.parquet", batch_size=2) == 6

    encoders.embed(encoder, photos, tmp_path / "y.parquet", batch_size=2)
    x, y = read(tmp_path / "x.parquet"), read(tmp_path / "y.parquet")
    assert list(x.ids) == list(y.ids)
    np.testing.assert_array_equal(x.vectors, y.vectors)
    assert x.space == y.space


def test_texts_are_written_in_their_order_at_any_batch_size(tmp_path, bert):
    (tmp_path / "t.txt").write_text("\n".join(TEXTS * 9))
    encoder = encoders.load_encoder(str(bert))
    for size in (1, 2, 64):
        encoders.embed(str(bert), tmp_path / "t.txt", tmp_path / f"{size}.parquet", batch_size=size)
        rows = read(tmp_path / f"{size}.parquet")
        assert list(rows.ids) == [str(i) for i in range(45)]
        np.testing.assert_allclose(rows.vectors, encoder.encode(TEXTS * 9), atol=1e-5)


@pytest.mark.parametrize("change", ["weights", "dtype", "precision", "items"])
def test_unfinished_rows_are_not_resumed_with_other_weights_dtype_precision_or_items(tmp_path, photos, change):
    def encoder(seed: int = 0, precision: str = "float32") -> encoders.Encoder:
        torch.manual_seed(seed)
        return encoders.from_module(build("test_resnet", num_classes=0), card(), precision=precision)

    out = tmp_path / "x.parquet"
    with pytest.raises(KeyboardInterrupt):
        encoders.embed(interrupted(encoder(), 1), photos, out, batch_size=2)
    if change == "items":  # the rows already written include this image
        Image.new("RGB", (32, 32), "red").save(photos / "0.png")
    other = encoder(seed=int(change == "weights"), precision="bfloat16" if change == "precision" else "float32")
    with pytest.raises(InputError, match="contains the unfinished rows of another job"):
        encoders.embed(other, photos, out, batch_size=2, dtype="float16" if change == "dtype" else "float32")


@pytest.mark.parametrize("layers", [None, "all"])
def test_images_replaced_at_the_same_size_and_time_are_noticed_and_touched_ones_are_the_same(tmp_path, photos, layers):
    encoder, out = vit(layer=-1)[0], tmp_path / ("x" if layers else "x.parquet")
    with pytest.raises(KeyboardInterrupt):
        encoders.embed(interrupted(encoder, 2 + bool(layers)), photos, out, batch_size=2, layers=layers)
    path = photos / "2.png"
    content, times = path.read_bytes(), path.stat()
    path.write_bytes(content[:-30] + bytes([content[-30] ^ 1]) + content[-29:])
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(InputError, match=r"unfinished rows of another job; .* Rows 0 to 1 of its input had other"):
        encoders.embed(encoder, photos, out, batch_size=2, layers=layers)
    path.write_bytes(content)  # at a new time
    assert encoders.embed(interrupted(encoder, 1 + bool(layers)), photos, out, batch_size=2, layers=layers) == 6


@pytest.mark.parametrize("change", ["text", "id", "order"])
def test_texts_and_ids_that_change_between_stop_and_resume_are_refused(tmp_path, bert, change):
    encoder, table, out = encoders.load_encoder(str(bert)), tmp_path / "t.csv", tmp_path / "x.parquet"
    lines = ["id,text", *(f"{i},{text}" for i, text in enumerate(TEXTS * 9))]
    table.write_text("\n".join(lines))
    with pytest.raises(KeyboardInterrupt):
        encoders.embed(interrupted(encoder, 16), f"{table}:text", out, batch_size=1)
    changed = lines.copy()
    if change == "text":
        changed[3] = "2,the dog"
    elif change == "id":
        changed[3] = changed[3].replace("2,", "A,", 1)
    else:
        changed[3], changed[4] = lines[4], lines[3]
    table.write_text("\n".join(changed))
    with pytest.raises(InputError, match=r"Rows 0 to 15 of its input had other content"):
        encoders.embed(encoder, f"{table}:text", out, batch_size=1)
    table.write_text("\n".join(lines))
    assert encoders.embed(encoder, f"{table}:text", out, batch_size=1) == 45


SETTINGS = {
    "the tokenizer": ("tokenizer.json", '"cat"', '"cow"'),
    "the activation": ("config.json", '"gelu"', '"relu"'),
    "an epsilon": ("config.json", '"layer_norm_eps": 1e-12', '"layer_norm_eps": 0.5'),
}


@pytest.mark.parametrize("change", SETTINGS)
def test_unfinished_rows_are_not_resumed_after_a_file_beside_the_weights_has_changed(tmp_path, bert, change):
    (tmp_path / "t.txt").write_text("\n".join(TEXTS * 9))
    out = tmp_path / "x.parquet"
    with pytest.raises(KeyboardInterrupt):
        encoders.embed(interrupted(encoders.load_encoder(str(bert)), 16), tmp_path / "t.txt", out, batch_size=1)
    name, old, new = SETTINGS[change]
    content = (bert / name).read_text()
    assert old in content
    (bert / name).write_text(content.replace(old, new))
    with pytest.raises(InputError, match="contains the unfinished rows of another job"):
        encoders.embed(str(bert), tmp_path / "t.txt", out, batch_size=1)
    (bert / name).write_text(content)
    (bert / "README.md").write_text("What the model is for.")  # no vector depends on it
    assert encoders.embed(str(bert), tmp_path / "t.txt", out, batch_size=1) == 45


@needs_data
def test_a_small_llama_reproduces_the_vectors_of_captions(tmp_path):
    folder = DATA / "text_encoders" / "stories260K"
    captions = (DATA / "captions" / "captions.tsv").read_text(encoding="utf-8").splitlines()[:100]
    (tmp_path / "c.tsv").write_text("\n".join(captions), encoding="utf-8")
    encoders.embed(str(folder), f"{tmp_path / 'c.tsv'}:2", tmp_path / "c.parquet", skip_first=True)
    rows = read(tmp_path / "c.parquet").vectors
    assert cosines(rows, np.load(DATA / "captions" / "stories260K_meanpool.npy")[:100]).min() > 0.999


# --- truncated texts --------------------------------------------------------------------------------------------------


def metadata(path):
    return {key: value for key, value in pq.read_schema(path).metadata.items() if key == b"repstitch.truncated"}


def test_truncated_texts_are_counted_in_the_file_and_in_a_warning(tmp_path, bert, caplog):
    texts = ["a b", "a b c d", "a b c d e f g", "a", "a b c"]  # 4, 6, 9, 3 and 5 tokens
    (tmp_path / "t.txt").write_text("\n".join(texts))
    encoders.embed(str(bert), tmp_path / "t.txt", tmp_path / "x.parquet", max_length=5)
    assert metadata(tmp_path / "x.parquet") == {b"repstitch.truncated": b"2"}
    assert n_truncated(tmp_path / "x.parquet") == 2
    assert "t.txt: 2 of 5 texts are truncated to 5 tokens (the longest has 9)" in caplog.text
    encoder = encoders.load_encoder(str(bert), max_length=5)
    assert encoder.count_tokens(texts).tolist() == [4, 6, 9, 3, 5]
    assert encoder.card.max_length == 5


def test_texts_that_fit_are_not_warned_of(tmp_path, bert, caplog):
    (tmp_path / "t.txt").write_text("a b\nc")
    encoders.embed(str(bert), tmp_path / "t.txt", tmp_path / "x", max_length=4, layers="all")
    assert [metadata(path) for path in (tmp_path / "x").iterdir()] == [{b"repstitch.truncated": b"0"}] * 3
    assert n_truncated(tmp_path / "x") == 0
    assert not caplog.records


def test_the_prompt_counts_as_a_part_of_the_text(bert):
    encoder = encoders.load_encoder(str(bert), prompt="query : ")
    assert encoder.count_tokens(["a b"]).tolist() == [6]
    assert encoder.count_tokens([]).tolist() == []


def test_all_truncated_texts_are_counted_if_the_job_is_resumed(tmp_path, bert):
    (tmp_path / "t.txt").write_text("a b c d\n" * 40 + "a\n" * 40)
    encoder = encoders.load_encoder(str(bert), max_length=4)
    with pytest.raises(KeyboardInterrupt):
        encoders.embed(interrupted(encoder, 34), tmp_path / "t.txt", tmp_path / "x.parquet", batch_size=2)
    encoders.embed(encoder, tmp_path / "t.txt", tmp_path / "x.parquet", batch_size=2)
    assert metadata(tmp_path / "x.parquet") == {b"repstitch.truncated": b"40"}


def test_images_have_no_tokens(tmp_path, photos):
    encoder, _ = vit(pooling="cls")
    encoders.embed(encoder, photos, tmp_path / "x.parquet")
    assert metadata(tmp_path / "x.parquet") == {}
    with pytest.raises(InputError, match="`encoder` 'tiny' must be a text encoder to count tokens"):
        encoder.count_tokens(["a"])
    assert n_truncated(tmp_path / "x.parquet") is None


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2", "opt", "distilbert", "electra", "albert", "deberta-v2"])
def test_a_text_of_any_length_is_cut_to_the_positions_of_the_model(tmp_path, kind):
    settings = {"n_embd": 16, "n_layer": 1, "n_head": 2} if kind == "gpt2" else {}
    folder = save_reader(tmp_path / kind, kind, model_max_length=int(1e30), **settings)
    encoder = encoders.load_encoder(str(folder))
    n_words = (encoder.card.max_length or 0) - (encoder.count_tokens(["dog"])[0] - 1)
    np.testing.assert_allclose(encoder.encode(["dog " * 500]), encoder.encode(["dog " * n_words]), atol=1e-5)
