/* Products and rows of matrices of any format: what is done in which order, cut into tiles. */
#include "runtime.h"

#include <stdlib.h>
#include <string.h>

enum { STATE_VALUES = 1 << 20 }; /* of the states of a tensor train that exist at a time */

size_t product_bytes(int64_t rows)
{
    const size_t sums = (size_t)least(rows, ROWS) * 2 * LANES * sizeof(float);
    const size_t codes = 4 * CHUNK_BYTES, floats = FLOAT_COLUMNS * LANES * sizeof(float);
    return BATCH_BYTES + sums + (codes > floats ? codes : floats);
}

static size_t panel_bytes(const Leaf *leaf)
{
    return (size_t)leaf->k * LANES * sizeof(float) + (size_t)padded(leaf->vectors + UNIT, UNIT) * 64;
}

size_t sparse_bytes(const Matrix *m) { return panel_bytes(&m->leaf); }

size_t combine_bytes(const Leaf *leaf)
{
    const int64_t values = COMBINED * (padded(leaf->k, LANES) * LANES + padded(leaf->n, LANES));
    return panel_bytes(leaf) + (size_t)values * sizeof(float);
}

size_t trains_bytes(const Matrix *m)
{
    int64_t outer = 1, inner = 1, most = 1;
    for (int64_t c = 0; c < m->count; c++) {
        *(c < m->split ? &outer : &inner) *= m->modes[c];
        most = m->ranks[c] > most ? m->ranks[c] : most;
    }
    const int64_t halves = (outer + inner + (outer > inner ? outer : inner)) * most * LANES + outer * inner;
    return (size_t)halves * sizeof(float) + panel_bytes(&m->leaf);
}

/* Work in panels ------------------------------------------------------------------------------------------------- */

typedef struct {
    Engine *engine;
    const Matrix *m;
    const Product *p;
    const Norm *norm;
    const Leaf *leaf;
    Rounded rounded;
    int64_t panels, tile;   /* panels of a tile, but of the first ones, `large`, `large_tile` */
    int64_t large, large_tile;
    char *memory;
    size_t memory_bytes;    /* of a thread */
    float *to;
} Task;

static void round_tile(void *task, int64_t row, int64_t thread)
{
    const Task *t = task;
    (void)thread;
    t->engine->instructions->round_row(t->leaf, t->norm, t->p->x + row * t->leaf->k, row, &t->rounded);
}

static void normalise_tile(void *task, int64_t row, int64_t thread)
{
    const Task *t = task;
    (void)thread;
    t->engine->instructions->normalise(t->norm, t->p->x + row * t->m->k, t->to + row * t->m->k, t->m->k);
}

static void rotate_tile(void *task, int64_t row, int64_t thread)
{
    const Task *t = task;
    const Instructions *with = t->engine->instructions;
    const int64_t k = t->leaf->k;
    float *own = t->to + thread * k; /* of the thread, which stays near it */
    if (t->norm)
        with->normalise(t->norm, t->p->x + row * k, own, k);
    else
        memcpy(own, t->p->x + row * k, (size_t)k * sizeof *own);
    with->rotate(t->leaf, own);
    with->round_row(t->leaf, NULL, own, row, &t->rounded);
}

static void panel_tile(void *task, int64_t tile, int64_t thread)
{
    const Task *t = task;
    const Instructions *with = t->engine->instructions;
    const int64_t small = tile - t->large;
    const int64_t from = small < 0 ? tile * t->large_tile : t->large * t->large_tile + small * t->tile;
    const int64_t to = least(from + (small < 0 ? t->large_tile : t->tile), t->panels);
    char *memory = t->memory + t->memory_bytes * (size_t)thread;
    if (t->m->kind == SPARSE)
        with->sparse(t->m, t->p, from, to, memory);
    else if (t->m->kind == TOKEN_MPS)
        with->trains(t->m, t->p, from, to, memory);
    else
        with->product(t->leaf, t->p, &t->rounded, from, to, memory);
}

