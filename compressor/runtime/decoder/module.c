/* The Python module compressor.runtime._decoder: see _decoder.pyi. */
#include "types.h"
#include "trellis.h"

#include <string.h>

static const Instructions *const ALL[] = {
    &portable_instructions,
#if defined(__x86_64__)
    &avx2_instructions, &avx512_instructions, &amx_instructions,
#elif defined(__aarch64__)
    &neon_instructions,
#endif
};
enum { COUNT = sizeof ALL / sizeof *ALL };

Types *types_of(PyTypeObject *type) { return PyType_GetModuleState(type); }

void free_object(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type); /* an object holds the type that was made from a spec */
}

/* Names of the sets of instructions that this CPU has, the best one last. */
static PyObject *instruction_names(void)
{
    PyObject *names = PyList_New(0), *tuple;
    for (int i = 0; names && i < COUNT; i++) {
        PyObject *name = ALL[i]->supported() ? PyUnicode_FromString(ALL[i]->name) : NULL;
        if (name && PyList_Append(names, name))
            Py_CLEAR(names);
        Py_XDECREF(name);
    }
    tuple = names && !PyErr_Occurred() ? PyList_AsTuple(names) : NULL;
    Py_XDECREF(names);
    return tuple;
}

static const Instructions *read_instructions(PyObject *name)
{
    const Instructions *found = NULL;
    const char *text = name && PyUnicode_Check(name) ? PyUnicode_AsUTF8AndSize(name, NULL) : NULL;
    for (int i = 0; i < COUNT; i++)
        if (ALL[i]->supported() && (!name || name == Py_None || (text && !strcmp(text, ALL[i]->name))))
            found = ALL[i];
    if (!found) {
        PyObject *legal = instruction_names();
        if (legal)
            PyErr_Format(PyExc_ValueError, "instructions must be one of %R or None, not %R", legal, name);
        Py_XDECREF(legal);
    }
    return found;
}

int open_engine(Engine *engine, PyObject *instructions, Py_ssize_t threads)
{
    *engine = (Engine){ .threads = 1 };
    engine->instructions = read_instructions(instructions);
    if (!engine->instructions || !check_threads(threads))
        return 0;
    if (threads > 1 && take_team()) {
        engine->threads = prepare_team(threads);
        if (engine->threads == 1) /* no thread could be made: nothing is given back later */
            leave_team();
    }
    return 1;
}

PyObject *close_engine(Engine *engine)
{
    const int failed = engine->arena.failed;
    if (engine->threads > 1)
        leave_team();
    release(&engine->arena);
    if (failed)
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *module_judge(PyObject *module, PyObject *args, PyObject *keywords)
{
    static char *names[] = { "logits", "targets", "out", "reference", "threads", "instructions", NULL };
    PyObject *logits, *targets, *out, *reference = NULL, *instructions = NULL;
    Py_ssize_t threads = 1;
    (void)module;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "OOO|$OnO:judge", names, &logits, &targets, &out, &reference, &threads,
                                     &instructions))
        return NULL;
    Py_buffer from = { 0 }, ids = { 0 }, to = { 0 }, other = { 0 };
    Engine engine;
    PyObject *done = NULL;
    if (open_shaped(&from, logits, "logits", FLOAT32, READ, 2, (Py_ssize_t[]){ ANY, ANY }) &&
        open_shaped(&ids, targets, "targets", INT64, READ, 1, from.shape) && check_ids(&ids, "targets", from.shape[1]) &&
        open_shaped(&to, out, "out", FLOAT64, WRITE, 2, (Py_ssize_t[]){ from.shape[0], VERDICT }) &&
        open_optional(&other, reference, "reference", FLOAT32, 2, from.shape) &&
        open_engine(&engine, instructions, threads)) {
        Py_BEGIN_ALLOW_THREADS
        judge_all(&engine, from.buf, other.buf, from.shape[0], from.shape[1], ids.buf, to.buf);
        Py_END_ALLOW_THREADS
        done = close_engine(&engine);
    }
    PyBuffer_Release(&from);
    PyBuffer_Release(&ids);
    PyBuffer_Release(&to);
    PyBuffer_Release(&other);
    return done;
}

enum { DRAW_NUMBERS = 6 };

/* Numbers of every row, each as its own array. */
static int read_draws(Draw *how, Py_buffer views[DRAW_NUMBERS], int64_t rows)
{
    for (int64_t i = 0; i < rows; i++) {
        how[i] = (Draw){ ((float *)views[0].buf)[i], ((int64_t *)views[1].buf)[i], ((double *)views[2].buf)[i],
                         ((double *)views[3].buf)[i], ((double *)views[4].buf)[i], ((double *)views[5].buf)[i] };
        if (!(how[i].temperature >= 0) || how[i].top_k < 0 || !(how[i].top_p > 0) || !(how[i].typical_p > 0) ||
            !(how[i].min_p >= 0 && how[i].min_p <= 1) || !(how[i].uniform >= 0 && how[i].uniform < 1)) {
            PyErr_SetString(PyExc_ValueError, "temperature and top_k must be at least 0, top_p and typical_p above 0, min_p in "
                                              "[0, 1], uniform in [0, 1)");
            return 0;
        }
    }
    return 1;
}

