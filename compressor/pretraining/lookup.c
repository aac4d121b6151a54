/* A function of bf16 values by a table of all 65,536 of them, and its derivative: see _lookup.pyi. */
#include "../runtime/decoder/buffers.h"
#include "../runtime/decoder/runtime.h"

#include <string.h>

enum { BF16_VALUES = 1 << 16 };
enum { TILE = 1 << 16 }; /* values for which another thread is worth waking */

typedef struct {
    int64_t count;
    const uint16_t *x, *dy;  /* dy is NULL where the function itself is wanted */
    uint16_t *out;
    const uint16_t *values;
    const float *slopes;
} Lookup;

/* Round to the nearest bf16, to even where two are as near. */
static uint16_t rounded(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return x != x ? 0x7fc0 : (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static void look(void *task, int64_t tile, int64_t thread)
{
    const Lookup *t = task;
    const int64_t to = (tile + 1) * TILE < t->count ? (tile + 1) * TILE : t->count;
    (void)thread;
    for (int64_t i = tile * TILE; i < to; i++)
        if (t->dy) {
            const uint32_t bits = (uint32_t)t->dy[i] << 16;
            float dy;
            memcpy(&dy, &bits, sizeof dy);
            t->out[i] = rounded(dy * t->slopes[t->x[i]]);
        } else
            t->out[i] = t->values[t->x[i]];
}

static void run(Lookup *task, int64_t threads)
{
    share_tiles(threads, (task->count + TILE - 1) / TILE, look, task);
}

static PyObject *py_lookup(PyObject *self, PyObject *args, PyObject *keywords)
{
    static char *names[] = { "x", "out", "values", "slopes", "gradient", "threads", NULL };
    const Py_ssize_t all[] = { BF16_VALUES };
    PyObject *x, *out, *values, *slopes, *gradient;
    Py_ssize_t threads;
    Py_buffer b[5] = { { 0 } };
    int fits;
    (void)self;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "OO$OOOn:lookup", names, &x, &out, &values, &slopes, &gradient, &threads))
        return NULL;
    fits = check_threads(threads) && open_buffer(&b[0], x, "x", BFLOAT16, READ) &&
           open_shaped(&b[1], out, "out", BFLOAT16, WRITE, b[0].ndim, b[0].shape) &&
           open_shaped(&b[2], values, "values", BFLOAT16, READ, 1, all) &&
           open_shaped(&b[3], slopes, "slopes", FLOAT32, READ, 1, all) &&
           open_optional(&b[4], gradient, "gradient", BFLOAT16, b[0].ndim, b[0].shape);
    if (fits) {
        Lookup task = { b[0].len / 2, b[0].buf, b[4].buf, b[1].buf, b[2].buf, b[3].buf };
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
    { "lookup", (PyCFunction)(void (*)(void))py_lookup, METH_VARARGS | METH_KEYWORDS,
      "Write f(x), or f'(x) times a gradient, to out." },
    { NULL, NULL, 0, NULL },
};

static struct PyModuleDef definition = { PyModuleDef_HEAD_INIT, "_lookup", NULL, 0, methods, NULL, NULL, NULL, NULL };

PyMODINIT_FUNC PyInit__lookup(void) { return PyModuleDef_Init(&definition); }
