"""Codecs: how the values of one tensor of any shape are stored.

A codec turns values [..., n] into named parts, all of which share the leading axes of the values.
So rows can be taken from the parts before anything is decoded.
"""

from compressor.codecs.base import Codec, Grid, Parts, finite, power_of_2
from compressor.codecs.coded import Coded, Latent, Scaled
from compressor.codecs.named import CODECS, codec_named, float_codec

__all__ = [
    "CODECS",
    "Codec",
    "Coded",
    "Grid",
    "Latent",
    "Parts",
    "Scaled",
    "codec_named",
    "finite",
    "float_codec",
    "power_of_2",
]
