/* What the files that Python calls share: buffers whose dtype, shape and strides are checked, and the types. */
#ifndef TTGPT_BOUNDARY_H
#define TTGPT_BOUNDARY_H

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000 /* buffers are in it since 3.11 */
#include <Python.h>

#include "kernels.h"

/* The dtypes that an argument may have. numpy has no bfloat16: its bits are passed as uint16. */
enum { FLOAT32 = 1, FLOAT16 = 2, BFLOAT16 = 4, INT8 = 8, UINT8 = 16, INT64 = 32 };
enum { READ, WRITE };
enum { ANY = -1 };           /* a size that is not prescribed, but at least 1 */
enum { MAX_THREADS = 1024 }; /* more would fail in OpenMP, which ends the process */

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

/* All checks return 1, or 0 after setting an error that names the argument and what is legal. */

/* Fill `view` with an object's memory: C-contiguous, aligned and of one of `dtypes`. The caller releases it in any case,
 * so `view` is zero at first. */
int open_buffer(Py_buffer *view, PyObject *object, const char *name, int dtypes, int access);
int open_shaped(Py_buffer *view, PyObject *object, const char *name, int dtypes, int access, int ndim,
                const Py_ssize_t *shape);
/* The same to be read; `view` stays zero for NULL and None. */
int open_optional(Py_buffer *view, PyObject *object, const char *name, int dtypes, int ndim, const Py_ssize_t *shape);
int check_shape(const Py_buffer *view, const char *name, int ndim, const Py_ssize_t *shape);
int check_apart(const Py_buffer *out, const Py_buffer *other, const char *name);
int check_multiple(const char *name, int64_t value, int64_t of);
int check_threads(Py_ssize_t threads);
int check_positive(const char *name, double value);
int check_supported(void);
int dtype_of(const Py_buffer *view);

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
