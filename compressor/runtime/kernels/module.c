/* The Python module compressor.runtime._kernels: addresses and sizes in, results in place. Its caller checks the arguments. */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>

#include "kernels.h"

/* Read integers (addresses among them) into `numbers`, and a last argument that is a float unless `last` is NULL.
 * Returns 0 after setting an error. */
static int read_arguments(PyObject *const *args, Py_ssize_t count, int64_t *numbers, Py_ssize_t expected, float *last)
{
    const Py_ssize_t all = expected + (last != NULL);
    if (count != all) {
        PyErr_Format(PyExc_TypeError, "expected %zd arguments, not %zd", all, count);
        return 0;
    }
    for (Py_ssize_t i = 0; i < expected; i++)
        numbers[i] = PyLong_AsLongLong(args[i]);
    if (last)
        *last = (float)PyFloat_AsDouble(args[expected]);
    return !PyErr_Occurred();
}

static PyObject *result(int status)
{
    if (status)
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *py_linear(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    int64_t n[15];
    float epsilon;
    int status;
    if (!read_arguments(args, count, n, 15, &epsilon))
        return NULL;
    const Linear task = {
        .x = (const float *)n[0],
        .w = { (const void *)n[1], (const uint16_t *)n[2], (const float *)n[3], n[4], n[5], n[6] },
        .norm = { (const float *)n[7], (const float *)n[8], epsilon },
        .residual = (const float *)n[9], .out = (float *)n[10], .rows = n[11], .activation = n[12],
        .threads = n[13], .instructions = n[14],
    };
    Py_BEGIN_ALLOW_THREADS
    status = linear(&task);
    Py_END_ALLOW_THREADS
    return result(status);
}

/* The arguments that attention and a stack of blocks have in common. */
static Attention attention_of(const int64_t n[10])
{
    return (Attention){
        .keys = (void *)n[0], .values = (void *)n[1], .slots = (const int64_t *)n[2],
        .positions = (const int64_t *)n[3], .rows = n[4], .heads = n[5], .size = n[6], .capacity = n[7],
        .dtype = n[8], .threads = n[9],
    };
}

static PyObject *py_attention(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    int64_t n[12];
    float scale;
    int status;
    if (!read_arguments(args, count, n, 12, &scale))
        return NULL;
    Attention task = attention_of(n + 2);
    task.qkv = (const float *)n[0];
    task.out = (float *)n[1];
    task.scale = scale;
    Py_BEGIN_ALLOW_THREADS
    status = attention(&task);
    Py_END_ALLOW_THREADS
    return result(status);
}

/* Four matrices of six numbers each and two norms of two, per block; see Matrix and Norm in kernels.h. */
enum { MATRIX_NUMBERS = 6, BLOCK_NUMBERS = 4 * MATRIX_NUMBERS + 2 * 2 };

static Matrix matrix_of(const int64_t *n)
{
    return (Matrix){ (const void *)n[0], (const uint16_t *)n[1], (const float *)n[2], n[3], n[4], n[5] };
}

static PyObject *py_stack(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    int64_t n[17];
    float epsilon;
    int status;
    if (!read_arguments(args, count, n, 17, &epsilon))
        return NULL;
    const int64_t layers = n[1];
    Block *blocks = PyMem_Malloc((size_t)(layers ? layers : 1) * sizeof(Block));
    if (!blocks)
        return PyErr_NoMemory();
    for (int64_t layer = 0; layer < layers; layer++) {
        const int64_t *block = (const int64_t *)n[0] + layer * BLOCK_NUMBERS, *norms = block + 4 * MATRIX_NUMBERS;
        blocks[layer] = (Block){
            .ln_1 = { (const float *)norms[0], (const float *)norms[1], epsilon },
            .ln_2 = { (const float *)norms[2], (const float *)norms[3], epsilon },
            .c_attn = matrix_of(block), .c_proj = matrix_of(block + MATRIX_NUMBERS),
            .c_fc = matrix_of(block + 2 * MATRIX_NUMBERS), .mlp_c_proj = matrix_of(block + 3 * MATRIX_NUMBERS),
            .scale = ((const float *)n[2])[layer],
        };
    }
    const Stack task = {
        .blocks = blocks, .layers = layers, .activation = n[3], .x = (float *)n[4], .layer_bytes = n[5],
        .instructions = n[6], .attention = attention_of(n + 7),
    };
    Py_BEGIN_ALLOW_THREADS
    status = stack(&task);
    Py_END_ALLOW_THREADS
    PyMem_Free(blocks);
    return result(status);
}

static PyObject *py_lookup(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    int64_t n[7];
    int status;
    if (!read_arguments(args, count, n, 7, NULL))
        return NULL;
    const Lookup task = {
        .x = (const uint16_t *)n[0], .dy = (const uint16_t *)n[1], .values = (const uint16_t *)n[2],
        .slopes = (const float *)n[3], .out = (uint16_t *)n[4], .count = n[5], .threads = n[6],
    };
    Py_BEGIN_ALLOW_THREADS
    status = lookup(&task);
    Py_END_ALLOW_THREADS
    return result(status);
}

static PyObject *py_supported(PyObject *self, PyObject *unused)
{
#ifdef TTGPT_AVX2
    return PyBool_FromLong(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"));
#else
    Py_RETURN_FALSE;
#endif
}

static PyObject *py_instructions(PyObject *self, PyObject *unused)
{
#ifdef TTGPT_AVX2
    if (__builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw"))
        return PyLong_FromLong(INSTRUCTIONS_VNNI);
#endif
    return PyLong_FromLong(INSTRUCTIONS_AVX2);
}

static PyMethodDef methods[] = {
    { "linear", (PyCFunction)(void (*)(void))py_linear, METH_FASTCALL, "See Linear in kernels.h." },
    { "attention", (PyCFunction)(void (*)(void))py_attention, METH_FASTCALL, "See Attention in kernels.h." },
    { "stack", (PyCFunction)(void (*)(void))py_stack, METH_FASTCALL, "See Stack in kernels.h." },
    { "lookup", (PyCFunction)(void (*)(void))py_lookup, METH_FASTCALL, "See Lookup in kernels.h." },
    { "supported", py_supported, METH_NOARGS, "Whether this CPU runs the kernels." },
    { "instructions", py_instructions, METH_NOARGS, "The best set of instructions that this CPU has." },
    { NULL, NULL, 0, NULL },
};

static struct PyModuleDef module = { PyModuleDef_HEAD_INIT, "_kernels", NULL, -1, methods, NULL, NULL, NULL, NULL };

PyMODINIT_FUNC PyInit__kernels(void) { return PyModule_Create(&module); }
