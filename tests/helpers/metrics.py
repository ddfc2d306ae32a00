"""Parse the text of a Prometheus metrics page."""

from prometheus_client.parser import text_string_to_metric_families


def numbers(text: str) -> dict[tuple, float]:
    """Return the value of each sample, by its name and its label values in the order of the label names."""
    return {
        (sample.name.removeprefix("repstitch_"), *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
