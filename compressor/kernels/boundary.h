/* What the files that Python calls share: buffers whose dtype, shape and strides are checked, and the types. */
#ifndef TTGPT_BOUNDARY_H
#define TTGPT_BOUNDARY_H

#include "../runtime/decoder/buffers.h"
#include "kernels.h"

/* The state of the module. */
typedef struct {
    PyTypeObject *matrix, *norm, *block, *stack;
} Types;

typedef struct {
    PyObject_HEAD
    Py_buffer codes, scale, bias;
    Matrix matrix;
} MatrixObject;

typedef struct {
    PyObject_HEAD
    Py_buffer weight, bias;
    Norm norm;
} NormObject;

/* Buffers of the calls that attend; zero at first. */
typedef struct {
    Py_buffer keys, values, slots, positions;
} CacheBuffers;

extern PyType_Spec matrix_spec, norm_spec, block_spec, stack_spec;

int check_supported(void);

/* Read a name (NULL or None for none) into `activation`. */
int read_activation(PyObject *name, int64_t *activation);
/* Read a name (NULL or None for the best) into `instructions`. */
int read_instructions(PyObject *name, int64_t *instructions);
/* Names in a tuple: of all activations, and of the sets of instructions that this CPU has, the best one last. */
PyObject *activation_names(void);
PyObject *instruction_names(void);

/* Describe attention of `rows` tokens: keys and values [layers, slots, heads, capacity, size] of `width` = heads * size
 * and tokens that stand inside of them. */
int open_cache(CacheBuffers *buffers, PyObject *const arguments[4], Py_ssize_t layers, int64_t rows, int64_t width,
               Py_ssize_t threads, Attention *attention);
void close_cache(CacheBuffers *buffers);

Types *types_of(PyTypeObject *type);
/* Free an object of a type made from a spec. */
void free_object(PyObject *self);
/* None, or MemoryError where a kernel says -1. */
PyObject *result(int status);

#endif
