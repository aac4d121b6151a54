"""One GPT-2 with random weights, in the form that each engine reads: `python -m tests.benchmarks.models`.

Speed does not depend on the weights, only on their shapes and types.
"""

import argparse
import hashlib
import json
import shutil
from collections.abc import Callable
from importlib.metadata import version
from math import sqrt
from pathlib import Path

import torch
from torch import Tensor

from compressor import huggingface
from compressor.artifact.gpt2_config import GPT2Config
from compressor.formats import Dense
from compressor.gpt2 import GPT2, encoded
from compressor.recipes.budget import PRESETS
from compressor.recipes.build import Activations, build
from compressor.recipes.context import Context
from compressor.recipes.plans import Plan, Recipe
from tests.benchmarks import presets
from tests.benchmarks.plan import GPT2_124M, PROMPT, SEED

ROOT = Path(__file__).parents[2]
TEXT_PROMPTS = 60  # of the text to judge by: 1,000 tokens, by which activations of 8 bits lose no perplexity


def checkpoint(folder: Path, out: Path, config: GPT2Config) -> None:
    """Write the random model in Hugging Face's layout, fp32."""
    random = torch.Generator().manual_seed(SEED)
    matrices = {
        name: Dense.of(_deviation(name, config) * torch.randn(shape, generator=random), "fp32")
        for name, shape in config.matrix_shapes().items()
    }
    vectors: dict[str, Tensor] = {
        name: torch.ones(shape) if name.endswith("weight") else torch.zeros(shape)
        for name, shape in config.vector_shapes().items()
    }
    huggingface.export(GPT2(config, matrices, encoded(vectors, "fp32")), tokenizer_json(config.vocab_size), out)


def _deviation(name: str, config: GPT2Config) -> float:
    """Return GPT-2's initial standard deviation: smaller for what is added to the residual stream."""
    return 0.02 / sqrt(2 * config.n_layer) if name.endswith("c_proj") else 0.02


def tokenizer_json(vocab_size: int) -> bytes:
    """Return the embedded tokenizer, filled up to `vocab_size` with tokens that no text has.

    Raises:
        ValueError: if it has more tokens than that.
    """
    tokenizer = json.loads((huggingface.EMBEDDED_FOLDER / "tokenizer.json").read_bytes())
    vocabulary = tokenizer["model"]["vocab"]
    if len(vocabulary) > vocab_size:
        raise ValueError(f"vocab_size must be at least {len(vocabulary)}, not {vocab_size}")
    for i in range(len(vocabulary), vocab_size):
        vocabulary[f"<unused{i}>"] = i
    return json.dumps(tokenizer, ensure_ascii=False).encode()


def _artifact(plan: Plan, activations: Activations = 16) -> Callable[[Path, Path, GPT2Config], None]:
    def write(folder: Path, out: Path, config: GPT2Config) -> None:
        text = out.with_suffix(".txt")
        text.write_text(f"{PROMPT} " * TEXT_PROMPTS)
        context = Context(checkpoint=huggingface.load(str(folder / "checkpoint")))
        try:
            settings = build(context, plan, out, text=text, activations=activations).provenance.config
        finally:
            text.unlink()
        if activations == 8 and settings["activations"]["bits"] != 8:
            raise RuntimeError(f"activations of 8 bits were refused: {settings['activations']}")

    return write


def _quantized(codec: str) -> Plan:
    return Recipe(method="quantize", options={"codec": codec})


def _preset(name: str) -> Plan:
    return presets.Carried(preset=name, ratio=PRESETS[name].ratio)


def ctranslate2(folder: Path, out: Path, config: GPT2Config) -> None:
    """Convert the checkpoint with CTranslate2's own converter."""
    from ctranslate2.converters import TransformersConverter

    TransformersConverter(str(folder / "checkpoint")).convert(str(out), quantization="int8")
    shape = {name: getattr(config, name) for name in ("n_positions", "n_embd", "n_layer")}
    (out / "shape.json").write_text(json.dumps(shape))


