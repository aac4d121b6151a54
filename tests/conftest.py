"""Fixtures that several suites share."""

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

from compressor import huggingface, stored
from compressor.artifact import folder as artifact
from compressor.artifact.gpt2_config import GPT2Config
from compressor.artifact.manifest import Golden, Provenance, Quality, Source
from compressor.formats import Dense
from compressor.gpt2 import GPT2, encoded
from compressor.runtime.evaluate import GOLDEN_TOLERANCE, hidden_states

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="ttgpt-tests-")  # so that nothing of an older state is found
settings.register_profile("ttgpt", deadline=None)
settings.load_profile("ttgpt")

TOKENIZER = (huggingface.EMBEDDED_FOLDER / "tokenizer.json").read_bytes()
TINY = GPT2Config(vocab_size=16384, n_positions=64, n_embd=32, n_layer=2, n_head=4, n_inner=128, eos_token_id=0)


def tiny_model(config: GPT2Config = TINY, seed: int = 0) -> GPT2:
    """Return a randomly initialised dense model."""
    random = torch.Generator().manual_seed(seed)
    shapes = config.matrix_shapes().items()
    matrices = {name: Dense.of(0.3 * torch.randn(shape, generator=random), "fp32") for name, shape in shapes}
    vectors = {
        name: torch.ones(shape) if name.endswith("weight") else 0.1 * torch.randn(shape, generator=random)
        for name, shape in config.vector_shapes().items()
    }
    return GPT2(config, matrices, encoded(vectors, "fp32"))


def write_artifact(folder: Path, model: GPT2, *, force: bool = False) -> Path:
    """Write `model` with the embedded tokenizer, its own golden values and made-up quality."""
    quality = Quality(
        text="made-up.txt",
        text_sha256="0" * 64,
        tokens=1,
        context=model.config.n_positions,
        stride=model.config.n_positions,
        perplexity=12.5,
        bits_per_byte=1.0,
        dense_perplexity=10.0,
        perplexity_ratio=1.25,
        kl=0.1,
        top1_agreement=0.9,
    )
    prompt = [5, 6, 7]
    running = model.decoder(threads=1)
    logits = running.logits(hidden_states(running, np.array(prompt))[-1])
    top = np.argsort(-logits)[:4]
    golden = Golden(
        prompt_ids=prompt,
        continuation_ids=[],
        top_ids=top.tolist(),
        top_logits=logits[top].tolist(),
        tolerance=GOLDEN_TOLERANCE,
    )
    provenance = Provenance(
        source=Source(id="tiny", sha256="0" * 64), method="dense", config={}, seed=0, versions={}, build_seconds=0.0
    )
    contents = stored.contents(model, TOKENIZER, running)
    artifact.write(folder, contents, quality=quality, golden=golden, provenance=provenance, force=force)
    return folder


@pytest.fixture(scope="session")
def tiny_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_artifact(tmp_path_factory.mktemp("artifacts") / "tiny", tiny_model())
