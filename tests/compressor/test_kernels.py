"""The C boundary: whatever it is given, the answer is right or an error that says why, and memory is given back."""

import gc
import os
import struct
import sys
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from compressor import native

pytestmark = pytest.mark.skipif(not native.AVAILABLE, reason="the kernels are not built, or this CPU has no AVX2")
if native.AVAILABLE:
    from compressor import _kernels

Array = NDArray[Any]
N, K, ROWS = 5, 64, 3  # matrices [N, K], rows at a time
LAYERS, SLOTS, HEADS, CAPACITY, SIZE = 2, 3, 2, 7, 32
WIDTH = HEADS * SIZE
SHT_DYNSYM, GLOBAL, WEAK = 11, 1, 2  # of ELF


def _floats(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _bf16(*shape: int, seed: int = 0) -> Array:
    return (_floats(*shape, seed=seed).view(np.uint32) >> 16).astype(np.uint16)


def _codes(n: int = N, k: int = K) -> Array:
    return np.random.default_rng(0).integers(-127, 128, (n, k)).astype(np.int8)


def _matrix(n: int = N, k: int = K) -> "_kernels.Matrix":
    return _kernels.Matrix(codes=_codes(n, k), scale=_bf16(n, 1))


def _norm(k: int = K) -> "_kernels.Norm":
    return _kernels.Norm(weight=_floats(k), bias=_floats(k), epsilon=1e-5)


def _block(**changes: Any) -> "_kernels.Block":
    shapes = {
        "c_attn": (3 * WIDTH, WIDTH),
        "c_proj": (WIDTH, WIDTH),
        "c_fc": (2 * WIDTH, WIDTH),
        "mlp_c_proj": (WIDTH, 2 * WIDTH),
    }
    parts: dict[str, Any] = {name: _matrix(*shape).with_bias(_floats(shape[0])) for name, shape in shapes.items()}
    return _kernels.Block(**(parts | {"ln_1": _norm(WIDTH), "ln_2": _norm(WIDTH), "scale": 0.1} | changes))


def _cache(**changes: Any) -> dict[str, Any]:
    shape = (LAYERS, SLOTS, HEADS, CAPACITY, SIZE)
    places = {"slots": np.arange(ROWS), "positions": np.zeros(ROWS, np.int64)}
    return {"keys": np.zeros(shape, np.float32), "values": np.zeros(shape, np.float32), "threads": 1} | places | changes


def _read_only(array: Array) -> Array:
    array.flags.writeable = False
    return array


def _unaligned(array: Array) -> Array:
    room = np.zeros(array.nbytes + 1, np.uint8)[1:]
    return room.view(array.dtype).reshape(array.shape)


def _every_second(array: Array) -> Array:
    """Return an array of the same shape whose values do not lie one behind another."""
    return np.repeat(array, 2, axis=-1)[..., ::2]


def _broadcast(dtype: Any, *shape: int) -> Array:
    """Return an array of any size, which occupies a single value."""
    return np.broadcast_to(np.zeros(1, dtype), shape)


def _refused(message: str, call: Callable[..., object], *args: Any, **kwargs: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        call(*args, **kwargs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codes": 4096}, "codes must be a buffer, as numpy's arrays are, not <class 'int'>"),
        ({"codes": None}, "codes must be a buffer"),
        ({"codes": _codes().astype(np.int16)}, "codes must be int8, uint8, not of format 'h'"),
        ({"codes": _codes()[0]}, r"codes must have shape \[\*, \*\] with sizes from 1 to 2147483647, not \[64\]"),
        ({"codes": _codes()[:0]}, r"codes must have shape .* not \[0, 64\]"),
        ({"codes": _codes(N, 2 * K)[:, ::2]}, "codes must be C-contiguous"),
        ({"codes": _codes()[::-1]}, "codes must be C-contiguous"),
        ({"codes": np.asfortranarray(_codes())}, "codes must be C-contiguous"),
        ({"codes": _broadcast(np.int8, 2**31, 2**31)}, "codes must be C-contiguous"),
        ({"codes": _broadcast(np.int8, 2**40, 0)}, r"codes must have shape .* not \[1099511627776, 0\]"),
        ({"codes": _codes(N, 20)}, "the columns of codes must be a multiple of 16, not 20"),
        ({"codes": np.zeros((N, 48), np.uint8)}, "the columns of codes must be a multiple of 64, not 96"),
        ({"codes": np.zeros((N, 64), np.uint8), "scale": _bf16(N, 4)}, "codes must be a multiple of 256, not 128"),
        ({"scale": _floats(N, 1)}, "scale must be bfloat16 as uint16, not of format 'f'"),
        ({"scale": _bf16(N, 1).astype(">u2")}, "scale must be bfloat16 as uint16, not of format '>H'"),
        ({"scale": _bf16(N - 1, 1)}, r"scale must have shape \[5, 1\], not \[4, 1\]"),
        ({"scale": _bf16(N, 2)}, r"scale must have shape \[5, 1\], not \[5, 2\]"),
        ({"scale": _unaligned(_bf16(N, 1))}, "scale must be aligned to 2 bytes"),
        ({"scale": b"none"}, "scale must be bfloat16 as uint16, not of format 'B'"),
    ],
)
def test_a_matrix_is_refused_with_the_name_of_what_is_wrong(changes: dict[str, Any], message: str) -> None:
    _refused(message, _kernels.Matrix, **({"codes": _codes(), "scale": _bf16(N, 1)} | changes))


def test_the_vectors_around_a_matrix_are_refused_likewise() -> None:
    _refused(r"bias must have shape \[5\], not \[6\]", _matrix().with_bias, _floats(N + 1))
    _refused("bias must be C-contiguous", _matrix().with_bias, _every_second(_floats(N)))
    _refused("bias must be float32, not of format 'd'", _matrix().with_bias, _floats(N).astype(np.float64))
    x, out, short = _floats(ROWS, K), _floats(ROWS, N), _norm(K - 16)
    _refused(r"the weight of norm must have shape \[64\], not \[48\]", _matrix().linear, x, out, norm=short)
    good: dict[str, Any] = {"weight": _floats(K), "bias": _floats(K), "epsilon": 1e-5}
    for changes, message in (
        ({"bias": _floats(K - 1)}, r"bias must have shape \[64\], not \[63\]"),
        ({"weight": _floats(0)}, r"weight must have shape \[\*\]"),
        ({"epsilon": 0}, "epsilon must be positive and finite in float32"),
        ({"epsilon": float("nan")}, "epsilon must be positive"),
        ({"epsilon": 1e300}, "epsilon must be positive"),
        ({"epsilon": "small"}, "must be real number"),
    ):
        _refused(message, _kernels.Norm, **(good | changes))


OUT = _floats(ROWS, N)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": _floats(ROWS, K - 1)}, "x must have rows of 64 values"),
        ({"x": np.float32(1)}, "x must have rows of 64 values"),
        ({"x": _floats(ROWS, K).astype(np.float16)}, "x must be float32, not of format 'e'"),
        ({"x": _every_second(_floats(ROWS, K))}, "x must be C-contiguous"),
        ({"x": _unaligned(_floats(ROWS, K))}, "x must be aligned to 4 bytes"),
        ({"x": _broadcast(np.float32, 2**50, K)}, "x must be C-contiguous"),
        ({"x": _floats(ROWS, K).data.cast("B")}, "x must be float32, not of format 'B'"),
        ({"out": _floats(ROWS - 1, N)}, r"out must have shape \[3, 5\], not \[2, 5\]"),
        ({"out": _floats(ROWS * N)}, r"out must have shape \[3, 5\], not \[15\]"),
        ({"out": _read_only(_floats(ROWS, N))}, "out must be writable"),
        ({"out": bytes(60)}, "out must be writable"),
        ({"out": None}, "out must be a buffer"),
        ({"out": OUT, "residual": OUT}, "out must not overlap residual"),
        ({"residual": _floats(N)}, r"residual must have shape \[3, 5\], not \[5\]"),
        ({"norm": (1, 2)}, "norm must be a Norm or None, not <class 'tuple'>"),
        ({"activation": "gelu"}, r"activation must be one of \('relu', 'gelu_new'\) or None, not 'gelu'"),
        ({"activation": 1}, "activation must be one of .* not 1"),
        ({"activation": "\ud800"}, "activation must be one of "),
        ({"instructions": "avx9000"}, r"instructions must be one of \('avx2'.*\) or None, not 'avx9000'"),
        ({"threads": 0}, "threads must be between 1 and 1024, not 0"),
        ({"threads": -1}, "threads must be between 1 and 1024, not -1"),
        ({"threads": 1025}, "threads must be between 1 and 1024, not 1025"),
        ({"threads": 1.5}, "'float' object cannot be interpreted as an integer"),
    ],
)
def test_a_product_is_refused_with_the_name_of_what_is_wrong(changes: dict[str, Any], message: str) -> None:
    arguments = {"x": _floats(ROWS, K), "out": _floats(ROWS, N)} | changes
    _refused(message, _matrix().linear, arguments.pop("x"), arguments.pop("out"), **arguments)


