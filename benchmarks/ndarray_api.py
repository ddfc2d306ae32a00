"""The competitor in serve.py: the same product with BentoML's ndarray API, without access log, metrics and traces."""

import os
from typing import Annotated

import bentoml
import numpy as np
from bentoml.validators import DType, Shape

WEIGHT = np.load(os.environ["BENCH_WEIGHT"])


@bentoml.service(
    workers=1,
    traffic={"timeout": 600, "max_concurrency": 1024},
    logging={"access": {"enabled": False}},
    metrics={"enabled": False},
    tracing={"excluded_urls": "translate"},
)
class NdarrayApi:
    @bentoml.api
    async def translate(
        self, rows: Annotated[np.ndarray, Shape((-1, WEIGHT.shape[0])), DType("float32")]
    ) -> Annotated[np.ndarray, Shape((-1, WEIGHT.shape[1])), DType("float32")]:
        return rows @ WEIGHT
