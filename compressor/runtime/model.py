"""The decoder as it runs: GPT-2 made of stored matrices. No torch."""

import os
from collections.abc import Callable, Mapping
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from compressor.runtime import matrices as of_matrices
from compressor.runtime._decoder import MAX_THREADS, Decoder, Matrix
from compressor.runtime.kv import PAGE_TOKENS, Cache

if TYPE_CHECKING:
    from compressor.artifact.gpt2_config import GPT2Config

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]
RowLookup = Callable[[Ids], Floats]  # ids to the token table's rows [*ids, D]
LINEARS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")


class Read(NamedTuple):
    """What was computed: logits [M, V] behind the tokens that were asked for, and hidden states [N, D]; or None."""

    logits: Floats | None
    hidden: Floats | None


class Model:
    """GPT-2, every matrix multiplied as it is stored.

    Law: what a text gets is bitwise its own, whatever is read beside it, in whatever pieces, with any threads.

    Attributes:
        config: hyper-parameters.
        matrices: by name.
        head: [V, D], that hidden states are multiplied by.
        threads: that compute.
        row_lookup: looks the vectors of tokens up instead of the table itself, bitwise the same.
    """

    def __init__(
        self,
        config: "GPT2Config",
        matrices: Mapping[str, Matrix],
        vectors: Mapping[str, Floats],
        threads: int | None = None,
    ) -> None:
        """Assemble the model.

        Args:
            config: hyper-parameters.
            matrices: every matrix of `config.matrix_shapes()`, and lm_head [V, D] unless the head is tied.
            vectors: every vector of `config.vector_shapes()`, in fp32.
            threads: that compute; all cores that the process may use by default.
        """
        self.config = config
        self.matrices = dict(matrices)
        self.head = self.matrices.get("lm_head", self.matrices["wte"])
        self.row_lookup: RowLookup | None = None
        self.threads = threads or min(len(os.sched_getaffinity(0)), MAX_THREADS)

        def norm(name: str) -> tuple[Floats, Floats]:
            return vectors[f"{name}.weight"], vectors[f"{name}.bias"]

        def block(i: int) -> tuple[Any, ...]:
            scale = (config.n_embd // config.n_head) ** -0.5 if config.scale_attn_weights else 1.0
            scale /= i + 1 if config.scale_attn_by_inverse_layer_idx else 1
            linears = [(matrices[f"h.{i}.{name}"], vectors[f"h.{i}.{name}.bias"]) for name in LINEARS]
            return norm(f"h.{i}.ln_1"), norm(f"h.{i}.ln_2"), *linears, scale

        self._decoder = Decoder(
            wte=matrices["wte"],
            wpe=matrices["wpe"],
            head=self.head,
            blocks=[block(i) for i in range(config.n_layer)],
            ln_f=norm("ln_f"),
            heads=config.n_head,
            inner=config.n_inner,
            epsilon=config.layer_norm_epsilon,
            activation=config.activation_function,
        )

    def read(
        self,
        tokens: Ids,
        cache: Cache,
        slots: Ids,
        counts: Ids,
        *,
        wanted: Ids | None = None,
        hidden: bool = False,
    ) -> Read:
        """Read the next tokens of several texts, one text behind another.

        Args:
            tokens: [N], int64: counts[0] of the first text, counts[1] of the second and so on.
            cache: what came before; the new keys and values are added to it.
            slots: of each text in the cache [B], all different.
            counts: tokens of each text [B]; their sum is N.
            wanted: tokens behind which logits are wanted [M], counted from 0 in `tokens`.
            hidden: whether the hidden states are.

        Raises:
            ValueError: if a text would outgrow the cache, or the arguments do not fit each other.
            IndexError: if a token, a slot or a page does not exist.
        """
        if len(np.unique(slots)) < len(slots):
            raise ValueError(f"slots must be different, not {slots.tolist()}")
        start = cache.lengths[slots]
        used = start + counts
        if (longest := int(used.max())) > cache.capacity:
            raise ValueError(f"{longest} tokens exceed the capacity of {cache.capacity}")
        first = start - (counts.cumsum() - counts)  # of each text, were all N tokens its own
        positions = np.arange(len(tokens)) + first.repeat(counts)
        logits = None if wanted is None else np.empty((len(wanted), self.config.vocab_size), np.float32)
        states = np.empty((len(tokens), self.config.n_embd), np.float32) if hidden else None
        self._decoder.step(
            tokens,
            slots.repeat(counts),
            positions,
            cache.table,
            cache.keys,
            cache.values,
            embedded=None if self.row_lookup is None else self.row_lookup(tokens),
            wanted=wanted,
            logits=logits,
            hidden=states,
            threads=self.threads,
        )
        cache.lengths[slots] = used
        return Read(logits, states)

    def logits(self, hidden: Floats) -> Floats:
        """Return the logits of the next token [..., V] for hidden states [..., D]."""
        return of_matrices.matmul(self.head, hidden, self.threads)

    def embed(self, ids: Ids) -> Floats:
        """Return the vectors of tokens [*ids, D]; raises IndexError if one does not exist."""
        return of_matrices.rows(self.matrices["wte"], ids) if self.row_lookup is None else self.row_lookup(ids)

    def kv_bytes_per_token(self, dtype: str) -> int:
        """Return the bytes of one token's keys and values in a cache of `dtype`."""
        return Cache(self.config, 1, 1, dtype).num_bytes // PAGE_TOKENS

    @property
    def num_bytes(self) -> dict[str, int]:
        """Bytes that every matrix and vector occupies, by name."""
        shapes = self.config.vector_shapes().items()
        return {name: matrix.num_bytes for name, matrix in self.matrices.items()} | {n: 4 * k for n, (k,) in shapes}

    @property
    def head_cost(self) -> int:
        """About how many tokens the blocks read while the head is multiplied by one row; at least 1."""
        work = sum(prod(matrix.shape) for name, matrix in self.matrices.items() if name.startswith("h."))
        return -(-prod(self.head.shape) // work)
