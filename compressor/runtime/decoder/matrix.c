/* The type Matrix: built once from arrays, of which nothing is kept, or from other matrices. */
#include "types.h"

#include <stdlib.h>
#include <string.h>

static MatrixObject *new_matrix(PyTypeObject *type, Kind kind)
{
    MatrixObject *self = (MatrixObject *)PyType_GenericAlloc(type, 0);
    if (self)
        self->matrix.kind = kind;
    return self;
}

static PyObject *ready(MatrixObject *self, int made)
{
    if (made)
        return (PyObject *)self;
    if (!PyErr_Occurred())
        PyErr_NoMemory();
    Py_DECREF(self);
    return NULL;
}

static void matrix_dealloc(MatrixObject *self)
{
    Matrix *m = &self->matrix;
    if (m->kind == CODED)
        free_leaf(&m->leaf);
    free(m->parts);
    free(m->row_scale);
    free(m->column_offset);
    free(m->columns);
    free(m->places);
    for (int64_t i = 0; m->kind == TT_MATRIX && m->steps && i < m->count; i++) {
        free_leaf(&((Matrix *)m->steps[i].weight)->leaf);
        free((Matrix *)m->steps[i].weight);
    }
    free(m->steps);
    Py_XDECREF(self->parts);
    free_object((PyObject *)self);
}

/* A copy in this process's own memory, counted; NULL with MemoryError. */
static void *copied(Matrix *m, const void *from, size_t bytes)
{
    void *memory = malloc(bytes);
    if (memory)
        memcpy(memory, from, bytes);
    else
        PyErr_NoMemory();
    m->bytes += (int64_t)bytes;
    return memory;
}

/* Keep a tuple of matrices and point to them. */
static int take_parts(MatrixObject *self, PyTypeObject *type, PyObject *sequence, const char *name)
{
    Matrix *m = &self->matrix;
    self->parts = PySequence_Tuple(sequence);
    if (!self->parts)
        return 0;
    m->count = m->part_count = PyTuple_Size(self->parts);
    if (m->count < 1) {
        PyErr_Format(PyExc_ValueError, "%s must be at least one", name);
        return 0;
    }
    m->parts = calloc((size_t)m->count, sizeof *m->parts);
    if (!m->parts) {
        m->part_count = 0;
        return 0;
    }
    for (Py_ssize_t i = 0; i < m->count; i++) {
        PyObject *part = PyTuple_GetItem(self->parts, i);
        if (!Py_IS_TYPE(part, type)) {
            PyErr_Format(PyExc_TypeError, "%s must be matrices, not %R", name, (PyObject *)Py_TYPE(part));
            return 0;
        }
        m->parts[i] = &((MatrixObject *)part)->matrix;
    }
    return 1;
}

static int refuse(const char *name, int64_t n, int64_t k, const Matrix *found)
{
    PyErr_Format(PyExc_ValueError, "%s must have shape [%lld, %lld], not [%lld, %lld]", name, (long long)n, (long long)k,
                 (long long)found->n, (long long)found->k);
    return 0;
}

static PyObject *matrix_floats(PyTypeObject *type, PyObject *values)
{
    Py_buffer view = { 0 };
    MatrixObject *self = new_matrix(type, CODED);
    if (!self)
        return NULL;
    int made = open_shaped(&view, values, "values", FLOAT32 | FLOAT16 | BFLOAT16, READ, 2, (Py_ssize_t[]){ ANY, ANY });
    if (made) {
        const int dtype = dtype_of(&view);
        self->matrix.n = view.shape[0];
        self->matrix.k = view.shape[1];
        Py_BEGIN_ALLOW_THREADS
        made = pack_floats(&self->matrix.leaf, dtype == FLOAT32 ? FP32 : dtype == FLOAT16 ? FP16 : BF16, view.shape[0],
                           view.shape[1], view.buf);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&view);
    return ready(self, made);
}

