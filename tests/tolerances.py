"""How far results may be off, and why. Nowhere else."""

# Largest relative error (Frobenius) of x @ W.T through a codec's multiplication path against fp32.
MATMUL = {
    "fp32": 1e-5,  # fp32 sums in another order
    "bf16": 1e-5,  # decoded to fp32, which is exact
    "fp16": 1e-5,
    "int8": 1e-2,  # the kernel rounds activations to bf16: 2**-8 each, and two factors add up
}
# Largest relative error (Frobenius) of storing a matrix.
STORE = {
    "fp32": 0.0,
    "bf16": 2**-8,  # 8 bits of mantissa
    "fp16": 2**-11,  # 11 bits of mantissa
    "int8": 1e-2,  # half a step of 1/127 of the row's largest value
}
# Logits against transformers in fp32, absolute: the bound.
PARITY = 1e-4
# Relative error of fp32 algebra that is exact on paper, such as a train of full rank.
EXACT = 1e-5
