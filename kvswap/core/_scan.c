/* One pass over msgpack bytes that counts and checks and builds nothing: what scan.py says in Python.
 * Large input is read without the interpreter lock.  A wheel without this module is complete. */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { DEEPEST = 256, FEW = 16, LARGE = 64 * 1024 };

typedef struct { const uint8_t *at; uint32_t length, binary; } Key;
typedef struct { uint64_t left; size_t first; int map; } Level; /* first: of its keys, among those of all open maps */
typedef struct { Key *keys; size_t count, room; } Keys;

static int add(Keys *k, const uint8_t *at, uint32_t length, uint32_t binary) {
    if (k->count == k->room) {
        size_t room = k->room ? 2 * k->room : 64; /* below 2^32 entries of at least a byte each */
        Key *more = realloc(k->keys, room * sizeof(Key));
        if (!more) return 0;
        k->keys = more;
        k->room = room;
    }
    k->keys[k->count++] = (Key){at, length, binary};
    return 1;
}

static int compare(const void *a, const void *b) {
    const Key *x = a, *y = b;
    if (x->length != y->length) return x->length < y->length ? -1 : 1;
    if (x->binary != y->binary) return x->binary < y->binary ? -1 : 1;
    return memcmp(x->at, y->at, x->length);
}

static int twice(Key *keys, size_t count) {
    if (count <= FEW) {
        for (size_t i = 1; i < count; i++)
            for (size_t j = 0; j < i; j++)
                if (!compare(keys + i, keys + j)) return 1;
        return 0;
    }
    qsort(keys, count, sizeof(Key), compare);
    for (size_t i = 1; i < count; i++)
        if (!compare(keys + i, keys + i - 1)) return 1;
    return 0;
}

/* RFC 3629: no surrogates, nothing longer than it need be, nothing beyond U+10FFFF. */
static int is_text(const uint8_t *s, size_t n) {
    size_t i = 0;
    while (i < n) {
        uint64_t eight;
        if (n - i >= 8 && (memcpy(&eight, s + i, 8), !(eight & 0x8080808080808080u))) { i += 8; continue; }
        uint8_t c = s[i];
        size_t more = c < 0x80 ? 0 : c >= 0xC2 && c <= 0xDF ? 1 : c >= 0xE0 && c <= 0xEF ? 2 : c >= 0xF0 && c <= 0xF4 ? 3 : 9;
        if (more == 9 || n - i <= more) return 0;
        for (size_t k = 1; k <= more; k++)
            if ((s[i + k] & 0xC0) != 0x80) return 0;
        if ((c == 0xE0 && s[i + 1] < 0xA0) || (c == 0xED && s[i + 1] > 0x9F) || (c == 0xF0 && s[i + 1] < 0x90) ||
            (c == 0xF4 && s[i + 1] > 0x8F))
            return 0;
        i += more + 1;
    }
    return 1;
}

static uint64_t number(const uint8_t *p, int width) { /* big endian */
    uint64_t n = 0;
    for (int i = 0; i < width; i++) n = n << 8 | p[i];
    return n;
}

typedef struct { int container, map, text, binary; uint64_t n; } Head; /* n: bytes that follow, or entries */

/* The head of the value at `*at`, which moves on to what follows it. */
static const char *head(const uint8_t *data, size_t size, size_t *at, Head *h) {
    *h = (Head){0, 0, 0, 0, 0};
    if (*at >= size) return "it ends too early";
    uint8_t b = data[(*at)++];
    int width = 0; /* of the length that stands next */
    if (b < 0x80 || b >= 0xE0) { }
    else if (b < 0x90) { h->container = h->map = 1; h->n = b & 15; }
    else if (b < 0xA0) { h->container = 1; h->n = b & 15; }
    else if (b < 0xC0) { h->text = 1; h->n = b & 31; }
    else if (b == 0xC1) return "a byte that stands for nothing";
    else if (b < 0xC4) { }
    else if (b < 0xC7) { h->binary = 1; width = 1 << (b - 0xC4); }
    else if (b < 0xCA || (b >= 0xD4 && b < 0xD9)) return "extension types are not used";
    else if (b < 0xCC) h->n = b == 0xCA ? 4 : 8;
    else if (b < 0xD4) h->n = 1u << (b & 3);
    else if (b < 0xDC) { h->text = 1; width = 1 << (b - 0xD9); }
    else { h->container = 1; h->map = b >= 0xDE; width = b & 1 ? 4 : 2; }
    if (size - *at < (size_t)width) return "it ends too early";
    if (width) h->n = number(data + *at, width);
    *at += (size_t)width;
    if (!h->container && h->n > size - *at) return "it ends too early";
    return NULL;
}