def _gguf(kind: str) -> Callable[[Path, Path, GPT2Config], None]:
    def write(folder: Path, out: Path, config: GPT2Config) -> None:
        from tests.benchmarks.gguf_export import export

        model = huggingface.load(str(folder / "checkpoint")).model
        export(model, json.loads(tokenizer_json(config.vocab_size)), out, kind)

    return write


def _openvino(kind: str) -> Callable[[Path, Path, GPT2Config], None]:
    def write(folder: Path, out: Path, config: GPT2Config) -> None:
        from tests.benchmarks.openvino_export import export

        export(huggingface.load(str(folder / "checkpoint")).model, out, kind)

    return write


FORMS: dict[str, Callable[[Path, Path, GPT2Config], None]] = {
    "checkpoint": checkpoint,
    "ttgpt-int8": _artifact(_quantized("int8")),
    "ttgpt-int4": _artifact(_quantized("int4")),
    "ttgpt-int4-a8": _artifact(_quantized("int4"), activations=8),
    "ttgpt-compressed": _artifact(Recipe(method="svd", options={"rank": 256, "codec": "int8"}, rest="int4")),
    "ttgpt-balanced": _artifact(_preset("balanced")),
    "ttgpt-small": _artifact(_preset("small")),
    "ctranslate2-int8": ctranslate2,
    "openvino-int8": _openvino("int8"),
    "openvino-int4": _openvino("int4"),
    "q8_0.gguf": _gguf("Q8_0"),
    "q4_0.gguf": _gguf("Q4_0"),
}

CONVERTERS = {
    "checkpoint": "torch",
    "ctranslate2-int8": "ctranslate2",
    "openvino-int8": "nncf",
    "openvino-int4": "nncf",
    "q8_0.gguf": "gguf",
    "q4_0.gguf": "gguf",
}


def make(folder: Path, form: str, config: GPT2Config = GPT2_124M) -> Path:
    """Write one form of the model into `folder` unless it is there and up to date; return its path.

    Raises:
        ImportError: if the engine's converter is not installed.
    """
    out, stamp = folder / form, folder / f"{form}.stamp"
    made_of = _made_of(form, config)
    if out.exists() and stamp.is_file() and stamp.read_text() == made_of:
        return out
    if form != "checkpoint":
        make(folder, "checkpoint", config)
    folder.mkdir(parents=True, exist_ok=True)
    stamp.unlink(missing_ok=True)
    shutil.rmtree(out, ignore_errors=True) if out.is_dir() else out.unlink(missing_ok=True)
    FORMS[form](folder, out, config)
    stamp.write_text(made_of)
    return out


def _made_of(form: str, config: GPT2Config) -> str:
    """Return what a form depends on, as a checksum: our sources, or the converter's version."""
    digest = hashlib.sha256(repr((form, config, SEED)).encode() + Path(__file__).read_bytes())
    if form.startswith("ttgpt"):
        plans = [presets.PLANS / f"budget-{name}.json" for name in PRESETS]
        for path in (*sorted((ROOT / "compressor").rglob("*.py")), Path(presets.__file__), *plans):
            digest.update(path.read_bytes())
    else:
        digest.update(version(CONVERTERS[form]).encode())
    return digest.hexdigest()


def main() -> None:
    """Make forms of the model; print why those that could not be made are missing, as one line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.models", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("forms", choices=FORMS, nargs="+")
    parser.add_argument("--config", type=json.loads, help="GPT2Config as JSON; GPT-2 124M by default")
    given = parser.parse_args()
    config = GPT2Config(**given.config) if given.config else GPT2_124M
    missing: dict[str, str] = {}
    for form in given.forms:
        try:
            make(given.folder, form, config)
        except Exception as error:  # a converter's trouble is its own engine's alone
            missing[form] = f"{type(error).__name__}: {error}"
    print(json.dumps(missing))


if __name__ == "__main__":
    main()
