"""The README of a stitcher's folder, in the form that the Hugging Face Hub expects."""

from collections.abc import Mapping
from typing import Any

from repstitch.evaluation.scorecard import Scorecard


def model_card(config: Mapping[str, Any], card: Scorecard) -> str:
    """The text of the README, from the stitcher's stored configuration and its scorecard."""
    source, target = config["source"], config["target"]
    sections = [
        f"# {source['name']} → {target['name']}",
        f"Translates embeddings of `{source['name']}` ({source['dim']} dimensions) into the space of "
        f"`{target['name']}` ({target['dim']} dimensions). Method `{config['method']}`, chosen for the objective "
        f"`{config['objective']}`; input normalisation `{config['input_norm']}`, output `{config['output_norm']}`.",
    ]
    if card:
        sections += ["## Scores", f"Measured on {card.held_out} only.", f"```\n{card}\n```"]
        if card.refit:
            sections.append("The map was fitted once more on all pairs after these scores were taken.")
    sections += [
        "## Use",
        '```python\nfrom repstitch import load\n\ntranslated = load("PATH").translate(vectors)\n```',
        "It works one way only, for vectors of that source space only. A translated vector is an estimate: where the "
        "source holds less than the target, what is missing cannot be brought back.",
        "A vector in a known space can be inverted to its text or image; treat translated vectors like the data "
        "they were made from.",
    ]
    front = "---\nlibrary_name: repstitch\ntags:\n- embeddings\n- model-stitching\n---\n\n"
    return front + "\n\n".join(sections) + "\n"
