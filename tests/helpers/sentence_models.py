"""Small models of random weights, saved by Sentence Transformers in the layouts that its releases write."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from repstitch.encoders import load_encoder

WORDS = ("the", "cat", "dog", "sat", "on", "a", "mat", "The", "Cat", "query", "passage", ":", "find", "big", "house")
TEXTS = ["the cat sat", "a dog", "The Cat sat on a big mat : the house", "dog " * 30, "cat", "Mat", "find the the dog"]
POSITIONS = 24


def word_tokenizer(special: bool = True, **settings: Any) -> Any:
    """Return a tokenizer of transformers with one token a word, and with a first and a last token if `special`."""
    from transformers import PreTrainedTokenizerFast

    names = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if special:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
        )
    settings = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"} | settings
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **settings)


def save_reader(folder: Path, kind: str = "bert", **settings: Any) -> Path:
    """Save a one-layer model of transformers with random weights and 16 dimensions, and its tokenizer, to a folder."""
    from transformers import AutoConfig, AutoModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    sizes |= {"vocab_size": len(WORDS) + 4, "max_position_embeddings": POSITIONS}
    config = AutoConfig.for_model(kind, **{key: value for key, value in (sizes | settings).items() if value})
    AutoModel.from_config(config).save_pretrained(folder)
    word_tokenizer(model_max_length=settings.get("model_max_length", POSITIONS)).save_pretrained(folder)
    return folder


def save_model(folder: Path, *modules: Any, **settings: Any) -> Path:
    """Save modules as a Sentence Transformers model."""
    from sentence_transformers import SentenceTransformer

    SentenceTransformer(modules=list(modules), device="cpu", **settings).save(str(folder), create_model_card=False)
    return folder


def reader(folder: Path, kind: str = "bert", **settings: Any) -> Any:
    from sentence_transformers.sentence_transformer.modules import Transformer

    return Transformer(str(save_reader(folder / "reader", kind, **settings)))


def rewrite(file: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None removes a key."""
    content = (json.loads(file.read_text()) if file.is_file() else {}) | changes
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def age(folder: Path) -> Path:
    """Rewrite a folder of a Transformer and a Pooling as releases before 5.4 wrote it."""
    modules = json.loads((folder / "modules.json").read_text())
    for module in modules:
        module["type"] = f"sentence_transformers.models.{module['type'].rpartition('.')[2]}"
    (folder / "modules.json").write_text(json.dumps(modules))
    pooling = folder / "1_Pooling" / "config.json"
    chosen = json.loads(pooling.read_text())["pooling_mode"]
    chosen = [chosen] if isinstance(chosen, str) else chosen
    flags = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens", "weightedmean": "weightedmean_tokens"}
    flags |= {"mean_sqrt_len_tokens": "mean_sqrt_len_tokens", "lasttoken": "lasttoken"}
    states = {f"pooling_mode_{flag}": mode in chosen for mode, flag in flags.items()}
    pooling.write_text(json.dumps({"word_embedding_dimension": 16} | states))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 12, "do_lower_case": false}')
    return folder


def move_reader(folder: Path, name: str = "0_Transformer") -> Path:
    """Move the files of the first module from the root to a folder of their own, as releases before 3 wrote them."""
    (folder / name).mkdir()
    for path in list(folder.iterdir()):
        if path.is_file() and path.name not in ("modules.json", "config_sentence_transformers.json"):
            shutil.move(path, folder / name / path.name)
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = name
    (folder / "modules.json").write_text(json.dumps(modules))
    return folder


def reference(folder: Path, items: list, role: str = "none") -> np.ndarray:
    """Return the vectors of Sentence Transformers itself."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    encode = {"query": model.encode_query, "document": model.encode_document, "none": model.encode}[role]
    return np.asarray(encode(items), dtype=np.float64)


def check_same(folder: Path, items: list = TEXTS, role: str = "none", **settings: Any) -> Any:
    """Check that the vectors are those of Sentence Transformers, and return the encoder."""
    encoder = load_encoder(str(folder), role=role, device="cpu", **settings)
    rows, expected = encoder.encode(items).astype(np.float64), reference(folder, items, role)
    assert rows.shape == expected.shape
    lengths = np.linalg.norm(rows, axis=1), np.linalg.norm(expected, axis=1)
    np.testing.assert_allclose(*lengths, rtol=1e-4, atol=1e-6)
    cosines = (rows * expected).sum(1)[lengths[1] > 0] / (lengths[0] * lengths[1])[lengths[1] > 0]
    assert cosines.min() > 0.99999, cosines
    return encoder