/* Every thread takes one large tile and then what is left in small ones: all end together, and little is handed out. */
static void run_panels(Engine *engine, Task *t, size_t bytes)
{
    const int64_t threads = threads_for(engine, (double)t->panels * LANES * (double)t->m->k * (double)t->p->rows);
    t->large_tile = t->panels * 3 / (4 * threads);
    t->large = t->large_tile ? threads : 0; /* no tile is empty */
    const int64_t left = t->panels - t->large * t->large_tile;
    t->tile = left > 4 * threads ? left / (4 * threads) : 1;
    t->memory_bytes = (size_t)padded((int64_t)bytes, 64);
    t->memory = allocate(&engine->arena, t->memory_bytes * (size_t)engine->threads);
    if (t->memory)
        each_tile(threads, t->large + (left + t->tile - 1) / t->tile, panel_tile, t);
}

static const float *normalised_x(Engine *engine, const Matrix *m, const Product *p)
{
    if (!p->norm)
        return p->x;
    Task t = { .engine = engine, .m = m, .p = p, .norm = p->norm };
    t.to = allocate(&engine->arena, (size_t)(p->rows * m->k) * sizeof(float));
    if (t.to)
        each_tile(threads_for(engine, (double)p->rows * m->k * 8), p->rows, normalise_tile, &t);
    return t.to;
}

static void multiply_coded(Engine *engine, const Matrix *m, const Product *p)
{
    const Leaf *leaf = &m->leaf;
    Task t = { .engine = engine, .m = m, .p = p, .norm = p->norm, .leaf = leaf, .panels = leaf->panels };
    if (leaf->rotation.block)
        t.to = allocate(&engine->arena, (size_t)(engine->threads * m->k) * sizeof(float));
    t.rounded.codes = allocate(&engine->arena, (size_t)((p->rows + SPARE_ROWS) * leaf->vectors * VECTOR) * sizeof(int16_t));
    t.rounded.sums = allocate(&engine->arena, (size_t)(p->rows * leaf->segment_count) * sizeof(int32_t));
    t.rounded.values = (float *)t.rounded.sums;
    t.rounded.rows = p->rows;
    t.rounded.steps = allocate(&engine->arena, (size_t)(p->rows * leaf->segment_count) * sizeof(float));
    if (engine->arena.failed)
        return;
    each_tile(threads_for(engine, (double)p->rows * leaf->k * 8), p->rows, t.to ? rotate_tile : round_tile, &t);
    run_panels(engine, &t, product_bytes(p->rows));
}

/* The same without a norm, for all but integers, which are rounded and normalised at once. */
static void multiply_panels(Engine *engine, const Matrix *m, const Product *p)
{
    Task t = { .engine = engine, .m = m, .p = p, .leaf = &m->leaf, .panels = padded(m->n, LANES) / LANES };
    switch (m->kind) {
    case SPARSE: run_panels(engine, &t, sparse_bytes(m)); break;
    case TOKEN_MPS: run_panels(engine, &t, trains_bytes(m)); break;
    default: run_panels(engine, &t, product_bytes(p->rows)); break;
    }
}

/* Formats -------------------------------------------------------------------------------------------------------- */

static void multiply_low_rank(Engine *engine, const Matrix *m, const Product *p)
{
    const Matrix *left = m->parts[0], *right = m->parts[1];
    float *inner = allocate(&engine->arena, (size_t)(p->rows * right->n) * sizeof(float));
    if (!inner)
        return;
    multiply(engine, right, &(Product){ .x = p->x, .rows = p->rows, .out = inner, .out_stride = right->n });
    Product outer = *p;
    outer.x = inner;
    if (!m->row_scale && !m->column_offset) {
        multiply(engine, left, &outer);
        return;
    }
    float *plain = allocate(&engine->arena, (size_t)(p->rows * m->n) * sizeof(float));
    if (!plain)
        return;
    multiply(engine, left, &(Product){ .x = inner, .rows = p->rows, .out = plain, .out_stride = m->n });
    if (engine->arena.failed)
        return;
    for (int64_t row = 0; row < p->rows; row++) {
        float *to = p->out + row * p->out_stride, offset = 0;
        for (int64_t c = 0; m->column_offset && c < m->k; c++)
            offset += p->x[row * m->k + c] * m->column_offset[c];
        for (int64_t n = 0; n < m->n; n++) {
            const float v = plain[row * m->n + n] * (m->row_scale ? m->row_scale[n] : 1) + offset;
            to[n] = p->add ? to[n] + v : v;
        }
        engine->instructions->finish(p, row, m->n);
    }
}