static const char *pass(const uint8_t *data, size_t size, uint64_t most, int deepest, uint64_t *counted, Keys *keys) {
    Level levels[DEEPEST + 1];
    levels[0] = (Level){1, 0, 0};
    int level = 0;
    size_t at = 0;
    uint64_t items = 0;
    for (;;) {
        Level *here = levels + level;
        if (!here->left) {
            if (here->map) {
                if (twice(keys->keys + here->first, keys->count - here->first)) return "a key appears twice";
                keys->count = here->first;
            }
            if (!level--) break;
            continue;
        }
        int key = here->map && !(here->left & 1);
        here->left--;
        Head h;
        const char *wrong = head(data, size, &at, &h);
        if (wrong) return wrong;
        if (++items > most) return "more items than such a message may have";
        if (key) {
            if (!h.text && !h.binary) return "a key that is no text";
            if (!add(keys, data + at, (uint32_t)h.n, (uint32_t)h.binary)) return "no memory";
        }
        if (h.container) {
            uint64_t entries = h.map ? 2 * h.n : h.n; /* below 2^33 */
            if (entries > most - items) return "more items than such a message may have";
            if (entries > size - at) return "it ends too early";
            if (level >= deepest) return "it is too deep";
            levels[++level] = (Level){entries, keys->count, h.map};
        } else {
            if (h.text && !is_text(data + at, h.n)) return "text that is not UTF-8";
            at += h.n;
        }
    }
    if (at != size) return "something follows it";
    *counted = items;
    return NULL;
}

/* Offsets of every so manieth element of an array, and of its end; bytes that `scan` has passed. */
static PyObject *py_starts(PyObject *self, PyObject *args) {
    Py_buffer b;
    Py_ssize_t every;
    if (!PyArg_ParseTuple(args, "y*n", &b, &every)) return NULL;
    const uint8_t *data = b.buf;
    size_t size = (size_t)b.len, at = 0;
    Head h;
    const char *wrong = every > 0 ? head(data, size, &at, &h) : "no such step";
    PyObject *out = PyList_New(0);
    if (!wrong && (!h.container || h.map)) wrong = "it is no array";
    uint64_t elements = wrong ? 0 : h.n;
    for (uint64_t i = 0; out && !wrong && i <= elements; i++) {
        if (i % (uint64_t)every == 0 || i == elements) {
            PyObject *start = PyLong_FromSize_t(at);
            if (!start || PyList_Append(out, start)) { Py_XDECREF(start); Py_CLEAR(out); break; }
            Py_DECREF(start);
        }
        for (uint64_t left = i < elements; left && !wrong;) {
            wrong = head(data, size, &at, &h);
            left--;
            if (h.container) left += h.map ? 2 * h.n : h.n;
            else at += h.n;
        }
    }
    PyBuffer_Release(&b);
    if (wrong) { Py_XDECREF(out); return PyErr_SetString(PyExc_ValueError, wrong), NULL; }
    return out;
}

static PyObject *py_scan(PyObject *self, PyObject *args) {
    Py_buffer data;
    long long most;
    int deepest;
    if (!PyArg_ParseTuple(args, "y*Li", &data, &most, &deepest)) return NULL;
    const char *wrong = NULL;
    uint64_t items = 0;
    Keys keys = {NULL, 0, 0};
    if ((uint64_t)data.len >= UINT64_C(1) << 31) wrong = "it is too large";
    else if (most < 0 || deepest < 0 || deepest > DEEPEST) wrong = "such caps are not held";
    else if (data.len < LARGE) wrong = pass(data.buf, (size_t)data.len, (uint64_t)most, deepest, &items, &keys);
    else {
        Py_BEGIN_ALLOW_THREADS
        wrong = pass(data.buf, (size_t)data.len, (uint64_t)most, deepest, &items, &keys);
        Py_END_ALLOW_THREADS
    }
    free(keys.keys);
    PyBuffer_Release(&data);
    if (wrong) return PyErr_SetString(PyExc_ValueError, wrong), NULL;
    return PyLong_FromUnsignedLongLong(items);
}

static PyMethodDef methods[] = {
    {"scan", py_scan, METH_VARARGS, "scan(data, items, depth): see scan.py."},
    {"starts", py_starts, METH_VARARGS, "starts(data, every): see scan.py."},
    {NULL, NULL, 0, NULL},
};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_scan", NULL, -1, methods, NULL, NULL, NULL, NULL};
PyMODINIT_FUNC PyInit__scan(void) { return PyModule_Create(&module); }
