"""The output of `--json` keeps its keys, their order, types and numbers, because programs rely on them.

The files in golden/json are the output of release 0.1.0 for these commands on these synthetic spaces. Sentences may be
reworded, and numbers may differ by up to 2 %, because processors round differently. Intervals and standard errors are
wider since 0.2, because they also vary the rows that are searched.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from repstitch.cli.main import main

GOLDEN = Path(__file__).parent / "golden" / "json"
SENTENCES = {"why", "message", "warnings", "refused", "notes", "through", "how"}
# The keys that later releases added, by the end of the path of their object.
ADDED = {
    "scorecard": ("source", "target", "objective", "near_duplicates", "score_scale"),
    "thresholds": ("old_model",),
    "relevance": ("unseen_documents",),
    "confidence": ("auroc_interval", "usable", "reason"),
    "verdict": ("sure",),
    "numbers": ("retention_interval", "first_stage_interval", "reranked"),
    **dict.fromkeys(("overlap@10", "top10_in_97", "ndcg@10", "recall@100"), ("reranked",)),
}
WIDER = {"interval", "recall@1", "recall@5", "recall@10", "mrr", "overlap@10", "over_keep_old"}  # lists of two ends
OF_THIS_RUN = {"version", "repstitch", "torch", "python", "forward", "backward"}
SIDES = "--source old.npz --target new.npz"
MAKE: tuple[str, ...] = (
    f"train {SIDES} --out s/canon --method canonical --objective neighbours --device cpu",
    "train --source new.npz --target old.npz --out s/back --method ridge --objective reconstruction --device cpu",
)
COMMANDS: dict[str, str] = {
    "train": f"train {SIDES} --out s/ridge --method ridge --labels labels.csv:kind --device cpu",
    "score": f"score s/canon {SIDES}",
    "score-relevance": f"score s/canon {SIDES} --source-queries qold.npz --target-queries qnew.npz --qrels qrels.tsv",
    "align": "align old.npz new.npz --metric all",
    "align-sizes": "align old.npz new.npz third.npz --sizes 64,400 --permutations 50",
    "transfer": "transfer --backward s/back --forward s/canon --source old.npz --target new.npz "
    "--labels labels.csv:kind --out probe.safetensors",
}


def write_spaces(folder: Path) -> None:
    """Write three spaces of 400 items with three classes, and 60 queries with judgements."""
    random, n = np.random.default_rng(0), 400
    z = random.standard_normal((n, 12))
    z[:, 0] += 2 * (np.arange(n) % 3 == 0)
    z[:, 1] += 2 * (np.arange(n) % 3 == 1)
    spaces = {"old": z @ random.standard_normal((12, 24)) + 0.3 * random.standard_normal((n, 24))}
    spaces["new"] = np.tanh(z @ random.standard_normal((12, 32))) + 0.1 * random.standard_normal((n, 32))
    spaces["third"] = z @ random.standard_normal((12, 24)) + 0.6 * random.standard_normal((n, 24))
    queries = random.standard_normal((60, 12))
    spaces["qold"] = queries @ random.standard_normal((12, 24))
    spaces["qnew"] = np.tanh(queries) @ random.standard_normal((12, 32))
    for name, rows in spaces.items():
        ids = [f"{'q' if name.startswith('q') else 'i'}{i}" for i in range(len(rows))]
        np.savez(folder / f"{name}.npz", **{name: rows.astype(np.float32), "ids": np.array(ids)})
    judged = [f"q{i}\ti{(i * 7 + j) % n}\t{1 + j % 2}\n" for i in range(60) for j in range(5)]
    (folder / "qrels.tsv").write_text("".join(judged))
    (folder / "labels.csv").write_text("id,kind\n" + "".join(f"i{i},k{i % 3}\n" for i in range(n)))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("golden")
    write_spaces(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for line in MAKE:
            assert main(line.split()) == 0
    return folder


def differences(now, golden, at: str = "") -> list[str]:
    """List the differences of two JSON values: in keys and their order, in types, and in numbers beyond tolerance."""
    if isinstance(golden, dict) and isinstance(now, dict):
        added = ADDED.get(at.rpartition(".")[2], ())
        assert set(added) <= set(now), at
        now = {key: value for key, value in now.items() if key in golden or key not in added}
        if list(now) != list(golden):
            return [f"{at}: keys {list(now)} for {list(golden)}"]
        return [line for key in golden for line in differences(now[key], golden[key], f"{at}.{key}")]
    if isinstance(golden, list) and isinstance(now, list):
        if len(now) != len(golden):
            return [f"{at}: {len(now)} entries for {len(golden)}"]
        if at.rpartition(".")[2] in WIDER and len(golden) == 2:
            (low, high), (narrow_low, narrow_high) = now, golden
            inside = low <= narrow_low + 0.02 and narrow_high - 0.02 <= high
            return [] if inside and low <= high else [f"{at}: {now} for {golden}"]
        pairs = zip(now, golden, strict=True)
        return [line for i, pair in enumerate(pairs) for line in differences(*pair, f"{at}[{i}]")]
    if type(now) is not type(golden):
        return [f"{at}: {now!r} for {golden!r}"]
    key = at.rpartition(".")[2].partition("[")[0]
    if isinstance(golden, str) and key in SENTENCES | OF_THIS_RUN:
        return []
    if isinstance(golden, float):
        return [] if abs(now - golden) <= 0.02 * max(1, abs(golden)) else [f"{at}: {now} for {golden}"]
    return [] if now == golden else [f"{at}: {now!r} for {golden!r}"]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_json_output_equals_that_of_release_0_1_0(place, name, monkeypatch, capsys):
    monkeypatch.chdir(place)
    assert main([*COMMANDS[name].split(), "--json"]) == 0
    golden = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    root = "scorecard" if name.startswith("score") else ""
    now = json.loads(capsys.readouterr().out)
    if name == "score-relevance":  # since 0.2 documents that trained do not count in the verdicts
        for use in ("query", "corpus"):
            assert now[use]["verdict"] == now["relevance"]["unseen_documents"][use]["verdict"]
            now[use]["verdict"] = now["relevance"][use]["verdict"]
    assert differences(now, golden, root) == []


@pytest.mark.parametrize(
    ("now", "golden"),
    [
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ({"a": 1}, {"a": 1.0}),
        ({"a": [1]}, {"a": [1, 2]}),
        ({"a": 0.5}, {"a": 0.6}),
        ({"a": None}, {"a": 0.6}),
    ],
)
def test_a_difference_is_detected(now, golden):
    assert differences(now, golden)
