/* A decoder's step: embedding, blocks, norm and head for new tokens, wherever these stand. */
#include "runtime.h"

#include <stdatomic.h>
#include <string.h>

enum { PART_ROWS = 32, PARTS = STEP_ROWS / PART_ROWS };

typedef struct {
    const Decoder *d;
    const Block *block;
    Attention attention;
    float *x, *half, *inner; /* [rows, width or inner] */
    int in_parts;            /* whether each is read by some thread, before any is answered */
} Layer;

typedef void (*HalfBlock)(Engine *engine, const Layer *layer, int64_t row, int64_t rows);

/* Rows of a step in parts, each of which one thread takes through half a block: what lies between two products stays near
 * its core. Threads begin with parts of their own, and go on with those that others have not begun. */
typedef struct {
    const Layer *layer;
    HalfBlock half_block;
    Engine *engines; /* of each thread */
    int64_t threads, count;
    atomic_char taken[PARTS];
} Parts;

static float *floats(Engine *engine, int64_t rows, int64_t columns)
{
    return allocate(&engine->arena, (size_t)(rows * columns) * sizeof(float));
}

/* Attention ------------------------------------------------------------------------------------------------------ */

/* Rows that read the same keys and values: of one slot, one behind another; or of slots whose first blocks are the same. */
typedef struct {
    int64_t first, count;  /* in the order of Groups */
    int64_t blocks;        /* that slots have in common; 0 of one slot */
} Group;

typedef struct {
    Engine *engine;
    const Attention *attention;
    int64_t *rows;         /* in the order in which groups have them */
    Group *groups;
    int64_t count;
    int apart;             /* whether groups are of different slots, so that nobody waits for another's keys and values */
    int64_t heads;         /* of a tile */
    char *memory;
    size_t memory_bytes;   /* of a thread */
} Groups;

/* How many rows from `row` on stand one behind another, at most QUERIES. */
static int64_t run_at(const Attention *a, int64_t row, int64_t end)
{
    int64_t count = 1;
    while (count < QUERIES && row + count < end && a->slots[row + count] == a->slots[row] &&
           a->positions[row + count] == a->positions[row] + count)
        count++;
    return count;
}

/* How many of the first blocks of two rows are the same, at most so many. */
static int64_t common_blocks(const Attention *a, int64_t row, int64_t other, int64_t most)
{
    const int64_t *one = a->table + a->slots[row] * a->blocks, *two = a->table + a->slots[other] * a->blocks;
    int64_t count = 0;
    while (count < most && one[count] == two[count])
        count++;
    return count;
}

/* Give each of the lone rows to a group with those whose first block is the same: what is read once for
 * several is read from far away once. Blocks that a row's own token is in are nobody else's. */
static void group_lone_rows(Groups *t, int64_t *lone, int64_t count)
{
    const Attention *a = t->attention;
    for (int64_t i = 0; i < count; i++) {
        if (lone[i] < 0)
            continue;
        Group group = { .first = t->count ? t->groups[t->count - 1].first + t->groups[t->count - 1].count : 0 };
        const int64_t row = lone[i];
        int64_t blocks = a->positions[row] / LANES;
        t->rows[group.first + group.count++] = row;
        for (int64_t j = i + 1; j < count && blocks && group.count < QUERIES; j++) {
            if (lone[j] < 0)
                continue;
            const int64_t common = common_blocks(a, row, lone[j], least(blocks, a->positions[lone[j]] / LANES));
            if (common == 0 || (group.count > 1 && 2 * common < blocks)) /* others may have more in common with it */
                continue;
            blocks = common;
            t->rows[group.first + group.count++] = lone[j];
            lone[j] = -1;
        }
        group.blocks = group.count > 1 ? blocks : 0;
        t->groups[t->count++] = group;
    }
}

static void append_rows(const Engine *engine, const Attention *a, int64_t row, int64_t rows, int64_t head, int64_t end)
{
    for (; head < end && !engine->arena.failed; head++)
        for (int64_t r = row; r < row + rows; r++)
            engine->instructions->append(a, r, head);
}

