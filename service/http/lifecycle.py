"""From the first moment to readiness: the models load in a thread while the server answers probes."""

from collections.abc import Callable
from functools import partial
from typing import Literal

from compressor.process.memory import give_back
from service.cache.contractions import ContractionCache
from service.engine.engine import Engine
from service.engine.kv_budget import kv_budget_bytes
from service.engine.models import LoadedModel, Models, load_all, report
from service.engine.pages import Pool
from service.engine.speculation import Speculation
from service.errors import DrainingError, NotReadyError
from service.process import background
from service.process.logs import LOG
from service.settings import Settings


class Lifecycle:
    """Loads the models in a thread of its own.

    Attributes:
        failure: why loading failed, if it did.
        draining: whether the server is stopping, so that new requests are refused.
    """

    def __init__(self, settings: Settings, engine: Engine, cache: ContractionCache) -> None:
        """Load nothing yet.

        Args:
            settings: all of them.
            engine: that is to compute; the models are reported to its metrics.
            cache: what the models remember with.
        """
        self.failure: BaseException | None = None
        self.draining = False
        self._settings, self._engine, self._cache = settings, engine, cache
        self._on_failure: Callable[[], None] = lambda: None
        self._models: Models | None = None
        self._begun = False
        self._thread = background.thread("load", self._run, self._fail)

    def start(self) -> None:
        """Begin to load, unless that has begun."""
        if not self._begun:
            self._begun = True
            self._thread.start()

    def on_failure(self, tell: Callable[[], None]) -> None:
        """Call `tell`, from whatever thread, if the models cannot be loaded."""
        self._on_failure = tell
        if self.failure is not None:
            tell()

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
        settings, engine = self._settings, self._engine
        tell = partial(report, metrics=engine.metrics)
        models = load_all(
            settings.models, settings.default_model, tell, self._cache, settings.threads, settings.draft_model
        )
        pool = engine.make_room(kv_budget_bytes(tuple(models), settings, models.drafts))
        for model in models:
            engine.prepare(model, self._speculation(models, model, pool))
        give_back()
        self._models = models
        LOG.info("ready", extra={"models": [model.name for model in models]})

    def _speculation(self, models: Models, model: LoadedModel, pool: Pool) -> Speculation | None:
        """Return what proposes tokens to a model, if it has a draft."""
        draft = models.drafts.get(model.name)
        return None if draft is None else Speculation(draft, model, self._settings, self._engine.metrics, pool)

    def _fail(self, error: BaseException) -> None:
        self.failure = error
        self._on_failure()
