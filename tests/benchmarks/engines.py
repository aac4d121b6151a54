"""The engines that are compared; the whole list on one screen."""

from dataclasses import dataclass
from importlib import import_module
from typing import cast

from tests.benchmarks.runner import Load


@dataclass(frozen=True, kw_only=True)
class Engine:
    """One row of the table.

    Attributes:
        label: what the table calls it.
        weights: how its matrices are stored.
        bits: of most of its weights.
        model: the form of the model that it runs; a key of `models.FORMS`.
        module: in `runners`.
        load: the function there.
        package: whose version counts, on PyPI.
    """

    label: str
    weights: str
    bits: int
    model: str
    module: str
    load: str = "load"
    package: str

    def loader(self) -> Load:
        """Return the function that loads a model; imports the engine."""
        return cast(Load, getattr(import_module(f"tests.benchmarks.runners.{self.module}"), self.load))


_TTGPT = {"label": "ttgpt", "module": "ttgpt", "package": "ttgpt"}
_TRANSFORMERS = {"label": "transformers", "model": "checkpoint", "module": "huggingface", "package": "transformers"}
_OPENVINO = {"label": "OpenVINO", "module": "openvino", "package": "openvino"}
_LLAMA = {"label": "llama.cpp", "module": "llama", "package": "llama-cpp-python"}
OURS = "ttgpt-"

ENGINES: dict[str, Engine] = {
    "ttgpt-int8": Engine(**_TTGPT, weights="int8", bits=8, model="ttgpt-int8"),
    "ttgpt-int4": Engine(**_TTGPT, weights="int4", bits=4, model="ttgpt-int4"),
    "ttgpt-int4-a8": Engine(**_TTGPT, weights="int4, 8-bit activations", bits=4, model="ttgpt-int4-a8"),
    "ttgpt-compressed": Engine(**_TTGPT, weights="int4, int8 head of rank 256", bits=4, model="ttgpt-compressed"),
    "ttgpt-balanced": Engine(**_TTGPT, weights="preset balanced", bits=4, model="ttgpt-balanced"),
    "ttgpt-small": Engine(**_TTGPT, weights="preset small", bits=2, model="ttgpt-small"),
    "transformers-fp32": Engine(**_TRANSFORMERS, weights="fp32", bits=32, load="load_fp32"),
    "transformers-bf16": Engine(**_TRANSFORMERS, weights="bf16", bits=16, load="load_bf16"),
    "ctranslate2-int8": Engine(
        label="CTranslate2",
        weights="int8",
        bits=8,
        model="ctranslate2-int8",
        module="ctranslate",
        package="ctranslate2",
    ),
    "openvino-int8": Engine(**_OPENVINO, weights="int8", bits=8, model="openvino-int8"),
    "openvino-int8-fp32": Engine(
        **_OPENVINO, weights="int8, fp32 hint", bits=8, model="openvino-int8", load="load_fp32"
    ),
    "openvino-int4": Engine(**_OPENVINO, weights="int4, groups of 64", bits=4, model="openvino-int4"),
    "openvino-int4-fp32": Engine(
        **_OPENVINO, weights="int4, groups of 64, fp32 hint", bits=4, model="openvino-int4", load="load_fp32"
    ),
    "llama.cpp-q8_0": Engine(**_LLAMA, weights="Q8_0", bits=8, model="q8_0.gguf"),
    "llama.cpp-q4_0": Engine(**_LLAMA, weights="Q4_0", bits=4, model="q4_0.gguf"),
}
SERVED = ("ttgpt-int8", "ttgpt-compressed")  # also measured through HTTP


def peers_of(name: str) -> list[str]:
    """Return the engines of others whose weights have as many bits as an engine's, or the fewest that are more."""
    others = {peer: engine.bits for peer, engine in ENGINES.items() if not peer.startswith(OURS)}
    least = min(bits for bits in others.values() if bits >= ENGINES[name].bits)
    return [peer for peer, bits in others.items() if bits == least]