/* Some heads of one group; a head's keys and values are read by neighbouring tiles. */
static void attend_tile(void *task, int64_t tile, int64_t thread)
{
    const Groups *t = task;
    const Attention *a = t->attention;
    const Instructions *instructions = t->engine->instructions;
    float *memory = (float *)(t->memory + t->memory_bytes * (size_t)thread);
    const Group *group = t->groups + tile % t->count;
    const int64_t first = tile / t->count * t->heads, *rows = t->rows + group->first;
    for (int64_t head = first; head < least(first + t->heads, a->heads); head++) {
        for (int64_t r = 0; t->apart && r < group->count; r++)
            instructions->append(a, rows[r], head);
        instructions->attend(a, rows, group->count, group->blocks, head, memory);
    }
}

/* Rows whose keys and values are appended already if others attend to them too. */
static void attend_all(Engine *engine, const Attention *a, int64_t row, int64_t rows, int appended)
{
    Groups t = { .engine = engine, .attention = a, .apart = !appended };
    t.memory_bytes = (size_t)(QUERIES * (a->blocks * LANES + 2 * padded(a->size, LANES))) * sizeof(float);
    t.memory = allocate(&engine->arena, t.memory_bytes * (size_t)engine->threads);
    t.rows = allocate(&engine->arena, (size_t)rows * sizeof *t.rows);
    t.groups = allocate(&engine->arena, (size_t)rows * sizeof *t.groups);
    int64_t *lone = allocate(&engine->arena, (size_t)rows * sizeof *lone);
    if (engine->arena.failed)
        return;
    int64_t reach = 0, alone = 0, placed = 0;
    for (int64_t r = row, count; r < row + rows; r += count) {
        count = run_at(a, r, row + rows);
        reach += count * (a->positions[r] + 1);
        t.apart &= r == row || a->slots[r] != a->slots[r - 1];
        if (count == 1) {
            lone[alone++] = r;
            continue;
        }
        t.groups[t.count++] = (Group){ .first = placed, .count = count };
        for (int64_t i = 0; i < count; i++)
            t.rows[placed++] = r + i;
    }
    group_lone_rows(&t, lone, alone);
    if (!appended && !t.apart)
        append_rows(engine, a, row, rows, 0, a->heads);
    const int64_t threads = reach * a->heads * a->size < 32768 ? 1 : engine->threads;
    const int64_t fair = t.count * a->heads / (8 * threads);
    t.heads = fair > 1 ? least(fair, a->heads) : 1;
    each_tile(threads, t.count * ((a->heads + t.heads - 1) / t.heads), attend_tile, &t);
}

/* Blocks --------------------------------------------------------------------------------------------------------- */

static void read_rows(Engine *engine, const Layer *l, int64_t row, int64_t rows)
{
    const int64_t width = l->d->width;
    multiply(engine, l->block->c_attn, &(Product){ .x = l->x + row * width, .rows = rows, .norm = &l->block->ln_1,
             .out = l->attention.qkv + row * 3 * width, .out_stride = 3 * width, .bias = l->block->biases[0] });
    if (l->in_parts)
        append_rows(engine, &l->attention, row, rows, 0, l->d->heads);
}

static void answer_rows(Engine *engine, const Layer *l, int64_t row, int64_t rows)
{
    const Decoder *d = l->d;
    const Block *b = l->block;
    float *x = l->x + row * d->width, *half = l->half + row * d->width, *inner = l->inner + row * d->inner;
    const Mark before = mark(&engine->arena);
    attend_all(engine, &l->attention, row, rows, l->in_parts);
    multiply(engine, b->c_proj, &(Product){ .x = l->attention.out + row * d->width, .rows = rows, .out = half,
                                            .out_stride = d->width, .bias = b->biases[1], .residual = x });
    multiply(engine, b->c_fc, &(Product){ .x = half, .rows = rows, .norm = &b->ln_2, .out = inner, .out_stride = d->inner,
                                          .bias = b->biases[2], .activation = d->activation });
    multiply(engine, b->mlp_c_proj, &(Product){ .x = inner, .rows = rows, .out = x, .out_stride = d->width,
                                                .bias = b->biases[3], .residual = half });
    rewind_to(&engine->arena, before);
}

static void part_tile(void *task, int64_t tile, int64_t thread)
{
    Parts *t = task;
    int64_t part = thread * t->count / t->threads;
    (void)tile; /* there are as many as parts */
    while (atomic_exchange(&t->taken[part], 1))
        part = (part + 1) % t->count;
    const int64_t row = part * PART_ROWS, rows = least(PART_ROWS, t->layer->attention.rows - row);
    t->half_block(&t->engines[thread], t->layer, row, rows);
}

