"""`ttgpt evaluate`: how good an artefact is on a text."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from compressor.cli.options import AsJson, Folder, TextFile, print_object, say, sizes

if TYPE_CHECKING:
    from compressor.artifact.folder import Artifact
    from compressor.runtime._decoder import Matrix
    from compressor.runtime.model import Model
    from compressor.runtime.published import Dense


def evaluate(
    folder: Folder,
    text: TextFile = None,
    form: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Of the text: text, wikitext, wikitext-detokenised or lambada; by default as its name ends.",
        ),
    ] = None,
    stride: Annotated[
        int | None, typer.Option(metavar="N", help="Tokens from one window to the next, by default the context.")
    ] = None,
    dense: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Dense artefact to compare with; that of gpt2-mini itself is embedded."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure perplexity, bits per byte, and KL and top-1 agreement with the dense model; or the last words known."""
    from compressor.display import bar
    from compressor.runtime import published, reference
    from compressor.runtime.load import load

    place = text or reference.VALIDATION_TEXT
    chosen = published.form_of(place, form)
    loaded, model = load(folder)
    other = _dense_of(loaded, model, folder, dense)
    found = published.measure(model, other, place, loaded.tokenizer, chosen, stride=stride, progress=bar)
    if other is None:
        say("note: no dense model to compare with; give one by --dense (compress --method dense)")
    print_object(found | sizes(loaded.manifest), as_json)


def _dense_of(loaded: "Artifact[Matrix]", model: "Model", folder: Path, given: Path | None) -> "Dense | None":
    """Return what an artefact is compared with; raises ValueError if that is another architecture."""
    from compressor.runtime import reference
    from compressor.runtime.load import load
    from compressor.runtime.published import Dense

    provenance = loaded.manifest.provenance
    if given is not None:
        theirs, other = load(given)
        if other.config != model.config:
            raise ValueError(f"dense: {given} is another architecture than {folder}")
        return Dense(other, theirs.manifest.digest)
    if provenance.source.sha256 != reference.sha256():
        return None
    other = reference.dense()
    # Where they differ, tokens were added that it does not know.
    return None if other.config != model.config else Dense(other, reference.sha256())