static int open_codes(Py_buffer views[3], PyObject *arguments[3], Py_ssize_t bits, Py_ssize_t columns, Py_ssize_t group,
                      Py_ssize_t activation_bits, int trellis)
{
    const Py_ssize_t row = bits == 8 ? columns : (columns + 7) / 8 * bits;
    if (trellis ? bits < 1 || bits > 4 : bits != 8 && (bits < 2 || bits > 4)) {
        PyErr_Format(PyExc_ValueError, "bits must be %s, not %zd", trellis ? "between 1 and 4" : "2, 3, 4 or 8", bits);
        return 0;
    }
    if (trellis && (group != columns || activation_bits != 16 || (arguments[2] && arguments[2] != Py_None))) {
        PyErr_SetString(PyExc_ValueError, "a trellis has one group per row, no zeros and activations of 16 bits");
        return 0;
    }
    if (activation_bits != 16 && activation_bits != 8) {
        PyErr_Format(PyExc_ValueError, "activation_bits must be 16 or 8, not %zd", activation_bits);
        return 0;
    }
    if (columns < 1 || columns > INT32_MAX || group < 1 || group > columns) {
        PyErr_SetString(PyExc_ValueError, "columns must be positive, and group between 1 and columns");
        return 0;
    }
    if (!open_shaped(&views[0], arguments[0], "codes", bits == 8 ? INT8 : UINT8, READ, 2, (Py_ssize_t[]){ ANY, row }))
        return 0;
    const Py_ssize_t groups[] = { views[0].shape[0], (columns + group - 1) / group };
    return open_shaped(&views[1], arguments[1], "scale", BFLOAT16, READ, 2, groups) &&
           open_optional(&views[2], arguments[2], "zero", BFLOAT16, 2, groups);
}

static PyObject *matrix_integers(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = { "codes", "scale", "zero", "bits", "columns", "group", "activation_bits", "trellis",
                              "rotated", NULL };
    static const Element codes[] = { CODES2, CODES3, CODES4 }, paths[] = { PATHS1, PATHS2, PATHS3, PATHS4 };
    PyObject *arguments[3];
    int trellis, rotated;
    Py_buffer views[3] = { { 0 }, { 0 }, { 0 } };
    Py_ssize_t bits, columns, group, activation_bits;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "OOO$nnnnpp:integers", names, &arguments[0], &arguments[1],
                                     &arguments[2], &bits, &columns, &group, &activation_bits, &trellis, &rotated))
        return NULL;
    MatrixObject *self = new_matrix(type, CODED);
    if (!self)
        return NULL;
    int made = open_codes(views, arguments, bits, columns, group, activation_bits, trellis);
    if (made) {
        const Element element = trellis ? paths[bits - 1] : bits == 8 ? CODES8 : codes[bits - 2];
        self->matrix.n = views[0].shape[0];
        self->matrix.k = columns;
        Py_BEGIN_ALLOW_THREADS
        made = pack_integers(&self->matrix.leaf, element, views[0].shape[0], columns, group, (int)activation_bits / 8,
                             rotated, views[0].buf, views[1].buf, views[2].buf);
        Py_END_ALLOW_THREADS
    }
    for (int i = 0; i < 3; i++)
        PyBuffer_Release(&views[i]);
    return ready(self, made);
}

static int copy_vector(Matrix *m, float **to, PyObject *vector, const char *name, int64_t size)
{
    Py_buffer view = { 0 };
    int made = open_optional(&view, vector, name, FLOAT32, 1, (Py_ssize_t[]){ (Py_ssize_t)size });
    if (made && view.buf)
        made = (*to = copied(m, view.buf, (size_t)size * sizeof(float))) != NULL;
    PyBuffer_Release(&view);
    return made;
}

