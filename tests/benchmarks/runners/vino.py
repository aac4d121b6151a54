"""OpenVINO: a stateful model on the CPU, compiled as it comes, so with keys and values and activations in 8 bits."""

import json
from pathlib import Path

import numpy as np
import openvino


class OpenVino:
    """A compiled model; every row has its own keys and values in the model's state."""

    def __init__(self, model: Path, threads: int) -> None:
        settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
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
