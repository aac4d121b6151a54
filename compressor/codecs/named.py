"""All codecs by name."""

from functools import cache

import torch

from compressor.artifact.layouts import integers_named
from compressor.codecs.base import Codec
from compressor.codecs.floats import FloatCodec
from compressor.codecs.groups import GroupCodec
from compressor.codecs.int8 import INT8
from compressor.codecs.rotated import RotatedCodec
from compressor.codecs.trellis import TrellisCodec

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
    **{codec.name: codec for codec in map(TrellisCodec, range(1, 5))},
}


@cache
def codec_named(name: str) -> Codec:
    """Return the codec called `name`: a key of CODECS, or int2, int3 or int4 with a group of one's own.

    "int4-g128" has groups of 128, "int4-row" one group per row; "-zp" after either adds zero points. "-h" behind a
    codec of integers rotates the columns first.

    Raises:
        ValueError: naming the legal codecs.
    """
    found = integers_named(name)
    if found is not None and found.rotated:
        return RotatedCodec(codec_named(name.removesuffix("-h")))
    return CODECS[name] if found is None or name in CODECS else GroupCodec(found.bits, found.group, found.zero_point)


def float_codec(dtype: torch.dtype) -> Codec:
    """Return the codec that keeps tensors of a floating-point `dtype` as they are."""
    if dtype in FLOATS:
        return FLOATS[dtype]
    raise ValueError(f"dtype must be float32, bfloat16 or float16, not {dtype}")
