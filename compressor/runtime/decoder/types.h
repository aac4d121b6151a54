/* What the files that Python calls share. */
#ifndef TTGPT_TYPES_H
#define TTGPT_TYPES_H

#include "buffers.h"
#include "runtime.h"

typedef struct {
    PyTypeObject *matrix, *decoder;
} Types; /* the state of the module */

typedef struct {
    PyObject_HEAD
    PyObject *parts; /* the matrices that it is made of */
    Matrix matrix;
} MatrixObject;

extern PyType_Spec matrix_spec, decoder_spec;
extern const char *const ACTIVATION_NAMES[ACTIVATION_COUNT];

/* Describe how to compute: a name of instructions, NULL or None for the best, and threads. Takes the team if it is free.
 * Returns 0 after setting an error. */
int open_engine(Engine *engine, PyObject *instructions, Py_ssize_t threads);
/* Give back what it took; returns None, or NULL after setting an error. */
PyObject *close_engine(Engine *engine);

int check_ids(const Py_buffer *view, const char *name, int64_t end);
Types *types_of(PyTypeObject *type);
void free_object(PyObject *self);

#endif
