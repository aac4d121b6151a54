"""Healing as a step of a build: how long, on what, and what is refused before it begins."""

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from torch import Tensor

from compressor.errors import check_range
from compressor.gpt2 import GPT2
from compressor.methods.base import is_target
from compressor.recipes import heal
from compressor.recipes.context import Context
from compressor.recipes.plans import CompressedModel, Plan
from compressor.storage.run_folder import require_space


@dataclass(frozen=True, kw_only=True)
class Healing:
    """How long to heal; nothing by default.

    Attributes:
        tokens: to heal on, unless `minutes` is set.
        minutes: to heal for on this machine, translated to tokens by timing a few steps.
        precision: of the products, see `heal.Config`.
        folder: for checkpoints.
        text: tokens to heal on [rows, T]; by default the context's.
        held_back: tokens [T] that select the state; by default the last of the text.
    """

    tokens: int = 0
    minutes: float | None = None
    precision: str = "auto"
    folder: Path | None = None
    text: Tensor | None = None
    held_back: Tensor | None = None

    def __post_init__(self) -> None:
        if self.minutes:  # else nothing is healed
            check_range("heal_minutes", self.minutes, *heal.MINUTES)

    @property
    def is_wanted(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.minutes) or self.tokens > 0

    def config_for(self, model: GPT2) -> heal.Config:
        """Return the config for a model, whose context may be short; raises ValueError."""
        context = min(heal.Config.context, model.config.n_positions)
        return heal.Config(tokens=self.tokens, context=context, precision=self.precision)

    def check(self, plan: Plan, context: Context) -> None:
        """Refuse at once what would fail after hours; raises ValueError."""
        model = context.checkpoint.model
        if not self.is_wanted:
            return
        if plan.changes_nothing:
            raise ValueError(f"healing does not go with {plan.name}, which changes nothing; leave one of them out")
        config = self.config_for(model)
        if context.texts:
            heal.check_text(context.read(config.least_tokens), config)
        if self.folder is not None:
            trained = sum(math.prod(vector.shape) for vector in model.vectors().values())
            trained += sum(form.out_features * form.in_features for form in model.matrices().values())
            require_space("heal_folder", self.folder, heal.CHECKPOINT_BYTES * trained)

    def apply(self, compressed: CompressedModel, context: Context) -> CompressedModel:
        """Return the healed model, or the same where nothing is to be done."""
        if not self.is_wanted:
            return compressed
        dense, config = context.checkpoint.dense, self.config_for(context.checkpoint.model)

        def frozen(name: str) -> bool:
            return not is_target(name, compressed.target)

        if self.minutes:
            config = replace(config, minutes=self.minutes)
            begun = heal.tokens_begun(self.folder, compressed.model, dense, config, frozen) if self.folder else None
            config = replace(config, tokens=begun or heal.tokens_in(compressed.model, dense, config))
        least = heal.SELECTION_ROWS * config.context
        result = heal.heal(
            compressed.model,
            dense,
            context.healing_text(config.tokens, least) if self.text is None else self.text,
            config,
            held_back=self.held_back,
            frozen=frozen,
            folder=self.folder,
            progress=context.progress,
            echo=context.echo,
        )
        report = {"tokens": result.tokens, "kl_before": result.kl_before, "kl_after": result.kl_after}
        settings = compressed.settings | {"heal": asdict(config) | report}
        return replace(compressed, model=result.model, settings=settings)


NO_HEALING = Healing()