static void multiply_stacked(Engine *engine, const Matrix *m, const Product *p)
{
    int64_t n = 0;
    for (int64_t i = 0; i < m->count; n += m->parts[i++]->n) {
        Product part = *p;
        part.out = p->out + n;
        part.bias = p->bias ? p->bias + n : NULL;
        part.residual = p->residual ? p->residual + n : NULL;
        multiply(engine, m->parts[i], &part);
    }
}

static void multiply_residual(Engine *engine, const Matrix *m, const Product *p)
{
    Product correction = *p;
    correction.add = 1;
    multiply(engine, m->parts[0], &(Product){ .x = p->x, .rows = p->rows, .out = p->out, .out_stride = p->out_stride,
                                              .add = p->add });
    multiply(engine, m->parts[1], &correction);
}

typedef struct {
    const float *from;
    float *to;
    int64_t rows, columns, tail;
} Transpose;

/* [rows, columns, tail] to [rows, tail, columns] */
static void transpose_tile(void *task, int64_t row, int64_t thread)
{
    const Transpose *t = task;
    const float *from = t->from + row * t->columns * t->tail;
    float *to = t->to + row * t->columns * t->tail;
    (void)thread;
    for (int64_t c = 0; c < t->columns; c++)
        for (int64_t i = 0; i < t->tail; i++)
            to[i * t->columns + c] = from[c * t->tail + i];
}

static void transpose(Engine *engine, const float *from, float *to, int64_t rows, int64_t columns, int64_t tail)
{
    Transpose t = { from, to, rows, columns, tail };
    each_tile(threads_for(engine, (double)rows * columns * tail), rows, transpose_tile, &t);
}

/* y [rows, prod out_modes] of x [rows, prod modes], which is overwritten; both have room for `most_state` per row. */
static const float *run_train(Engine *engine, const Matrix *m, float *x, float *y, int64_t rows)
{
    int64_t values = 1;
    for (int64_t c = 0; c < m->count; c++)
        values *= m->modes[c];
    for (int64_t i = 0; i < m->count; i++) {
        const TrainStep *s = &m->steps[i];
        const int64_t outer = rows * values / (s->in * s->tail);
        const float *from = x;
        if (s->tail > 1) {
            transpose(engine, x, y, outer, s->in, s->tail);
            float *swap = x;
            from = x = y;
            y = swap;
        }
        multiply(engine, s->weight, &(Product){ .x = from, .rows = outer * s->tail, .out = y, .out_stride = s->out });
        values = values / s->in * s->out;
        if (s->tail > 1)
            transpose(engine, y, x, outer, s->tail, s->out);
        else {
            float *swap = x;
            x = y;
            y = swap;
        }
        if (engine->arena.failed)
            return NULL;
    }
    return x;
}

