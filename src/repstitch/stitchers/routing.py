"""The best route from one space to another, through one or several stitchers."""

import heapq
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, reduce

from repstitch.stitchers.pipeline import Pipeline
from repstitch.stitchers.stitcher import Stitcher


def pair_key(source: str, target: str) -> str:
    """Return the text for a pair of spaces, as used in `promoted.json`, in HTTP responses and in messages."""
    return f"{source}->{target}"


@dataclass(frozen=True, eq=False, repr=False)
class Route:
    """The stitchers to apply in sequence to translate from one space to another: one, or several via other spaces."""

    names: tuple[str, ...]
    stitchers: tuple[Stitcher, ...]

    def __repr__(self) -> str:
        return f"Route({' -> '.join(self.spaces)} through {', '.join(self.names)})"

    @property
    def spaces(self) -> tuple[str, ...]:
        """The names of all spaces on the route, including both ends."""
        return (self.stitchers[0].source.name, *(stitcher.target.name for stitcher in self.stitchers))

    @cached_property
    def pipeline(self) -> Pipeline:
        """The maps of all stitchers in sequence, with the normalisations between them."""
        return reduce(Pipeline.then, (stitcher.pipeline for stitcher in self.stitchers))

    @cached_property
    def score(self) -> float | None:
        """Expected recall@1 in query use, in [0, 1]: the product of the stitchers' recalls.

        This assumes that steps fail independently. Each recall is measured in the pool of its own scorecard. None if
        one of the stitchers has no such score.
        """
        scores = [expected(stitcher) for stitcher in self.stitchers]
        return math.prod(s for s in scores if s is not None) if None not in scores else None


def expected(stitcher: Stitcher) -> float | None:
    """Return the recall@1 in query use from a stitcher's scorecard; None if there is none in [0, 1]."""
    score = stitcher.scorecard.query_recall
    return score if score is not None and 0 <= score <= 1 else None


def best_route(served: Mapping[str, Stitcher], source: str, target: str) -> tuple[str, ...]:
    """Return the names of the stitchers on the best route, by Dijkstra's algorithm; empty if there is no route."""
    # Cost of a route: number of stitchers without a score, then minus the log of the product of scores, then length.
    # A node is a stitcher, not a space, because the card of its target decides which stitchers can follow.
    frontier: list[tuple[tuple[int, float, int], tuple[str, ...]]] = [((0, 0.0, 0), ())]
    reached = set()
    while frontier:
        (unscored, loss, hops), names = heapq.heappop(frontier)
        last = served[names[-1]] if names else None
        at = last.target.name if last else source
        if at == target:
            return names
        if names[-1:] in reached:
            continue
        reached.add(names[-1:])
        for name, stitcher in served.items():
            joins = stitcher.source.name == at and (last is None or not last.target.conflict(stitcher.source))
            if joins and (name,) not in reached:
                score = expected(stitcher)
                if score is None:
                    worse = (unscored + 1, loss, hops + 1)
                else:
                    worse = (unscored, loss - math.log(max(score, 1e-9)), hops + 1)
                heapq.heappush(frontier, (worse, (*names, name)))
    return ()
