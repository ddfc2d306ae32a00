"""A job that writes given rows, to test how it is stopped and continued."""

import hashlib
from collections.abc import Iterator, Sequence
from itertools import accumulate

from repstitch.embeddings.parts import Job
from repstitch.embeddings.rows import Embeddings


def job_of(
    rows: Embeddings,
    size: int = 7,
    *,
    fail_at: int | None = None,
    n_rows: int | None = None,
    n_layers: int = 0,
    **settings,
) -> Job:
    """Return the job that writes these rows. It raises at the batch that starts at or after row `fail_at`.

    `n_rows` is the number of rows that it states. With `n_layers`, its batches are for `write_layers`.
    """

    def batch(at: int, size: int) -> tuple:
        part = rows.take(slice(at, at + size))
        names = [] if part.ids is None else part.ids
        digest = hashlib.sha256(part.vectors.tobytes() + "\n".join(names).encode()).hexdigest()
        return digest, part.ids, [part.vectors + i for i in range(n_layers)] if n_layers else part.vectors

    def produce(start: int) -> Iterator[tuple]:
        for at in range(start, len(rows), size):
            if fail_at is not None and at >= fail_at:
                raise RuntimeError("the power went out")
            yield batch(at, size)

    def input_hashes(sizes: Sequence[int]) -> Iterator[str]:
        for at, size in zip(accumulate(sizes, initial=0), sizes, strict=False):
            yield batch(at, size)[0]

    return Job(settings, len(rows) if n_rows is None else n_rows, produce, input_hashes)