static void multiply_train(Engine *engine, const Matrix *m, const Product *p)
{
    int64_t values = 1, outs = 1;
    for (int64_t c = 0; c < m->count; c++)
        values *= m->modes[c], outs *= m->out_modes[c];
    int64_t block = STATE_VALUES / m->most_state;
    block = block > 1 ? least(block, p->rows) : 1;
    float *x = allocate(&engine->arena, (size_t)(block * m->most_state) * sizeof *x);
    float *y = allocate(&engine->arena, (size_t)(block * m->most_state) * sizeof *y);
    if (!x || !y)
        return;
    for (int64_t start = 0; start < p->rows; start += block) {
        const int64_t rows = least(block, p->rows - start);
        for (int64_t row = 0; row < rows; row++) {
            memcpy(x + row * values, p->x + (start + row) * m->k, (size_t)m->k * sizeof *x);
            memset(x + row * values + m->k, 0, (size_t)(values - m->k) * sizeof *x);
        }
        const float *found = run_train(engine, m, x, y, rows);
        for (int64_t row = 0; found && row < rows; row++) {
            float *to = p->out + (start + row) * p->out_stride;
            const float *from = found + row * outs;
            for (int64_t n = 0; n < m->n; n++) {
                const float v = from[m->places ? m->places[n] : n];
                to[n] = p->add ? to[n] + v : v;
            }
            engine->instructions->finish(p, start + row, m->n);
        }
    }
}

/* Whatever is not rounded: a norm comes before it. */
static void multiply_floats(Engine *engine, const Matrix *m, const Product *p)
{
    Product plain = *p;
    plain.x = normalised_x(engine, m, p);
    plain.norm = NULL;
    if (!plain.x)
        return;
    switch (m->kind) {
    case LOW_RANK: multiply_low_rank(engine, m, &plain); break;
    case STACKED: multiply_stacked(engine, m, &plain); break;
    case RESIDUAL: multiply_residual(engine, m, &plain); break;
    case TT_MATRIX: multiply_train(engine, m, &plain); break;
    default: multiply_panels(engine, m, &plain); break;
    }
}

void multiply(Engine *engine, const Matrix *m, const Product *p)
{
    if (engine->arena.failed || !p->rows)
        return;
    const Mark before = mark(&engine->arena);
    if (m->kind == CODED && m->leaf.element >= CODES8)
        multiply_coded(engine, m, p);
    else
        multiply_floats(engine, m, p);
    rewind_to(&engine->arena, before);
}

/* The order of contractions ------------------------------------------------------------------------------------------
 *
 * Cores a .. b - 1 are contracted with x: the state is [in_1 .. in_{a-1}, r_a, out_a .. out_{b-1}, r_b, in_b ..].
 * The next one is that before a or that behind b, whichever order takes the fewest multiply-adds in the end.
 */
static double product_of(const int64_t *sizes, int64_t from, int64_t to)
{
    double all = 1;
    for (int64_t i = from; i < to; i++)
        all *= (double)sizes[i];
    return all;
}

static double state_of(const Matrix *m, int64_t a, int64_t b)
{
    return product_of(m->modes, 0, a) * (double)m->ranks[a] * product_of(m->out_modes, a, b) * (double)m->ranks[b] *
           product_of(m->modes, b, m->count);
}

