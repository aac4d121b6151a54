"""How far results may be off, and why. Nowhere else."""

import torch

# Largest relative error (Frobenius) of x @ W.T through a codec's multiplication path against fp32.
MATMUL = {
    "fp32": 1e-5,  # fp32 sums in another order
    "bf16": 1e-5,  # decoded to fp32, which is exact
    "fp16": 1e-5,
    "int4": 5e-4,  # the kernel rounds activations to 2**-14 of the largest in a row
    "int3": 1e-5,
    "int2": 1e-5,
    "int8": 1e-2,  # where there is no kernel of ours, activations are bf16: 2**-8 each, and two factors add up
}
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
    "int8": 1e-2,  # half a step of 1/127 of the row's largest value
}
# Logits against transformers in fp32, absolute: the bound.
PARITY = 1e-4
# Relative error of fp32 algebra that is exact on paper, such as a train of full rank.
EXACT = 1e-5
# A lossless rounding sweep in fp64, its result stored in fp32: the bound.
ROUNDING = 1e-6
# Relative error (Frobenius) of hidden states whose keys and values went through a KV cache of this dtype.
KV_CACHE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 2e-3}  # 2**-8 and 2**-11 a value, a few times
# Error of a product through the kernels over |x| |W|: activations are rounded to 2**-15 of a row's largest (2**-14
# with 4-bit codes), and the errors of many columns average out.
NATIVE = 2**-14
# Relative error (Frobenius) of hidden states after two layers of quantised matrices against the same ones in fp32:
# bf16 activations, where the kernels are missing, are worth 2**-8 each.
STEP = 3e-2
# Log-likelihoods by lm-eval and transformers against ours, relative: fp32 sums in another order.
HARNESS = 1e-5
