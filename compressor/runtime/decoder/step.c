/* The type Decoder. */
#include "types.h"

#include <stdlib.h>
#include <string.h>

const char *const ACTIVATION_NAMES[ACTIVATION_COUNT] = {
    [NO_ACTIVATION] = "", [GELU_NEW] = "gelu_new", [GELU] = "gelu", [RELU] = "relu",
    [SILU] = "silu", [TANH] = "tanh", [QUICK_GELU] = "quick_gelu",
};

typedef struct {
    PyObject_HEAD
    PyObject *kept;    /* a list of the matrices that `decoder` points to */
    float *vectors;    /* of all norms and biases, one behind another */
    Decoder decoder;
} DecoderObject;

static void decoder_dealloc(DecoderObject *self)
{
    Py_XDECREF(self->kept);
    free(self->vectors);
    free(self->decoder.blocks);
    free_object((PyObject *)self);
}

/* Values of the vectors of a block, besides those of the last norm. */
static int64_t vector_values(const Decoder *d) { return d->layers * (9 * d->width + d->inner) + 2 * d->width; }

/* Copy a vector behind the others. */
static int take_vector(float **next, const float **to, PyObject *vector, const char *name, int64_t size)
{
    Py_buffer view = { 0 };
    const int made = open_shaped(&view, vector, name, FLOAT32, READ, 1, (Py_ssize_t[]){ (Py_ssize_t)size });
    if (made) {
        memcpy(*next, view.buf, (size_t)size * sizeof **next);
        *to = *next;
        *next += size;
    }
    PyBuffer_Release(&view);
    return made;
}

static int take_matrix(DecoderObject *self, const Matrix **to, PyObject *matrix, const char *name, int64_t n, int64_t k)
{
    if (!Py_IS_TYPE(matrix, types_of(Py_TYPE((PyObject *)self))->matrix)) {
        PyErr_Format(PyExc_TypeError, "%s must be a Matrix, not %R", name, (PyObject *)Py_TYPE(matrix));
        return 0;
    }
    *to = &((MatrixObject *)matrix)->matrix;
    if ((n && (*to)->n != n) || (*to)->k != k) {
        PyErr_Format(PyExc_ValueError, "%s must have shape [%lld, %lld], not [%lld, %lld]", name, (long long)n, (long long)k,
                     (long long)(*to)->n, (long long)(*to)->k);
        return 0;
    }
    return PyList_Append(self->kept, matrix) == 0;
}

/* Read one block: (ln_1, ln_2, (c_attn, bias), (c_proj, bias), (c_fc, bias), (mlp_c_proj, bias), scale). */
static int read_block(DecoderObject *self, Block *b, PyObject *item, float epsilon, float **next)
{
    const Decoder *d = &self->decoder;
    const int64_t width = d->width, sizes[4] = { 3 * width, width, d->inner, width };
    const int64_t inputs[4] = { width, width, width, d->inner };
    static const char *const names[] = { "c_attn", "c_proj", "c_fc", "mlp_c_proj" };
    const Matrix **matrices[4] = { &b->c_attn, &b->c_proj, &b->c_fc, &b->mlp_c_proj };
    PyObject *norms[4], *linear[4], *bias[4];
    double scale;
    if (!PyTuple_Check(item)) {
        PyErr_SetString(PyExc_TypeError, "a block must be a tuple");
        return 0;
    }
    if (!PyArg_ParseTuple(item, "(OO)(OO)(OO)(OO)(OO)(OO)d:block", &norms[0], &norms[1], &norms[2], &norms[3], &linear[0],
                          &bias[0], &linear[1], &bias[1], &linear[2], &bias[2], &linear[3], &bias[3], &scale) ||
        !check_positive("scale", scale))
        return 0;
    b->scale = (float)scale;
    b->ln_1.epsilon = b->ln_2.epsilon = epsilon;
    if (!take_vector(next, &b->ln_1.weight, norms[0], "ln_1.weight", width) ||
        !take_vector(next, &b->ln_1.bias, norms[1], "ln_1.bias", width) ||
        !take_vector(next, &b->ln_2.weight, norms[2], "ln_2.weight", width) ||
        !take_vector(next, &b->ln_2.bias, norms[3], "ln_2.bias", width))
        return 0;
    for (int i = 0; i < 4; i++)
        if (!take_matrix(self, matrices[i], linear[i], names[i], sizes[i], inputs[i]) ||
            !take_vector(next, &b->biases[i], bias[i], "bias", sizes[i]))
            return 0;
    return 1;
}

