"""Plans: what makes a compressed model of a dense one, by a method or within a budget."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, ClassVar, get_args

from torch import Tensor

from compressor.artifact.manifest import AS_STORED
from compressor.codecs import codec_named
from compressor.formats import Format
from compressor.gpt2 import GPT2
from compressor.huggingface import Checkpoint
from compressor.methods import METHODS, quantize
from compressor.methods.base import Method, Target, is_target
from compressor.recipes import budget
from compressor.recipes.context import Context
from compressor.recipes.search import Found, Search
from compressor.runtime.evaluate import Text, all_hidden_states, evaluate

VERIFIED_ROWS = 8  # rows of calibration text that a promised perplexity ratio is verified on


@dataclass(frozen=True, kw_only=True)
class CompressedModel:
    """A compressed model and how it was made.

    Attributes:
        model: as stored.
        method, settings: for the manifest.
        target: which matrices healing may change.
    """

    model: GPT2
    method: str
    settings: dict[str, Any]
    target: Target = "all"


class Plan(ABC):
    """What to do with a dense model.

    Attributes:
        is_measured: whether it chooses among measured candidates.
        rest: codec of the matrices that it leaves alone; None keeps the checkpoint's dtype.
    """

    is_measured: ClassVar[bool] = False
    rest: str | None = None

    @property
    @abstractmethod
    def name(self) -> str:
        """The method, or "budget"."""

    @property
    @abstractmethod
    def matrices(self) -> Target:
        """Which matrices it compresses."""

    @property
    @abstractmethod
    def is_calibrated(self) -> bool:
        """Whether it uses calibration text."""

    @property
    def changes_nothing(self) -> bool:
        """Whether it leaves the model as it is."""
        return False

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Return every option, given or default."""

    @abstractmethod
    def check(self, model: GPT2) -> None:
        """Refuse at once what does not suit the shapes of `model`; raises ValueError."""

    @abstractmethod
    def estimated_bytes(self, model: GPT2) -> int:
        """Return about how many bytes a run writes: the artefact."""

    @abstractmethod
    def make(self, context: Context) -> CompressedModel:
        """Return the compressed model; raises ValueError if an option does not suit a matrix, or nothing fits."""


@dataclass(frozen=True, kw_only=True)
class Recipe(Plan):
    """One method.

    Attributes:
        method: a key of METHODS.
        options: the method's own, by the names of its Config.
        rest: codec of the matrices that the method leaves alone; None keeps the checkpoint's dtype.
        target: which matrices the method is used for; None means those that it is meant for.
    """

    method: str
    options: Mapping[str, Any]
    rest: str | None = None
    target: Target | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, not {self.method!r}")
        legal = self._method.config.__dataclass_fields__
        if unknown := self.options.keys() - legal.keys():
            known = ", ".join(legal) or "none"
            raise ValueError(f"{min(unknown)} is not an option of {self.method}, which has: {known}")
        if self.target is not None and self.target not in get_args(Target):
            raise ValueError(f"target must be one of {', '.join(get_args(Target))}, not {self.target!r}")
        if self._method.target == "none" and self.target not in (None, "none"):
            raise ValueError(f"target must be none for {self.method}, which leaves every matrix alone")
        if self.rest is not None:
            codec_named(self.rest)
        self._method.config(**self.options)

    @property
    def _method(self) -> Method:
        return METHODS[self.method]

    @property
    def name(self) -> str:
        return self.method

    @property
    def matrices(self) -> Target:
        return self.target or self._method.target

    @property
    def is_calibrated(self) -> bool:
        return self._method.calibrated

    @property
    def changes_nothing(self) -> bool:
        return self._method.target == "none" and self.rest is None

    def settings(self) -> dict[str, Any]:
        target = {"target": self.target} if self.target else {}
        config = asdict(self._method.config(**self.options))
        return config | {"rest": self.rest or AS_STORED} | target

    def check(self, model: GPT2) -> None:
        options = self._method.config(**self.options)
        for name, form in model.matrices().items():
            if is_target(name, self.matrices):
                options.check(form.shape, model.config.n_head)

    def estimated_bytes(self, model: GPT2) -> int:
        codec = getattr(self._method.config(**self.options), "codec", None)
        total = _vector_bytes(model)
        for name, form in model.matrices().items():
            wanted = codec if is_target(name, self.matrices) else self.rest
            total += form.num_bytes if wanted is None else codec_named(wanted).num_bytes(form.shape)
        return total

    def make(self, context: Context) -> CompressedModel:
        model = self.compressed(context)
        if self.rest is not None and codec_named(self.rest).is_float:
            model = model.with_vectors(self.rest)
        target = self.target or "all"  # else a method is meant for some matrices, and healing for all
        return CompressedModel(model=model, method=self.method, settings=self.settings(), target=target)

    def compressed(self, context: Context) -> GPT2:
        """Return the model, its biases and norms as they were."""
        config, progress = self._method.config(**self.options), context.progress
        statistics = context.statistics if self.is_calibrated else {}
        compressed: dict[str, Format] = {}
        for name, form in context.checkpoint.model.matrices().items():
            if is_target(name, self.matrices):
                compressed[name] = self._method.found(name, form.dense(), config, statistics.get(name), progress)
            elif self.rest is not None:
                rounding = quantize.Config(codec=self.rest)
                compressed[name] = METHODS["quantize"].found(name, form.dense(), rounding, None, progress)
        return context.checkpoint.model.with_matrices(compressed)


