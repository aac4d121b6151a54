"""CTranslate2: `generate_batch` of its Generator."""

import json
from pathlib import Path

import ctranslate2


class CTranslate:
    """A converted model; its layers run in int8, keys and values are fp32."""

    def __init__(self, model: Path, threads: int) -> None:
        self._generator = ctranslate2.Generator(
            str(model), device="cpu", compute_type="int8", inter_threads=1, intra_threads=threads
        )
        self._tokens: list[str] = json.loads((model / "vocabulary.json").read_bytes())
        self._ids = {token: i for i, token in enumerate(self._tokens)}
        shape = json.loads((model / "shape.json").read_bytes())
        self.weight_bytes = (model / "model.bin").stat().st_size - 4 * shape["n_positions"] * shape["n_embd"]
        self.kv_bytes_per_token = 2 * shape["n_layer"] * shape["n_embd"] * 4

    def reserve(self, batch: int, capacity: int) -> None:
        pass

    def generate(self, prompts: list[list[int]], count: int) -> list[list[int]]:
        results = self._generator.generate_batch(
            [[self._tokens[i] for i in prompt] for prompt in prompts],
            max_batch_size=0,
            beam_size=1,
            sampling_topk=1,
            min_length=count,
            max_length=count,
            include_prompt_in_result=False,
        )
        return [[self._ids[token] for token in result.sequences[0]] for result in results]


load = CTranslate