static PyObject *module_draw(PyObject *module, PyObject *args, PyObject *keywords)
{
    static char *names[] = { "logits", "chosen", "temperature", "top_k", "top_p", "typical_p", "min_p", "uniform", "threads",
                             "instructions", NULL };
    static const int dtypes[DRAW_NUMBERS] = { FLOAT32, INT64, FLOAT64, FLOAT64, FLOAT64, FLOAT64 };
    PyObject *logits, *chosen, *given[DRAW_NUMBERS], *instructions = NULL, *done = NULL;
    Py_buffer from = { 0 }, to = { 0 }, views[DRAW_NUMBERS] = { { 0 }, { 0 }, { 0 }, { 0 }, { 0 }, { 0 } };
    Py_ssize_t threads;
    Engine engine;
    (void)module;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "OO$OOOOOOnO:draw", names, &logits, &chosen, &given[0], &given[1],
                                     &given[2], &given[3], &given[4], &given[5], &threads, &instructions))
        return NULL;
    int opened = open_shaped(&from, logits, "logits", FLOAT32, READ, 2, (Py_ssize_t[]){ ANY, ANY }) &&
                 open_shaped(&to, chosen, "chosen", INT64, WRITE, 1, from.shape);
    for (int i = 0; opened && i < DRAW_NUMBERS; i++)
        opened = open_shaped(&views[i], given[i], names[2 + i], dtypes[i], READ, 1, from.shape);
    if (opened && (from.shape[1] < 1 || from.shape[1] > INT32_MAX)) {
        PyErr_SetString(PyExc_ValueError, "logits must have at least one column");
        opened = 0;
    }
    Draw *how = opened ? PyMem_Malloc((size_t)(from.shape[0] + 1) * sizeof *how) : NULL;
    if (opened && !how)
        PyErr_NoMemory();
    if (how && read_draws(how, views, from.shape[0]) && open_engine(&engine, instructions, threads)) {
        Py_BEGIN_ALLOW_THREADS
        draw_all(&engine, from.buf, from.shape[0], from.shape[1], how, to.buf);
        Py_END_ALLOW_THREADS
        done = close_engine(&engine);
    }
    PyMem_Free(how);
    PyBuffer_Release(&from);
    PyBuffer_Release(&to);
    for (int i = 0; i < DRAW_NUMBERS; i++)
        PyBuffer_Release(&views[i]);
    return done;
}

static PyMethodDef functions[] = {
    { "draw", (PyCFunction)(void (*)(void))module_draw, METH_VARARGS | METH_KEYWORDS, "Draw a token for every row of logits." },
    { "judge", (PyCFunction)(void (*)(void))module_judge, METH_VARARGS | METH_KEYWORDS, "Write how good logits are to out." },
    { NULL, NULL, 0, NULL },
};

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

/* The levels of all windows, by bits, each moved by 128 to a byte. */
static PyObject *level_tables(void)
{
    PyObject *all = PyTuple_New(MOST_TRELLIS_BITS);
    for (int bits = 1; all && bits <= MOST_TRELLIS_BITS; bits++)
        if (PyTuple_SetItem(all, bits - 1, PyBytes_FromStringAndSize((const char *)trellis_levels(bits), 2 * HALF_WINDOWS)))
            Py_CLEAR(all);
    return all;
}

static int fill(PyObject *module)
{
    Types *types = PyModule_GetState(module);
    make_hadamards();
    make_levels();
    PyObject *activations = PyTuple_New(ACTIVATION_COUNT - 1);
    for (Py_ssize_t i = 1; activations && i < ACTIVATION_COUNT; i++)
        if (PyTuple_SetItem(activations, i - 1, PyUnicode_FromString(ACTIVATION_NAMES[i])))
            Py_CLEAR(activations);
    return add_type(module, &matrix_spec, &types->matrix) || add_type(module, &decoder_spec, &types->decoder) ||
                   add_names(module, "ACTIVATIONS", activations) || add_names(module, "INSTRUCTIONS", instruction_names()) ||
                   add_names(module, "TRELLIS_LEVELS", level_tables()) ||
                   PyModule_AddIntMacro(module, LANES) || PyModule_AddIntMacro(module, MAX_THREADS)
               ? -1
               : 0;
}

static int traverse(PyObject *module, visitproc visit, void *arg)
{
    Types *types = PyModule_GetState(module);
    Py_VISIT(types->matrix);
    Py_VISIT(types->decoder);
    return 0;
}

static int clear(PyObject *module)
{
    Types *types = PyModule_GetState(module);
    Py_CLEAR(types->matrix);
    Py_CLEAR(types->decoder);
    return 0;
}

static PyModuleDef_Slot slots[] = { { Py_mod_exec, fill }, { 0, NULL } };

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_decoder", NULL, sizeof(Types), functions, slots, traverse, clear, NULL,
};

PyMODINIT_FUNC PyInit__decoder(void) { return PyModuleDef_Init(&definition); }