int plan_train(Matrix *m)
{
    const int64_t N = m->count, side = N + 1;
    double *cost = malloc((size_t)(side * side) * sizeof *cost);
    int8_t *came = malloc((size_t)(side * side)); /* whether the last core is the one behind the others */
    m->steps = calloc((size_t)N, sizeof *m->steps);
    const int ready = cost && came && m->steps;
    for (int64_t length = 1; ready && length <= N; length++)
        for (int64_t a = 0; a + length <= N; a++) {
            const int64_t b = a + length;
            double best = -1;
            for (int right = 0; right < 2; right++) {
                const int64_t x = right ? a : a + 1, y = right ? b - 1 : b, c = right ? y : a;
                const double before = length == 1 ? product_of(m->modes, 0, N) : state_of(m, x, y);
                const double bonds = right ? (double)m->ranks[c + 1] : (double)m->ranks[c];
                const double extra = length == 1 ? (double)m->ranks[right ? c : c + 1] : 1;
                const double all = (length == 1 ? 0 : cost[x * side + y]) + before * (double)m->out_modes[c] * bonds * extra;
                if (best < 0 || all < best) {
                    best = all;
                    came[a * side + b] = (int8_t)right;
                }
                if (length == 1)
                    break;
            }
            cost[a * side + b] = best;
        }
    int64_t a = 0, b = N;
    for (int64_t i = N - 1; ready && i >= 0; i--) {
        const int right = i ? came[a * side + b] : 0;
        const int64_t c = right ? b - 1 : a, r = m->ranks[c], s = m->ranks[c + 1];
        TrainStep *step = &m->steps[i];
        step->core = c;
        step->from_left = right;
        if (!i) { /* the first core has two open ranks: [r, out, s] are all new */
            step->in = m->modes[c];
            step->out = r * m->out_modes[c] * s;
            step->tail = (int64_t)product_of(m->modes, c + 1, N);
        }
        else if (right) {
            step->in = r * m->modes[c];
            step->out = m->out_modes[c] * s;
            step->tail = (int64_t)product_of(m->modes, b, N);
            b--;
        }
        else {
            step->in = m->modes[c] * s;
            step->out = r * m->out_modes[c];
            step->tail = (int64_t)(product_of(m->out_modes, a + 1, b) * (double)m->ranks[b] * product_of(m->modes, b, N));
            a++;
        }
    }
    double most = 1;
    for (int64_t from = 0; from <= N; from++)
        for (int64_t to = from; to <= N; to++) {
            const double state = from == to ? product_of(m->modes, 0, N) : state_of(m, from, to);
            most = state > most ? state : most; /* also of states that the plan leaves out */
        }
    m->most_state = most < 1e12 ? (int64_t)most : 0;
    free(cost);
    free(came);
    return ready && m->most_state;
}

/* Rows ----------------------------------------------------------------------------------------------------------- */

typedef struct {
    const Engine *engine;
    const Matrix *m;
    const int64_t *ids;
    int64_t count;
    float *const *out;
    char *memory;
    size_t memory_bytes; /* of a thread */
} Rows;

static void train_row(const Matrix *m, float *cores, float *row, float *other, int64_t id)
{
    int64_t width = 1;
    leaf_row(&m->leaf, id, cores);
    row[0] = 1; /* [width, r] */
    for (int64_t c = 0; c < m->count; c++) {
        const int64_t r = m->ranks[c], ns = m->modes[c] * m->ranks[c + 1];
        for (int64_t w = 0; w < width; w++)
            for (int64_t j = 0; j < ns; j++) {
                float sum = 0;
                for (int64_t i = 0; i < r; i++)
                    sum += row[w * r + i] * cores[i * ns + j];
                other[w * ns + j] = sum;
            }
        width *= m->modes[c];
        cores += r * ns;
        memcpy(row, other, (size_t)(width * m->ranks[c + 1]) * sizeof *row);
    }
}

/* One row of a TT-matrix: core c at digit o is [r, i, s], of which its matrix holds row (o s) or (r o). */
static void tt_row(const Matrix *m, float *values, float *row, float *other, int64_t id)
{
    int64_t width = 1, place = m->places ? m->places[id] : id, tail = 1;
    for (int64_t c = 0; c < m->count; c++)
        tail *= m->out_modes[c];
    row[0] = 1; /* [width, r] */
    for (int64_t c = 0; c < m->count; c++) {
        const int64_t r = m->ranks[c], modes = m->modes[c], s = m->ranks[c + 1], outs = m->out_modes[c];
        tail /= outs;
        const int64_t digit = place / tail % outs;
        const TrainStep *step = m->steps;
        while (step->core != c)
            step++;
        const Leaf *leaf = &step->weight->leaf;
        const int first = step == m->steps;
        /* The first step's matrix is [(r o s), i], a later one's [(o s), (r i)] or [(r o), (i s)]. */
        for (int64_t w = 0; w < width * modes * s; w++)
            other[w] = 0;
        const int64_t pieces = first ? r * s : step->from_left ? s : r;
        for (int64_t piece = 0; piece < pieces; piece++) {
            leaf_row(leaf, first ? (piece / s * outs + digit) * s + piece % s
                                 : step->from_left ? digit * s + piece : piece * outs + digit, values);
            for (int64_t w = 0; w < width; w++)
                for (int64_t i = 0; i < modes; i++) {
                    float *to = other + (w * modes + i) * s;
                    if (first)
                        to[piece % s] += row[w * r + piece / s] * values[i];
                    else if (step->from_left)
                        for (int64_t q = 0; q < r; q++)
                            to[piece] += row[w * r + q] * values[q * modes + i];
                    else
                        for (int64_t q = 0; q < s; q++)
                            to[q] += row[w * r + piece] * values[i * s + q];
                }
        }
        width *= modes;
        memcpy(row, other, (size_t)(width * s) * sizeof *row);
    }
}

