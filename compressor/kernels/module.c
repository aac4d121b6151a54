/* The Python module compressor._kernels: addresses and sizes in, results in place. Its caller checks the arguments. */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>

#include "kernels.h"

/* Read integers (addresses among them) into `numbers`; a last argument is a float. Returns 0 after setting an error. */
static int read_arguments(PyObject *const *args, Py_ssize_t count, int64_t *numbers, Py_ssize_t expected, float *last)
{
    if (count != expected + 1) {
        PyErr_Format(PyExc_TypeError, "expected %zd arguments, not %zd", expected + 1, count);
        return 0;
    }
    for (Py_ssize_t i = 0; i < expected; i++)
        numbers[i] = PyLong_AsLongLong(args[i]);
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
    int64_t n[14];
    float epsilon;
    int status;
    if (!read_arguments(args, count, n, 14, &epsilon))
        return NULL;
    const Linear task = {
        .x = (const float *)n[0], .codes = (const void *)n[1], .scale = (const uint16_t *)n[2],
        .bias = (const float *)n[3], .norm_weight = (const float *)n[4], .norm_bias = (const float *)n[5],
        .residual = (const float *)n[6], .out = (float *)n[7], .rows = n[8], .n = n[9], .k = n[10],
        .groups = n[11], .activation = n[12], .threads = n[13], .epsilon = epsilon,
    };
    Py_BEGIN_ALLOW_THREADS
    status = linear(&task);
    Py_END_ALLOW_THREADS
    return result(status);
}

static PyObject *py_attention(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    int64_t n[12];
    float scale;
    int status;
    if (!read_arguments(args, count, n, 12, &scale))
        return NULL;
    const Attention task = {
        .qkv = (const float *)n[0], .keys = (void *)n[1], .values = (void *)n[2], .slots = (const int64_t *)n[3],
        .lengths = (const int64_t *)n[4], .out = (float *)n[5], .rows = n[6], .heads = n[7], .size = n[8],
        .capacity = n[9], .dtype = n[10], .threads = n[11], .scale = scale,
    };
    Py_BEGIN_ALLOW_THREADS
    status = attention(&task);
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

static PyMethodDef methods[] = {
    { "linear", (PyCFunction)(void (*)(void))py_linear, METH_FASTCALL, "See Linear in kernels.h." },
    { "attention", (PyCFunction)(void (*)(void))py_attention, METH_FASTCALL, "See Attention in kernels.h." },
    { "supported", py_supported, METH_NOARGS, "Whether this CPU runs the kernels." },
    { NULL, NULL, 0, NULL },
};

static struct PyModuleDef module = { PyModuleDef_HEAD_INIT, "_kernels", NULL, -1, methods, NULL, NULL, NULL, NULL };

PyMODINIT_FUNC PyInit__kernels(void) { return PyModule_Create(&module); }