static PyObject *matrix_low_rank(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = { "left", "right", "row_scale", "column_offset", NULL };
    PyObject *left, *right, *row_scale = NULL, *column_offset = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O!O!|$OO:low_rank", names, type, &left, type, &right, &row_scale,
                                     &column_offset))
        return NULL;
    MatrixObject *self = new_matrix(type, LOW_RANK);
    PyObject *both = self ? PyTuple_Pack(2, left, right) : NULL;
    if (!both) {
        Py_XDECREF((PyObject *)self);
        return NULL;
    }
    Matrix *m = &self->matrix;
    int made = take_parts(self, type, both, "factors");
    Py_DECREF(both);
    if (made) {
        m->n = m->parts[0]->n;
        m->k = m->parts[1]->k;
        made = m->parts[0]->kind == CODED && m->parts[1]->kind == CODED && m->parts[0]->k == m->parts[1]->n;
        if (!made)
            PyErr_SetString(PyExc_ValueError, "left [n, r] and right [r, k] must be coded values of one rank r");
    }
    made = made && copy_vector(m, &m->row_scale, row_scale, "row_scale", m->n) &&
           copy_vector(m, &m->column_offset, column_offset, "column_offset", m->k);
    return ready(self, made);
}

static PyObject *matrix_stacked(PyTypeObject *type, PyObject *blocks)
{
    MatrixObject *self = new_matrix(type, STACKED);
    if (!self)
        return NULL;
    Matrix *m = &self->matrix;
    int made = take_parts(self, type, blocks, "blocks");
    for (int64_t i = 0; made && i < m->count; i++) {
        m->k = m->parts[0]->k;
        m->n += m->parts[i]->n;
        made = m->parts[i]->k == m->k || refuse("a block", m->parts[i]->n, m->k, m->parts[i]);
    }
    return ready(self, made);
}

static PyObject *matrix_residual(PyTypeObject *type, PyObject *args)
{
    MatrixObject *self = new_matrix(type, RESIDUAL);
    if (!self)
        return NULL;
    Matrix *m = &self->matrix;
    int made = take_parts(self, type, args, "base and correction");
    if (made && m->count != 2) {
        PyErr_SetString(PyExc_TypeError, "residual takes a base and a correction");
        made = 0;
    }
    if (made) {
        m->n = m->parts[0]->n;
        m->k = m->parts[0]->k;
        made = (m->parts[1]->n == m->n && m->parts[1]->k == m->k) || refuse("correction", m->n, m->k, m->parts[1]);
    }
    return ready(self, made);
}

/* Keep a coded matrix and share its values. */
static int take_leaf(MatrixObject *self, PyTypeObject *type, PyObject *values, const char *name)
{
    PyObject *one = PyTuple_Pack(1, values);
    const int64_t count = self->matrix.count; /* of cores */
    const int made = one && take_parts(self, type, one, name);
    Py_XDECREF(one);
    self->matrix.count = count;
    if (!made)
        return 0;
    if (self->matrix.parts[0]->kind != CODED) {
        PyErr_Format(PyExc_ValueError, "%s must be coded values", name);
        return 0;
    }
    self->matrix.leaf = self->matrix.parts[0]->leaf;
    self->matrix.n = self->matrix.leaf.n;
    return 1;
}

static PyObject *matrix_sparse(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = { "values", "columns", "in_features", NULL };
    PyObject *values, *columns;
    Py_ssize_t in_features;
    Py_buffer view = { 0 };
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O!O$n:sparse", names, type, &values, &columns, &in_features))
        return NULL;
    MatrixObject *self = new_matrix(type, SPARSE);
    if (!self)
        return NULL;
    Matrix *m = &self->matrix;
    const Matrix *from = &((MatrixObject *)values)->matrix;
    m->k = in_features;
    int made = open_shaped(&view, columns, "columns", INT32, READ, 2, (Py_ssize_t[]){ (Py_ssize_t)from->n, (Py_ssize_t)from->k });
    const int32_t *stored = view.buf;
    for (int64_t i = 0; made && i < from->n * from->k; i++)
        if (stored[i] < 0 || stored[i] >= in_features || (i % from->k && stored[i] <= stored[i - 1])) {
            PyErr_Format(PyExc_ValueError, "columns must ascend within 0 .. %zd in every row", in_features - 1);
            made = 0;
        }
    made = made && take_leaf(self, type, values, "values");
    if (made) {
        const int64_t kept = m->leaf.k, bytes = m->leaf.panels * kept * LANES * (int64_t)sizeof *m->columns;
        m->columns = calloc(1, (size_t)bytes);
        m->bytes += bytes;
        made = m->columns != NULL;
        for (int64_t row = 0; made && row < m->n; row++)
            for (int64_t j = 0; j < kept; j++)
                m->columns[(row / LANES * kept + j) * LANES + row % LANES] = stored[row * kept + j];
    }
    PyBuffer_Release(&view);
    return ready(self, made);
}

