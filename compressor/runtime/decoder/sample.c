/* Drawing tokens from logits: temperature, then those likely beside the best one, then the k best, then the nucleus, then the
 * typical ones, then the draw. */
#include "runtime.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { COLUMN = 16 }; /* values of which one is looked at where a bound of the best ones is looked for */

/* What top-p leaves is looked for among the tokens so probable first: they are few. */
static const double RARE[] = { 1e-4, 1e-5, 0 };
enum { LEVELS = sizeof RARE / sizeof *RARE };

typedef struct {
    float key;
    int32_t place;
} Candidate;

/* What one thread needs for n logits. */
typedef struct {
    Candidate *candidates; /* [n] */
    float *values, *weights;
    int32_t *places;
    double *sums;          /* of every DRAWN weights */
} Room;

static int downwards(const void *a, const void *b)
{
    const Candidate *x = a, *y = b;
    return x->key != y->key ? (x->key < y->key) - (x->key > y->key) : (x->place > y->place) - (x->place < y->place);
}

/* The k-th largest of n values, which change places. */
static float kth_largest(float *values, int64_t n, int64_t k)
{
    int64_t low = 0, high = n - 1;
    while (low < high) {
        const float pivot = values[low + (high - low) / 2];
        int64_t i = low, j = high;
        while (i <= j) {
            while (values[i] > pivot)
                i++;
            while (values[j] < pivot)
                j--;
            if (i <= j) {
                const float other = values[i];
                values[i++] = values[j];
                values[j--] = other;
            }
        }
        if (k - 1 <= j)
            high = j;
        else if (k - 1 >= i)
            low = i;
        else
            break;
    }
    return values[k - 1];
}

/* The k best of n logits, the best first, of equal ones the first. Of columns, of which there are at least k, the k best
 * have as many tokens, so that the worst of them bounds what is wanted. */
static void find_best(const Instructions *with, const float *logits, int64_t n, int64_t k, Room *room)
{
    const int64_t columns = n / COLUMN;
    float bound = -INFINITY;
    if (k <= columns) {
        memcpy(room->values, logits, (size_t)columns * sizeof *logits);
        for (int64_t part = 1; part < COLUMN; part++)
            for (int64_t c = 0; c < columns; c++) {
                const float value = logits[part * columns + c];
                room->values[c] = value > room->values[c] ? value : room->values[c];
            }
        bound = kth_largest(room->values, columns, k);
    }
    const int64_t count = with->above(logits, n, bound, room->places);
    for (int64_t i = 0; i < count; i++)
        room->candidates[i] = (Candidate){ logits[room->places[i]], room->places[i] };
    qsort(room->candidates, (size_t)count, sizeof *room->candidates, downwards);
}

static void swap(Candidate *a, Candidate *b)
{
    const Candidate other = *a;
    *a = *b;
    *b = other;
}

/* The last of the first ones, downwards, that together weigh `goal`, or of all. Only the part that it is in is put in order. */
static Candidate last_that_counts(Candidate *c, int64_t n, const float *weights, double goal)
{
    enum { FEW = 24 };
    int64_t low = 0, high = n;
    while (high - low > FEW) {
        int64_t end = low; /* those from low to here come before the pivot */
        double sum = 0;
        swap(&c[low + (high - low) / 2], &c[high - 1]);
        const Candidate pivot = c[high - 1];
        for (int64_t i = low; i < high - 1; i++)
            if (downwards(&c[i], &pivot) < 0) {
                sum += weights[c[i].place];
                swap(&c[i], &c[end++]);
            }
        swap(&c[end], &c[high - 1]);
        if (sum >= goal)
            high = end;
        else {
            low = end;
            goal -= sum;
            if (goal <= weights[pivot.place])
                return pivot;
        }
    }
    qsort(c + low, (size_t)(high - low), sizeof *c, downwards);
    for (; low < high - 1 && goal > weights[c[low].place]; low++)
        goal -= weights[c[low].place];
    return c[low];
}

