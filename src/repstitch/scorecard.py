"""Score one stitcher on held-out pairs."""


def model_card(config: dict, scorecard: dict) -> str:
    """The README of a stitcher's folder, written from its scorecard."""
    return f"# {config['source']['name']} to {config['target']['name']}\n"