/* A few rows are not worth parts: threads share every product. */
static void run_half_block(Engine *engine, Engine *engines, const Layer *layer, HalfBlock half_block)
{
    const int64_t rows = layer->attention.rows;
    if (!layer->in_parts) {
        half_block(engine, layer, 0, rows);
        return;
    }
    Parts t = { layer, half_block, engines, engine->threads, (rows + PART_ROWS - 1) / PART_ROWS, { 0 } };
    each_tile(engine->threads, t.count, part_tile, &t);
    for (int64_t i = 0; i < engine->threads; i++)
        engine->arena.failed |= engines[i].arena.failed;
}

static float *embedded(Engine *engine, const Decoder *d, const Step *s)
{
    const int64_t values = s->rows * d->width;
    float *x = floats(engine, s->rows, d->width), *positions = floats(engine, s->rows, d->width);
    if (engine->arena.failed)
        return NULL;
    if (s->embedded)
        memcpy(x, s->embedded, (size_t)values * sizeof *x);
    else
        look_up(engine, d->wte, s->tokens, s->rows, x);
    look_up(engine, d->wpe, s->positions, s->rows, positions);
    for (int64_t i = 0; i < values && !engine->arena.failed; i++)
        x[i] += positions[i];
    return x;
}

/* x [rows, width] after the last block. */
static float *blocks(Engine *engine, Engine *engines, const Decoder *d, const Step *s)
{
    const int64_t rows = s->rows;
    Layer l = { .d = d, .x = embedded(engine, d, s), .half = floats(engine, rows, d->width) };
    l.in_parts = rows >= 2 * PART_ROWS && engine->threads > 1;
    l.inner = floats(engine, rows, d->inner);
    l.attention = (Attention){ .qkv = floats(engine, rows, 3 * d->width), .out = floats(engine, rows, d->width),
                               .keys = s->keys, .values = s->values, .table = s->table, .slots = s->slots,
                               .positions = s->positions, .rows = rows, .layers = d->layers, .heads = d->heads,
                               .size = d->width / d->heads, .blocks = s->blocks, .element = s->element };
    for (int64_t layer = 0; layer < d->layers && !engine->arena.failed; layer++) {
        l.block = &d->blocks[layer];
        l.attention.layer = layer;
        l.attention.scale = l.block->scale;
        run_half_block(engine, engines, &l, read_rows);
        if (!engine->arena.failed)
            run_half_block(engine, engines, &l, answer_rows);
    }
    return engine->arena.failed ? NULL : l.x;
}

/* Take rows from .. from + rows - 1 through all blocks and keep what is wanted of them. */
static void read_part(Engine *engine, Engine *engines, const Decoder *d, const Step *s, int64_t from, int64_t rows, float *last)
{
    const int64_t width = d->width;
    const Norm *norm = &d->ln_f;
    Step part = *s;
    part.rows = rows;
    part.tokens += from, part.slots += from, part.positions += from;
    part.embedded = s->embedded ? s->embedded + from * width : NULL;
    const float *x = blocks(engine, engines, d, &part);
    if (!x)
        return;
    for (int64_t row = 0; s->hidden && row < rows; row++)
        engine->instructions->normalise(norm, x + row * width, s->hidden + (from + row) * width, width);
    for (int64_t i = 0; i < s->wanted_count; i++)
        if (s->wanted[i] >= from && s->wanted[i] < from + rows)
            engine->instructions->normalise(norm, x + (s->wanted[i] - from) * width, last + i * width, width);
}

void decode(Engine *engine, const Decoder *d, const Step *s)
{
    Engine *engines = allocate(&engine->arena, (size_t)engine->threads * sizeof *engines);
    float *last = floats(engine, s->wanted_count, d->width);
    if (engine->arena.failed)
        return;
    for (int64_t i = 0; i < engine->threads; i++)
        engines[i] = (Engine){ .instructions = engine->instructions, .threads = 1 };
    for (int64_t from = 0; from < s->rows; from += STEP_ROWS) {
        const Mark before = mark(&engine->arena);
        read_part(engine, engines, d, s, from, least(STEP_ROWS, s->rows - from), last);
        rewind_to(&engine->arena, before);
    }
    for (int64_t i = 0; i < engine->threads; i++)
        release(&engines[i].arena);
    if (s->wanted_count)
        multiply(engine, d->head, &(Product){ .x = last, .rows = s->wanted_count, .out = s->logits, .out_stride = d->head->n });
}