@dataclass(frozen=True, kw_only=True)
class Budget(budget.Config, Plan):
    """The best model that a byte budget buys."""

    is_measured = True

    @property
    def name(self) -> str:
        return "budget"

    @property
    def matrices(self) -> Target:
        return self.target

    @property
    def is_calibrated(self) -> bool:
        return True

    def settings(self) -> dict[str, Any]:
        return asdict(self)

    def check(self, model: GPT2) -> None:
        """Whether it is kept is known when the candidates are measured."""

    def estimated_bytes(self, model: GPT2) -> int:
        targets = {name: form for name, form in model.matrices().items() if is_target(name, self.target)}
        dense = sum(4 * form.out_features * form.in_features for form in targets.values())
        others = sum(form.num_bytes for name, form in model.matrices().items() if name not in targets)
        # No candidate takes more than int8.
        bought = min(self.size_bytes or dense, dense // 4, int(dense / (self.ratio or 1)))
        return bought + others + _vector_bytes(model)

    def make(self, context: Context) -> CompressedModel:
        search, model = context.search(self.target), context.checkpoint.model
        _, vectors = budget.choose(search.estimates, self, model)
        if self.max_perplexity_ratio is not None:
            found = _verified(context.checkpoint, search, self.max_perplexity_ratio, context.calibration)
        else:
            found = search.found(lambda choices: budget.choose(choices, self, model)[0])
        given = {key: value for key, value in self.settings().items() if value is not None}
        kl = {"predicted": found.predicted, "measured": found.measured}
        return CompressedModel(
            model=model.with_matrices(found.matrices).with_vectors(vectors),
            method=self.name,
            settings=given | {"kl": kl, "plan": budget.explain(found.choices, found.chosen)},
            target=self.target,
        )


def _verified(checkpoint: Checkpoint, search: Search, limit: float, ids: Tensor) -> Found:
    """Return the smallest choice whose perplexity ratio on calibration text keeps `limit`, not only by prediction."""
    text = Text(name="calibration", sha256="", num_bytes=1, ids=ids[-VERIFIED_ROWS:].flatten().numpy())
    dense = checkpoint.model.decoder()
    states = all_hidden_states(dense, text)
    for share in (1.0, 0.7, 0.5, 0.35, 0.25, 0.1, 0.0):
        found = search.found(partial(budget.smallest_within, kl=share * math.log(limit)))
        model = checkpoint.model.with_matrices(found.matrices)
        ratio = evaluate(model.decoder(), dense, text, states=states).perplexity_ratio
        if ratio is not None and ratio <= limit:
            return found
    best = math.ceil(1e4 * (ratio or 1.0)) / 1e4
    raise ValueError(f"max_perplexity_ratio must be at least {best} for this model and text, not {limit}")


def _vector_bytes(model: GPT2) -> int:
    return 4 * sum(math.prod(vector.shape) for vector in model.vectors().values())