static int read_activation(Decoder *d, const char *name)
{
    for (int i = 1; i < ACTIVATION_COUNT; i++)
        if (!strcmp(name, ACTIVATION_NAMES[i])) {
            d->activation = (Activation)i;
            return 1;
        }
    PyErr_Format(PyExc_ValueError, "activation must be one of ACTIVATIONS, not '%s'", name);
    return 0;
}

static PyObject *decoder_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = { "wte", "wpe", "head", "blocks", "ln_f", "heads", "inner", "epsilon", "activation", NULL };
    PyObject *wte, *wpe, *head, *blocks, *norm[2];
    Py_ssize_t heads, inner;
    double epsilon;
    const char *activation;
    const Types *types = types_of(type);
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "$O!O!O!O!(OO)nnds:Decoder", names, types->matrix, &wte, types->matrix, &wpe,
                                     types->matrix, &head, &PyList_Type, &blocks, &norm[0], &norm[1], &heads, &inner,
                                     &epsilon, &activation))
        return NULL;
    DecoderObject *self = (DecoderObject *)PyType_GenericAlloc(type, 0);
    if (!self)
        return NULL;
    Decoder *d = &self->decoder;
    self->kept = PyList_New(0);
    d->width = ((MatrixObject *)wte)->matrix.k;
    d->heads = heads;
    d->inner = inner;
    d->layers = PyList_Size(blocks);
    int made = self->kept && check_positive("epsilon", epsilon) && read_activation(d, activation);
    if (made && (heads < 1 || d->width % heads || inner < 1 || d->layers < 1)) {
        PyErr_SetString(PyExc_ValueError, "heads must divide the width, and inner and the blocks be at least 1");
        made = 0;
    }
    if (made) {
        self->vectors = malloc((size_t)vector_values(d) * sizeof *self->vectors);
        d->blocks = calloc((size_t)d->layers, sizeof *d->blocks);
        made = self->vectors && d->blocks;
        if (!made)
            PyErr_NoMemory();
    }
    float *next = self->vectors;
    made = made && take_matrix(self, &d->wte, wte, "wte", 0, d->width) && take_matrix(self, &d->wpe, wpe, "wpe", 0, d->width) &&
           take_matrix(self, &d->head, head, "head", ((MatrixObject *)wte)->matrix.n, d->width);
    for (Py_ssize_t i = 0; made && i < d->layers; i++)
        made = read_block(self, &d->blocks[i], PyList_GetItem(blocks, i), (float)epsilon, &next);
    made = made && take_vector(&next, &d->ln_f.weight, norm[0], "ln_f.weight", d->width) &&
           take_vector(&next, &d->ln_f.bias, norm[1], "ln_f.bias", d->width);
    if (made) {
        d->ln_f.epsilon = (float)epsilon;
        d->positions = d->wpe->n;
        return (PyObject *)self;
    }
    Py_DECREF(self);
    return NULL;
}

enum { TOKENS, SLOTS, POSITIONS, TABLE, KEYS, VALUES, EMBEDDED, WANTED, LOGITS, HIDDEN, ARGUMENTS };

/* Slots have pages wherever their rows stand, and before that. */
static int check_pages(const Py_buffer *views, const Step *s)
{
    const int64_t *slots = views[SLOTS].buf, *positions = views[POSITIONS].buf;
    for (Py_ssize_t row = 0; row < views[SLOTS].shape[0]; row++)
        for (int64_t block = 0; block <= positions[row] / LANES; block++) {
            const int64_t page = s->table[slots[row] * s->blocks + block];
            if (page < 0 || page >= s->page_count) {
                PyErr_Format(PyExc_IndexError, "table must lie in [0, %lld) where slot %lld has tokens, not %lld",
                             (long long)s->page_count, (long long)slots[row], (long long)page);
                return 0;
            }
        }
    return 1;
}

static int open_cache(const Decoder *d, Py_buffer *views, PyObject **from, Step *s)
{
    const Py_ssize_t size = (Py_ssize_t)(d->width / d->heads), wide = (Py_ssize_t)padded(size, LANES);
    const Py_ssize_t shape[] = { ANY, (Py_ssize_t)d->layers, (Py_ssize_t)d->heads, size, LANES };
    if (!open_shaped(&views[KEYS], from[KEYS], "keys", FLOAT32 | FLOAT16 | BFLOAT16, WRITE, 5, shape))
        return 0;
    const Py_ssize_t *found = views[KEYS].shape, same[] = { found[0], found[1], found[2], LANES, wide };
    if (!open_shaped(&views[VALUES], from[VALUES], "values", dtype_of(&views[KEYS]), WRITE, 5, same) ||
        !check_apart(&views[VALUES], &views[KEYS], "keys") ||
        !open_shaped(&views[TABLE], from[TABLE], "table", INT64, READ, 2, (Py_ssize_t[]){ ANY, ANY }))
        return 0;
    const int dtype = dtype_of(&views[KEYS]);
    s->element = dtype == FLOAT32 ? FP32 : dtype == FLOAT16 ? FP16 : BF16;
    s->keys = views[KEYS].buf;
    s->values = views[VALUES].buf;
    s->page_count = found[0];
    s->table = views[TABLE].buf;
    s->slot_count = views[TABLE].shape[0];
    s->blocks = views[TABLE].shape[1];
    return check_ids(&views[SLOTS], "slots", s->slot_count) &&
           check_ids(&views[POSITIONS], "positions", least(s->blocks * LANES, d->positions)) && check_pages(views, s);
}

