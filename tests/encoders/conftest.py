import pytest
import torch
from helpers.encoders import noise
from helpers.spaces import tiny_bert


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "b").mkdir(parents=True)
    for i, image in enumerate(noise()):
        image.save(folder / ("b" if i % 2 else ".") / f"{i}.png")
    (folder / "notes.md").write_text("not an image")
    return folder


@pytest.fixture
def bert(tmp_path):
    """A folder with a two-layer BERT of random weights and a tokenizer of a dozen words."""
    return tiny_bert(tmp_path / "tiny-bert")


@pytest.fixture
def clip(tmp_path):
    """A folder with a small CLIP of random weights, both towers, and a tokenizer of a dozen words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

    words = ["[UNK]", *"abcdefg", "the", "cat", "dog", "sat", "on", "mat", "with", "<start>", "<end>"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    start, end = len(words) - 2, len(words) - 1
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", start), ("<end>", end)]
    )
    folder = tmp_path / "tiny-clip"
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<end>").save_pretrained(folder)
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    small["projection_dim"] = 8
    text = small | {"vocab_size": len(words), "max_position_embeddings": 12, "bos_token_id": start, "eos_token_id": end}
    vision = small | {"image_size": 32, "patch_size": 16}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    return folder
