"""What a model is cut into, and the forms that every piece could take."""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from compressor.codecs import codec_named
from compressor.formats import Format, Stacked

CUT_ROWS = 4096  # a table with so many rows is cut into blocks
TABLE_BLOCKS = 6  # each twice as long as the one before, the first two alike
# Ranks, as shares of the smaller side, and codecs that `rotated_svd` is tried with.
TABLE_RANKS = {
    "tr1": (0.25, 0.375, 0.5),
    "tr2": (0.125, 0.1875, 0.25, 0.375, 0.5, 0.75, 1.0),
    "tr3": (0.375, 0.5, 0.75, 1.0),
    "tr4": (1.0,),
}
LINEAR_RANKS = {"tr2": (0.0625, 0.125, 0.25, 0.5), "tr3": (0.125, 0.25, 0.5)}
ROUNDED = ("int8", "tr4-h", "tr3-h", "tr2-h")


@dataclass(frozen=True)
class Piece:
    """What a form is chosen for: a matrix, or some rows of a table.

    Attributes:
        matrix: its name.
        rows: from which row to which.
        whole: whether these are all of them.
    """

    matrix: str
    rows: slice
    whole: bool

    @property
    def name(self) -> str:
        """The matrix, with its rows unless it is whole: wte[0:512]."""
        return self.matrix if self.whole else f"{self.matrix}[{self.rows.start}:{self.rows.stop}]"

    @property
    def file_name(self) -> str:
        """The same for every file system: wte-0-512."""
        return f"{self.matrix}-{self.rows.start}-{self.rows.stop}"

    def shape_in(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Return its own shape in a matrix of `shape`."""
        return self.rows.stop - self.rows.start, shape[1]


def pieces(name: str, shape: tuple[int, int]) -> list[Piece]:
    """Return what a matrix is cut into.

    The tokens of a byte-level BPE are numbered in the order of their merges, so the frequent ones come first;
    a large token table is cut into blocks of doubling length, in which errors weigh less and less.
    """
    rows = shape[0]
    if name not in ("wte", "lm_head") or rows < CUT_ROWS:
        return [Piece(name, slice(0, rows), True)]
    cuts = [0, *(rows >> k for k in range(TABLE_BLOCKS - 1, 0, -1)), rows]
    return [Piece(name, slice(start, stop), False) for start, stop in itertools.pairwise(cuts)]


def candidates(name: str, shape: tuple[int, int]) -> list[tuple[str, dict[str, Any]]]:
    """Return the methods and options that are tried for a matrix, or for rows of it [out, in]."""
    if name == "wpe":
        return [("quantize", {"codec": codec}) for codec in ROUNDED]
    is_table = name in ("wte", "lm_head")
    rounded = ROUNDED if is_table else (*ROUNDED, "tr1-h")
    found: list[tuple[str, dict[str, Any]]] = [("gptq", {"codec": codec}) for codec in rounded]
    shares = (TABLE_RANKS if is_table else LINEAR_RANKS).items()
    low_rank = {(max(1, round(min(shape) * share)), codec) for codec, of in shares for share in of}
    # By their ranks, since those of one rank share a right factor.
    right = {"right_codec": "tr4-h" if is_table else "tr3-h"}
    return found + [("rotated_svd", {"rank": rank, "codec": codec} | right) for rank, codec in sorted(low_rank)]


@dataclass(frozen=True)
class Choice:
    """One form that a piece could take.

    Attributes:
        piece: of the model.
        method, options: that find it.
        size_bytes: it occupies.
        kl: from the dense model, nats per token, with only this piece replaced; estimated or measured.
    """

    piece: Piece
    method: str
    options: Mapping[str, Any]
    size_bytes: int
    kl: float

    def __str__(self) -> str:
        options = " ".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.method} {options}"

    @property
    def file_name(self) -> str:
        """The same for every file system."""
        return f"{self.piece.file_name}-{str(self).replace(' ', '-')}"


def size_bytes(options: Mapping[str, Any], shape: tuple[int, int]) -> int:
    """Return what a matrix [out, in] occupies in the form that a candidate's `options` find."""
    codec = codec_named(options["codec"])
    if "rank" not in options:
        return codec.num_bytes(shape)
    rank = options["rank"]
    return codec.num_bytes((shape[0], rank)) + codec_named(options["right_codec"]).num_bytes((rank, shape[1]))


def assembled(forms: Iterable[tuple[Piece, Format]]) -> dict[str, Format]:
    """Return the matrices that the forms of all their pieces make, by name."""
    found: dict[str, list[Format]] = {}
    for piece, form in sorted(forms, key=lambda pair: (pair[0].matrix, pair[0].rows.start)):
        found.setdefault(piece.matrix, []).append(form)
    return {name: parts[0] if len(parts) == 1 else Stacked.of(parts) for name, parts in found.items()}
