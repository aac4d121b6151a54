/* Checks of what Python passes: buffers by dtype, shape and strides, and numbers. */
#ifndef TTGPT_BUFFERS_H
#define TTGPT_BUFFERS_H

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000 /* buffers are in it since 3.11 */
#include <Python.h>

#include <stdint.h>

/* The dtypes that an argument may have. numpy has no bfloat16: its bits are passed as uint16. */
enum { FLOAT32 = 1, FLOAT16 = 2, BFLOAT16 = 4, INT8 = 8, UINT8 = 16, INT64 = 32, INT32 = 64, FLOAT64 = 128 };
enum { READ, WRITE };
enum { ANY = -1 };           /* a size that is not prescribed, but at least 1 */
enum { MAX_THREADS = 1024 };

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
int check_threads(Py_ssize_t threads);
int check_positive(const char *name, double value);
int dtype_of(const Py_buffer *view);

#endif
