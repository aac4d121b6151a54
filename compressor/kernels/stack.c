/* All blocks of a decoder in one call: one team of threads for all of them instead of one for every matrix. */
#include "kernels.h"

#include <stdlib.h>

#ifdef TTGPT_AVX2

/* Intermediate results, of all threads together. */
typedef struct {
    float *qkv;   /* [rows, 3 width] */
    float *heads; /* their attention [rows, width] */
    float *half;  /* x after attention [rows, width] */
    float *inner; /* [rows, inner] */
    char *linear, *attention;
} Memory;

static Linear linear_of(const Stack *s, const float *x, const Matrix *w, float *out)
{
    return (Linear){ .x = x, .w = *w, .out = out, .rows = s->attention.rows, .activation = ACTIVATION_NONE,
                     .threads = s->attention.threads, .instructions = s->instructions };
}

static void run(const Stack *s, const Memory *m, Team team)
{
    Attention attend = s->attention;
    attend.qkv = m->qkv;
    attend.out = m->heads;
    for (int64_t layer = 0; layer < s->layers; layer++) {
        const Block *b = &s->blocks[layer];
        Linear c_attn = linear_of(s, s->x, &b->c_attn, m->qkv);
        c_attn.norm = b->ln_1;
        linear_in_team(&c_attn, m->linear, team);
        attend.scale = b->scale;
        attention_in_team(&attend, m->attention, team);
        attend.keys = (char *)attend.keys + attend.layer_bytes;
        attend.values = (char *)attend.values + attend.layer_bytes;
        Linear c_proj = linear_of(s, m->heads, &b->c_proj, m->half);
        c_proj.residual = s->x;
        linear_in_team(&c_proj, m->linear, team);
        Linear c_fc = linear_of(s, m->half, &b->c_fc, m->inner);
        c_fc.norm = b->ln_2;
        c_fc.activation = s->activation;
        linear_in_team(&c_fc, m->linear, team);
        Linear mlp_c_proj = linear_of(s, m->inner, &b->mlp_c_proj, s->x);
        mlp_c_proj.residual = m->half;
        linear_in_team(&mlp_c_proj, m->linear, team);
    }
}

/* Bytes of `values` floats, rounded up so that what follows is aligned. */
static size_t floats(int64_t values) { return ((size_t)values * 4 + 63) / 64 * 64; }

static size_t largest_linear(const Stack *s)
{
    size_t most = 0;
    for (int64_t layer = 0; layer < s->layers; layer++) {
        const Block *b = &s->blocks[layer];
        const Matrix *matrices[4] = { &b->c_attn, &b->c_proj, &b->c_fc, &b->mlp_c_proj };
        for (int i = 0; i < 4; i++) {
            const Linear task = linear_of(s, NULL, matrices[i], NULL);
            const size_t bytes = linear_bytes(&task);
            most = bytes > most ? bytes : most;
        }
    }
    return most;
}

int stack(const Stack *s)
{
    const int64_t rows = s->attention.rows, width = s->attention.heads * s->attention.size;
    const int64_t inner = s->blocks[0].c_fc.n; /* as of all blocks */
    if (4.0 * rows * (5.0 * width + inner) > MOST_BYTES)
        return -1;
    const size_t wide = floats(rows * 3 * width), narrow = floats(rows * width), middle = floats(rows * inner);
    const size_t most = largest_linear(s);
    char *memory = aligned_alloc(64, wide + 2 * narrow + middle + most + attention_bytes(&s->attention));
    if (!memory)
        return -1;
    char *next = memory;
    Memory m;
    m.qkv = (float *)next, next += wide;
    m.heads = (float *)next, next += narrow;
    m.half = (float *)next, next += narrow;
    m.inner = (float *)next, next += middle;
    m.linear = next, next += most;
    m.attention = next;
    Barrier barrier = { 0, 0 };
#pragma omp parallel num_threads((int)s->attention.threads)
    run(s, &m, my_team(&barrier));
    free(memory);
    return 0;
}
#else
int stack(const Stack *s) { (void)s; return -1; }
#endif
