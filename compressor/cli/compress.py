"""`ttgpt compress`: from options to a plan, and from a plan to an artefact."""

import inspect
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer
from rich.console import Console
from rich.table import Table

from compressor.cli.options import ExecutorName, TextFile, Workers, megabytes, say, size_of, spread
from compressor.display import bar
from compressor.errors import check_range
from compressor.figures import figure
from compressor.methods import METHODS
from compressor.recipes.budget import PRESETS
from compressor.recipes.executor import Executor
from compressor.storage.run_folder import claimed, require_files, require_writable

if TYPE_CHECKING:
    from compressor.artifact.manifest import Manifest
    from compressor.recipes.healing import Healing
    from compressor.recipes.plans import Plan


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """How small, or by which method."""

    method: Annotated[str | None, typer.Option(help=f"One of {', '.join(METHODS)}.")] = None
    preset: Annotated[str | None, typer.Option(help=f"Instead: one of {', '.join(PRESETS)}.")] = None
    budget: Annotated[str | None, typer.Option(metavar="SIZE", help="Instead: bytes of all weights, as 8MB.")] = None
    ratio: Annotated[
        float | None, typer.Option(help="Instead: times smaller than fp32; with direction_ae its own ratio.")
    ] = None
    max_perplexity_ratio: Annotated[float | None, typer.Option(help="Instead: the loss that is allowed.")] = None
    rest: Annotated[
        str | None, typer.Option(metavar="CODEC", help="Codec of the other matrices; by default the checkpoint's.")
    ] = None
    target: Annotated[
        str | None, typer.Option(help="Matrices for the method: embedding, qkv, attn, mlp, linears or all.")
    ] = None

    def plan(self, options: dict[str, Any]) -> "Plan":
        """Return the plan; raises ValueError if it is ambiguous or illegal."""
        from compressor.recipes.plans import Recipe

        sizes = {"preset": self.preset, "budget": self.budget, "ratio": self.ratio}
        sizes["max_perplexity_ratio"] = self.max_perplexity_ratio
        if self.method is None:
            refuse_beside("a budget", {**options, "rest": self.rest})
            return self._budget([name for name, value in sizes.items() if value is not None])
        if self.method in METHODS and "ratio" in METHODS[self.method].config.__dataclass_fields__:
            options |= {"ratio": sizes.pop("ratio")} if self.ratio is not None else {}  # direction_ae has its own
        refuse_beside("method", sizes)
        return Recipe(method=self.method, options=options, rest=self.rest, target=self.target)  # type: ignore[arg-type]

    def _budget(self, given: list[str]) -> "Plan":
        from compressor.recipes.plans import Budget

        if len(given) != 1:
            raise ValueError(
                "method: give exactly one of --method, --preset, --budget, --ratio, --max-perplexity-ratio"
            )
        if self.preset is None:
            size = None if self.budget is None else size_of("budget", self.budget)
            target: Any = self.target or "all"
            limit = self.max_perplexity_ratio
            return Budget(size_bytes=size, ratio=self.ratio, max_perplexity_ratio=limit, target=target)
        if self.preset not in PRESETS:
            raise ValueError(f"preset must be one of {', '.join(PRESETS)}, not {self.preset!r}")
        if self.target not in (None, "all"):
            raise ValueError("target does not go with a preset; leave one of them out")
        return Budget(ratio=PRESETS[self.preset].ratio)


@dataclass(frozen=True, kw_only=True)
class Healed:
    """Whether and how long it is healed."""

    heal_tokens: Annotated[int | None, typer.Option(help="Then heal on this many tokens.")] = None
    heal_minutes: Annotated[float | None, typer.Option(help="Or for about this long.")] = None
    heal_folder: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep checkpoints there, and resume from one.")
    ] = None

    def healing(self, preset: str | None) -> "Healing":
        """Return how long to heal, which a preset may say, too; raises ValueError."""
        from compressor.recipes.healing import Healing

        tokens = self.heal_tokens
        if preset is not None and tokens is None and self.heal_minutes is None:
            tokens = PRESETS[preset].heal_tokens
        check_range("heal_tokens", tokens or 0, 0, 10**12)
        healing = Healing(tokens=tokens or 0, minutes=self.heal_minutes, folder=self.heal_folder)
        if self.heal_folder is not None:
            if not healing.is_wanted and preset is None:
                raise ValueError("heal_folder does not go without heal_tokens or heal_minutes")
            require_writable("heal_folder", self.heal_folder, made=True)
        return healing


