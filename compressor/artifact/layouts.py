"""What every codec and every format stores: names, shapes and dtypes of its tensors. No values, so no torch.

A codec stores the values [..., n] of one tensor as parts that share its leading axes. A format makes a matrix W
[out, in] of coded tensors, of index tensors that no codec touches, and of other formats. In a file a matrix's tensors
are called "<tensor>.<part>", and those of inner formats "<inner>.<tensor>.<part>".
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

from compressor.artifact.shapes import train_size

if TYPE_CHECKING:
    from compressor.artifact.manifest import Spec

Shape = tuple[int, int]
Shapes = dict[str, tuple[int, ...]]
INDEX_PART = "values"
ITEM_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "BF16": 2, "F16": 2, "I16": 2, "U16": 2}
FLOATS = {"fp32": "F32", "bf16": "BF16", "fp16": "F16"}  # codecs that are dtypes


class Part(NamedTuple):
    """Shape of a stored tensor, and its dtype as safetensors calls it."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def num_bytes(self) -> int:
        """Bytes that it occupies."""
        return prod(self.shape) * ITEM_BYTES.get(self.dtype, 1)

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


class Integers(NamedTuple):
    """A codec of integer codes.

    Attributes:
        bits: per value.
        group: values per scale; 0 for the whole row.
        zero_point: whether every group has a zero besides its scale.
        trellis: whether codes are those of a trellis.
        rotated: whether columns are rotated before they are coded.
    """

    bits: int
    group: int
    zero_point: bool
    trellis: bool = False
    rotated: bool = False


INTEGERS = {
    "int8": Integers(8, 0, False),
    "int4": Integers(4, 64, False),
    "int3": Integers(3, 64, False),
    "int2": Integers(2, 32, False),
    **{f"tr{bits}": Integers(bits, 0, False, trellis=True) for bits in range(1, 5)},
}
ROTATED = "-h"
GROUPED = re.compile(r"int([234])-(?:g([1-9]\d{0,5})|row)(-zp)?")
SMALLEST_GROUP, LARGEST_GROUP = 8, 65536


class Layout(NamedTuple):
    """The shapes of a format's coded tensors, and its index tensors."""

    coded: Shapes
    indices: dict[str, Part]


def integers_named(codec: str) -> Integers | None:
    """Return what the codec of integer codes called so is, None for a float's; raises ValueError for any other.

    "int4-g128" has groups of 128, "int4-row" one group per row; "-zp" after either adds zero points. "-h" behind a
    codec of integers rotates its columns.
    """
    if codec in FLOATS:
        return None
    if codec.endswith(ROTATED) and (found := integers_named(codec.removesuffix(ROTATED))) and not found.rotated:
        return found._replace(rotated=True)
    if codec in INTEGERS:
        return INTEGERS[codec]
    if match := GROUPED.fullmatch(codec):
        group = int(match[2] or 0)
        if group and not SMALLEST_GROUP <= group <= LARGEST_GROUP:
            legal = f"0 (the whole row) or between {SMALLEST_GROUP} and {LARGEST_GROUP}"
            raise ValueError(f"group must be {legal}, not {group}")
        return Integers(int(match[1]), group, bool(match[3]))
    names = ", ".join([*FLOATS, *INTEGERS])
    legal = f"{names}, or int2, int3, int4 with -g<group> or -row, and -zp for zero points; -h rotates integers"
    raise ValueError(f"codec must be one of {legal}; not {codec!r}")


