"""Write the README.md of a stitcher's folder: a model card in the format of the Hugging Face Hub."""

from collections.abc import Mapping
from typing import Any

from repstitch.evaluation.scorecard import Scorecard


def model_card(config: Mapping[str, Any], card: Scorecard) -> str:
    """Return the text of README.md for a stitcher with this stored configuration and scorecard."""
    source, target = config["source"], config["target"]
    sections = [
        f"# {source['name']} → {target['name']}",
        f"Translates embeddings of the space `{source['name']}` ({source['dim']} dimensions) into the space "
        f"`{target['name']}` ({target['dim']} dimensions). The map was learned by the method `{config['method']}` and "
        f"selected for the objective `{config['objective']}`. Input normalisation: `{config['input_norm']}`; output "
        f"normalisation: `{config['output_norm']}`.",
    ]
    if card:
        sections += ["## Scores", f"These scores were measured on {card.held_out} only.", f"```\n{card.table()}\n```"]
        if card.refit:
            sections.append("After scoring, the map was fitted again on all pairs; the scores are of the first fit.")
    sections += [
        "## Use",
        '```python\nfrom repstitch import load\n\ntranslated = load("PATH").translate(vectors)\n```',
        "The stitcher translates in one direction only, and only vectors of this source space. A translated vector is "
        "an estimate: information that the source vector does not contain cannot be recovered.",
        "Texts and images can be reconstructed from vectors of a known encoder. Protect translated vectors like the "
        "data that they were made from.",
    ]
    front = "---\nlibrary_name: repstitch\ntags:\n- embeddings\n- model-stitching\n---\n\n"
    return front + "\n\n".join(sections) + "\n"
