"""All codecs by name."""

import re
from functools import cache

import torch

from compressor.codecs.base import Codec
from compressor.codecs.floats import FloatCodec
from compressor.codecs.groups import GroupCodec
from compressor.codecs.int8 import INT8

FLOATS = {
    torch.float32: FloatCodec("fp32", torch.float32),
    torch.bfloat16: FloatCodec("bf16", torch.bfloat16),
    torch.float16: FloatCodec("fp16", torch.float16),
}
CODECS: dict[str, Codec] = {
    **{codec.name: codec for codec in FLOATS.values()},
    "int8": INT8,
    "int4": GroupCodec(4, 64),
    "int3": GroupCodec(3, 64),
    "int2": GroupCodec(2, 32),
}
GROUP_CODEC = re.compile(r"int([234])-(?:g([1-9]\d{0,5})|row)(-zp)?")


@cache
def codec_named(name: str) -> Codec:
    """Return the codec called `name`: a key of CODECS, or int2, int3 or int4 with a group of one's own.

    "int4-g128" has groups of 128, "int4-row" one group per row; "-zp" after either adds zero points.

    Raises:
        ValueError: naming the legal codecs.
    """
    if name in CODECS:
        return CODECS[name]
    if match := GROUP_CODEC.fullmatch(name):
        return GroupCodec(int(match[1]), int(match[2] or 0), bool(match[3]))
    legal = f"{', '.join(CODECS)}, or int2, int3, int4 with -g<group> or -row, and -zp for zero points"
    raise ValueError(f"codec must be one of {legal}; not {name!r}")


def float_codec(dtype: torch.dtype) -> Codec:
    """Return the codec that keeps tensors of a floating-point `dtype` as they are."""
    if dtype in FLOATS:
        return FLOATS[dtype]
    raise ValueError(f"dtype must be float32, bfloat16 or float16, not {dtype}")