/* The fewest of n weights that have the share p of their total: how many, and their places in order. */
static int64_t find_nucleus(const Instructions *with, int64_t n, double total, double p, Room *room)
{
    int64_t found = 0, kept = 0;
    double sum = 0;
    for (int level = 0; level < LEVELS && (!level || sum < p * total); level++) {
        found = with->above(room->weights, n, (float)(RARE[level] * total), room->places);
        sum = 0;
        for (int64_t i = 0; i < found; i++)
            sum += room->weights[room->places[i]];
    }
    for (int64_t i = 0; i < found; i++)
        room->candidates[i] = (Candidate){ room->weights[room->places[i]], room->places[i] };
    if (!found)
        return 0;
    const Candidate last = last_that_counts(room->candidates, found, room->weights, p * total);
    for (int64_t i = 0; i < found; i++) {
        const Candidate own = { room->weights[room->places[i]], room->places[i] };
        if (downwards(&own, &last) <= 0)
            room->places[kept++] = own.place;
    }
    return kept;
}

/* Of tokens at `count` places those whose surprise is nearest to the expected one, until they have `mass` of them all;
 * those that are as near as the last one belong to it. Meister et al., arXiv 2202.00666, section 4. */
static int64_t find_typical(int64_t count, double mass, Room *room)
{
    double total = 0, entropy = 0;
    int64_t kept = 0, left = 0;
    for (int64_t i = 0; i < count; i++)
        if (room->weights[room->places[i]] > 0)
            total += room->weights[room->places[kept++] = room->places[i]];
    for (int64_t i = 0; i < kept; i++) {
        const double surprise = -log(room->weights[room->places[i]] / total);
        entropy += room->weights[room->places[i]] / total * surprise;
        room->values[i] = (float)surprise;
    }
    for (int64_t i = 0; i < kept; i++) {
        room->values[i] = -fabsf(room->values[i] - (float)entropy);
        room->candidates[i] = (Candidate){ room->values[i], room->places[i] };
    }
    if (!kept)
        return 0;
    const float farthest = last_that_counts(room->candidates, kept, room->weights, mass * total).key;
    for (int64_t i = 0; i < kept; i++)
        if (room->values[i] >= farthest)
            room->places[left++] = room->places[i];
    return left;
}

/* The place in whose share of the sum of n weights `uniform` falls; never one that weighs nothing. */
static int64_t draw_of(const float *weights, const int32_t *places, int64_t n, double goal)
{
    double sum = 0;
    int64_t last = 0;
    for (int64_t i = 0; i < n; i++) {
        const float weight = weights[places ? places[i] : i];
        sum += weight;
        if (weight > 0) {
            last = i;
            if (sum > goal)
                break;
        }
    }
    return last;
}

static int64_t draw_of_all(const Room *room, int64_t n, double uniform)
{
    double total = 0, before = 0;
    int64_t block = 0, last = 0;
    const int64_t blocks = (n + DRAWN - 1) / DRAWN;
    for (int64_t b = 0; b < blocks; b++)
        total += room->sums[b];
    for (; block < blocks; before += room->sums[block++])
        if (room->sums[block] > 0) {
            last = block;
            if (before + room->sums[block] > uniform * total)
                break;
        }
    if (block == blocks)
        before -= room->sums[last];
    const int64_t from = last * DRAWN;
    return from + draw_of(room->weights + from, NULL, least(DRAWN, n - from), uniform * total - before);
}

/* Move those of n weights together that are at least `bound`, the largest being 1, and the ids of their tokens with them; NULL
 * stands for ids that are their places. Returns how many there are, or 0 where nothing is moved: all are, or weights are not
 * numbers. */
