/* The codes of a trellis that are nearest to given values: see _trellis.pyi. */
#include "../runtime/decoder/buffers.h"
#include "../runtime/decoder/runtime.h"

#include <string.h>

#if defined(__x86_64__) && defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define CLONES __attribute__((target_clones("avx512f", "avx2", "default"))) /* same operations, same results */
#else
#define CLONES
#endif
#define INLINE static inline __attribute__((always_inline))

enum { STEPS = LANES };      /* of a path: the rows of a panel, of which the first follows the last */
enum { WINDOWS = 256, MOST_ENDS = 128 };
enum { STARTS = 4 };         /* ends of whole paths that are tried */

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));

typedef struct {
    const float *values;     /* [columns, rows], in units of levels */
    const float *weights;    /* [rows], of squared errors */
    const float *levels;     /* [WINDOWS] */
    int bits;
    int64_t columns, rows, paths; /* of a column */
    uint8_t *codes;          /* [columns, rows] */
    float *rounded;          /* [columns, rows] */
} Search;

/* As many paths as there are lanes. */
typedef struct {
    Floats values[STEPS], weights[STEPS];
    Ints padding[STEPS];     /* -1 for steps behind the last row, whose codes are 0 */
    Floats forward[MOST_ENDS], backward[MOST_ENDS];
    uint8_t from[STEPS][MOST_ENDS][LANES];
} Paths;

INLINE Floats choose(Ints mask, Floats yes, Floats no) { return (Floats)((mask & (Ints)yes) | (~mask & (Ints)no)); }

INLINE Floats loss(const Paths *p, const Search *s, int step, int window, int code)
{
    const Floats error = p->values[step] - s->levels[window], lost = error * error * p->weights[step];
    return code ? choose(p->padding[step], lost + 1e30f, lost) : lost;
}

/* A window is the 8 bits from a step's own code on, lowest first. Its end, all but that code, begins the next window.
 * costs[end] of the cheapest paths that begin as `costs` says. */
INLINE void walk(Paths *p, const Search *s, Floats *costs, const int BITS, const int keep)
{
    enum { ENDS = MOST_ENDS };
    const int ends = WINDOWS >> BITS;
    Floats next[ENDS];
    for (int step = 0; step < STEPS; step++) {
        for (int end = 0; end < ends; end++) {
            Floats best = { 0 };
            Ints found = { 0 };
            for (int code = 0; code < 1 << BITS; code++) {
                const int window = end << BITS | code;
                const Floats cost = costs[window % ends] + loss(p, s, step, window, code);
                const Ints less = cost < best;
                found = code ? (found & ~less) | (less & code) : found;
                best = code ? choose(less, cost, best) : cost;
            }
            next[end] = best;
            for (int lane = 0; keep && lane < LANES; lane++)
                p->from[step][end][lane] = (uint8_t)found[lane];
        }
        memcpy(costs, next, (size_t)ends * sizeof *next);
    }
}

/* costs[end] of the cheapest paths behind that end. */
INLINE void walk_back(const Paths *p, const Search *s, Floats *costs, const int BITS)
{
    const int ends = WINDOWS >> BITS;
    Floats before[MOST_ENDS];
    for (int step = STEPS - 1; step >= 0; step--) {
        for (int end = 0; end < ends; end++) {
            Floats best = { 0 };
            for (int newest = 0; newest < 1 << BITS; newest++) {
                const int window = end | newest << (8 - BITS);
                const Floats cost = costs[window >> BITS] + loss(p, s, step, window, window % (1 << BITS));
                best = newest ? choose(cost < best, cost, best) : cost;
            }
            before[end] = best;
        }
        memcpy(costs, before, (size_t)ends * sizeof *before);
    }
}

/* The codes and costs of the cheapest paths that begin and end with `ends` [LANES]. */
INLINE void close_paths(Paths *p, const Search *s, const int32_t *ends, const int BITS, uint8_t codes[STEPS][LANES], float *costs)
{
    Floats all[MOST_ENDS];
    Ints wanted;
    memcpy(&wanted, ends, sizeof wanted);
    for (int end = 0; end < WINDOWS >> BITS; end++)
        all[end] = choose(wanted == end, (Floats){ 0 }, (Floats){ 0 } + 1e30f);
    walk(p, s, all, BITS, 1);
    for (int lane = 0; lane < LANES; lane++) {
        int end = ends[lane];
        costs[lane] = all[end][lane];
        for (int step = STEPS - 1; step >= 0; step--) {
            const int window = end << BITS | p->from[step][end][lane];
            codes[step][lane] = (uint8_t)window;
            end = window % (WINDOWS >> BITS);
        }
    }
}

/* Paths are closed: the last end is the first. Which one it is, is guessed from paths of two rounds: the best of the first
 * meets the best of the second there. */
