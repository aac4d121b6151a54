"""Methods: how a format is found for one matrix. This dict is the whole list."""

from compressor.methods import quantize, svd, tensorgpt
from compressor.methods.base import Config, Method

__all__ = ["METHODS", "Config", "Method", "quantize"]

METHODS: dict[str, Method] = {
    # Targets no matrix: the model as it is, with --rest in another dtype.
    "dense": Method(config=Config, compress=quantize.compress, target="none"),
    "quantize": Method(config=quantize.Config, compress=quantize.compress, target="all"),
    "tensorgpt": Method(config=tensorgpt.Config, compress=tensorgpt.compress, target="embedding"),
    "svd": Method(config=svd.Config, compress=svd.compress, target="embedding"),
}
