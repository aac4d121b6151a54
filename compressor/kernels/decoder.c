/* The types Block and Stack, and the KV cache that calls attend to. */
#include "boundary.h"

/* What a block is made of, in the order of its arguments. */
enum { LN_1, C_ATTN, C_PROJ, LN_2, C_FC, MLP_C_PROJ, PART_COUNT };

typedef struct {
    PyObject_HEAD
    PyObject *parts[PART_COUNT];
    Block block;
} BlockObject;

typedef struct {
    PyObject_HEAD
    PyObject *layers; /* a tuple of BlockObject, whose memory `blocks` points to */
    Block *blocks;
    int64_t count, activation;
} StackObject;

static int check_matrix(const char *name, const Matrix *m, int64_t n, int64_t k)
{
    if (m->n == n && m->k == k && m->bias)
        return 1;
    PyErr_Format(PyExc_ValueError, "%s must have shape [%lld, %lld] and a bias, not [%lld, %lld]%s", name, (long long)n,
                 (long long)k, (long long)m->n, (long long)m->k, m->bias ? "" : " without one");
    return 0;
}

static int check_block(BlockObject *self)
{
    const Block *b = &self->block;
    const int64_t width = b->c_attn.k, inner = b->c_fc.n;
    const Py_buffer *ln_1 = &((NormObject *)self->parts[LN_1])->weight, *ln_2 = &((NormObject *)self->parts[LN_2])->weight;
    return check_matrix("c_attn", &b->c_attn, 3 * width, width) && check_matrix("c_proj", &b->c_proj, width, width) &&
           check_matrix("c_fc", &b->c_fc, inner, width) && check_matrix("mlp_c_proj", &b->mlp_c_proj, width, inner) &&
           check_shape(ln_1, "the weight of ln_1", 1, (Py_ssize_t[]){ (Py_ssize_t)width }) &&
           check_shape(ln_2, "the weight of ln_2", 1, (Py_ssize_t[]){ (Py_ssize_t)width });
}

static PyObject *block_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = { "ln_1", "c_attn", "c_proj", "ln_2", "c_fc", "mlp_c_proj", "scale", NULL };
    const Types *types = types_of(type);
    PyObject *parts[PART_COUNT];
    double scale;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "$O!O!O!O!O!O!d:Block", names, types->norm, &parts[LN_1],
                                     types->matrix, &parts[C_ATTN], types->matrix, &parts[C_PROJ], types->norm,
                                     &parts[LN_2], types->matrix, &parts[C_FC], types->matrix, &parts[MLP_C_PROJ], &scale) ||
        !check_positive("scale", scale))
        return NULL;
    BlockObject *self = (BlockObject *)PyType_GenericAlloc(type, 0);
    if (!self)
        return NULL;
    for (int i = 0; i < PART_COUNT; i++)
        self->parts[i] = Py_NewRef(parts[i]);
    self->block = (Block){
        .ln_1 = ((NormObject *)parts[LN_1])->norm, .ln_2 = ((NormObject *)parts[LN_2])->norm,
        .c_attn = ((MatrixObject *)parts[C_ATTN])->matrix, .c_proj = ((MatrixObject *)parts[C_PROJ])->matrix,
        .c_fc = ((MatrixObject *)parts[C_FC])->matrix, .mlp_c_proj = ((MatrixObject *)parts[MLP_C_PROJ])->matrix,
        .scale = (float)scale,
    };
    if (check_block(self))
        return (PyObject *)self;
    Py_DECREF(self);
    return NULL;
}

static void block_dealloc(BlockObject *self)
{
    for (int i = 0; i < PART_COUNT; i++)
        Py_XDECREF(self->parts[i]);
    free_object((PyObject *)self);
}