INLINE void search_paths(Paths *p, const Search *s, const int BITS, uint8_t best[STEPS][LANES])
{
    const int ends = WINDOWS >> BITS;
    uint8_t windows[STEPS][LANES];
    float costs[LANES], least_costs[LANES];
    memset(p->forward, 0, sizeof p->forward);
    memset(p->backward, 0, sizeof p->backward);
    walk(p, s, p->forward, BITS, 0);
    walk_back(p, s, p->backward, BITS);
    for (int end = 0; end < ends; end++)
        p->forward[end] += p->backward[end];
    for (int start = 0; start < STARTS; start++) {
        int32_t chosen[LANES];
        for (int lane = 0; lane < LANES; lane++) {
            int at = 0;
            for (int end = 1; end < ends; end++)
                if (p->forward[end][lane] < p->forward[at][lane])
                    at = end;
            chosen[lane] = at;
            p->forward[at][lane] = 1e38f;
        }
        close_paths(p, s, chosen, BITS, windows, costs);
        for (int lane = 0; lane < LANES; lane++)
            if (!start || costs[lane] < least_costs[lane]) {
                least_costs[lane] = costs[lane];
                for (int step = 0; step < STEPS; step++)
                    best[step][lane] = windows[step][lane];
            }
    }
}

CLONES static void search_tile(const Search *s, int64_t tile)
{
    Paths p;
    uint8_t windows[STEPS][LANES];
    const int64_t first = tile * LANES, count = least(LANES, s->columns * s->paths - first);
    memset(&p, 0, sizeof p);
    for (int64_t lane = 0; lane < LANES; lane++)
        for (int64_t step = 0; step < STEPS; step++) {
            const int64_t path = first + least(lane, count - 1), row = path % s->paths * STEPS + step;
            p.padding[step][lane] = row < s->rows ? 0 : -1;
            p.weights[step][lane] = row < s->rows ? s->weights[row] : 0;
            p.values[step][lane] = row < s->rows ? s->values[path / s->paths * s->rows + row] : 0;
        }
    switch (s->bits) {
    case 1: search_paths(&p, s, 1, windows); break;
    case 2: search_paths(&p, s, 2, windows); break;
    case 3: search_paths(&p, s, 3, windows); break;
    default: search_paths(&p, s, 4, windows); break;
    }
    for (int64_t lane = 0; lane < count; lane++)
        for (int64_t step = 0; step < STEPS; step++) {
            const int64_t row = (first + lane) % s->paths * STEPS + step;
            const int64_t at = (first + lane) / s->paths * s->rows + row;
            if (row < s->rows) {
                s->codes[at] = (uint8_t)(windows[step][lane] & ((1 << s->bits) - 1));
                s->rounded[at] = s->levels[windows[step][lane]];
            }
        }
}

static void one_tile(void *task, int64_t tile, int64_t thread)
{
    (void)thread;
    search_tile(task, tile);
}

static void run(Search *task, int64_t threads)
{
    share_tiles(threads, (task->columns * task->paths + LANES - 1) / LANES, one_tile, task);
}

static PyObject *py_search(PyObject *self, PyObject *args, PyObject *keywords)
{
    static char *names[] = { "values", "weights", "levels", "codes", "rounded", "bits", "threads", NULL };
    PyObject *arguments[5];
    Py_ssize_t bits, threads;
    Py_buffer b[5] = { { 0 } };
    int fits;
    (void)self;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "OO$OOOnn:search", names, &arguments[0], &arguments[1], &arguments[2],
                                     &arguments[3], &arguments[4], &bits, &threads))
        return NULL;
    if (bits < 1 || bits > 4) {
        PyErr_Format(PyExc_ValueError, "bits must be between 1 and 4, not %zd", bits);
        return NULL;
    }
    fits = check_threads(threads) && open_shaped(&b[0], arguments[0], "values", FLOAT32, READ, 2, (Py_ssize_t[]){ ANY, ANY }) &&
           open_shaped(&b[1], arguments[1], "weights", FLOAT32, READ, 1, b[0].shape + 1) &&
           open_shaped(&b[2], arguments[2], "levels", FLOAT32, READ, 1, (Py_ssize_t[]){ WINDOWS }) &&
           open_shaped(&b[3], arguments[3], "codes", UINT8, WRITE, 2, b[0].shape) &&
           open_shaped(&b[4], arguments[4], "rounded", FLOAT32, WRITE, 2, b[0].shape);
    if (fits) {
        const int64_t rows = b[0].shape[1];
        Search task = { b[0].buf, b[1].buf, b[2].buf, (int)bits, b[0].shape[0], rows, (rows + STEPS - 1) / STEPS, b[3].buf, b[4].buf };
        Py_BEGIN_ALLOW_THREADS
        run(&task, threads);
        Py_END_ALLOW_THREADS
    }
    for (int i = 0; i < 5; i++)
        PyBuffer_Release(&b[i]);
    if (!fits)
        return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    { "search", (PyCFunction)(void (*)(void))py_search, METH_VARARGS | METH_KEYWORDS,
      "Write the codes of the paths nearest to values, and their levels." },
    { NULL, NULL, 0, NULL },
};

static struct PyModuleDef definition = { PyModuleDef_HEAD_INIT, "_trellis", NULL, 0, methods, NULL, NULL, NULL, NULL };

PyMODINIT_FUNC PyInit__trellis(void) { return PyModuleDef_Init(&definition); }
