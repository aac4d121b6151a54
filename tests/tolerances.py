"""How far results may be off, and why. Nowhere else."""

# Largest relative error (Frobenius) of storing a matrix.
STORE = {
    "fp32": 0.0,
    "bf16": 2**-8,  # 8 bits of mantissa
    "fp16": 2**-11,  # 11 bits of mantissa
    # Error of the best uniform quantiser of a normal variable with 2^bits levels (Max, 1960): 0.107, 0.194,
    # 0.345; small groups have a largest value nearer to their spread and do better, tiny ones vary.
    "int4": 0.13,
    "int3": 0.22,
    "int2": 0.40,
    # Of a trellis: 0.56, 0.29, 0.15 and 0.08 of normal values in many rows (measured).
    "tr1": 0.60,
    "tr2": 0.32,
    "tr3": 0.17,
    "tr4": 0.09,
    "int8": 1e-2,  # half a step of 1/127 of the row's largest value
}
# Logits against transformers in fp32, absolute: the bound.
PARITY = 1e-4
# Relative error of fp32 algebra that is exact on paper, such as a train of full rank.
EXACT = 1e-5
# A lossless rounding sweep in fp64, its result stored in fp32: the bound.
ROUNDING = 1e-6
# Relative error (Frobenius) of logits whose keys and values went through a KV cache of this dtype.
KV_CACHE = {"fp32": 0, "bf16": 2e-2, "fp16": 2e-3}  # 2**-8 and 2**-11 a value, a few times
# Log-likelihoods by lm-eval and transformers against ours, relative: fp32 sums in another order.
HARNESS = 1e-5
