/* A decoder's step: embedding, blocks, norm and head for new tokens, wherever these stand. */
#include "runtime.h"

#include <string.h>

size_t attend_bytes(const Attention *a)
{
    return (size_t)(padded(a->capacity, LANES) + padded(a->size, LANES)) * sizeof(float);
}

typedef struct {
    Engine *engine;
    Attention attention;
    char *memory;
    size_t memory_bytes;
    int64_t tile;
    float *x;
    const float *positions;
    int64_t width;
} Layer;

static void add_tile(void *task, int64_t row, int64_t thread)
{
    const Layer *t = task;
    (void)thread;
    for (int64_t i = 0; i < t->width; i++)
        t->x[row * t->width + i] += t->positions[row * t->width + i];
}

static void append_tile(void *task, int64_t row, int64_t thread)
{
    const Layer *t = task;
    (void)thread;
    t->engine->instructions->append(&t->attention, row);
}

static void attend_tile(void *task, int64_t tile, int64_t thread)
{
    const Layer *t = task;
    const Attention *a = &t->attention;
    const int64_t all = a->rows * a->heads;
    for (int64_t i = tile * t->tile; i < least((tile + 1) * t->tile, all); i++)
        t->engine->instructions->attend(a, i / a->heads, i % a->heads, (float *)(t->memory + t->memory_bytes * (size_t)thread));
}

static float *floats(Engine *engine, int64_t rows, int64_t columns)
{
    return allocate(&engine->arena, (size_t)(rows * columns) * sizeof(float));
}

static void attend_all(Layer *t)
{
    const Attention *a = &t->attention;
    int64_t reach = 0;
    for (int64_t row = 0; row < a->rows; row++)
        reach += a->positions[row] + 1;
    const double work = (double)reach * (double)(a->heads * a->size);
    const int64_t threads = work < 32768 ? 1 : t->engine->threads;
    const int64_t fair = a->rows * a->heads / (8 * threads);
    t->tile = fair > 1 ? fair : 1;
    each_tile(1, a->rows, append_tile, t);
    each_tile(threads, (a->rows * a->heads + t->tile - 1) / t->tile, attend_tile, t);
}

/* x [rows, width] after the last block. */
static float *blocks(Engine *engine, const Decoder *d, const Step *s)
{
    const int64_t rows = s->rows, width = d->width;
    float *x = floats(engine, rows, width), *half = floats(engine, rows, width), *heads = floats(engine, rows, width);
    float *qkv = floats(engine, rows, 3 * width), *inner = floats(engine, rows, d->inner);
    Layer t = { .engine = engine, .x = x, .positions = half, .width = width };
    t.attention = (Attention){ .qkv = qkv, .slots = s->slots, .positions = s->positions, .out = heads, .rows = rows,
                               .heads = d->heads, .size = width / d->heads, .capacity = s->capacity, .element = s->element };
    t.memory_bytes = (size_t)padded((int64_t)attend_bytes(&t.attention), 64);
    t.memory = allocate(&engine->arena, t.memory_bytes * (size_t)engine->threads);
    if (engine->arena.failed)
        return NULL;
    if (s->embedded)
        memcpy(x, s->embedded, (size_t)(rows * width) * sizeof *x);
    else
        look_up(engine, d->wte, s->tokens, rows, x);
    look_up(engine, d->wpe, s->positions, rows, half);
    if (engine->arena.failed)
        return NULL;
    each_tile(1, rows, add_tile, &t);
    const int64_t layer_bytes = s->slot_count * d->heads * s->capacity * padded(width / d->heads, LANES) *
                                (s->element == FP32 ? 4 : 2);
    for (int64_t layer = 0; layer < d->layers && !engine->arena.failed; layer++) {
        const Block *b = &d->blocks[layer];
        multiply(engine, b->c_attn, &(Product){ .x = x, .rows = rows, .norm = &b->ln_1, .out = qkv, .out_stride = 3 * width,
                                                .bias = b->biases[0] });
        if (engine->arena.failed)
            return NULL;
        t.attention.scale = b->scale;
        t.attention.keys = (char *)s->keys + layer * layer_bytes;
        t.attention.values = (char *)s->values + layer * layer_bytes;
        attend_all(&t);
        multiply(engine, b->c_proj, &(Product){ .x = heads, .rows = rows, .out = half, .out_stride = width,
                                                .bias = b->biases[1], .residual = x });
        multiply(engine, b->c_fc, &(Product){ .x = half, .rows = rows, .norm = &b->ln_2, .out = inner, .out_stride = d->inner,
                                              .bias = b->biases[2], .activation = d->activation });
        multiply(engine, b->mlp_c_proj, &(Product){ .x = inner, .rows = rows, .out = x, .out_stride = width,
                                                    .bias = b->biases[3], .residual = half });
    }
    return engine->arena.failed ? NULL : x;
}

void decode(Engine *engine, const Decoder *d, const Step *s)
{
    const int64_t width = d->width;
    const float *x = blocks(engine, d, s);
    if (!x)
        return;
    if (s->hidden)
        for (int64_t row = 0; row < s->rows; row++)
            engine->instructions->normalise(&d->ln_f, x + row * width, s->hidden + row * width, width);
    if (!s->wanted_count)
        return;
    float *last = floats(engine, s->wanted_count, width);
    if (!last)
        return;
    for (int64_t i = 0; i < s->wanted_count; i++)
        engine->instructions->normalise(&d->ln_f, x + s->wanted[i] * width, last + i * width, width);
    multiply(engine, d->head, &(Product){ .x = last, .rows = s->wanted_count, .out = s->logits, .out_stride = d->head->n });
}
