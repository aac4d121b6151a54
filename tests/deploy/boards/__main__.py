"""`python -m tests.deploy.boards DIR...`: serve artefacts under load and draw the dashboards of that time.

Every part that a dashboard watches is in use: Redis, the cache of answers, a draft (the last DIR), a control group
where this machine has them. It takes Debian's prometheus.
"""

import argparse
import asyncio
import io
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from tests.deploy.boards.board import drawn
from tests.deploy.boards.canvas import DPI
from tests.deploy.boards.source import Prometheus
from tests.deploy.prometheus import prometheus
from tests.deploy.queries import DASHBOARDS
from tests.e2e.load import Load, loaded
from tests.e2e.pod import pod
from tests.e2e.replica import Replica
from tests.redis_server import redis_server

PICTURES = Path(__file__).parents[1] / "results"
COLOURS = 128
MIB, CORES = 1024, 1.0
WAVES = (1, 4, 12, 2, 6)  # clients at once


def save(figure: Any, path: Path) -> None:
    """Write a small PNG."""
    written = io.BytesIO()
    figure.savefig(written, format="png", dpi=DPI)
    Image.open(written).convert("RGB").quantize(
        COLOURS, Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE
    ).save(path, optimize=True)


def draw(models: Sequence[Path], seconds: float) -> None:
    """Serve, load for some time, and draw."""
    with tempfile.TemporaryDirectory() as made, _service(models, Path(made) / "log") as url:
        program = shutil.which("prometheus")
        if program is None:
            raise SystemExit("prometheus is not installed: apt-get install prometheus")
        with prometheus(program, url.removeprefix("http://"), Path(made)) as asked:
            began = time.time()
            for clients in WAVES:
                with loaded(url, _Work([model.name for model in models]).ask, clients):
                    time.sleep(seconds / len(WAVES))
            source = Prometheus(asked, (began, time.time()))
            for name, board in DASHBOARDS.items():
                save(drawn(board, source), PICTURES / f"{name}.png")


@contextmanager
def _service(models: Sequence[Path], log: Path) -> Iterator[str]:
    with redis_server() as redis, pod(MIB, CORES) as limits:
        settings = {"redis_url": redis.url, "cache": "always", "cache_answers": "true", "draft_model": str(models[-1])}
        service = Replica(models, log, **settings)
        service.pod = limits
        try:
            service.start()
            yield service.url
        finally:
            service.kill()


class _Work:
    """What clients ask: texts of many lengths of each model in turn, vectors, and now and then something wrong."""

    def __init__(self, models: Sequence[str]) -> None:
        self._models = models
        self._turn = 0

    async def ask(self, load: Load, client: httpx.AsyncClient, _number: int) -> None:
        """Ask the next question, and wait a little, as a reader would."""
        self._turn += 1
        turn = self._turn
        body: dict[str, Any] = {"model": self._models[turn % len(self._models)]}
        if turn % 40 == 0:
            await load.post(client, "/generate", body | {"inputs": 1})
        elif turn % 5 == 0:
            await load.post(client, "/embeddings", body | {"inputs": [37 * turn % 50_000 + i for i in range(40)]})
        else:
            words = "The old man looked at the sea and said nothing. " * (1 + turn % 12)
            length = 8 + 7 * turn % 90
            parameters = {"max_new_tokens": length, "do_sample": turn % 3 > 0}
            await load.post(client, "/generate", body | {"inputs": words, "parameters": parameters})
        await asyncio.sleep(0.05 * (turn % 7))


def main() -> None:
    """Read the options and draw."""
    parser = argparse.ArgumentParser(prog="python -m tests.deploy.boards", description=__doc__)
    parser.add_argument("models", type=Path, nargs="+", metavar="DIR")
    parser.add_argument("--minutes", type=float, default=5.0)
    options = parser.parse_args()
    draw(options.models, 60 * options.minutes)


if __name__ == "__main__":
    main()