/* Take over a tuple of blocks of the same sizes. */
static int read_blocks(StackObject *self, const Types *types)
{
    self->count = PyTuple_Size(self->layers);
    if (self->count < 1) {
        PyErr_SetString(PyExc_ValueError, "blocks must be at least one");
        return 0;
    }
    self->blocks = PyMem_Calloc((size_t)self->count, sizeof(Block));
    if (!self->blocks)
        return PyErr_NoMemory() != NULL;
    for (Py_ssize_t i = 0; i < self->count; i++) {
        PyObject *item = PyTuple_GetItem(self->layers, i);
        if (!Py_IS_TYPE(item, types->block)) {
            PyErr_Format(PyExc_TypeError, "blocks must be Blocks, not %R", (PyObject *)Py_TYPE(item));
            return 0;
        }
        self->blocks[i] = ((BlockObject *)item)->block;
        if (self->blocks[i].c_fc.k != self->blocks[0].c_fc.k || self->blocks[i].c_fc.n != self->blocks[0].c_fc.n) {
            PyErr_SetString(PyExc_ValueError, "blocks must all have the same sizes");
            return 0;
        }
    }
    return 1;
}

static PyObject *stack_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = { "blocks", "activation", NULL };
    PyObject *blocks, *activation = NULL;
    int64_t read;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O|$O:Stack", names, &blocks, &activation) ||
        !read_activation(activation, &read))
        return NULL;
    StackObject *self = (StackObject *)PyType_GenericAlloc(type, 0);
    if (!self)
        return NULL;
    self->activation = read;
    self->layers = PySequence_Tuple(blocks);
    if (self->layers && read_blocks(self, types_of(type)))
        return (PyObject *)self;
    Py_DECREF(self);
    return NULL;
}

static void stack_dealloc(StackObject *self)
{
    PyMem_Free(self->blocks);
    Py_XDECREF(self->layers);
    free_object((PyObject *)self);
}

static PyObject *stack_run(StackObject *self, PyObject *args, PyObject *keywords)
{
    static char *names[] = { "x", "keys", "values", "slots", "positions", "threads", NULL };
    PyObject *x, *cache[4];
    Py_ssize_t threads;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O$OOOOn:run", names, &x, &cache[0], &cache[1], &cache[2], &cache[3],
                                     &threads))
        return NULL;
    const int64_t width = self->blocks[0].c_fc.k;
    Stack task = { .blocks = self->blocks, .layers = self->count, .activation = self->activation };
    CacheBuffers buffers = { 0 };
    Py_buffer view = { 0 };
    PyObject *done = NULL;
    int status = 0;
    if (read_instructions(NULL, &task.instructions) && open_buffer(&view, x, "x", FLOAT32, WRITE) &&
        check_shape(&view, "x", 2, (Py_ssize_t[]){ view.ndim ? view.shape[0] : 0, (Py_ssize_t)width }) &&
        open_cache(&buffers, cache, (Py_ssize_t)self->count, view.shape[0], width, threads, &task.attention)) {
        task.x = view.buf;
        Py_BEGIN_ALLOW_THREADS
        if (view.shape[0])
            status = stack(&task);
        Py_END_ALLOW_THREADS
        done = result(status);
    }
    PyBuffer_Release(&view);
    close_cache(&buffers);
    return done;
}

static PyMethodDef stack_methods[] = {
    { "run", (PyCFunction)(void (*)(void))stack_run, METH_VARARGS | METH_KEYWORDS,
      "Append new tokens to their slots and replace x [rows, width] by what the last block makes of it." },
    { NULL, NULL, 0, NULL },
};

static PyType_Slot block_slots[] = {
    { Py_tp_doc, "One block of a decoder: its norms, its matrices and the scale of its attention." },
    { Py_tp_new, block_new },
    { Py_tp_dealloc, block_dealloc },
    { 0, NULL },
};

static PyType_Slot stack_slots[] = {
    { Py_tp_doc, "All blocks of a decoder, run by one call." },
    { Py_tp_new, stack_new },
    { Py_tp_dealloc, stack_dealloc },
    { Py_tp_methods, stack_methods },
    { 0, NULL },
};

PyType_Spec block_spec = {
    "compressor._kernels.Block", sizeof(BlockObject), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE, block_slots,
};
PyType_Spec stack_spec = {
    "compressor._kernels.Stack", sizeof(StackObject), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE, stack_slots,
};
