"""Methods: how a format is found for one matrix. This dict is the whole list."""

from compressor.methods import direction_ae, direction_svd, gptq, lpa, quantize, svd, tensorgpt, ttm, whitened_svd
from compressor.methods.base import Config, Method

__all__ = ["METHODS", "Config", "Method", "quantize"]

METHODS: dict[str, Method] = {
    # Targets no matrix: the model as it is, with --rest in another dtype.
    "dense": Method(config=Config, compress=quantize.compress, target="none"),
    "quantize": Method(config=quantize.Config, compress=quantize.compress, target="all"),
    "tensorgpt": Method(config=tensorgpt.Config, compress=tensorgpt.compress, target="embedding"),
    "ttm": Method(config=ttm.Config, compress=ttm.compress, target="embedding"),
    "svd": Method(config=svd.Config, compress=svd.compress, target="embedding"),
    "whitened_svd": Method(
        config=whitened_svd.Config, compress=whitened_svd.compress, target="embedding", calibrated=True
    ),
    "direction_ae": Method(config=direction_ae.Config, compress=direction_ae.compress, target="embedding"),
    "direction_svd": Method(config=direction_svd.Config, compress=direction_svd.compress, target="embedding"),
    "gptq": Method(config=gptq.Config, compress=gptq.compress, target="all", calibrated=True),
    "lpa": Method(config=lpa.Config, compress=lpa.compress, target="attn", calibrated=True),
}
