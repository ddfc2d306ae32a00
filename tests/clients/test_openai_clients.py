"""The clients of OpenAI's API, and libraries built on them, get the vectors that repstitch computes."""

import asyncio
import json
import shutil
import subprocess
from typing import Any

import numpy as np
import pytest
from helpers.serving import ROOT, make_rows

pytestmark = pytest.mark.clients

KEY, TEXTS, MODEL = "first-key", ["the cat sat on the mat", "a dog", "b"], "words->new"
NODE_FOLDER = ROOT / "build" / "clients"
NODE = """
import OpenAI, {AzureOpenAI} from "openai";
const [address, key, texts, rows] = JSON.parse(process.argv[2]);
const plain = new OpenAI({baseURL: `${address}/v1`, apiKey: key});
const azure = new AzureOpenAI({endpoint: address, apiKey: key, apiVersion: "2026-01-01"});
const ask = async (client, model, input) =>
    (await client.embeddings.create({model, input})).data.map((each) => each.embedding);
console.log(JSON.stringify([
    await ask(plain, "words->new", texts), await ask(azure, "words->new", texts), await ask(plain, "old->new", rows),
    (await plain.models.retrieve("old->new")).id,
]));
"""


def close(vectors: Any, expected: np.ndarray) -> bool:
    return np.allclose(np.array(vectors, np.float64), expected, atol=1e-5)


def test_openai(service):
    import openai

    with openai.OpenAI(base_url=f"{service.address}/v1", api_key=KEY) as client:
        answer = client.embeddings.create(model=MODEL, input=TEXTS)
        rows = client.embeddings.create(model="old-to-new", input=make_rows(3).tolist())  # pyright: ignore
        assert client.models.retrieve(MODEL).id == MODEL
        assert MODEL in [each.id for each in client.models.list()]
    assert close([each.embedding for each in answer.data], service.texts)
    assert answer.usage.prompt_tokens == sum(len(text.split()) + 2 for text in TEXTS)
    assert close([each.embedding for each in rows.data], service.vectors.translate(make_rows(3)))


def test_openai_async(service):
    import openai

    async def ask():
        async with openai.AsyncOpenAI(base_url=f"{service.address}/v1/", api_key=KEY) as client:
            answers = [client.embeddings.create(model=MODEL, input=TEXTS) for _ in range(16)]
            return await asyncio.gather(*answers)

    for answer in asyncio.run(ask()):
        assert close([each.embedding for each in answer.data], service.texts)


@pytest.mark.parametrize("deployment", [None, MODEL])
def test_azure_openai(service, deployment):
    import openai

    options: dict[str, Any] = {"azure_endpoint": service.address, "azure_deployment": deployment}
    with openai.AzureOpenAI(api_key=KEY, api_version="2026-01-01", **options) as client:
        answer = client.embeddings.create(model=MODEL if deployment is None else "ada", input=TEXTS)
    with openai.AzureOpenAI(api_key=KEY, api_version="2026-01-01", azure_endpoint=service.address) as client:
        assert MODEL in [each.id for each in client.models.list()]
    assert close([each.embedding for each in answer.data], service.texts)


def test_openai_for_node(service):
    if shutil.which("node") is None or not (NODE_FOLDER / "node_modules" / "openai").is_dir():
        pytest.skip("requires node, and openai from npm in build/clients")
    script = NODE_FOLDER / "ask.mjs"
    script.write_text(NODE, encoding="utf-8")
    whole = [[1, 0, -2, 0, 3, 0], [1, 1, 1, 1, 1, 1]]  # JavaScript has one type of number, so 1.0 is sent as 1
    asked = json.dumps([service.address, KEY, TEXTS, whole])
    run = subprocess.run(["node", script, asked], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    texts, azure, rows, model = json.loads(run.stdout)
    assert close(texts, service.texts)
    assert close(azure, service.texts)
    assert close(rows, service.vectors.translate(np.array(whole, np.float32)))
    assert model == "old->new"


def test_langchain(service):
    langchain = pytest.importorskip("langchain_openai")
    options: dict[str, Any] = {"api_key": KEY, "check_embedding_ctx_length": False}
    plain = langchain.OpenAIEmbeddings(model=MODEL, base_url=f"{service.address}/v1", **options)
    azure = langchain.AzureOpenAIEmbeddings(
        azure_endpoint=service.address, azure_deployment=MODEL, api_version="2026-01-01", **options
    )
    for embeddings in (plain, azure):
        assert close(embeddings.embed_documents(TEXTS), service.texts)
        assert close(embeddings.embed_query(TEXTS[1]), service.texts[1])
        assert close(asyncio.run(embeddings.aembed_documents(TEXTS)), service.texts)


def test_langchain_that_sends_tokens_learns_which_setting_to_change(service):
    import openai

    langchain = pytest.importorskip("langchain_openai")

    class Words:
        """A tokenizer, in place of one that would be downloaded."""

        def encode_ordinary(self, text):
            return [len(word) for word in text.split()]

    embeddings = langchain.OpenAIEmbeddings(model=MODEL, base_url=f"{service.address}/v1", api_key=KEY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tiktoken.encoding_for_model", lambda _: Words())
        patch.setattr("tiktoken.get_encoding", lambda _: Words())
        with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False"):
            embeddings.embed_documents(TEXTS)


def test_llama_index(service):
    llama_index = pytest.importorskip("llama_index.embeddings.openai_like")
    client = llama_index.OpenAILikeEmbedding(model_name=MODEL, api_base=f"{service.address}/v1", api_key=KEY)
    assert close(client.get_text_embedding_batch(TEXTS), service.texts)
    assert close(client.get_query_embedding(TEXTS[2]), service.texts[2])


def test_litellm(service):
    litellm = pytest.importorskip("litellm")
    for options in (
        {"model": f"openai/{MODEL}", "api_base": f"{service.address}/v1"},
        {"model": f"azure/{MODEL}", "api_base": service.address, "api_version": "2026-01-01"},
    ):
        answer: Any = litellm.embedding(input=TEXTS, api_key=KEY, **options)
        assert close([each["embedding"] for each in answer.data], service.texts)


def test_chroma(service):
    functions = pytest.importorskip("chromadb.utils.embedding_functions")
    function = functions.OpenAIEmbeddingFunction(api_key=KEY, api_base=f"{service.address}/v1", model_name=MODEL)
    assert close(function(TEXTS), service.texts)


def test_haystack(service):
    haystack, embedders = pytest.importorskip("haystack"), pytest.importorskip("haystack.components.embedders")
    secret = pytest.importorskip("haystack.utils").Secret.from_token(KEY)
    options: dict[str, Any] = {"api_key": secret, "api_base_url": f"{service.address}/v1"}
    texts = embedders.OpenAITextEmbedder(model=MODEL, **options)
    assert close(texts.run(TEXTS[0])["embedding"], service.texts[0])
    documents = embedders.OpenAIDocumentEmbedder(model=MODEL, progress_bar=False, **options)
    answer = documents.run([haystack.Document(content=text) for text in TEXTS])["documents"]
    assert close([each.embedding for each in answer], service.texts)
