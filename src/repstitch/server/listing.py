"""The GET routes: stitchers, spaces, health checks and metrics."""

from starlette.requests import Request
from starlette.responses import Response

from repstitch.errors import NotFoundError
from repstitch.evaluation.scorecard import Scorecard
from repstitch.server.responses import Refusal, json_reply
from repstitch.server.service import Service
from repstitch.server.telemetry import CONTENT_TYPE
from repstitch.stitchers.registry import State
from repstitch.wire.fields import check_name

HEADLINE = (1, 10)


async def list_stitchers(request: Request) -> Response:
    state = _service(request).state()
    return json_reply({"stitchers": [summary(name, state) for name in sorted(state.stitchers)]})


async def show_stitcher(request: Request) -> Response:
    service = _service(request)
    state = service.state()
    name = request.path_params["name"]
    check_name("name", name)
    try:
        stitcher = service.registry.get(name)
    except NotFoundError as error:
        raise Refusal(404, str(error), "name") from None
    details = {
        "settings": stitcher.settings,
        "split": stitcher.split,
        "scorecard": stitcher.scorecard.shown(),
        "source": stitcher.source.to_dict(),
        "target": stitcher.target.to_dict(),
    }
    return json_reply(summary(name, state) | details)


async def list_spaces(request: Request) -> Response:
    service = _service(request)
    spaces: dict[str, dict] = {}
    for stitcher in service.state().stitchers.values():
        source, target = stitcher.source, stitcher.target
        for space in (source, target):
            texts = space.name in service.texts.encoders
            spaces.setdefault(space.name, {**space.to_dict(), "to": set(), "from": set(), "takes_texts": texts})
        spaces[source.name]["to"].add(target.name)
        spaces[target.name]["from"].add(source.name)
    listed = [{**card, "to": sorted(card["to"]), "from": sorted(card["from"])} for _, card in sorted(spaces.items())]
    return json_reply({"spaces": listed})


def summary(name: str, state: State) -> dict:
    """Return the entry of a stitcher in the list: its spaces, how it was trained, and whether it serves its pair.

    It serves its pair (`serves`) if requests that name no stitcher use it; otherwise it is a candidate.
    """
    stitcher = state.stitchers[name]
    source, target = stitcher.source, stitcher.target
    return {
        "name": name,
        "source": source.name,
        "target": target.name,
        "source_dim": source.dim,
        "target_dim": target.dim,
        "version": stitcher.version,
        "method": stitcher.method,
        "objective": stitcher.objective,
        "confidence": [] if stitcher.calibration is None else list(stitcher.calibration.names),
        "serves": state.serves(name),
        "scores": headline(stitcher.scorecard),
    } | ({} if stitcher.created is None else {"created": stitcher.created})


def headline(card: Scorecard) -> dict[str, dict[str, float]]:
    """Return the recall@1 and recall@10 that the scorecard contains, for each use and for chance."""
    parts = card.uses | ({"chance": card.chance} if "chance" in card else {})
    return {
        part: {f"recall@{k}": scores.recall[k].score for k in HEADLINE if k in scores.recall}
        for part, scores in parts.items()
    }


async def live(request: Request) -> Response:
    return json_reply({"status": "ok"})


async def ready(request: Request) -> Response:
    return json_reply({"status": "ready", "stitchers": len(_service(request).check_ready().stitchers)})


async def show_metrics(request: Request) -> Response:
    return Response(_service(request).metrics.text(), media_type=CONTENT_TYPE)


def _service(request: Request) -> Service:
    return request.app.state.service
