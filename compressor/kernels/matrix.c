/* The types Matrix and Norm: views of memory that are checked once and stay valid as long as the object. */
#include "boundary.h"

#include <string.h>

static int read_codes(MatrixObject *self, PyObject *codes, PyObject *scale)
{
    Matrix *m = &self->matrix;
    if (!open_shaped(&self->codes, codes, "codes", INT8 | UINT8, READ, 2, (Py_ssize_t[]){ ANY, ANY }))
        return 0;
    const int packed = dtype_of(&self->codes) == UINT8; /* two codes of 4 bits a byte */
    m->n = self->codes.shape[0];
    m->k = packed ? 2 * (int64_t)self->codes.shape[1] : self->codes.shape[1];
    if (!open_shaped(&self->scale, scale, "scale", BFLOAT16, READ, 2, (Py_ssize_t[]){ (Py_ssize_t)m->n, packed ? ANY : 1 }))
        return 0;
    m->groups = packed ? self->scale.shape[1] : 0;
    m->codes = self->codes.buf;
    m->scale = self->scale.buf;
    return check_multiple("the columns of codes", m->k, packed ? INT4_COLUMNS * m->groups : INT8_COLUMNS);
}

static PyObject *make_matrix(PyTypeObject *type, PyObject *codes, PyObject *scale, PyObject *bias)
{
    if (!check_supported())
        return NULL;
    MatrixObject *self = (MatrixObject *)PyType_GenericAlloc(type, 0);
    if (!self)
        return NULL;
    if (read_codes(self, codes, scale) &&
        open_optional(&self->bias, bias, "bias", FLOAT32, 1, (Py_ssize_t[]){ (Py_ssize_t)self->matrix.n })) {
        self->matrix.bias = self->bias.buf;
        return (PyObject *)self;
    }
    Py_DECREF(self);
    return NULL;
}

static PyObject *matrix_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = { "codes", "scale", NULL };
    PyObject *codes, *scale;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "$OO:Matrix", names, &codes, &scale))
        return NULL;
    return make_matrix(type, codes, scale, NULL);
}

static void matrix_dealloc(MatrixObject *self)
{
    PyBuffer_Release(&self->codes);
    PyBuffer_Release(&self->scale);
    PyBuffer_Release(&self->bias);
    free_object((PyObject *)self);
}

static PyObject *matrix_with_bias(MatrixObject *self, PyObject *bias)
{
    return make_matrix(Py_TYPE((PyObject *)self), self->codes.obj, self->scale.obj, bias);
}

static PyObject *matrix_shape(MatrixObject *self, void *unused)
{
    (void)unused;
    return Py_BuildValue("(LL)", (long long)self->matrix.n, (long long)self->matrix.k);
}

typedef struct {
    Py_buffer x, out, residual;
} LinearBuffers;

/* Open x [..., k], out [..., n] and residual [..., n]. */
static int open_rows(LinearBuffers *b, PyObject *x, PyObject *out, PyObject *residual, Linear *task)
{
    Py_ssize_t shape[PyBUF_MAX_NDIM];
    if (!open_buffer(&b->x, x, "x", FLOAT32, READ))
        return 0;
    const int ndim = b->x.ndim;
    if (ndim < 1 || ndim > PyBUF_MAX_NDIM || b->x.shape[ndim - 1] != task->w.k) {
        PyErr_Format(PyExc_ValueError, "x must have rows of %lld values", (long long)task->w.k);
        return 0;
    }
    memcpy(shape, b->x.shape, (size_t)ndim * sizeof *shape);
    shape[ndim - 1] = (Py_ssize_t)task->w.n;
    if (!open_shaped(&b->out, out, "out", FLOAT32, WRITE, ndim, shape) ||
        !open_optional(&b->residual, residual, "residual", FLOAT32, ndim, shape))
        return 0;
    task->rows = b->x.len / (4 * (int64_t)task->w.k);
    task->x = b->x.buf;
    task->out = b->out.buf;
    task->residual = b->residual.buf;
    return !task->rows || (check_apart(&b->out, &b->x, "x") && check_apart(&b->out, &b->residual, "residual"));
}

