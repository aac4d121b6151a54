/* The KV cache as Python passes it: where its tokens stand is checked at every call. */
#include "boundary.h"

/* Refuse places outside of [0, end); returns the largest in `most`. */
static int check_places(const Py_buffer *view, const char *name, int64_t end, int64_t *most)
{
    const int64_t *places = view->buf;
    for (Py_ssize_t i = 0; i < view->shape[0]; i++) {
        if (places[i] < 0 || places[i] >= end) {
            PyErr_Format(PyExc_ValueError, "%s must lie in [0, %lld), not %lld", name, (long long)end, (long long)places[i]);
            return 0;
        }
        *most = places[i] > *most ? places[i] : *most;
    }
    return 1;
}

static int open_keys_and_values(CacheBuffers *b, PyObject *keys, PyObject *values, Py_ssize_t layers)
{
    const int dtypes = FLOAT32 | FLOAT16 | BFLOAT16;
    return open_shaped(&b->keys, keys, "keys", dtypes, WRITE, 5, (Py_ssize_t[]){ layers, ANY, ANY, ANY, ANY }) &&
           open_shaped(&b->values, values, "values", dtype_of(&b->keys), WRITE, 5, b->keys.shape) &&
           check_multiple("the size of a head", b->keys.shape[4], HEAD_VALUES);
}

int open_cache(CacheBuffers *b, PyObject *const arguments[4], Py_ssize_t layers, int64_t rows, int64_t width,
               Py_ssize_t threads, Attention *attention)
{
    const Py_ssize_t count[] = { (Py_ssize_t)rows };
    if (!check_threads(threads) || !open_keys_and_values(b, arguments[0], arguments[1], layers) ||
        !open_shaped(&b->slots, arguments[2], "slots", INT64, READ, 1, count) ||
        !open_shaped(&b->positions, arguments[3], "positions", INT64, READ, 1, count))
        return 0;
    const Py_ssize_t *shape = b->keys.shape; /* [layers, slots, heads, capacity, size] */
    int64_t longest = 0, last = 0;
    if (shape[2] * shape[4] != width) {
        PyErr_Format(PyExc_ValueError, "keys must have heads of %lld values together, not %zd x %zd", (long long)width,
                     shape[2], shape[4]);
        return 0;
    }
    if (!check_places(&b->slots, "slots", shape[1], &last) || !check_places(&b->positions, "positions", shape[3], &longest))
        return 0;
    const int dtype = dtype_of(&b->keys);
    const double work = 2.0 * rows * width * (longest + width); /* with the products around it */
    *attention = (Attention){
        .keys = b->keys.buf, .values = b->values.buf, .slots = b->slots.buf, .positions = b->positions.buf, .rows = rows,
        .heads = shape[2], .size = shape[4], .capacity = shape[3], .layer_bytes = b->keys.len / shape[0],
        .dtype = dtype == FLOAT32 ? KV_FLOAT32 : dtype == FLOAT16 ? KV_FLOAT16 : KV_BFLOAT16,
        .threads = work > SERIAL_WORK ? threads : 1,
    };
    return 1;
}

void close_cache(CacheBuffers *b)
{
    PyBuffer_Release(&b->keys);
    PyBuffer_Release(&b->values);
    PyBuffer_Release(&b->slots);
    PyBuffer_Release(&b->positions);
}
