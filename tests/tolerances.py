"""How far results may be off, and why. Nowhere else."""

# Largest relative error (Frobenius) of x @ W.T through a codec's multiplication path against fp32.
MATMUL = {
    "fp32": 1e-5,  # fp32 sums in another order
    "bf16": 1e-5,  # decoded to fp32, which is exact
    "fp16": 1e-5,
    "int4": 1e-5,
    "int3": 1e-5,
    "int2": 1e-5,
    "int8": 1e-2,  # the kernel rounds activations to bf16: 2**-8 each, and two factors add up
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
