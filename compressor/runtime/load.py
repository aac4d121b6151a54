"""An artefact as it runs."""

from pathlib import Path

from compressor.artifact.folder import Arrays, Artifact, Make, Owner, Parse, read
from compressor.artifact.manifest import Spec
from compressor.artifact.tokenizer import read_tokenizer
from compressor.runtime import matrices, trains
from compressor.runtime._decoder import Matrix
from compressor.runtime.model import Model


def as_stored(owner: Owner, tensors: Arrays, spec: Spec) -> Matrix:
    """Return a matrix as it is served without a cache."""
    return trains.matrix_of(tensors, spec, is_head=owner.is_head, activations=owner.activations)


def load(
    folder: Path, threads: int | None = None, make: Make[Matrix] = as_stored, parse: Parse = read_tokenizer
) -> tuple[Artifact[Matrix], Model]:
    """Return an artefact, every byte of which was checked, and its model.

    Args:
        folder: of the artefact.
        threads: that compute; all cores that the process may use by default.
        make: what a matrix is made by.
        parse: what its tokenizer is made by.

    Raises:
        ArtifactError: naming the file and the field that is missing, damaged, unknown or misshapen.
    """
    artifact = read(folder, make, parse)
    shapes = artifact.config.vector_shapes()
    vectors = {
        name: matrices.vector(parts, artifact.vector_codec, shapes[name][0]) for name, parts in artifact.vectors.items()
    }
    return artifact, Model(artifact.config, artifact.matrices, vectors, threads)