@dataclass(frozen=True, kw_only=True)
class Run:
    """On which texts and where it runs, how exactly it multiplies, and what it replaces."""

    calibration_text: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="To measure and heal on; by default the model's own.")
    ] = None
    activations: Annotated[
        int, typer.Option(metavar="16|8", help="Bits of activations at codes in groups; 8 only if perplexity allows.")
    ] = 16
    force: Annotated[bool, typer.Option("--force", help="Replace an artefact in DIR.")] = False
    text: TextFile = None
    executor: ExecutorName = "local"
    workers: Workers = None


def _compress(
    model: Annotated[str, typer.Argument(help="gpt2-mini (embedded), a folder, a .gguf file, or a hub id.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The artefact's folder.")],
    wanted: Wanted,
    healed: Healed,
    run: Run,
    options: dict[str, Any],
) -> None:
    """Compress a checkpoint, by a method or within a budget, and write an artefact."""
    from compressor import huggingface
    from compressor.artifact import folder as artifact
    from compressor.process.memory import keep_freed_memory
    from compressor.recipes.build import build
    from compressor.recipes.context import Context
    from compressor.runtime.reference import VALIDATION_TEXT

    plan = wanted.plan(options)
    if not plan.is_measured:
        refuse_beside("method", {"workers": run.workers, "executor": run.executor if run.executor != "local" else None})
    if run.activations not in (16, 8):
        raise ValueError(f"activations must be 16 or 8, not {run.activations}")
    executor = Executor(kind=run.executor, workers=run.workers)
    text, texts = run.text or VALIDATION_TEXT, run.calibration_text or ()
    require_files("text", [text])
    require_files("calibration text", texts)
    artifact.refuse_existing(out, run.force)
    healing = healed.healing(wanted.preset)
    keep_freed_memory()
    with claimed(out):
        artifact.refuse_existing(out, run.force)  # which a run that has just ended may have made
        checkpoint = huggingface.load(model)
        for note in checkpoint.notes:
            say(f"note: {note}")
        context = Context(checkpoint=checkpoint, texts=texts, executor=executor, progress=bar, echo=say)
        bits: Any = run.activations
        manifest = build(context, plan, out, healing=healing, text=text, activations=bits, force=run.force)
    _print_plan(manifest.provenance.config)
    _print_result(out, manifest)


def _method_options() -> dict[str, Any]:
    """Return the annotation of one option for every field of every method's Config."""
    found: dict[str, tuple[Any, list[str]]] = {}
    for name, method in METHODS.items():
        described = dict(re.findall(r"^\s+(\w+): (.+)", inspect.getdoc(method.config) or "", re.MULTILINE))
        for field, kind in get_type_hints(method.config).items():
            found.setdefault(field, (kind, []))[1].append(f"{name}: {described.get(field, 'how tensors are stored')}")
    return {
        field: Annotated[kind | None, typer.Option(help="; ".join(helps))] for field, (kind, helps) in found.items()
    }


compress = spread(_compress, _method_options())


def refuse_beside(chosen: str, others: dict[str, Any]) -> None:
    """Refuse what does not go with what was chosen; raises ValueError."""
    if given := [name for name, value in others.items() if value is not None]:
        raise ValueError(f"{given[0]} does not go with {chosen}; leave one of them out")


def _print_plan(config: dict[str, Any]) -> None:
    """Print what a budget chose for every matrix, what the next step up would have bought, and what all of it loses."""
    if "plan" not in config:
        return
    table = Table("piece", "choice", "bytes", "KL alone", "next step up", "KL saved per kB")
    for row in config["plan"]:
        saved = f"{row['kl_per_kb']:.6f}" if "next" in row else ""
        table.add_row(row["piece"], row["choice"], f"{row['bytes']:,}", f"{row['kl']:.5f}", row.get("next", ""), saved)
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    kl = config["kl"]
    print(f"KL from the dense model: {kl['predicted']:.5f} predicted, {kl['measured']:.5f} measured (before healing)")


def _print_result(out: Path, manifest: "Manifest") -> None:
    smaller, ratio = manifest.dense_bytes / manifest.weight_bytes, manifest.quality.perplexity_ratio
    print(
        f"{out}: {megabytes(manifest.weight_bytes)} ({smaller:.2f}x smaller than fp32, {smaller / 2:.2f}x than fp16), "
        f"perplexity {figure(manifest.quality.perplexity, 2)} "
        f"({'?' if ratio is None else figure(ratio, 3)} x dense)"
    )
