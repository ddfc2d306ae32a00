"""Reading a page of Prometheus metrics."""

from prometheus_client.parser import text_string_to_metric_families


def numbers(text: str) -> dict[tuple, float]:
    """Every sample of a page of metrics by its name and its labels, in the order of their names."""
    return {
        (sample.name.removeprefix("repstitch_"), *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
