"""OpenVINO: a stateful model on the CPU, as it comes, and with a hint for fp32.

It computes in bf16 by itself where the CPU can, which reads prompts faster; with the hint it rounds activations to 8
bits in groups, which decodes faster. Keys and values have 8 bits in either case.
"""

import json
from functools import partial
from pathlib import Path

import numpy as np
import openvino


class OpenVino:
    """A compiled model; every row has its own keys and values in the model's state."""

    def __init__(self, model: Path, threads: int, **more: str) -> None:
        settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"} | more
        compiled = openvino.Core().compile_model(model / "model.xml", "CPU", settings)
        self._request = compiled.create_infer_request()
        shape = json.loads((model / "shape.json").read_bytes())
        self.weight_bytes = (model / "model.bin").stat().st_size - shape["wpe_bytes"]
        self.kv_bytes_per_token = 2 * shape["n_layer"] * shape["n_embd"]

    def reserve(self, batch: int, capacity: int) -> None:
        pass

    def generate(self, prompts: list[list[int]], count: int) -> list[list[int]]:
        self._request.reset_state()
        ids, rows = np.array(prompts, np.int64), np.arange(len(prompts), dtype=np.int32)
        read, found = 0, []
        for _ in range(count):
            positions = np.broadcast_to(np.arange(read, read + ids.shape[1]), ids.shape)
            read += ids.shape[1]
            logits = self._request.infer(
                {"input_ids": ids, "position_ids": positions, "beam_idx": rows}, share_inputs=True, share_outputs=True
            )["logits"]
            ids = logits[:, -1].argmax(-1)[:, np.newaxis]
            found.append(ids)
        tokens: list[list[int]] = np.concatenate(found, 1).tolist()
        return tokens


load = OpenVino
load_fp32 = partial(OpenVino, INFERENCE_PRECISION_HINT="f32")
