"""GPT-2's hyper-parameters, and what follows from them: names, shapes and components."""

from dataclasses import dataclass
from typing import Literal, get_args

Activation = Literal["gelu_new", "gelu", "relu", "silu", "tanh", "quick_gelu"]
Component = Literal["wte", "wpe", "attn", "mlp", "norm"]
COMPONENTS: tuple[Component, ...] = ("wte", "wpe", "attn", "mlp", "norm")
# Two tokens to choose from, one to read and one to predict are the least that makes a language model.
LIMITS = {
    "vocab_size": (2, 2**31 - 1),
    "n_positions": (2, 2**31 - 1),
    "n_embd": (1, 2**20),
    "n_layer": (1, 4096),
    "n_head": (1, 2**20),
    "n_inner": (1, 2**31 - 1),
}


@dataclass(frozen=True, kw_only=True)
class GPT2Config:
    """GPT-2's hyper-parameters, under Hugging Face's names.

    Attributes:
        vocab_size: V.
        n_positions: longest context in tokens.
        n_embd: D.
        n_layer: L.
        n_head: H; n_embd is a multiple of it.
        n_inner: width of the MLP, usually 4 D.
        layer_norm_epsilon: added to the variance.
        activation_function: of the MLP.
        scale_attn_weights: divide the attention scores by the square root of a head's width.
        scale_attn_by_inverse_layer_idx: divide the attention scores of layer l by l + 1.
        eos_token_id: ends a text.
    """

    vocab_size: int
    n_positions: int
    n_embd: int
    n_layer: int
    n_head: int
    n_inner: int
    eos_token_id: int
    layer_norm_epsilon: float = 1e-5
    activation_function: Activation = "gelu_new"
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False

    def __post_init__(self) -> None:
        for field, (least, most) in LIMITS.items():
            value = getattr(self, field)
            if type(value) is not int or not least <= value <= most:
                raise ValueError(f"{field} must be an integer between {least} and {most}, not {value!r}")
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd must be a multiple of n_head = {self.n_head}, not {self.n_embd}")
        if type(self.eos_token_id) is not int or not 0 <= self.eos_token_id < self.vocab_size:
            raise ValueError(f"eos_token_id must be an integer in [0, {self.vocab_size}), not {self.eos_token_id!r}")
        epsilon = self.layer_norm_epsilon
        if type(epsilon) not in (int, float) or not 0 < epsilon <= 1:
            raise ValueError(f"layer_norm_epsilon must be a number in (0, 1], not {epsilon!r}")
        if type(self.activation_function) is not str or self.activation_function not in get_args(Activation):
            legal = ", ".join(get_args(Activation))
            raise ValueError(f"activation_function must be one of {legal}, not {self.activation_function!r}")
        for field in ("scale_attn_weights", "scale_attn_by_inverse_layer_idx"):
            if type(value := getattr(self, field)) is not bool:
                raise ValueError(f"{field} must be true or false, not {value!r}")

    def matrix_shapes(self) -> dict[str, tuple[int, int]]:
        """Return the shape [out, in] of every matrix by name."""
        d, inner = self.n_embd, self.n_inner
        shapes = {"wte": (self.vocab_size, d), "wpe": (self.n_positions, d)}
        for i in range(self.n_layer):
            shapes[f"h.{i}.attn.c_attn"] = (3 * d, d)
            shapes[f"h.{i}.attn.c_proj"] = (d, d)
            shapes[f"h.{i}.mlp.c_fc"] = (inner, d)
            shapes[f"h.{i}.mlp.c_proj"] = (d, inner)
        return shapes

    def vector_shapes(self) -> dict[str, tuple[int]]:
        """Return the shape of every bias and LayerNorm vector by name."""
        d = self.n_embd
        shapes: dict[str, tuple[int]] = {}
        for i in range(self.n_layer):
            for norm in ("ln_1", "ln_2"):
                shapes |= {f"h.{i}.{norm}.weight": (d,), f"h.{i}.{norm}.bias": (d,)}
            for linear, size in (
                ("attn.c_attn", 3 * d),
                ("attn.c_proj", d),
                ("mlp.c_fc", self.n_inner),
                ("mlp.c_proj", d),
            ):
                shapes[f"h.{i}.{linear}.bias"] = (size,)
        return shapes | {"ln_f.weight": (d,), "ln_f.bias": (d,)}


def component_of(name: str) -> Component:
    """Return the component whose bytes the matrix or vector called `name` counts towards."""
    if name in ("wte", "lm_head"):
        return "wte"
    if name == "wpe":
        return "wpe"
    if ".attn." in name:
        return "attn"
    return "mlp" if ".mlp." in name else "norm"
