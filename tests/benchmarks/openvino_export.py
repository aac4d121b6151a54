"""GPT-2 as an OpenVINO model with keys and values in its state, as its own exporters write it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray
from openvino import opset15 as ov

from compressor.artifact.gpt2_config import GPT2Config
from compressor.gpt2 import GPT2

Weights = dict[str, NDArray[np.float32]]


def export(model: GPT2, out: Path, kind: str) -> None:
    """Write a folder with the model, its weights compressed by NNCF to `kind`: int8, or int4 in groups of 64."""
    import nncf

    weights = {name: matrix.dense().numpy() for name, matrix in model.matrices().items()}
    weights |= {name: vector.decode().numpy() for name, vector in model.vectors().items()}
    modes = {
        "int8": {"mode": nncf.CompressWeightsMode.INT8_SYM},
        "int4": {"mode": nncf.CompressWeightsMode.INT4_SYM, "group_size": 64, "all_layers": True},
    }
    compressed = nncf.compress_weights(graph(weights, model.config), **modes[kind])
    out.mkdir()
    openvino.save_model(compressed, out / "model.xml", compress_to_fp16=False)
    config = model.config
    shape = {"n_layer": config.n_layer, "n_embd": config.n_embd, "wpe_bytes": config.n_positions * config.n_embd}
    (out / "shape.json").write_text(json.dumps(shape))


def graph(weights: Weights, config: GPT2Config) -> openvino.Model:
    """Return the model: ids, positions and the row that each row goes on from, to logits behind the last token."""
    ids = ov.parameter([-1, -1], np.int64, name="input_ids")
    positions = ov.parameter([-1, -1], np.int64, name="position_ids")
    beams = ov.parameter([-1], np.int32, name="beam_idx")
    table = _constant(weights["wte"])
    x = ov.add(_rows(table, ids), _rows(_constant(weights["wpe"]), positions))
    last = ov.reduce_max(positions, np.array([0, 1]), keep_dims=False)
    seen = ov.unsqueeze(ov.range(np.int64(0), ov.add(last, np.int64(1)), np.int64(1), "i64"), np.array([0, 1, 2]))
    allowed = ov.less_equal(seen, ov.unsqueeze(positions, np.array([1, 3])))  # [B, 1, T, all]
    mask = ov.select(allowed, np.float32(0), np.float32(-np.inf))
    states: list[Any] = []
    for i in range(config.n_layer):
        name = f"h.{i}"
        qkv = _linear(_norm(x, weights, f"{name}.ln_1", config), weights, f"{name}.attn.c_attn")
        q, k, v = (_heads(part, config) for part in ov.variadic_split(qkv, -1, [config.n_embd] * 3).outputs())
        k, v = (_remembered(new, beams, ids, f"{name}.{what}", config, states) for new, what in ((k, "k"), (v, "v")))
        mixed = ov.transpose(ov.scaled_dot_product_attention(q, k, v, mask), [0, 2, 1, 3])
        x = ov.add(x, _linear(ov.reshape(mixed, [0, 0, config.n_embd], True), weights, f"{name}.attn.c_proj"))
        inner = _linear(_norm(x, weights, f"{name}.ln_2", config), weights, f"{name}.mlp.c_fc")
        x = ov.add(x, _linear(ov.gelu(inner, "TANH"), weights, f"{name}.mlp.c_proj"))
    behind = ov.gather(x, np.array([-1]), np.int64(1))  # the head meets the last token only
    logits = ov.matmul(_norm(behind, weights, "ln_f", config), table, False, True)
    result = ov.result(logits, name="logits")
    result.output(0).get_tensor().set_names({"logits"})
    logits.output(0).get_tensor().set_names({"logits"})
    return openvino.Model([result], states, [ids, positions, beams], "gpt2")


def _constant(values: NDArray[np.float32]) -> Any:
    return ov.constant(np.ascontiguousarray(values, np.float32))


def _rows(table: Any, ids: Any) -> Any:
    return ov.gather(table, ids, np.int64(0))


def _norm(x: Any, weights: Weights, name: str, config: GPT2Config) -> Any:
    centred = ov.mvn(x, np.array([-1]), True, config.layer_norm_epsilon, "INSIDE_SQRT")
    return ov.add(ov.multiply(centred, _constant(weights[f"{name}.weight"])), _constant(weights[f"{name}.bias"]))


def _linear(x: Any, weights: Weights, name: str) -> Any:
    return ov.add(ov.matmul(x, _constant(weights[name]), False, True), _constant(weights[f"{name}.bias"]))


def _heads(x: Any, config: GPT2Config) -> Any:
    return ov.transpose(ov.reshape(x, [0, 0, config.n_head, config.n_embd // config.n_head], True), [0, 2, 1, 3])


def _remembered(new: Any, beams: Any, ids: Any, name: str, config: GPT2Config, states: list[Any]) -> Any:
    """Return keys or values [B, heads, all, size] with the new ones, which the state keeps."""
    size = config.n_embd // config.n_head
    batch = ov.gather(ov.shape_of(ids), np.array([0]), np.int64(0))
    nothing = ov.broadcast(np.float32(0), ov.concat([batch, np.array([config.n_head, 0, size])], 0))
    before = ov.read_value(nothing, name, openvino.Type.f32, openvino.PartialShape([-1, config.n_head, -1, size]))
    everything = ov.concat([ov.gather(before, beams, np.int64(0)), new], 2)
    states.append(ov.assign(everything, name))
    return everything