def test_a_product_does_not_overwrite_what_it_reads() -> None:
    room = _floats(2, K)
    square = _matrix(K, K)
    _refused("out must not overlap x", square.linear, room, room)
    _refused("out must not overlap x", square.linear, room[:1], room.reshape(-1)[K - 1 : -1].reshape(1, K))
    square.linear(room[:1], room[1:])


CACHE = (LAYERS, SLOTS, HEADS, CAPACITY, SIZE)
BAD_CACHES = [
    ({"keys": np.zeros(CACHE, np.int32)}, "keys must be float32, float16, bfloat16 as uint16, not of format 'i'"),
    ({"keys": np.zeros(CACHE, np.float16)}, "values must be float16, not of format 'f'"),
    ({"keys": np.zeros(CACHE[1:], np.float32)}, "keys must have shape"),
    ({"keys": _read_only(np.zeros(CACHE, np.float32))}, "keys must be writable"),
    ({"values": np.zeros((*CACHE[:3], 1, SIZE), np.float32)}, "values must have shape"),
    ({"values": np.zeros((*CACHE[:4], 2 * SIZE), np.float32)[..., ::2]}, "values must be C-contiguous"),
    ({"keys": _broadcast(np.float32, 2, 0, 2, 2**31, 32)}, "keys must be (writable|C-contiguous)"),
    ({"slots": np.zeros(ROWS, np.int32)}, "slots must be int64, not of format 'i'"),
    ({"slots": np.zeros(ROWS + 1, np.int64)}, r"slots must have shape \[3\], not \[4\]"),
    ({"slots": np.array([0, 1, SLOTS])}, r"slots must lie in \[0, 3\), not 3"),
    ({"slots": np.array([0, 1, -1])}, r"slots must lie in \[0, 3\), not -1"),
    ({"positions": np.array([0, CAPACITY, 0])}, r"positions must lie in \[0, 7\), not 7"),
    ({"positions": np.array([0, -(2**63), 0])}, r"positions must lie in \[0, 7\), not -9223372036854775808"),
    ({"threads": 10**6}, "threads must be between 1 and 1024, not 1000000"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_CACHES)
def test_a_cache_is_refused_with_the_name_of_what_is_wrong(changes: dict[str, Any], message: str) -> None:
    stack = _kernels.Stack([_block(), _block()])
    _refused(message, stack.run, _floats(ROWS, WIDTH), **_cache(**changes))
    qkv, out = _floats(ROWS, 3 * WIDTH), _floats(ROWS, WIDTH)
    _refused(message, _kernels.attention, qkv, out, **_cache(**changes), layer=0, scale=1.0)


def test_attention_is_refused_with_the_name_of_what_is_wrong() -> None:
    good: dict[str, Any] = {"layer": 0, "scale": 1.0, "qkv": _floats(ROWS, 3 * WIDTH), "out": _floats(ROWS, WIDTH)}
    odd = np.zeros((1, SLOTS, 1, CAPACITY, 12), np.float32)
    for changes, message in (
        ({"layer": LAYERS}, r"layer must lie in \[0, 2\), not 2"),
        ({"layer": -1}, r"layer must lie in \[0, 2\), not -1"),
        ({"scale": float("inf")}, "scale must be positive and finite"),
        ({"qkv": _floats(ROWS, WIDTH)}, r"qkv must have shape \[3, 192\], not \[3, 64\]"),
        ({"out": _floats(0, WIDTH)}, "out must have shape"),
        (
            {"out": _floats(ROWS, 16), "qkv": _floats(ROWS, 48)},
            "keys must have heads of 16 values together, not 2 x 32",
        ),
        (
            {"keys": odd, "values": odd.copy(), "out": _floats(ROWS, 12), "qkv": _floats(ROWS, 36)},
            "the size of a head must be a multiple of 8, not 12",
        ),
    ):
        arguments = _cache() | good | changes
        _refused(message, _kernels.attention, arguments.pop("qkv"), arguments.pop("out"), **arguments)


def test_blocks_are_refused_with_the_name_of_what_is_wrong() -> None:
    _refused(r"c_fc must have shape \[5, 64\] and a bias, not \[5, 64\] without one", _block, c_fc=_matrix())
    _refused(r"c_attn must have shape \[192, 64\] and a bias", _block, c_attn=_matrix(WIDTH, WIDTH))
    _refused(r"the weight of ln_2 must have shape \[64\], not \[16\]", _block, ln_2=_norm(16))
    _refused("must be .*Norm, not .*Matrix", _block, ln_1=_matrix())
    _refused("scale must be positive", _block, scale=-1.0)
    _refused("blocks must be at least one", _kernels.Stack, [])
    _refused("blocks must be Blocks, not", _kernels.Stack, [_block(), _norm()])
    _refused("'int' object is not iterable", _kernels.Stack, 7)
    narrow = {"c_fc": _matrix(16, WIDTH).with_bias(_floats(16))}
    narrow["mlp_c_proj"] = _matrix(WIDTH, 16).with_bias(_floats(WIDTH))
    _refused("blocks must all have the same sizes", _kernels.Stack, [_block(), _block(**narrow)])
    _refused("activation must be one of", _kernels.Stack, [_block()], activation="silu")
    stack = _kernels.Stack([_block(), _block()])
    for x, message in (
        (_floats(ROWS, WIDTH - 1), r"x must have shape \[3, 64\], not \[3, 63\]"),
        (_read_only(_floats(ROWS, WIDTH)), "x must be writable"),
        (np.float32(1), "x must be writable"),
    ):
        _refused(message, stack.run, x, **_cache())


def test_a_lookup_is_refused_with_the_name_of_what_is_wrong() -> None:
    x = _bf16(2, 9)
    good = {"out": x.copy(), "values": _bf16(1 << 16), "slopes": _floats(1 << 16), "gradient": x, "threads": 1}
    for changes, message in (
        ({"out": _bf16(9, 2)}, r"out must have shape \[2, 9\], not \[9, 2\]"),
        ({"out": _read_only(x.copy())}, "out must be writable"),
        ({"values": _bf16(1 << 15)}, r"values must have shape \[65536\], not \[32768\]"),
        ({"slopes": _bf16(1 << 16)}, "slopes must be float32, not of format 'H'"),
        ({"gradient": _bf16(2, 8)}, r"gradient must have shape \[2, 9\], not \[2, 8\]"),
        ({"threads": 0}, "threads must be between"),
    ):
        arguments: dict[str, Any] = good | changes
        _refused(message, _kernels.lookup, x, arguments.pop("out"), **arguments)


def test_objects_keep_their_memory_and_give_it_back() -> None:
    codes, scale, bias = _codes(), _bf16(N, 1), _floats(N)
    alive = [weakref.ref(array) for array in (codes, scale, bias)]
    matrix = _kernels.Matrix(codes=codes, scale=scale)
    biased = matrix.with_bias(bias)
    expected, found = _floats(1, N), _floats(1, N)
    biased.linear(_floats(1, K), expected)
    del codes, scale, bias, matrix
    gc.collect()
    assert all(array() is not None for array in alive)
    biased.linear(_floats(1, K), found)
    assert np.array_equal(found, expected)
    del biased
    assert not any(array() is not None for array in alive)


def test_calls_hold_nothing_when_they_end() -> None:
    room = bytearray(4 * ROWS * N)  # cannot be resized while a buffer of it is open
    out = memoryview(room).cast("B").cast("f", (ROWS, N))
    x, matrix = _floats(ROWS, K), _matrix()
    before = [sys.getrefcount(thing) for thing in (x, matrix, OUT)]
    for _ in range(100):
        matrix.linear(x, out)
        _refused("out must have shape", matrix.linear, x, OUT[1:])
        _refused("scale must be", _kernels.Matrix, codes=_codes(), scale=x)
        _refused("the weight of ln_1", _block, ln_1=_norm(16))
    assert [sys.getrefcount(thing) for thing in (x, matrix, OUT)] == before
    out.release()
    room.clear()


def test_building_and_dropping_matrices_does_not_grow_the_process() -> None:
    def build(times: int) -> None:
        for _ in range(times):
            codes = np.ones((64, 1 << 14), np.int8)  # 1 MiB
            _kernels.Matrix(codes=codes, scale=_bf16(64, 1)).with_bias(_floats(64))
            _refused("scale must be", _kernels.Matrix, codes=codes, scale=codes)
            _kernels.Stack([_block()])

    build(20)
    before = _resident_bytes()
    build(200)
    assert _resident_bytes() - before < 50 << 20


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_threads_share_a_matrix() -> None:
    x, alone = _floats(64, 1024), _floats(64, 256)
    assert x.size * 256 > _kernels.SERIAL_WORK  # so that every call has several threads of its own
    matrix = _matrix(256, 1024)
    matrix.linear(x, alone)

    def product(threads: int) -> Array:
        out = np.zeros_like(alone)
        own = matrix.with_bias(np.zeros(256, np.float32))  # dropped while others compute
        for _ in range(10):
            own.linear(x, out, threads=threads)
        return out

    with ThreadPoolExecutor(4) as pool:
        assert all(np.array_equal(found, alone) for found in pool.map(product, [1, 2, 3, 2] * 4))


def test_the_module_exports_nothing_but_its_entry() -> None:
    assert set(_exported(Path(_kernels.__file__).read_bytes())) == {b"PyInit__kernels"}


def _exported(elf: bytes) -> Iterator[bytes]:
    """Yield the symbols that a shared library (64 bits, little-endian) defines for others."""
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    size, count = struct.unpack_from("<HH", elf, 0x3A)
    sections = [struct.unpack_from("<IIQQQQIIQQ", elf, table + i * size) for i in range(count)]
    dynamic = next(section for section in sections if section[1] == SHT_DYNSYM)
    names = sections[dynamic[6]][4]
    for at in range(dynamic[4], dynamic[4] + dynamic[5], 24):
        name, info, _, section, _, _ = struct.unpack_from("<IBBHQQ", elf, at)
        if section and info >> 4 in (GLOBAL, WEAK):
            yield elf[names + name : elf.index(b"\0", names + name)]