/* Read `count` sizes of at least 1, or any number of them where `count` is not positive; returns how many, or 0. */
static int64_t read_sizes(PyObject *sequence, const char *name, int64_t count, int64_t *sizes)
{
    const Py_ssize_t found = PySequence_Size(sequence);
    if (found < 1 || found > MOST_DIMENSIONS + (count > 0) || (count > 0 && found != count)) {
        if (!PyErr_Occurred())
            PyErr_Format(PyExc_ValueError, "%s must be %lld integers, not %zd", name, (long long)(count > 0 ? count : MOST_DIMENSIONS), found);
        return 0;
    }
    for (Py_ssize_t i = 0; i < found; i++) {
        PyObject *item = PySequence_GetItem(sequence, i);
        sizes[i] = item ? PyLong_AsLongLong(item) : -1;
        Py_XDECREF(item);
        if (PyErr_Occurred())
            return 0;
        if (sizes[i] < 1 || sizes[i] > INT32_MAX) {
            PyErr_Format(PyExc_ValueError, "%s must be positive, not %lld", name, (long long)sizes[i]);
            return 0;
        }
    }
    return found;
}

static int check_ranks(const Matrix *m)
{
    if (m->ranks[0] == 1 && m->ranks[m->count] == 1)
        return 1;
    PyErr_SetString(PyExc_ValueError, "ranks must begin and end with 1");
    return 0;
}

/* The product of sizes, or 0 and an error where it is no size of memory. */
static int64_t size_of(const char *name, const int64_t *sizes, int64_t count)
{
    int64_t all = 1;
    for (int64_t i = 0; i < count; i++)
        if (__builtin_mul_overflow(all, sizes[i], &all) || all > INT32_MAX) {
            PyErr_Format(PyExc_ValueError, "%s must multiply to less than 2^31", name);
            return 0;
        }
    return all;
}

static int plan_halves(Matrix *m)
{
    double best = -1;
    for (int64_t split = 0; split <= m->count; split++) {
        double left = 1, right = 1, work = 0;
        for (int64_t c = 0; c < split; c++, left *= (double)m->modes[c - 1])
            work += left * (double)(m->ranks[c] * m->modes[c] * m->ranks[c + 1]);
        for (int64_t c = m->count - 1; c >= split; c--, right *= (double)m->modes[c + 1])
            work += right * (double)(m->ranks[c] * m->modes[c] * m->ranks[c + 1]);
        work += left * (double)m->ranks[split] * (right + 1);
        if (best < 0 || work < best) {
            best = work;
            m->split = split;
        }
    }
    return 1;
}

static PyObject *matrix_token_mps(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = { "cores", "modes", "ranks", "in_features", NULL };
    PyObject *cores, *modes, *ranks;
    Py_ssize_t in_features;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O!$OOn:token_mps", names, type, &cores, &modes, &ranks, &in_features))
        return NULL;
    MatrixObject *self = new_matrix(type, TOKEN_MPS);
    if (!self)
        return NULL;
    Matrix *m = &self->matrix;
    m->k = in_features;
    m->count = read_sizes(modes, "modes", 0, m->modes);
    int made = m->count && read_sizes(ranks, "ranks", m->count + 1, m->ranks) && check_ranks(m);
    const int64_t values = made ? size_of("modes", m->modes, m->count) : 0;
    int64_t train = 0;
    for (int64_t c = 0; values && c < m->count; c++)
        train += m->ranks[c] * m->modes[c] * m->ranks[c + 1];
    if (values && (in_features < 1 || values < in_features || train != ((MatrixObject *)cores)->matrix.k)) {
        PyErr_Format(PyExc_ValueError, "modes must multiply to at least in_features, and cores have %lld columns",
                     (long long)train);
        made = 0;
    }
    made = made && values && take_leaf(self, type, cores, "cores") && plan_halves(m);
    return ready(self, made);
}

