"""TGI's headers: how long a request took, and for what."""

from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import Response

from service.engine.generation import Generation
from service.http.middleware import arrived_seconds, now_seconds


def tell_times(response: Response, request: Request, jobs: Sequence[Generation]) -> None:
    """Add the headers about jobs that have ended to a response; times are the longest of all jobs', in ms."""
    arrived, tokens = arrived_seconds(request.scope), sum(job.generated for job in jobs)
    total = now_seconds() - arrived
    inference = max((job.clock.inference_seconds for job in jobs), default=0.0)
    times = {
        "x-compute-type": "cpu",
        "x-compute-time": f"{total:.3f}",  # in seconds, the only one
        "x-total-time": _ms(total),
        "x-validation-time": _ms(max((job.clock.arrived_seconds - arrived for job in jobs), default=0.0)),
        "x-queue-time": _ms(max((job.clock.queue_seconds for job in jobs), default=0.0)),
        "x-inference-time": _ms(inference),
        "x-time-per-token": _ms(inference * len(jobs) / max(tokens, 1)),
        "x-prompt-tokens": str(sum(len(job.prompt.ids) for job in jobs)),
        "x-generated-tokens": str(tokens),
    }
    response.headers.update(times)


def _ms(seconds: float) -> str:
    return str(max(round(1000 * seconds), 0))
