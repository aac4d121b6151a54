"""From the first moment to readiness: the models load in a thread while the server answers probes."""

from collections.abc import Callable
from typing import Literal

from service.engine.models import Models
from service.errors import DrainingError, NotReadyError
from service.process import background
from service.process.logs import LOG


class Lifecycle:
    """Loads the models in a thread of its own.

    Attributes:
        failure: why loading failed, if it did.
        draining: whether the server is stopping, so that new requests are refused.
    """

    def __init__(self, load: Callable[[], Models], on_failure: Callable[[], None]) -> None:
        self.failure: BaseException | None = None
        self.draining = False
        self._load = load
        self._on_failure = on_failure
        self._models: Models | None = None
        self._thread = background.thread("load", self._run, self._fail)

    def start(self) -> None:
        """Begin to load."""
        self._thread.start()

    def drain(self) -> None:
        """Refuse new requests from now on."""
        self.draining = True

    def join(self) -> None:
        """Wait until loading has ended, well or not."""
        self._thread.join()

    @property
    def models(self) -> Models:
        """The loaded models; raises NotReadyError before all of them are, and DrainingError at the end."""
        if self.draining:
            raise DrainingError
        if self._models is None:
            raise NotReadyError
        return self._models

    @property
    def phase(self) -> Literal["loading", "failed", "started"]:
        """How far the start has come."""
        if self._models is not None:
            return "started"
        return "loading" if self.failure is None else "failed"

    def _run(self) -> None:
        self._models = self._load()
        LOG.info("ready", extra={"models": [model.name for model in self._models]})

    def _fail(self, error: BaseException) -> None:
        self.failure = error
        self._on_failure()
