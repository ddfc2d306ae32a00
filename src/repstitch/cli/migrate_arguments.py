"""The options of the steps of `migrate`."""

import argparse


def add_names_arguments(step: argparse.ArgumentParser) -> None:
    """Add the options on the names of columns and where the new vectors stand."""
    names = step.add_argument_group("names and layout")
    names.add_argument("--new-vector", metavar="NAME", help="name of the new column (default: the old name and _new)")
    names.add_argument(
        "--old-vector", metavar="NAME", help="name of the old column after the cut-over (default: its name and _old)"
    )
    names.add_argument(
        "--layout",
        choices=("column", "side"),
        help="where the new vectors stand: in a second column, or in a side table (default: the store decides)",
    )
    names.add_argument(
        "--translated-length",
        type=float,
        metavar="A",
        help="length of translated rows, where native rows have length 1, so that one search ranks both rightly; plan "
        "says which length finds most (default: 1)",
    )
    names.add_argument("--view", metavar="NAME", help="view through which readers read; the cut-over replaces it")
    add_swap_arguments(step)


def add_swap_arguments(step: argparse.ArgumentParser) -> None:
    """Add the options on whether the cut-over swaps names."""
    swap = step.add_mutually_exclusive_group()
    swap.add_argument(
        "--keep-names",
        action="store_true",
        default=None,
        help="the cut-over swaps no names, and readers go to the new name (default between equal dimensions)",
    )
    swap.add_argument(
        "--swap-equal",
        action="store_true",
        default=None,
        help="swap the names although both spaces have the same number of dimensions, so that readers that still send "
        "old queries get wrong results without an error",
    )
    step.add_argument(
        "--guard",
        action="store_true",
        default=None,
        help="after the cut-over, refuse writes of vectors that do not state the new space in column vector_space",
    )


def add_speed_arguments(step: argparse.ArgumentParser) -> None:
    """Add the options on how fast a table is filled."""
    step.add_argument("--workers", type=int, metavar="N", help="connections that fill at the same time (default: 1)")
    step.add_argument(
        "--max-rows-per-second", type=float, metavar="N", help="most rows to translate per second (default: no limit)"
    )


def add_cost_arguments(step: argparse.ArgumentParser) -> None:
    """Add the options on the cost of re-embedding."""
    step.add_argument(
        "--text-column",
        metavar="NAME",
        help="column of the texts, to estimate the cost of re-embedding, and for an encoder to embed",
    )
    step.add_argument(
        "--price-per-million", type=float, metavar="PRICE", help="price of a million tokens of re-embedding"
    )


def add_share_arguments(step: argparse.ArgumentParser) -> None:
    """Add the options on the share of rows to embed anew."""
    step.add_argument(
        "--share", type=float, metavar="SHARE", help="share of the rows to embed anew with the new model, such as 0.2"
    )
    step.add_argument(
        "--ids-out", metavar="FILE", help="file to write the ids of these rows to, the densest ones, one per line"
    )
    step.add_argument(
        "--queries", metavar="Q", help="embeddings of queries by the new model: rows that they find come first"
    )
    step.add_argument(
        "--plot", metavar="FILE", help="draw what shares of dense and of random rows gain, as .png, .svg or .pdf"
    )


def add_native_arguments(step: argparse.ArgumentParser) -> None:
    """Add the options on the native vectors of rows that are embedded anew."""
    step.add_argument(
        "--reembed",
        metavar="FILE|ADDRESS|ENCODER",
        help="native vectors of rows by the new model, with their ids, to write in place of translations; or the "
        "encoder, as `repstitch embed` takes it, that embeds the texts of --ids in --text-column",
    )
    step.add_argument(
        "--ids", metavar="FILE", help="ids of the rows to embed anew, one per line, as `plan --ids-out` writes them"
    )


def add_verify_arguments(step: argparse.ArgumentParser) -> None:
    """Add the options on what to verify with."""
    step.add_argument("--target", metavar="Y", help="native target embeddings of rows of the table, with their ids")
    step.add_argument("--queries", metavar="Q", help="embeddings of queries by the new model")
    step.add_argument("--old-queries", metavar="Q", help="embeddings of the same queries by the old model")
    step.add_argument(
        "--qrels", metavar="FILE", help="relevance judgements of --queries: lines of query, document, grade"
    )
    step.add_argument(
        "--index-recall",
        type=float,
        metavar="SHARE",
        help="least share of the exact nearest ten that the new index must find (default: 0.95)",
    )
    step.add_argument("--filter", metavar="CONDITION", help="condition of the store, to time filtered searches too")


def add_cut_over_arguments(step: argparse.ArgumentParser) -> None:
    """Add the options on the cut-over."""
    step.add_argument(
        "--max-rest", type=int, metavar="N", help="most rows to catch up inside the cut-over (default: 1000)"
    )
    step.add_argument(
        "--without-search", action="store_true", help="cut over although no search question was asked in the store"
    )
    add_swap_arguments(step)
    add_pause_arguments(step)


def add_pause_arguments(step: argparse.ArgumentParser) -> None:
    """Add the options on how long others may wait."""
    step.add_argument(
        "--max-pause",
        type=float,
        metavar="SECONDS",
        help="most seconds for which readers and writers may have to wait (default: 2)",
    )


def add_discard_arguments(step: argparse.ArgumentParser) -> None:
    """Add the options on what a clean-up may remove."""
    step.add_argument("--discard", action="store_true", help="remove vectors also where a row has no other one")
    add_yes_argument(step)


def add_yes_argument(step: argparse.ArgumentParser) -> None:
    """Add the options on the question before anything is written."""
    step.add_argument("--yes", action="store_true", help="do not ask before anything is written")
