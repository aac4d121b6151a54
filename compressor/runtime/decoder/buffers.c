/* Checks of what Python passes: after them no kernel reads or writes outside of a buffer. */
#include "buffers.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static const struct {
    int dtype, size;
    const char *formats, *name; /* one character each, as in Python's struct */
} DTYPES[] = {
    { FLOAT32, 4, "f", "float32" },
    { FLOAT16, 2, "e", "float16" },
    { BFLOAT16, 2, "H", "bfloat16 as uint16" },
    { INT8, 1, "b", "int8" },
    { UINT8, 1, "B", "uint8" },
    { INT64, 8, "lq", "int64" },
    { INT32, 4, "il", "int32" },
    { FLOAT64, 8, "d", "float64" },
};
enum { DTYPE_COUNT = sizeof DTYPES / sizeof *DTYPES };

int dtype_of(const Py_buffer *view)
{
    const char *format = view->format ? view->format : "B"; /* what an exporter means by none */
    if (*format == '@' || *format == '=' || *format == '<') /* all that kernels run on is little-endian */
        format++;
    for (int i = 0; i < DTYPE_COUNT; i++)
        if (*format && !format[1] && strchr(DTYPES[i].formats, *format) && view->itemsize == DTYPES[i].size)
            return DTYPES[i].dtype;
    return 0;
}

static int refuse_dtype(const Py_buffer *view, const char *name, int dtypes)
{
    char legal[128] = "";
    for (int i = 0; i < DTYPE_COUNT; i++)
        if (dtypes & DTYPES[i].dtype) {
            const size_t used = strlen(legal);
            snprintf(legal + used, sizeof legal - used, "%s%s", used ? ", " : "", DTYPES[i].name);
        }
    PyErr_Format(PyExc_TypeError, "%s must be %s, not of format '%s'", name, legal, view->format ? view->format : "B");
    return 0;
}

/* Whether the values lie one behind another and are as many as the shape says. */
static int contiguous(const Py_buffer *view)
{
    Py_ssize_t bytes = view->itemsize;
    for (int i = view->ndim - 1; i >= 0; i--) {
        if (view->len && view->shape[i] != 1 && view->strides[i] != bytes)
            return 0;
        if (__builtin_mul_overflow(bytes, view->shape[i], &bytes))
            return 0;
    }
    return bytes == view->len;
}

static int get_buffer(Py_buffer *view, PyObject *object, const char *name, int access)
{
    const int flags = PyBUF_STRIDES | PyBUF_FORMAT;
    if (!PyObject_CheckBuffer(object)) {
        PyErr_Format(PyExc_TypeError, "%s must be a buffer, as numpy's arrays are, not %R", name, (PyObject *)Py_TYPE(object));
        return 0;
    }
    if (!PyObject_GetBuffer(object, view, access == WRITE ? flags | PyBUF_WRITABLE : flags))
        return 1;
    if (access == READ)
        return 0;
    PyErr_Clear();
    if (PyObject_GetBuffer(object, view, flags))
        return 0;
    PyBuffer_Release(view);
    PyErr_Format(PyExc_ValueError, "%s must be writable", name);
    return 0;
}

int open_buffer(Py_buffer *view, PyObject *object, const char *name, int dtypes, int access)
{
    if (!get_buffer(view, object, name, access))
        return 0;
    if (!(dtype_of(view) & dtypes))
        return refuse_dtype(view, name, dtypes);
    if (!contiguous(view)) {
        PyErr_Format(PyExc_ValueError, "%s must be C-contiguous", name);
        return 0;
    }
    if (view->len && (uintptr_t)view->buf % (uintptr_t)view->itemsize) {
        PyErr_Format(PyExc_ValueError, "%s must be aligned to %zd bytes", name, view->itemsize);
        return 0;
    }
    return 1;
}

/* Write a shape as "[2, *]". */
static void describe(char *text, size_t room, int ndim, const Py_ssize_t *shape)
{
    size_t used = (size_t)snprintf(text, room, "[");
    for (int i = 0; i < ndim && used < room - 32; i++) /* a number has at most 20 digits */
        used += (size_t)(shape[i] == ANY ? snprintf(text + used, room - used, "%s*", i ? ", " : "")
                                         : snprintf(text + used, room - used, "%s%zd", i ? ", " : "", shape[i]));
    snprintf(text + used, room - used, "]");
}

int check_shape(const Py_buffer *view, const char *name, int ndim, const Py_ssize_t *shape)
{
    int fits = view->ndim == ndim;
    for (int i = 0; fits && i < ndim; i++)
        fits = shape[i] == ANY ? view->shape[i] >= 1 && view->shape[i] <= INT32_MAX : view->shape[i] == shape[i];
    if (fits)
        return 1;
    char expected[256], found[256];
    describe(expected, sizeof expected, ndim, shape);
    describe(found, sizeof found, view->ndim, view->shape);
    PyErr_Format(PyExc_ValueError, "%s must have shape %s%s, not %s", name, expected,
                 strchr(expected, '*') ? " with sizes from 1 to 2147483647" : "", found);
    return 0;
}

int open_shaped(Py_buffer *view, PyObject *object, const char *name, int dtypes, int access, int ndim,
                const Py_ssize_t *shape)
{
    return open_buffer(view, object, name, dtypes, access) && check_shape(view, name, ndim, shape);
}

int open_optional(Py_buffer *view, PyObject *object, const char *name, int dtypes, int ndim, const Py_ssize_t *shape)
{
    return !object || object == Py_None || open_shaped(view, object, name, dtypes, READ, ndim, shape);
}

int check_apart(const Py_buffer *out, const Py_buffer *other, const char *name)
{
    const char *a = out->buf, *b = other->buf;
    if (!b || a + out->len <= b || b + other->len <= a)
        return 1;
    PyErr_Format(PyExc_ValueError, "out must not overlap %s", name);
    return 0;
}

int check_threads(Py_ssize_t threads)
{
    if (threads >= 1 && threads <= MAX_THREADS)
        return 1;
    PyErr_Format(PyExc_ValueError, "threads must be between 1 and %d, not %zd", MAX_THREADS, threads);
    return 0;
}

int check_positive(const char *name, double value)
{
    if ((float)value > 0 && isfinite((float)value))
        return 1;
    PyErr_Format(PyExc_ValueError, "%s must be positive and finite in float32", name);
    return 0;
}