static int open_step(const Decoder *d, Py_buffer *views, PyObject **from, Step *s)
{
    static const char *const names[] = { "tokens", "slots", "positions", "table", "keys", "values", "embedded", "wanted", "logits", "hidden" };
    for (int i = TOKENS; i <= POSITIONS; i++) {
        const Py_ssize_t rows[] = { i ? views[0].shape[0] : ANY };
        if (!open_shaped(&views[i], from[i], names[i], INT64, READ, 1, rows))
            return 0;
    }
    s->rows = views[TOKENS].shape[0];
    const Py_ssize_t wide[] = { (Py_ssize_t)s->rows, (Py_ssize_t)d->width };
    if (!check_ids(&views[TOKENS], "tokens", d->wte->n) || !open_cache(d, views, from, s) ||
        !open_optional(&views[EMBEDDED], from[EMBEDDED], "embedded", FLOAT32, 2, wide) ||
        !open_optional(&views[WANTED], from[WANTED], "wanted", INT64, 1, (Py_ssize_t[]){ ANY }) || !check_ids(&views[WANTED], "wanted", s->rows))
        return 0;
    s->wanted = views[WANTED].buf;
    s->wanted_count = s->wanted ? views[WANTED].shape[0] : 0;
    if (s->wanted && !open_shaped(&views[LOGITS], from[LOGITS], "logits", FLOAT32, WRITE, 2,
                                  (Py_ssize_t[]){ (Py_ssize_t)s->wanted_count, (Py_ssize_t)d->head->n }))
        return 0;
    if (from[HIDDEN] && from[HIDDEN] != Py_None && !open_shaped(&views[HIDDEN], from[HIDDEN], "hidden", FLOAT32, WRITE, 2, wide))
        return 0;
    s->tokens = views[TOKENS].buf;
    s->slots = views[SLOTS].buf;
    s->positions = views[POSITIONS].buf;
    s->embedded = views[EMBEDDED].buf;
    s->logits = views[LOGITS].buf;
    s->hidden = views[HIDDEN].buf;
    return 1;
}

static PyObject *decoder_step(DecoderObject *self, PyObject *args, PyObject *keywords)
{
    static char *names[] = { "tokens", "slots", "positions", "table", "keys", "values", "embedded", "wanted", "logits", "hidden",
                             "threads", "instructions", NULL };
    PyObject *from[ARGUMENTS] = { NULL }, *instructions = NULL;
    Py_ssize_t threads = 1;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "OOOOOO|$OOOOnO:step", names, &from[TOKENS], &from[SLOTS], &from[POSITIONS],
                                     &from[TABLE], &from[KEYS], &from[VALUES], &from[EMBEDDED], &from[WANTED], &from[LOGITS], &from[HIDDEN],
                                     &threads, &instructions))
        return NULL;
    Py_buffer views[ARGUMENTS];
    memset(views, 0, sizeof views);
    Step step = { 0 };
    Engine engine;
    PyObject *done = NULL;
    if (open_step(&self->decoder, views, from, &step) && open_engine(&engine, instructions, threads)) {
        Py_BEGIN_ALLOW_THREADS
        decode(&engine, &self->decoder, &step);
        Py_END_ALLOW_THREADS
        done = close_engine(&engine);
    }
    for (int i = 0; i < ARGUMENTS; i++)
        PyBuffer_Release(&views[i]);
    return done;
}

static PyMethodDef methods[] = {
    { "step", (PyCFunction)(void (*)(void))decoder_step, METH_VARARGS | METH_KEYWORDS,
      "Append tokens to their slots and write the logits behind those that are wanted." },
    { NULL, NULL, 0, NULL },
};

static PyType_Slot type_slots[] = {
    { Py_tp_doc, "A GPT-2 decoder made of matrices." },
    { Py_tp_new, decoder_new },
    { Py_tp_dealloc, decoder_dealloc },
    { Py_tp_methods, methods },
    { 0, NULL },
};

PyType_Spec decoder_spec = {
    "compressor.runtime._decoder.Decoder", sizeof(DecoderObject), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE, type_slots,
};
