/* The codec `predictive2` for Python: checks what it is given, fills in a Job, and works without the interpreter lock.
 * A wheel without this module is complete: the numpy form reads and writes the same bytes. */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>

#include "_core.h"

enum { NUMBERS = 10, EACH = 33 }; /* int32 that describe a chunk, and each tensor of it: `fast.py` */

static const char *const FAULTS[] = {
    "", "it has an unknown version, format or shape of streams", "it has a wrong length",
    "it names an entry that the token table does not have", "its coder starts in no state of its own",
    "its words end early", "it has a run that nobody writes", "its coder does not end where it began"};

static int has(const Py_buffer *b, uint64_t items, size_t each) {
    return (uintptr_t)b->buf % (each < 4 ? each : 4) == 0 && (size_t)b->len % each == 0 && (uint64_t)b->len / each == items;
}

/* Points a tensor at its arrays: mean, scale, feature, inverse, log_sigma, correction, weights, one after another. */
static int tensor_from(Tensor *t, const Job *j, const Py_buffer *b) {
    const uint64_t channels = (uint64_t)t->dim * j->heads, wide = (uint64_t)up(t->dim, TILE) * j->heads;
    uint64_t fours = 0, wanted = 20 * channels;
    for (int i = 0; i < t->inputs; i++) fours += up((size_t)j->tensor[t->input[i]].dim * j->heads, 4) / 4;
    if (t->mode == BY_SUMS) wanted += 4 * wide + 4 * wide * fours; /* below 2^40: dims, heads and inputs are bounded */
    if ((uintptr_t)b->buf % 4 || (t->mode == BY_SUMS ? (uint64_t)b->len != wanted : (uint64_t)b->len < wanted)) return 0;
    const char *at = b->buf;
    t->mean = (const float *)at;
    t->scale = t->mean + channels;
    t->feature = t->scale + channels;
    t->inverse = t->feature + channels;
    t->log_sigma = (const int32_t *)(t->inverse + channels);
    t->correction = t->log_sigma + channels;
    t->weights = (const int8_t *)(t->correction + wide);
    t->fours = (size_t)fours;
    return 1;
}

static int words_from(Tensor *t, const Job *j, const Py_buffer *b) {
    const Py_ssize_t item = FORMS[j->kind].bits / 8;
    if (b->ndim != 3 || b->itemsize != item || !b->shape || !b->strides || b->strides[2] != item) return 0;
    if (b->shape[0] != j->heads || b->shape[1] != j->tokens || b->shape[2] != t->dim) return 0;
    t->words = b->buf;
    t->head_stride = b->strides[0];
    t->token_stride = b->strides[1];
    return 1;
}

static void numbers_into(Job *j, const int32_t *n) {
    j->kind = n[0]; j->tokens = n[1]; j->heads = n[2]; j->pairs = n[3]; j->bits = n[4]; j->slice_log = n[5];
    j->has_table = n[6] != 0; j->missing[0] = n[7]; j->missing[1] = n[8]; j->count = n[9];
    for (int i = 0; i < j->count; i++) {
        const int32_t *m = n + NUMBERS + EACH * i;
        Tensor *t = &j->tensor[i];
        t->dim = m[0]; t->rotated = m[1] != 0; t->given = m[2] != 0; t->mode = m[3]; t->inputs = m[4]; t->factors = m[5];
        memcpy(t->input, m + 6, sizeof t->input);
        memcpy(t->factor, m + 6 + MOST_INPUTS, sizeof t->factor);
        memcpy(t->token, m + 6 + MOST_INPUTS + 3, sizeof t->token);
    }
}

static int table_fits(Job *j, const Py_buffer *table, const Py_buffer *entries) {
    if (!j->has_table) return 1;
    const uint64_t width = (uint64_t)j->heads * ((uint64_t)j->tensor[0].dim + j->tensor[1].dim);
    j->table = table->buf;
    j->rows = (size_t)table->len / 2 / width;
    j->entries = entries->buf;
    if (j->rows >= 1 << 16 || !has(table, j->rows * width, 2) || !has(entries, j->tokens, 2)) return 0;
    for (int i = 0; i < j->tokens; i++) /* the encoder's own; the decoder reads them from the wire */
        if (j->entries[i] > j->rows) return 0;
    return 1;
}

/* Every word of the tables, for what they say is used as an index and a divisor. */
static int tables_fit(Job *j, const Py_buffer *slots, const Py_buffer *frequency, const Py_buffer *reciprocal) {
    if (!has(slots, (uint64_t)CONTEXTS << j->bits, 4) || !has(frequency, CONTEXTS * SYMBOLS, 4) ||
        !has(reciprocal, CONTEXTS * SYMBOLS, 8))
        return 0;
    j->slots = slots->buf;
    j->frequency = frequency->buf;
    j->reciprocal = reciprocal->buf;
    for (int c = 0; c < CONTEXTS; c++)
        if (!(j->frequency[c * SYMBOLS + ESCAPE] & 0xffff)) return 0;
    return 1;
}

enum { COSINE, SINE, SLOTS, FREQUENCY, RECIPROCAL, TABLE, ENTRIES, SHARED };

typedef struct {
    Job job;
    Py_buffer *held; /* of each tensor its arrays and its words, then the shared ones */
    int buffers;
} Given;

static int take(Given *g, PyObject *from, int flags) {
    if (PyObject_GetBuffer(from, &g->held[g->buffers], flags)) return 0;
    g->buffers++;
    return 1;
}