/* Make the matrix that a step multiplies by of its core [r, i, o, s]. */
static int make_weight(Matrix *m, int64_t index, const Py_buffer *core)
{
    TrainStep *step = &m->steps[index];
    const int64_t c = step->core, r = m->ranks[c], I = m->modes[c], o = m->out_modes[c], s = m->ranks[c + 1];
    const size_t size = (size_t)core->itemsize;
    char *turned = malloc((size_t)(step->out * step->in) * size);
    Matrix *weight = calloc(1, sizeof *weight);
    step->weight = weight;
    if (turned && weight) {
        for (int64_t a = 0; a < r; a++)
            for (int64_t i = 0; i < I; i++)
                for (int64_t j = 0; j < o; j++)
                    for (int64_t b = 0; b < s; b++) {
                        const int64_t row = !index ? (a * o + j) * s + b : step->from_left ? j * s + b : a * o + j;
                        const int64_t column = !index ? i : step->from_left ? a * I + i : i * s + b;
                        memcpy(turned + (size_t)(row * step->in + column) * size,
                               (const char *)core->buf + (size_t)(((a * I + i) * o + j) * s + b) * size, size);
                    }
        weight->n = step->out;
        weight->k = step->in;
        if (!pack_floats(&weight->leaf, dtype_of(core) == FLOAT32 ? FP32 : dtype_of(core) == FLOAT16 ? FP16 : BF16,
                         step->out, step->in, turned))
            step->weight = NULL;
        m->bytes += weight->leaf.bytes;
    }
    free(turned);
    if (weight && !step->weight)
        free(weight);
    return step->weight != NULL && turned != NULL;
}

static int make_train(Matrix *m, PyObject *cores)
{
    if (!plan_train(m)) {
        PyErr_SetString(PyExc_ValueError, "the train is too large");
        return 0;
    }
    if (PySequence_Size(cores) != m->count) {
        PyErr_Format(PyExc_ValueError, "cores must be %lld", (long long)m->count);
        return 0;
    }
    for (int64_t i = 0; i < m->count; i++) {
        const int64_t c = m->steps[i].core;
        const Py_ssize_t shape[] = { (Py_ssize_t)m->ranks[c], (Py_ssize_t)m->modes[c], (Py_ssize_t)m->out_modes[c],
                                     (Py_ssize_t)m->ranks[c + 1] };
        Py_buffer view = { 0 };
        PyObject *core = PySequence_GetItem(cores, c);
        const int made = core && open_shaped(&view, core, "a core", FLOAT32 | FLOAT16 | BFLOAT16, READ, 4, shape) &&
                         make_weight(m, i, &view);
        PyBuffer_Release(&view);
        Py_XDECREF(core);
        if (!made)
            return 0;
    }
    return 1;
}

static PyObject *matrix_tt_matrix(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = { "cores", "shape", "in_modes", "out_modes", "ranks", "places", NULL };
    PyObject *cores, *in_modes, *out_modes, *ranks, *places;
    Py_ssize_t n, k;
    Py_buffer view = { 0 };
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O$(nn)OOOO:tt_matrix", names, &cores, &n, &k, &in_modes, &out_modes,
                                     &ranks, &places))
        return NULL;
    MatrixObject *self = new_matrix(type, TT_MATRIX);
    if (!self)
        return NULL;
    Matrix *m = &self->matrix;
    m->n = n;
    m->k = k;
    m->count = read_sizes(in_modes, "in_modes", 0, m->modes);
    int made = m->count && read_sizes(out_modes, "out_modes", m->count, m->out_modes) &&
               read_sizes(ranks, "ranks", m->count + 1, m->ranks) && check_ranks(m);
    const int64_t ins = made ? size_of("in_modes", m->modes, m->count) : 0;
    const int64_t outs = ins ? size_of("out_modes", m->out_modes, m->count) : 0;
    if (outs && (n < 1 || k < 1 || outs < n || ins < k)) {
        PyErr_SetString(PyExc_ValueError, "out_modes and in_modes must multiply to at least shape");
        made = 0;
    }
    made = made && outs && open_optional(&view, places, "places", INT32, 1, (Py_ssize_t[]){ n });
    for (Py_ssize_t i = 0; made && view.buf && i < n; i++)
        if (((const int32_t *)view.buf)[i] < 0 || ((const int32_t *)view.buf)[i] >= outs) {
            PyErr_Format(PyExc_ValueError, "places must lie in [0, %lld)", (long long)outs);
            made = 0;
        }
    if (made && view.buf)
        made = (m->places = copied(m, view.buf, (size_t)n * sizeof *m->places)) != NULL;
    made = made && make_train(m, cores);
    PyBuffer_Release(&view);
    return ready(self, made);
}

