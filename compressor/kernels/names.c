/* What Python chooses by name: activations and sets of instructions. */
#include "boundary.h"

#include <string.h>

static const char *const ACTIVATIONS[] = { [ACTIVATION_RELU] = "relu", [ACTIVATION_GELU_NEW] = "gelu_new" };
static const char *const INSTRUCTIONS[] = { [INSTRUCTIONS_AVX2] = "avx2", [INSTRUCTIONS_VNNI] = "avx512_vnni" };
enum { ACTIVATION_COUNT = sizeof ACTIVATIONS / sizeof *ACTIVATIONS };

/* How many of INSTRUCTIONS this CPU has; each has those before it. */
static int64_t instruction_count(void)
{
#ifdef TTGPT_AVX2
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("f16c"))
        return 0;
    const int vnni = __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vl") &&
                     __builtin_cpu_supports("avx512bw");
    return vnni ? 2 : 1;
#else
    return 0;
#endif
}

static PyObject *tuple_of(const char *const *names, int64_t count)
{
    PyObject *tuple = PyTuple_New((Py_ssize_t)count);
    for (Py_ssize_t i = 0; tuple && i < count; i++) {
        PyObject *name = PyUnicode_FromString(names[i]);
        if (!name || PyTuple_SetItem(tuple, i, name))
            Py_CLEAR(tuple);
    }
    return tuple;
}

/* Find a name from `first` on; returns its place, or -1 after setting an error. */
static int64_t place_of(PyObject *name, const char *what, const char *const *names, int64_t first, int64_t count)
{
    const char *text = PyUnicode_Check(name) ? PyUnicode_AsUTF8AndSize(name, NULL) : NULL;
    for (int64_t i = first; text && i < count; i++)
        if (!strcmp(text, names[i]))
            return i;
    PyErr_Clear();
    PyObject *legal = tuple_of(names + first, count - first);
    if (legal)
        PyErr_Format(PyExc_ValueError, "%s must be one of %R or None, not %R", what, legal, name);
    Py_XDECREF(legal);
    return -1;
}

int read_activation(PyObject *name, int64_t *activation)
{
    *activation = ACTIVATION_NONE;
    if (name && name != Py_None)
        *activation = place_of(name, "activation", ACTIVATIONS, ACTIVATION_NONE + 1, ACTIVATION_COUNT);
    return *activation >= 0;
}

int read_instructions(PyObject *name, int64_t *instructions)
{
    const int64_t count = instruction_count();
    *instructions = count - 1;
    if (name && name != Py_None)
        *instructions = place_of(name, "instructions", INSTRUCTIONS, 0, count);
    return *instructions >= 0;
}

int check_supported(void)
{
    if (instruction_count())
        return 1;
    PyErr_SetString(PyExc_RuntimeError, "this CPU has none of the instructions that the kernels are made of");
    return 0;
}

PyObject *activation_names(void)
{
    return tuple_of(ACTIVATIONS + ACTIVATION_NONE + 1, ACTIVATION_COUNT - ACTIVATION_NONE - 1);
}

PyObject *instruction_names(void) { return tuple_of(INSTRUCTIONS, instruction_count()); }