static int64_t keep_likely(const Instructions *with, int64_t n, float bound, const int32_t *from, int32_t *ids, Room *room)
{
    const int64_t kept = with->above(room->weights, n, bound, room->places);
    if (kept == n)
        return 0;
    for (int64_t i = 0; i < kept; i++) {
        room->weights[i] = room->weights[room->places[i]];
        ids[i] = from ? from[room->places[i]] : room->places[i];
    }
    for (int64_t start = 0; start < kept; start += DRAWN) {
        double sum = 0;
        for (int64_t i = start; i < least(start + DRAWN, kept); i++)
            sum += room->weights[i];
        room->sums[start / DRAWN] = sum;
    }
    return kept;
}

static int64_t draw_row(const Instructions *with, const float *logits, int64_t n, const Draw *how, Room *room)
{
    int some = how->top_k > 0 && how->top_k < n;
    int64_t count = some ? how->top_k : n;
    if (how->temperature == 0)
        return with->best(logits, n);
    if (some) {
        find_best(with, logits, n, count, room);
        for (int64_t i = 0; i < count; i++)
            room->values[i] = room->candidates[i].key;
    }
    /* The best tokens change places with the candidates of what follows: their ids are kept behind the values. */
    int32_t *ids = (int32_t *)(void *)(room->values + padded(count, LANES));
    for (int64_t i = 0; some && i < count; i++)
        ids[i] = room->candidates[i].place;
    with->weigh(some ? room->values : logits, count, how->temperature, room->weights, room->sums);
    /* Both leave the best ones, so that it makes no difference which comes first. */
    const int64_t likely = how->min_p > 0 ? keep_likely(with, count, (float)how->min_p, some ? ids : NULL, ids, room) : 0;
    if (likely) {
        count = likely;
        some = 1;
    }
    int64_t chosen;
    if (how->top_p < 1 || how->typical_p < 1) {
        double total = 0;
        int64_t left = count;
        for (int64_t b = 0; b < (count + DRAWN - 1) / DRAWN; b++)
            total += room->sums[b];
        if (how->top_p < 1)
            left = find_nucleus(with, count, total, how->top_p, room);
        else
            for (int64_t i = 0; i < count; i++)
                room->places[i] = (int32_t)i;
        if (how->typical_p < 1)
            left = find_typical(left, how->typical_p, room);
        total = 0;
        for (int64_t i = 0; i < left; i++)
            total += room->weights[room->places[i]];
        chosen = left ? room->places[draw_of(room->weights, room->places, left, how->uniform * total)] : 0;
    }
    else
        chosen = draw_of_all(room, count, how->uniform);
    return some ? ids[chosen] : chosen;
}

typedef struct {
    const Instructions *with;
    const float *logits;
    int64_t n;
    const Draw *how;
    int64_t *chosen;
    char *memory;
    size_t memory_bytes; /* of a thread */
} Draws;

static void draw_tile(void *task, int64_t row, int64_t thread)
{
    const Draws *t = task;
    const size_t size = (size_t)padded(t->n, LANES);
    Room room;
    room.candidates = (Candidate *)(void *)(t->memory + (size_t)thread * t->memory_bytes);
    room.values = (float *)(void *)(room.candidates + size); /* and ids behind them */
    room.weights = room.values + 2 * size;
    room.places = (int32_t *)(void *)(room.weights + size);
    room.sums = (double *)(void *)(room.places + size);
    t->chosen[row] = draw_row(t->with, t->logits + row * t->n, t->n, t->how + row, &room);
}

void draw_all(Engine *engine, const float *logits, int64_t rows, int64_t n, const Draw *how, int64_t *chosen)
{
    const size_t size = (size_t)padded(n, LANES);
    Draws t = { engine->instructions, logits, n, how, chosen, NULL, 0 };
    t.memory_bytes = size * (sizeof(Candidate) + 3 * sizeof(float) + sizeof(int32_t)) +
                     (size_t)padded(n / DRAWN + 1, 8) * sizeof(double);
    t.memory = allocate(&engine->arena, t.memory_bytes * (size_t)engine->threads);
    if (t.memory)
        each_tile(threads_for(engine, (double)rows * n), rows, draw_tile, &t);
}
