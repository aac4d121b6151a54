/* The Python module compressor._kernels: see _kernels.pyi. */
#include "boundary.h"

Types *types_of(PyTypeObject *type) { return PyType_GetModuleState(type); }

void free_object(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type); /* an object holds the type that was made from a spec */
}

PyObject *result(int status)
{
    if (status)
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static int check_layer(Py_ssize_t layer, Py_ssize_t layers)
{
    if (layer >= 0 && layer < layers)
        return 1;
    PyErr_Format(PyExc_ValueError, "layer must lie in [0, %zd), not %zd", layers, layer);
    return 0;
}

static PyObject *py_attention(PyObject *self, PyObject *args, PyObject *keywords)
{
    static char *names[] = { "qkv", "out", "keys", "values", "slots", "positions", "layer", "scale", "threads", NULL };
    PyObject *qkv, *out, *cache[4];
    Py_ssize_t layer, threads;
    double scale;
    (void)self;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "OO$OOOOndn:attention", names, &qkv, &out, &cache[0], &cache[1],
                                     &cache[2], &cache[3], &layer, &scale, &threads))
        return NULL;
    Py_buffer from = { 0 }, to = { 0 };
    CacheBuffers buffers = { 0 };
    Attention task;
    PyObject *done = NULL;
    int status = 0;
    if (check_supported() && check_positive("scale", scale) &&
        open_shaped(&to, out, "out", FLOAT32, WRITE, 2, (Py_ssize_t[]){ ANY, ANY }) &&
        open_shaped(&from, qkv, "qkv", FLOAT32, READ, 2, (Py_ssize_t[]){ to.shape[0], 3 * to.shape[1] }) &&
        check_apart(&to, &from, "qkv") &&
        open_cache(&buffers, cache, ANY, to.shape[0], to.shape[1], threads, &task) &&
        check_layer(layer, buffers.keys.shape[0])) {
        task.qkv = from.buf;
        task.out = to.buf;
        task.scale = (float)scale;
        task.keys = (char *)task.keys + layer * task.layer_bytes;
        task.values = (char *)task.values + layer * task.layer_bytes;
        Py_BEGIN_ALLOW_THREADS
        status = attention(&task);
        Py_END_ALLOW_THREADS
        done = result(status);
    }
    PyBuffer_Release(&from);
    PyBuffer_Release(&to);
    close_cache(&buffers);
    return done;
}

enum { BF16_VALUES = 1 << 16 };

typedef struct {
    Py_buffer x, out, values, slopes, gradient;
} LookupBuffers;

static int open_lookup(LookupBuffers *b, PyObject *const arguments[5], Lookup *task)
{
    const Py_ssize_t all[] = { BF16_VALUES };
    if (!open_buffer(&b->x, arguments[0], "x", BFLOAT16, READ) ||
        !open_shaped(&b->out, arguments[1], "out", BFLOAT16, WRITE, b->x.ndim, b->x.shape) ||
        !open_shaped(&b->values, arguments[2], "values", BFLOAT16, READ, 1, all) ||
        !open_shaped(&b->slopes, arguments[3], "slopes", FLOAT32, READ, 1, all) ||
        !open_optional(&b->gradient, arguments[4], "gradient", BFLOAT16, b->x.ndim, b->x.shape))
        return 0;
    task->x = b->x.buf;
    task->out = b->out.buf;
    task->values = b->values.buf;
    task->slopes = b->slopes.buf;
    task->dy = b->gradient.buf;
    task->count = b->x.len / 2;
    return 1;
}

static PyObject *py_lookup(PyObject *self, PyObject *args, PyObject *keywords)
{
    static char *names[] = { "x", "out", "values", "slopes", "gradient", "threads", NULL };
    PyObject *arguments[5];
    Py_ssize_t threads;
    (void)self;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "OO$OOOn:lookup", names, &arguments[0], &arguments[1], &arguments[2],
                                     &arguments[3], &arguments[4], &threads))
        return NULL;
    LookupBuffers buffers = { 0 };
    Lookup task;
    PyObject *done = NULL;
    int status;
    if (check_threads(threads) && open_lookup(&buffers, arguments, &task)) {
        task.threads = task.count > SERIAL_WORK ? threads : 1;
        Py_BEGIN_ALLOW_THREADS
        status = lookup(&task);
        Py_END_ALLOW_THREADS
        done = result(status);
    }
    PyBuffer_Release(&buffers.x);
    PyBuffer_Release(&buffers.out);
    PyBuffer_Release(&buffers.values);
    PyBuffer_Release(&buffers.slopes);
    PyBuffer_Release(&buffers.gradient);
    return done;
}

/* Make a type and publish it; the state keeps a reference. */
static int add_type(PyObject *module, PyType_Spec *spec, PyTypeObject **type)
{
    *type = (PyTypeObject *)PyType_FromModuleAndSpec(module, spec, NULL);
    return *type ? PyModule_AddType(module, *type) : -1;
}

static int add_names(PyObject *module, const char *constant, PyObject *names)
{
    const int status = PyModule_AddObjectRef(module, constant, names); /* fails for NULL */
    Py_XDECREF(names);
    return status;
}

static int fill(PyObject *module)
{
    Types *types = PyModule_GetState(module);
    if (add_type(module, &matrix_spec, &types->matrix) || add_type(module, &norm_spec, &types->norm) ||
        add_type(module, &block_spec, &types->block) || add_type(module, &stack_spec, &types->stack) ||
        add_names(module, "ACTIVATIONS", activation_names()) || add_names(module, "INSTRUCTIONS", instruction_names()))
        return -1;
    return PyModule_AddIntMacro(module, INT8_COLUMNS) || PyModule_AddIntMacro(module, INT4_COLUMNS) ||
                   PyModule_AddIntMacro(module, HEAD_VALUES) || PyModule_AddIntMacro(module, MAX_THREADS) ||
                   PyModule_AddIntMacro(module, SERIAL_WORK)
               ? -1
               : 0;
}

static int traverse(PyObject *module, visitproc visit, void *arg)
{
    Types *types = PyModule_GetState(module);
    Py_VISIT(types->matrix);
    Py_VISIT(types->norm);
    Py_VISIT(types->block);
    Py_VISIT(types->stack);
    return 0;
}

static int clear(PyObject *module)
{
    Types *types = PyModule_GetState(module);
    Py_CLEAR(types->matrix);
    Py_CLEAR(types->norm);
    Py_CLEAR(types->block);
    Py_CLEAR(types->stack);
    return 0;
}

static PyMethodDef methods[] = {
    { "attention", (PyCFunction)(void (*)(void))py_attention, METH_VARARGS | METH_KEYWORDS,
      "Append new tokens to their slots and write their attention to these to out." },
    { "lookup", (PyCFunction)(void (*)(void))py_lookup, METH_VARARGS | METH_KEYWORDS,
      "Write f(x), or f'(x) times a gradient, to out." },
    { NULL, NULL, 0, NULL },
};

static PyModuleDef_Slot slots[] = { { Py_mod_exec, fill }, { 0, NULL } };

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_kernels", NULL, sizeof(Types), methods, slots, traverse, clear, NULL,
};

PyMODINIT_FUNC PyInit__kernels(void) { return PyModuleDef_Init(&definition); }