/* Take over a Norm [k], or none. */
static int read_norm(PyTypeObject *type, PyObject *norm, Linear *task)
{
    if (!norm || norm == Py_None)
        return 1;
    if (!Py_IS_TYPE(norm, types_of(type)->norm)) {
        PyErr_Format(PyExc_TypeError, "norm must be a Norm or None, not %R", (PyObject *)Py_TYPE(norm));
        return 0;
    }
    task->norm = ((NormObject *)norm)->norm;
    return check_shape(&((NormObject *)norm)->weight, "the weight of norm", 1, (Py_ssize_t[]){ (Py_ssize_t)task->w.k });
}

static PyObject *matrix_linear(MatrixObject *self, PyObject *args, PyObject *keywords)
{
    static char *names[] = { "x", "out", "norm", "activation", "residual", "threads", "instructions", NULL };
    PyObject *x, *out, *norm = NULL, *activation = NULL, *residual = NULL, *instructions = NULL;
    Py_ssize_t threads = 1;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "OO|$OOOnO:linear", names, &x, &out, &norm, &activation, &residual,
                                     &threads, &instructions))
        return NULL;
    Linear task = { .w = self->matrix };
    LinearBuffers buffers = { 0 };
    PyObject *done = NULL;
    int status = 0;
    if (check_threads(threads) && read_activation(activation, &task.activation) &&
        read_instructions(instructions, &task.instructions) && read_norm(Py_TYPE((PyObject *)self), norm, &task) &&
        open_rows(&buffers, x, out, residual, &task)) {
        task.threads = (double)task.rows * task.w.n * task.w.k > SERIAL_WORK ? threads : 1;
        Py_BEGIN_ALLOW_THREADS
        if (task.rows)
            status = linear(&task);
        Py_END_ALLOW_THREADS
        done = result(status);
    }
    PyBuffer_Release(&buffers.x);
    PyBuffer_Release(&buffers.out);
    PyBuffer_Release(&buffers.residual);
    return done;
}

static PyObject *norm_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = { "weight", "bias", "epsilon", NULL };
    PyObject *weight, *bias;
    double epsilon;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "$OOd:Norm", names, &weight, &bias, &epsilon))
        return NULL;
    NormObject *self = (NormObject *)PyType_GenericAlloc(type, 0);
    if (!self)
        return NULL;
    if (open_shaped(&self->weight, weight, "weight", FLOAT32, READ, 1, (Py_ssize_t[]){ ANY }) &&
        open_shaped(&self->bias, bias, "bias", FLOAT32, READ, 1, self->weight.shape) && check_positive("epsilon", epsilon)) {
        self->norm = (Norm){ self->weight.buf, self->bias.buf, (float)epsilon };
        return (PyObject *)self;
    }
    Py_DECREF(self);
    return NULL;
}

static void norm_dealloc(NormObject *self)
{
    PyBuffer_Release(&self->weight);
    PyBuffer_Release(&self->bias);
    free_object((PyObject *)self);
}

static PyMethodDef matrix_methods[] = {
    { "linear", (PyCFunction)(void (*)(void))matrix_linear, METH_VARARGS | METH_KEYWORDS,
      "Write residual + activation(norm(x) W^T + bias) to out." },
    { "with_bias", (PyCFunction)matrix_with_bias, METH_O, "Return the same matrix with another bias, or None." },
    { NULL, NULL, 0, NULL },
};

static PyGetSetDef matrix_properties[] = {
    { "shape", (getter)matrix_shape, NULL, "(n, k)", NULL },
    { NULL, NULL, NULL, NULL, NULL },
};

static PyType_Slot matrix_slots[] = {
    { Py_tp_doc, "W [n, k] in codes of 8 or 4 bits, and the bias added to its products." },
    { Py_tp_new, matrix_new },
    { Py_tp_dealloc, matrix_dealloc },
    { Py_tp_methods, matrix_methods },
    { Py_tp_getset, matrix_properties },
    { 0, NULL },
};

static PyType_Slot norm_slots[] = {
    { Py_tp_doc, "A LayerNorm: weight [k], bias [k] and epsilon." },
    { Py_tp_new, norm_new },
    { Py_tp_dealloc, norm_dealloc },
    { 0, NULL },
};

PyType_Spec matrix_spec = {
    "compressor._kernels.Matrix", sizeof(MatrixObject), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE, matrix_slots,
};
PyType_Spec norm_spec = {
    "compressor._kernels.Norm", sizeof(NormObject), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE, norm_slots,
};
