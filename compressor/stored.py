"""GPT-2 in torch from an artefact, and an artefact from it."""

from functools import partial
from pathlib import Path
from typing import Literal

from safetensors.torch import save_file
from torch import Tensor

from compressor.artifact import folder as artifact
from compressor.artifact.folder import Arrays, Owner
from compressor.artifact.layouts import codec_layout, tensors_of
from compressor.artifact.manifest import SCHEMA_VERSION, Compression, Spec
from compressor.codecs import Coded, codec_named
from compressor.formats import Format, from_tensors
from compressor.gpt2 import GPT2
from compressor.runtime.load import as_stored
from compressor.runtime.model import Model
from compressor.tensors import tensor


def read(folder: Path) -> artifact.Artifact[Format]:
    """Return an artefact, its matrices in torch; raises ArtifactError."""
    return artifact.read(folder, _format)


def gpt2(stored: artifact.Artifact[Format]) -> GPT2:
    """Return the model of an artefact."""
    shapes, codec = stored.config.vector_shapes(), codec_named(stored.vector_codec)
    vectors = {}
    for name, parts in stored.vectors.items():
        layout = codec_layout(codec.name, shapes[name])
        vectors[name] = Coded(codec, shapes[name], {part: tensor(a, layout[part].dtype) for part, a in parts.items()})
    return GPT2(stored.config, stored.matrices, vectors)


def compression_of(model: GPT2, activations: Literal[16, 8] = 16) -> Compression:
    """Return how a model is stored, and to how many bits the rows that it multiplies are rounded."""
    matrices = {name: form.spec() for name, form in model.matrices().items()}
    return Compression(
        schema_version=SCHEMA_VERSION, vectors=model.vector_codec, matrices=matrices, activations=activations
    )


def contents(model: GPT2, tokenizer_json: bytes, running: Model, activations: Literal[16, 8] = 16) -> artifact.Contents:
    """Return what an artefact of a model is written from.

    Args:
        model: as stored.
        tokenizer_json: its tokenizer.
        running: the same model as it is served.
        activations: bits of rounded rows, as in `running`.
    """
    tensors, compression = partial(save_file, _named_tensors(model)), compression_of(model, activations)
    return artifact.Contents(model.config, compression, tensors, tokenizer_json, as_stored, running.num_bytes)


def _format(_: Owner, tensors: Arrays, spec: Spec) -> Format:
    return from_tensors({name: tensor(tensors[name], part.dtype) for name, part in tensors_of(spec).items()}, spec)


def _named_tensors(model: GPT2) -> dict[str, Tensor]:
    tensors = {f"{name}.{key}": t for name, form in model.matrices().items() for key, t in form.tensors().items()}
    for name, vector in model.vectors().items():
        tensors |= {f"{name}.{part}": tensor for part, tensor in vector.parts().items()}
    return {name: tensor.contiguous() for name, tensor in tensors.items()}