/* Values of the widest intermediate row. */
static int64_t widest(const Matrix *m)
{
    int64_t width = 1, most = 1;
    for (int64_t c = 0; c < m->count; c++) {
        width *= m->modes[c];
        most = width * m->ranks[c + 1] > most ? width * m->ranks[c + 1] : most;
    }
    return most;
}

/* Of memory for `some_rows`. */
static size_t row_bytes(const Matrix *m)
{
    int64_t most = m->leaf.k;
    switch (m->kind) {
    case TOKEN_MPS: return (size_t)(m->leaf.k + 2 * widest(m)) * sizeof(float);
    case TT_MATRIX:
        for (int64_t c = 0; c < m->count; c++)
            most = m->steps[c].in > most ? m->steps[c].in : most;
        return (size_t)(most + 2 * widest(m)) * sizeof(float);
    case LOW_RANK: return combine_bytes(&m->parts[1]->leaf);
    default: return (size_t)most * sizeof(float);
    }
}

/* One row of what is neither made of other matrices nor a product. */
static void one_row(const Matrix *m, int64_t id, float *out, float *memory)
{
    switch (m->kind) {
    case CODED: leaf_row(&m->leaf, id, out); return;
    case SPARSE: {
        const int64_t kept = m->leaf.k;
        const int32_t *columns = m->columns + id / LANES * kept * LANES + id % LANES;
        leaf_row(&m->leaf, id, memory);
        memset(out, 0, (size_t)m->k * sizeof *out);
        for (int64_t j = 0; j < kept; j++)
            out[columns[j * LANES]] = memory[j];
        return;
    }
    default: {
        float *other = memory + widest(m), *values = other + widest(m);
        (m->kind == TOKEN_MPS ? train_row : tt_row)(m, values, memory, other, id);
        memcpy(out, memory, (size_t)m->k * sizeof *out);
    }
    }
}

/* Rows that meet the same right factor, which is decoded for all of them. */
static void product_rows(const Instructions *with, const Matrix *m, const int64_t *ids, int64_t count, float *const *out,
                         char *memory)
{
    const int64_t stride = padded(m->parts[1]->n, LANES);
    float *left = (float *)memory;
    for (int64_t i = 0; i < count; i++)
        leaf_row(&m->parts[0]->leaf, ids[i], left + i * stride);
    with->combine(&m->parts[1]->leaf, left, count, out, (char *)(left + COMBINED * stride));
    for (int64_t i = 0; i < count; i++)
        for (int64_t c = 0; c < m->k; c++) {
            out[i][c] = m->row_scale ? out[i][c] * m->row_scale[ids[i]] : out[i][c];
            out[i][c] = m->column_offset ? out[i][c] + m->column_offset[c] : out[i][c];
        }
}

static void row_tile(void *task, int64_t tile, int64_t thread)
{
    const Rows *t = task;
    char *memory = t->memory + t->memory_bytes * (size_t)thread;
    const int64_t from = tile * COMBINED, to = least(from + COMBINED, t->count);
    if (t->m->kind == LOW_RANK)
        product_rows(t->engine->instructions, t->m, t->ids + from, to - from, t->out + from, memory);
    else
        for (int64_t i = from; i < to; i++)
            one_row(t->m, t->ids[i], t->out[i], (float *)memory);
}

