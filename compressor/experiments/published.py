"""GPT-2 itself on the texts that others publish figures of: WikiText, raw and detokenised, and LAMBADA."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compressor.artifact.folder import MANIFEST
from compressor.figures import figure
from compressor.huggingface import Checkpoint
from compressor.pages import table
from compressor.progress import Progress, silent
from compressor.recipes.build import build
from compressor.recipes.context import Context
from compressor.recipes.plans import Budget, Plan, Recipe
from compressor.runtime.load import load
from compressor.runtime.published import LAMBADA, Dense, measure
from compressor.storage.run_folder import claimed, require_files

DENSE = "dense"
VARIANTS: dict[str, Plan] = {  # none is healed, which takes a GPT-2 on a CPU hours
    DENSE: Recipe(method="dense", options={}),
    "int8": Recipe(method="quantize", options={"codec": "int8"}),
    "int4": Recipe(method="quantize", options={"codec": "int4"}),
    "8x": Budget(ratio=8),
    "16x": Budget(ratio=16),
}
RAW, DETOKENISED = "wikitext", "wikitext-detokenised"


def measured(
    checkpoint: Checkpoint,
    texts: Mapping[str, Path],
    folder: Path,
    *,
    variants: Mapping[str, Plan] = VARIANTS,
    stride: int | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Return what every variant of a model is on every text.

    Args:
        checkpoint: the model.
        texts: files by their form, see `compressor.runtime.published`.
        folder: of the artefacts; what is there already is not made anew.
        variants: what the model is compressed to, by name; DENSE among them.
        stride: tokens from one window of WikiText to the next.
        progress: progress callback.

    Raises:
        ValueError: if a text cannot be read, or an artefact in the folder was made of another model.
    """
    require_files("text", list(texts.values()))
    known = {name: load(_made(checkpoint, name, plan, folder, progress)) for name, plan in variants.items()}
    for name, (artifact, _) in known.items():
        if artifact.manifest.provenance.source.sha256 != checkpoint.source.sha256:
            raise ValueError(f"out: {folder / name} was made of another model; choose another folder")
    theirs, dense = known[DENSE]
    other, rows = Dense(dense, theirs.manifest.digest), []
    for name, (artifact, model) in known.items():
        found = {}
        for form, text in texts.items():
            step = None if form == LAMBADA else stride
            found[form] = measure(model, other, text, artifact.tokenizer, form, stride=step, progress=progress)
        sizes = {"bytes": artifact.manifest.weight_bytes, "dense_bytes": artifact.manifest.dense_bytes}
        rows.append({"variant": name, **sizes, "texts": found})
    sha256 = {form: hashlib.sha256(text.read_bytes()).hexdigest() for form, text in texts.items()}
    return {"model": checkpoint.source.model_dump(), "text_sha256": sha256, "rows": rows}


def _made(checkpoint: Checkpoint, name: str, plan: Plan, folder: Path, progress: Progress) -> Path:
    """Return the folder of a variant, which is made if it is not there."""
    place = folder / name
    if not (place / MANIFEST).is_file():
        with claimed(place):
            build(Context(checkpoint=checkpoint, progress=progress), plan, place)
    return place


def published_table(results: dict[str, Any]) -> str:
    """Return what every variant is on every text, in Markdown."""
    head = ["variant", "disk, MB", "x fp32", "WikiText / token", "detokenised / word", "bits / byte"]
    head += ["LAMBADA right", "/ last word"]
    rows = []
    for row in results["rows"]:
        raw, detokenised, last = (row["texts"][form] for form in (RAW, DETOKENISED, LAMBADA))
        rows.append(
            [
                row["variant"],
                f"{row['bytes'] / 1e6:.2f}",
                f"{row['dense_bytes'] / row['bytes']:.2f}",
                figure(raw["perplexity"], 2),
                figure(detokenised["word_perplexity"], 2),
                f"{raw['bits_per_byte']:.4f}",
                f"{100 * last['last_word_accuracy']:.2f} %",
                figure(last["last_word_perplexity"], 2),
            ]
        )
    raw, last = (results["rows"][0]["texts"][form] for form in (RAW, LAMBADA))
    said = (
        f"`{results['model']['id']}` on {raw['text']} ({raw['tokens'] + 1:,} tokens, {raw['words']:,} words, context "
        f"{raw['context']}, stride {raw['stride']})\nand {last['text']} ({last['passages']:,} passages)."
    )
    return f"{table(head, rows)}\n\n{said}"