static void give_back(Given *g) {
    for (int i = 0; i < g->buffers; i++) PyBuffer_Release(&g->held[i]);
    free(g->held);
    free(g->job.tensor);
}

/* Fills in a Job, or sets an error.  Lengths are compared with bounded numbers before anything is multiplied by them. */
static int given(Given *g, PyObject *numbers, PyObject *arrays, PyObject *words, PyObject *shared, int decoding) {
    Py_buffer n;
    memset(g, 0, sizeof *g);
    if (PyObject_GetBuffer(numbers, &n, PyBUF_SIMPLE)) return 0;
    const int32_t *v = n.buf;
    int count = n.len >= 4 * NUMBERS && (uintptr_t)n.buf % 4 == 0 ? v[9] : 0;
    int good = count > 0 && count <= MOST_TENSORS && n.len == 4 * (Py_ssize_t)(NUMBERS + EACH * count) &&
               PyTuple_Check(arrays) && PyTuple_Check(words) && PyTuple_Check(shared) && PyTuple_Size(arrays) == count &&
               PyTuple_Size(words) == count && PyTuple_Size(shared) == SHARED;
    if (good) {
        g->job.tensor = calloc(count, sizeof *g->job.tensor);
        g->held = calloc(2 * (size_t)count + SHARED, sizeof *g->held);
        good = g->job.tensor && g->held;
    }
    if (good) {
        numbers_into(&g->job, v);
        good = job_fits(&g->job);
    }
    PyBuffer_Release(&n);
    Job *j = &g->job;
    for (int i = 0; i < count && good; i++) {
        int flags = PyBUF_STRIDED | (decoding && !j->tensor[i].given ? PyBUF_WRITABLE : 0);
        good = take(g, PyTuple_GetItem(arrays, i), PyBUF_SIMPLE) && tensor_from(&j->tensor[i], j, &g->held[g->buffers - 1]) &&
               take(g, PyTuple_GetItem(words, i), flags) && words_from(&j->tensor[i], j, &g->held[g->buffers - 1]);
    }
    for (int i = 0; i < SHARED && good; i++)
        good = take(g, PyTuple_GetItem(shared, i), i == ENTRIES && decoding ? PyBUF_WRITABLE : PyBUF_SIMPLE);
    if (good) {
        const Py_buffer *s = &g->held[2 * count];
        const uint64_t angles = (uint64_t)j->tokens * j->pairs;
        j->cosine = s[COSINE].buf;
        j->sine = s[SINE].buf;
        good = has(&s[COSINE], angles, 4) && has(&s[SINE], angles, 4) && table_fits(j, &s[TABLE], &s[ENTRIES]) &&
               tables_fit(j, &s[SLOTS], &s[FREQUENCY], &s[RECIPROCAL]);
    }
    if (!good) {
        give_back(g);
        if (!PyErr_Occurred()) PyErr_SetString(PyExc_ValueError, "lengths do not agree");
    }
    return good;
}

static PyObject *py_decode(PyObject *self, PyObject *args) {
    PyObject *numbers, *arrays, *words, *shared;
    Py_buffer wire;
    Given g;
    int level, failed;
    (void)self;
    if (!PyArg_ParseTuple(args, "OOOOy*i", &numbers, &arrays, &words, &shared, &wire, &level)) return NULL;
    if (!given(&g, numbers, arrays, words, shared, 1)) {
        PyBuffer_Release(&wire);
        return NULL;
    }
    level = level < 0 || level > best_level() ? best_level() : level;
    Py_BEGIN_ALLOW_THREADS
    failed = decode_chunk(&g.job, wire.buf, (size_t)wire.len, level);
    Py_END_ALLOW_THREADS
    give_back(&g);
    PyBuffer_Release(&wire);
    if (failed == NO_MEMORY) return PyErr_NoMemory();
    if (failed) return PyErr_SetString(PyExc_ValueError, FAULTS[failed]), NULL;
    Py_RETURN_NONE;
}

static PyObject *py_encode(PyObject *self, PyObject *args) {
    PyObject *numbers, *arrays, *words, *shared;
    Given g;
    uint8_t *out = NULL;
    size_t length = 0;
    int level, failed;
    (void)self;
    if (!PyArg_ParseTuple(args, "OOOOi", &numbers, &arrays, &words, &shared, &level)) return NULL;
    if (!given(&g, numbers, arrays, words, shared, 0)) return NULL;
    level = level < 0 || level > best_level() ? best_level() : level;
    Py_BEGIN_ALLOW_THREADS
    failed = encode_chunk(&g.job, &out, &length, level);
    Py_END_ALLOW_THREADS
    give_back(&g);
    if (failed) return PyErr_NoMemory();
    PyObject *made = PyBytes_FromStringAndSize((const char *)out, (Py_ssize_t)length);
    free(out);
    return made;
}

static PyObject *py_level(PyObject *self, PyObject *args) {
    (void)self;
    (void)args;
    return PyLong_FromLong(best_level());
}

static PyMethodDef methods[] = {
    {"level", py_level, METH_NOARGS, "The widest form that this processor has: 0 portable, 1 AVX2, 2 AVX-512 with VNNI."},
    {"decode", py_decode, METH_VARARGS, "Decode a chunk into the words of its tensors."},
    {"encode", py_encode, METH_VARARGS, "Encode a chunk."},
    {NULL, NULL, 0, NULL},
};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_stream", NULL, -1, methods, NULL, NULL, NULL, NULL};
PyMODINIT_FUNC PyInit__stream(void) { return PyModule_Create(&module); }