/* Open x [..., from] and out [..., to]. */
static int open_rows(Py_buffer *x, PyObject *from, Py_buffer *out, PyObject *to, int64_t k, int64_t n)
{
    Py_ssize_t shape[PyBUF_MAX_NDIM];
    if (!open_buffer(x, from, "x", FLOAT32, READ))
        return 0;
    if (x->ndim < 1 || x->ndim > PyBUF_MAX_NDIM || x->shape[x->ndim - 1] != k) {
        PyErr_Format(PyExc_ValueError, "x must have rows of %lld values", (long long)k);
        return 0;
    }
    memcpy(shape, x->shape, (size_t)x->ndim * sizeof *shape);
    shape[x->ndim - 1] = (Py_ssize_t)n;
    return open_shaped(out, to, "out", FLOAT32, WRITE, x->ndim, shape) && (!x->len || check_apart(out, x, "x"));
}

static PyObject *matrix_matmul(MatrixObject *self, PyObject *args, PyObject *keywords)
{
    static char *names[] = { "x", "out", "threads", "instructions", NULL };
    PyObject *x, *out, *instructions = NULL;
    Py_ssize_t threads = 1;
    const Matrix *m = &self->matrix;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "OO|$nO:matmul", names, &x, &out, &threads, &instructions))
        return NULL;
    Py_buffer from = { 0 }, to = { 0 };
    Engine engine;
    PyObject *done = NULL;
    if (open_rows(&from, x, &to, out, m->k, m->n) && open_engine(&engine, instructions, threads)) {
        Py_BEGIN_ALLOW_THREADS
        multiply(&engine, m, &(Product){ .x = from.buf, .rows = from.len / (4 * (int64_t)m->k), .out = to.buf, .out_stride = m->n });
        Py_END_ALLOW_THREADS
        done = close_engine(&engine);
    }
    PyBuffer_Release(&from);
    PyBuffer_Release(&to);
    return done;
}

int check_ids(const Py_buffer *view, const char *name, int64_t end)
{
    const int64_t *ids = view->buf;
    for (int64_t i = 0; i < view->len / 8; i++)
        if (ids[i] < 0 || ids[i] >= end) {
            PyErr_Format(PyExc_IndexError, "%s must lie in [0, %lld), not %lld", name, (long long)end, (long long)ids[i]);
            return 0;
        }
    return 1;
}

static PyObject *matrix_rows(MatrixObject *self, PyObject *args, PyObject *keywords)
{
    static char *names[] = { "ids", "out", "threads", NULL };
    PyObject *ids, *out;
    Py_ssize_t threads = 1;
    const Matrix *m = &self->matrix;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "OO|$n:rows", names, &ids, &out, &threads))
        return NULL;
    Py_buffer from = { 0 }, to = { 0 };
    Engine engine;
    PyObject *done = NULL;
    if (open_buffer(&from, ids, "ids", INT64, READ) && check_shape(&from, "ids", 1, from.shape) && check_ids(&from, "ids", m->n) &&
        open_shaped(&to, out, "out", FLOAT32, WRITE, 2, (Py_ssize_t[]){ from.shape[0], (Py_ssize_t)m->k }) &&
        open_engine(&engine, NULL, threads)) {
        Py_BEGIN_ALLOW_THREADS
        look_up(&engine, m, from.buf, from.shape[0], to.buf);
        Py_END_ALLOW_THREADS
        done = close_engine(&engine);
    }
    PyBuffer_Release(&from);
    PyBuffer_Release(&to);
    return done;
}

