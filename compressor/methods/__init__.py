"""Methods: how a format is found for one matrix. This dict is the whole list."""

from compressor.methods import (
    direction_ae,
    direction_svd,
    gptq,
    joint_qk,
    lpa,
    quantize,
    residual,
    rotated_svd,
    sparse_low_rank,
    svd,
    tensorgpt,
    ttm,
    whitened_svd,
)
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
    "rotated_svd": Method(
        config=rotated_svd.Config,
        compress=rotated_svd.compress,
        target="embedding",
        calibrated=True,
        compress_rows=rotated_svd.compress_rows,
    ),
    "direction_ae": Method(config=direction_ae.Config, compress=direction_ae.compress, target="embedding"),
    "direction_svd": Method(config=direction_svd.Config, compress=direction_svd.compress, target="embedding"),
    "gptq": Method(config=gptq.Config, compress=gptq.compress, target="all", calibrated=True),
    "residual": Method(config=residual.Config, compress=residual.compress, target="linears", calibrated=True),
    "lpa": Method(config=lpa.Config, compress=lpa.compress, target="attn", calibrated=True),
    "joint_qk": Method(config=joint_qk.Config, compress=joint_qk.compress, target="qkv", calibrated=True),
    "sparse_low_rank": Method(
        config=sparse_low_rank.Config, compress=sparse_low_rank.compress, target="embedding", calibrated=True
    ),
}
