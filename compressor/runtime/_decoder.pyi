"""The extension module built from compressor/runtime/decoder: matrices as they are stored, and a decoder made of them.

Arrays are whatever has the buffer protocol, C-contiguous, aligned and of the dtype named here; bf16 are their bits as
uint16. Nothing of them is kept. All calls raise TypeError, ValueError or IndexError naming the argument and what is
legal. They give the GIL back while they compute: nothing may change their arguments meanwhile.

Law: a row of a result is bitwise its own, whatever else is computed with it, with any threads and instructions.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias, final

from numpy.typing import NDArray
from typing_extensions import Buffer

Array: TypeAlias = Buffer | NDArray[Any]  # numpy's arrays are buffers, which its types say from Python 3.12 on
Linear: TypeAlias = tuple[Matrix, Array]  # and its bias, fp32
Norm: TypeAlias = tuple[Array, Array]  # weight and bias, fp32 [D]

ACTIVATIONS: tuple[str, ...]
INSTRUCTIONS: tuple[str, ...]  # that this CPU has, the best last
LANES: int  # tokens of a page of a KV cache, in which heads are padded to a multiple of it
MAX_THREADS: int
TRELLIS_LEVELS: tuple[bytes, ...]  # of 1 to 4 bits: the level of each of 256 windows, plus 128

@final
class Matrix:
    """W [n, k], as it is stored.

    Products with integer codes round x to 16 bits with one step per row of x, or to 8 bits with one step per group and
    at most 128 columns.
    """

    @classmethod
    def floats(cls, values: Array, /) -> Matrix:
        """Return values [n, k] in fp32, fp16 or bf16."""

    @classmethod
    def integers(
        cls,
        codes: Array,
        scale: Array,
        zero: Array | None,
        *,
        bits: int,
        columns: int,
        group: int,
        activation_bits: int,
        trellis: bool,
        rotated: bool,
    ) -> Matrix:
        """Return codes with a scale, and perhaps a zero, per group of columns, bf16 [n, groups].

        8 bits: int8 [n, columns]. 4, 3 or 2 bits: packed, lowest bits first, uint8 [n, ceil(columns / 8) * bits],
        around half of the largest code, or with zeros from 0 on. Of a trellis, 1 to 4 bits, packed like that: see
        `compressor.codecs.trellis`. If they are rotated, W is these values times the rotation of
        `compressor.codecs.rotation`.
        """

    @classmethod
    def low_rank(
        cls, left: Matrix, right: Matrix, *, row_scale: Array | None = None, column_offset: Array | None = None
    ) -> Matrix:
        """Return diag(row_scale) @ left [n, r] @ right [r, k] + 1 column_offset, of coded factors and fp32 vectors."""

    @classmethod
    def stacked(cls, blocks: Sequence[Matrix], /) -> Matrix:
        """Return blocks one below the other."""

    @classmethod
    def residual(cls, base: Matrix, correction: Matrix, /) -> Matrix:
        """Return the sum of two matrices."""

    @classmethod
    def sparse(cls, values: Matrix, columns: Array, *, in_features: int) -> Matrix:
        """Return a matrix of zeros but for coded values [n, kept] in ascending columns, int32 [n, kept]."""

    @classmethod
    def token_mps(cls, cores: Matrix, *, modes: Sequence[int], ranks: Sequence[int], in_features: int) -> Matrix:
        """Return a matrix whose every row is a tensor train of coded cores [n, values], cropped to `in_features`."""

    @classmethod
    def tt_matrix(
        cls,
        cores: Sequence[Array],
        *,
        shape: tuple[int, int],
        in_modes: Sequence[int],
        out_modes: Sequence[int],
        ranks: Sequence[int],
        places: Array | None,
    ) -> Matrix:
        """Return a tensor train of cores [r_{k-1}, in_k, out_k, r_k] in fp32, fp16 or bf16, cropped to `shape`.

        `places` names the train's row of every row, int32 [n].
        """

    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def is_contracted(self) -> bool:
        """Whether any of its rows is contracted from the cores of tensor trains."""

    @property
    def num_bytes(self) -> int:
        """Bytes that it occupies in this process, with all that it is made of."""

    def matmul(self, x: Array, out: Array, *, threads: int = 1, instructions: str | None = None) -> None:
        """Write x W^T [..., n] to `out`, apart from x [..., k]; both fp32."""

    def rows(self, ids: Array, out: Array, *, threads: int = 1) -> None:
        """Write W[ids] to `out`, fp32 [count, k]; ids are int64 [count] in [0, n)."""

@final
class Decoder:
    """GPT-2, made of matrices: embeddings, blocks, the last norm and the head."""

    def __new__(
        cls,
        *,
        wte: Matrix,
        wpe: Matrix,
        head: Matrix,
        blocks: list[tuple[Norm, Norm, Linear, Linear, Linear, Linear, float]],
        ln_f: Norm,
        heads: int,
        inner: int,
        epsilon: float,
        activation: str,
    ) -> Decoder:
        """Make a decoder.

        Args:
            wte: [V, D].
            wpe: [positions, D].
            head: [V, D].
            blocks: ln_1, ln_2, c_attn, c_proj, c_fc and the MLP's c_proj, and what scores are multiplied by.
            ln_f: the last norm.
            heads: of the attention.
            inner: width of the MLP.
            epsilon: of all norms.
            activation: one of ACTIVATIONS.
        """

    def step(
        self,
        tokens: Array,
        slots: Array,
        positions: Array,
        table: Array,
        keys: Array,
        values: Array,
        *,
        embedded: Array | None = None,
        wanted: Array | None = None,
        logits: Array | None = None,
        hidden: Array | None = None,
        threads: int = 1,
        instructions: str | None = None,
    ) -> None:
        """Append tokens to their slots of a KV cache, and compute what is asked for.

        Args:
            tokens: int64 [N].
            slots: of each token, int64 [N].
            positions: of each token in its slot, int64 [N]; those of one slot ascend by one, from its length on.
            table: pages of each slot, int64 [slots, blocks]; those of a slot's tokens, old and new, are looked at.
            keys: of LANES tokens per page, [pages, layers, heads, D / heads, LANES], fp32, fp16 or bf16; changed.
            values: [pages, layers, heads, LANES, D / heads padded to LANES], of the same dtype; changed, the padding
                being 0.
            embedded: the tokens' rows of wte, fp32 [N, D]; looked up otherwise.
            wanted: tokens behind which logits are wanted, int64 [M].
            logits: fp32 [M, V], written.
            hidden: after the last norm, fp32 [N, D], written where given.
            threads: that compute; fewer where others do already.
            instructions: one of INSTRUCTIONS; the last by default.
        """

def draw(
    logits: Array,
    chosen: Array,
    *,
    temperature: Array,
    top_k: Array,
    top_p: Array,
    typical_p: Array,
    min_p: Array,
    uniform: Array,
    threads: int,
    instructions: str | None,
) -> None:
    """Write a token for every row of logits [n, V] to chosen, int64 [n]; of equally good ones that of smaller id.

    Args:
        logits: fp32 [n, V].
        chosen: int64 [n].
        temperature: divides the logits, fp32 [n]; 0 takes the best token.
        top_k: how many of the best tokens stay, int64 [n]; 0: all.
        top_p: the fewest best tokens of those stay whose probabilities add up to it, fp64 [n].
        typical_p: the most typical tokens of those stay whose probabilities add up to it, fp64 [n].
        min_p: before all these, tokens stay that are at least so likely, beside the best one, fp64 [n]; 0: all.
        uniform: picks the token in whose share of the summed probabilities it falls, in [0, 1), fp64 [n].
        threads: that compute.
        instructions: None for the best that there are.
    """

def judge(
    logits: Array,
    targets: Array,
    out: Array,
    *,
    reference: Array | None = None,
    threads: int = 1,
    instructions: str | None = None,
) -> None:
    """Write how good logits are, in fp64 [n, 5]; not finite where they are not.

    Log-probability of the target, that by the reference, Kullback-Leibler divergence from the reference, all in nats;
    the likeliest token, and that by the reference.

    Args:
        logits: fp32 [n, V].
        targets: int64 [n].
        out: fp64 [n, 5].
        reference: fp32 [n, V]; the logits themselves by default.
        threads: that compute.
        instructions: one of INSTRUCTIONS; the last by default.
    """