static void look_up_each(Engine *engine, const Matrix *m, const int64_t *ids, int64_t count, float *const *out);

/* The ids of one block after those of another. */
static void look_up_blocks(Engine *engine, const Matrix *m, const int64_t *ids, int64_t count, float *const *out)
{
    int64_t *own = allocate(&engine->arena, (size_t)count * sizeof *own), first = 0;
    float **to = allocate(&engine->arena, (size_t)count * sizeof *to);
    if (engine->arena.failed)
        return;
    for (int64_t part = 0; part < m->count; first += m->parts[part++]->n) {
        int64_t found = 0;
        for (int64_t i = 0; i < count; i++)
            if (ids[i] >= first && ids[i] < first + m->parts[part]->n) {
                own[found] = ids[i] - first;
                to[found++] = out[i];
            }
        look_up_each(engine, m->parts[part], own, found, to);
    }
}

static void look_up_sum(Engine *engine, const Matrix *m, const int64_t *ids, int64_t count, float *const *out)
{
    float *corrections = allocate(&engine->arena, (size_t)(count * m->k) * sizeof *corrections);
    float **to = allocate(&engine->arena, (size_t)count * sizeof *to);
    if (engine->arena.failed)
        return;
    for (int64_t i = 0; i < count; i++)
        to[i] = corrections + i * m->k;
    look_up_each(engine, m->parts[0], ids, count, out);
    look_up_each(engine, m->parts[1], ids, count, to);
    for (int64_t i = 0; i < count && !engine->arena.failed; i++)
        for (int64_t c = 0; c < m->k; c++)
            out[i][c] += to[i][c];
}

static void look_up_each(Engine *engine, const Matrix *m, const int64_t *ids, int64_t count, float *const *out)
{
    if (engine->arena.failed || !count)
        return;
    const Mark before = mark(&engine->arena);
    if (m->kind == STACKED)
        look_up_blocks(engine, m, ids, count, out);
    else if (m->kind == RESIDUAL)
        look_up_sum(engine, m, ids, count, out);
    else {
        Rows t = { engine, m, ids, count, out, NULL, (size_t)padded((int64_t)row_bytes(m), 64) };
        t.memory = allocate(&engine->arena, t.memory_bytes * (size_t)engine->threads);
        if (t.memory)
            each_tile(threads_for(engine, (double)count * m->k * 16), (count + COMBINED - 1) / COMBINED, row_tile, &t);
    }
    rewind_to(&engine->arena, before);
}

void look_up(Engine *engine, const Matrix *m, const int64_t *ids, int64_t count, float *out)
{
    const Mark before = mark(&engine->arena);
    float **to = allocate(&engine->arena, (size_t)count * sizeof *to);
    for (int64_t i = 0; to && i < count; i++)
        to[i] = out + i * m->k;
    look_up_each(engine, m, ids, count, to);
    rewind_to(&engine->arena, before);
}

/* Judging logits ------------------------------------------------------------------------------------------------- */

typedef struct {
    const Instructions *with;
    const float *logits, *reference;
    int64_t n;
    const int64_t *targets;
    double *out;
} Verdicts;

static void judge_tile(void *task, int64_t row, int64_t thread)
{
    const Verdicts *t = task;
    (void)thread;
    t->with->judge(t->logits + row * t->n, t->reference ? t->reference + row * t->n : NULL, t->n, t->targets[row],
                   t->out + row * VERDICT);
}

void judge_all(Engine *engine, const float *logits, const float *reference, int64_t rows, int64_t n, const int64_t *targets,
               double *out)
{
    Verdicts t = { engine->instructions, logits, reference, n, targets, out };
    each_tile(threads_for(engine, (double)rows * n), rows, judge_tile, &t);
}