def codec_layout(codec: str, shape: Sequence[int]) -> dict[str, Part]:
    """Return the parts that a tensor of `shape` is stored as; raises ValueError for an unknown codec or a scalar."""
    found = integers_named(codec)
    if found is None:
        return {"values": Part(tuple(shape), FLOATS[codec])}
    if not shape:
        raise ValueError(f"{codec} stores tensors of at least 1 dimension, not 0")
    *lead, columns = shape
    groups = -(-columns // found.group) if found.group else 1
    codes = Part((*lead, columns), "I8")
    if found.bits < 8:
        codes = Part((*lead, -(-columns // 8) * found.bits), "U8")
    per_group = Part((*lead, groups), "BF16")
    return {"codes": codes, "scale": per_group} | ({"zero": per_group} if found.zero_point else {})


def format_layout(name: str, shape: Shape, options: Mapping[str, Any], inner: Mapping[str, Shape]) -> Layout:
    """Return what a format of `shape` (out, in) stores besides its inner formats.

    Raises:
        ValueError: naming the format, the option or the inner shape that is not legal.
    """
    if name not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, not {name!r}")
    if len(shape) != 2 or min(shape) < 1:
        raise ValueError(f"shape must be two positive integers (out, in), not {list(shape)}")
    wanted, layout, check_inner = FORMATS[name]
    if options.keys() != wanted:
        legal = f"the options {', '.join(sorted(wanted))}" if wanted else "no options"
        raise ValueError(f"{name} has {legal}, not {sorted(options)}")
    if inner and check_inner is None:
        raise ValueError(f"{name} has no inner formats, not {sorted(inner)}")
    if check_inner is not None:
        check_inner(shape, inner)
    return layout(shape, options)


def tensors_of(spec: "Spec") -> dict[str, Part]:
    """Return every tensor of the matrix that `spec` describes.

    Raises:
        ValueError: naming the format, the option or the codec that is not legal.
    """
    coded, indices = format_layout(
        spec.format, spec.shape, spec.options, {name: child.shape for name, child in spec.inner.items()}
    )
    if spec.codecs.keys() != coded.keys():
        raise ValueError(f"codecs must name {sorted(coded)}, not {sorted(spec.codecs)}")
    found = {f"{name}.{INDEX_PART}": part for name, part in indices.items()}
    for name, shape in coded.items():
        with _naming(name):
            found |= {f"{name}.{part}": at for part, at in codec_layout(spec.codecs[name], shape).items()}
    for name, child in spec.inner.items():
        with _naming(name):
            found |= {f"{name}.{key}": part for key, part in tensors_of(child).items()}
    return found


def codecs_of(spec: "Spec") -> set[str]:
    """Return the codecs of a matrix, with those of its inner formats."""
    return set(spec.codecs.values()).union(*map(codecs_of, spec.inner.values()))


@contextmanager
def _naming(name: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _dense(shape: Shape, options: Mapping[str, Any]) -> Layout:
    return Layout({"matrix": shape}, {})


def _nothing(shape: Shape, options: Mapping[str, Any]) -> Layout:
    return Layout({}, {})


def _low_rank(shape: Shape, options: Mapping[str, Any]) -> Layout:
    rank = options["rank"]
    if type(rank) is not int or not 1 <= rank <= min(shape):
        raise ValueError(f"rank must be an integer between 1 and {min(shape)}, not {rank!r}")
    coded: Shapes = {"left": (shape[0], rank), "right": (rank, shape[1])}
    for name, size in (("row_scale", shape[0]), ("column_offset", shape[1])):
        _check_flag(name, options[name])
        if options[name]:
            coded[name] = (size,)
    return Layout(coded, {})


def _sparse(shape: Shape, options: Mapping[str, Any]) -> Layout:
    kept = options["kept"]
    if type(kept) is not int or not 1 <= kept <= shape[1]:
        raise ValueError(f"kept must be an integer between 1 and {shape[1]}, not {kept!r}")
    at = (shape[0], kept)
    return Layout({"values": at}, {"columns": Part(at, "I16" if shape[1] < 1 << 15 else "I32")})


def _token_mps(shape: Shape, options: Mapping[str, Any]) -> Layout:
    modes, ranks = options["modes"], options["ranks"]
    _check_sizes(modes=modes, ranks=ranks)
    if len(ranks) != len(modes) + 1 or ranks[0] != 1 or ranks[-1] != 1:
        raise ValueError(f"ranks must be {len(modes) + 1} integers beginning and ending with 1, not {ranks}")
    if prod(modes) < shape[1]:
        raise ValueError(f"modes must multiply to at least {shape[1]}, not {prod(modes)}")
    return Layout({"cores": (shape[0], train_size(modes, ranks))}, {})


def _tt_matrix(shape: Shape, options: Mapping[str, Any]) -> Layout:
    in_modes, out_modes, ranks = options["in_modes"], options["out_modes"], options["ranks"]
    _check_sizes(in_modes=in_modes, out_modes=out_modes, ranks=ranks)
    _check_flag("permuted", options["permuted"])
    for name, sizes, size in (("out_modes", out_modes, shape[0]), ("in_modes", in_modes, shape[1])):
        if len(sizes) != len(in_modes) or prod(sizes) < size:
            raise ValueError(f"{name} must be {len(in_modes)} and multiply to at least {size}, not {sizes}")
    _check_ranks(ranks, [i * o for i, o in zip(in_modes, out_modes, strict=True)])
    cores = zip(ranks[:-1], in_modes, out_modes, ranks[1:], strict=True)
    permutation = {"permutation": Part((shape[0],), "U16" if shape[0] <= 1 << 16 else "I32")}
    coded: Shapes = {f"core_{k}": (r * i, o * s) for k, (r, i, o, s) in enumerate(cores)}
    return Layout(coded, permutation if options["permuted"] else {})


def _check_sizes(**named: Any) -> None:
    for name, sizes in named.items():
        if not isinstance(sizes, list) or not sizes or any(type(n) is not int or n < 1 for n in sizes):
            raise ValueError(f"{name} must be a list of positive integers, not {sizes!r}")


def _check_flag(name: str, value: Any) -> None:
    if type(value) is not bool:
        raise ValueError(f"{name} must be true or false, not {value!r}")


def _check_ranks(ranks: Sequence[int], modes: Sequence[int]) -> None:
    if len(ranks) != len(modes) + 1 or ranks[0] != 1 or ranks[-1] != 1:
        raise ValueError(f"ranks must be {len(modes) + 1} integers beginning and ending with 1, not {list(ranks)}")
    for k, rank in enumerate(ranks):
        if rank > (most := max(prod(modes[:k]), prod(modes[k:]))):
            raise ValueError(f"ranks must not exceed what both sides have, {most} at {k}, not {list(ranks)}")


def _check_sum(shape: Shape, inner: Mapping[str, Shape]) -> None:
    if inner.keys() != {"base", "correction"}:
        raise ValueError(f"residual is made of base and correction, not {sorted(inner)}")
    for name, found in inner.items():
        if found != shape:
            raise ValueError(f"{name} must have shape {list(shape)}, not {list(found)}")


def _check_stack(shape: Shape, inner: Mapping[str, Shape]) -> None:
    names = [str(k) for k in range(len(inner))]
    if not inner or inner.keys() != set(names):
        raise ValueError(f"blocks must be called 0, 1, ... and be at least one, not {sorted(inner)}")
    if any(width != shape[1] for _, width in inner.values()):
        raise ValueError(f"blocks must be {shape[1]} wide, not {[inner[name][1] for name in names]}")
    if sum(rows for rows, _ in inner.values()) != shape[0]:
        raise ValueError(f"blocks must have {shape[0]} rows together, not {[inner[name][0] for name in names]}")


class _Format(NamedTuple):
    """A row of the table of formats."""

    options: set[str]
    layout: Callable[[Shape, Mapping[str, Any]], Layout]
    check_inner: Callable[[Shape, Mapping[str, Shape]], None] | None = None


FORMATS = {
    "dense": _Format(set(), _dense),
    "token_mps": _Format({"modes", "ranks"}, _token_mps),
    "tt_matrix": _Format({"in_modes", "out_modes", "ranks", "permuted"}, _tt_matrix),
    "low_rank": _Format({"rank", "row_scale", "column_offset"}, _low_rank),
    "stacked": _Format(set(), _nothing, _check_stack),
    "residual": _Format(set(), _nothing, _check_sum),
    "sparse": _Format({"kept"}, _sparse),
}