static PyObject *matrix_shape(MatrixObject *self, void *unused)
{
    (void)unused;
    return Py_BuildValue("(LL)", (long long)self->matrix.n, (long long)self->matrix.k);
}

static int64_t bytes_of(const Matrix *m)
{
    int64_t bytes = m->bytes + (m->kind == CODED ? m->leaf.bytes : 0) + (int64_t)sizeof(MatrixObject);
    for (int64_t i = 0; i < m->part_count; i++)
        bytes += bytes_of(m->parts[i]);
    return bytes;
}

static PyObject *matrix_num_bytes(MatrixObject *self, void *unused)
{
    (void)unused;
    return PyLong_FromLongLong((long long)bytes_of(&self->matrix));
}

static int is_contracted(const Matrix *m)
{
    int found = m->kind == TT_MATRIX || m->kind == TOKEN_MPS;
    for (int64_t i = 0; i < m->part_count && !found; i++)
        found = is_contracted(m->parts[i]);
    return found;
}

static PyObject *matrix_is_contracted(MatrixObject *self, void *unused)
{
    (void)unused;
    return PyBool_FromLong(is_contracted(&self->matrix));
}

#define WITH_NAMES (PyCFunction)(void (*)(void))

static PyMethodDef methods[] = {
    { "floats", (PyCFunction)matrix_floats, METH_O | METH_CLASS, "Values [n, k] in fp32, fp16 or bf16." },
    { "integers", WITH_NAMES matrix_integers, METH_VARARGS | METH_KEYWORDS | METH_CLASS, "Codes of 8, 4, 3 or 2 bits." },
    { "low_rank", WITH_NAMES matrix_low_rank, METH_VARARGS | METH_KEYWORDS | METH_CLASS, "The product of two factors." },
    { "stacked", (PyCFunction)matrix_stacked, METH_O | METH_CLASS, "Blocks of rows." },
    { "residual", (PyCFunction)matrix_residual, METH_VARARGS | METH_CLASS, "A base and its correction." },
    { "sparse", WITH_NAMES matrix_sparse, METH_VARARGS | METH_KEYWORDS | METH_CLASS, "A few entries of every row." },
    { "token_mps", WITH_NAMES matrix_token_mps, METH_VARARGS | METH_KEYWORDS | METH_CLASS, "A tensor train per row." },
    { "tt_matrix", WITH_NAMES matrix_tt_matrix, METH_VARARGS | METH_KEYWORDS | METH_CLASS, "A tensor train for all." },
    { "matmul", WITH_NAMES matrix_matmul, METH_VARARGS | METH_KEYWORDS, "Write x W^T to out." },
    { "rows", WITH_NAMES matrix_rows, METH_VARARGS | METH_KEYWORDS, "Write rows of W to out." },
    { NULL, NULL, 0, NULL },
};

static PyGetSetDef properties[] = {
    { "shape", (getter)matrix_shape, NULL, "(n, k)", NULL },
    { "is_contracted", (getter)matrix_is_contracted, NULL, "Whether rows are contracted from cores.", NULL },
    { "num_bytes", (getter)matrix_num_bytes, NULL, "Bytes that it occupies.", NULL },
    { NULL, NULL, NULL, NULL, NULL },
};

static PyType_Slot type_slots[] = {
    { Py_tp_doc, "W [n, k] as it is stored." },
    { Py_tp_dealloc, matrix_dealloc },
    { Py_tp_methods, methods },
    { Py_tp_getset, properties },
    { 0, NULL },
};

PyType_Spec matrix_spec = {
    "compressor.runtime._decoder.Matrix", sizeof(MatrixObject), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION, type_slots,
};
