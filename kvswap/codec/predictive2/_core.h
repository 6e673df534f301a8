/* The codec `predictive2` in C, apart from Python: what a chunk is coded with (Job), and its decoder and encoder in a
 * portable form, for AVX2 and for AVX-512 with VNNI.  `plain.py` says the same in numpy and manifests/FORMAT.md in words.
 * All forms give the same bits: sums are integers, and every operation in float32 is rounded by itself (compile with
 * -ffp-contract=off), to the nearest; values are such that flushing denormals to zero changes nothing.
 *
 * Nothing here trusts the wire.  Shapes and the arrays of a predictor are checked by who fills in a Job (job_fits). */

#include <float.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(FLT_EVAL_METHOD) && FLT_EVAL_METHOD != 0
#error "float32 must be rounded after every operation"
#endif

enum { LANES = 32, SYMBOLS = 64, MIDDLE = 32, ESCAPE = 63, FINEST = -12, COARSEST = 7, COARSE = 1 };
enum { CONTEXTS = 4 * (COARSEST - FINEST + 1), MOST_DIM = 1024, MOST_BACK = 8, MOST_INPUTS = 2 * MOST_BACK + 1 };
enum { MOST_TOKENS = (1 << 16) - 1, MOST_CHANNELS = 1 << 16, MOST_TENSORS = 1024, MOST_BITS = 12, TILE = 32, ROWS = 8 };
enum { TOKEN_CAP = 24, WRONG_CAP = 128, HEADER = 8, TINY = 27, KEPT = 200 };
#define LOW 65536u

enum { GOOD, NO_HEADER, NO_LENGTH, NO_ENTRY, NO_STATE, NO_WORDS, NO_RUN, NO_END, NO_MEMORY };
enum { BY_MEAN, BY_SUMS, BY_TABLE };

typedef struct { int bits, mantissa, bias, exponents, least, longest; } Form; /* exponents: the mask of the field */

static const Form FORMS[3] = {
    {16, 7, 127, 255, -133, 8}, /* bfloat16 */
    {16, 10, 15, 31, -24, 5},   /* float16 */
    {32, 23, 127, 255, -149, 8} /* float32 */
};

typedef struct {
    int dim, rotated, given, mode; /* given: not coded, but known before */
    int inputs, input[MOST_INPUTS];
    int factors, factor[3]; /* tensors whose errors the token factor follows from; -1 factors: it is 0 */
    int32_t token[7];
    const float *mean, *scale, *feature, *inverse; /* [heads * dim] */
    const int32_t *log_sigma;                      /* [heads * dim] */
    const int32_t *correction;                     /* [heads][dim up to a multiple of TILE] */
    const int8_t *weights;                         /* [heads][tile][four features][TILE channels][4] */
    size_t fours;                                  /* of all inputs together */
    char *words;                                   /* [head, token, dim], by strides in bytes */
    ptrdiff_t head_stride, token_stride;
} Tensor;

typedef struct {
    int kind, tokens, heads, pairs, bits, slice_log, count; /* kind: an index into FORMS */
    Tensor *tensor;
    const float *cosine, *sine;                              /* [tokens, pairs] */
    const uint32_t *slots;                                   /* [CONTEXTS, 1 << bits] */
    const uint32_t *frequency;                               /* [CONTEXTS, SYMBOLS]: frequency, start << 16 */
    const double *reciprocal;                                /* [CONTEXTS, SYMBOLS]: 1 / frequency */
    const int16_t *table; size_t rows;                       /* the token table, [rows, channels of K and V] */
    int missing[2];
    uint16_t *entries;                                       /* [tokens], if there is a table */
    int has_table;
} Job;

typedef struct { uint32_t state[LANES]; const uint8_t *at, *end; } Stream;

/* What is known of a chunk while it is coded. */
typedef struct {
    uint8_t *features; /* [ring][tokens up to a multiple of ROWS][channels up to a multiple of 4] */
    size_t slot;
    int ring;
    int32_t *wrong;   /* [tokens], of the tensor at work */
    int32_t *errors;  /* [tensors][tokens], quarter octaves */
    int32_t *factor;  /* [tokens] */
    int32_t *sums;    /* [slice up to a multiple of ROWS][dim up to a multiple of TILE] */
} Work;

/* A row of one head. */
typedef struct {
    float mu[MOST_DIM], value[MOST_DIM];
    int32_t base[MOST_DIM], width[MOST_DIM], context[MOST_DIM], word[MOST_DIM];
} Row;

static inline size_t up(size_t n, size_t to) { return (n + to - 1) / to * to; }
static inline float as_float(int32_t x) { float f; memcpy(&f, &x, 4); return f; }
static inline int32_t as_int(float f) { int32_t x; memcpy(&x, &f, 4); return x; }
static inline uint32_t word_at(const uint8_t *p) { uint16_t w; memcpy(&w, p, 2); return w; }

static inline int log_of(uint32_t x) { /* floor of log2; x > 0 */
    int n = 0;
    for (int by = 16; by; by >>= 1)
        if (x >> by) { x >>= by; n += by; }
    return n;
}

static int quarter_log(int64_t x) { /* floor(4 * log2); 0 < x < 2^40 */
    int n = x >> 32 ? 32 + log_of((uint32_t)(x >> 32)) : log_of((uint32_t)x);
    int64_t m = x << 20 >> n;
    return 4 * n + (m >= 1246975) + (m >= 1482911) + (m >= 1763488);
}

static inline int slices_of(const Job *j) { return (int)(((size_t)j->tokens + ((size_t)1 << j->slice_log) - 1) >> j->slice_log); }
static inline int slice_tokens(const Job *j, int slice) {
    int left = j->tokens - (slice << j->slice_log), most = 1 << j->slice_log;
    return left < most ? left : most;
}

/* Bounds on everything that is multiplied below; who fills in a Job compares the arrays' lengths with these numbers. */
static int job_fits(const Job *j) {
    if (j->kind < 0 || j->kind > 2 || j->tokens < 1 || j->tokens > MOST_TOKENS || j->heads < 1 || j->heads > MOST_CHANNELS)
        return 0;
    if (j->pairs < 0 || j->bits < 10 || j->bits > MOST_BITS || j->count < 1 || j->count > MOST_TENSORS) return 0;
    if (j->slice_log < 5 || j->slice_log > 8 || (j->has_table && j->count < 2)) return 0;
    for (int i = 0; i < j->count; i++) {
        const Tensor *t = &j->tensor[i];
        if (t->dim < 1 || t->dim > MOST_DIM || (int64_t)t->dim * j->heads > MOST_CHANNELS) return 0;
        if (t->mode < BY_MEAN || t->mode > BY_TABLE || (t->mode == BY_TABLE && (i > 1 || !j->has_table))) return 0;
        if (t->rotated && 2 * j->pairs > t->dim) return 0;
        if (t->inputs < 0 || t->inputs > MOST_INPUTS || t->factors > 3) return 0;
        for (int k = 0; k < t->inputs; k++)
            if (t->input[k] < 0 || t->input[k] >= i || i - t->input[k] > MOST_INPUTS) return 0;
        for (int k = 0; k < t->factors; k++)
            if (t->factor[k] < 0 || t->factor[k] >= i) return 0;
    }
    return 1;
}

static int begin_work(Work *w, const Job *j) {
    size_t widest = 0, dim = 0, tokens = up(j->tokens, ROWS);
    for (int i = 0; i < j->count; i++) {
        size_t d = j->tensor[i].dim;
        widest = widest < up(d * j->heads, 4) ? up(d * j->heads, 4) : widest;
        dim = dim < d ? d : dim;
    }
    w->ring = MOST_INPUTS + 1 < j->count ? MOST_INPUTS + 1 : j->count;
    w->slot = tokens * widest;
    w->features = calloc(w->ring, w->slot);
    w->wrong = calloc(j->tokens, 4);
    w->factor = calloc(j->tokens, 4);
    w->errors = calloc((size_t)j->count * j->tokens, 4);
    w->sums = calloc(up((size_t)1 << j->slice_log, ROWS) * up(dim, TILE), 4);
    return w->features && w->wrong && w->factor && w->errors && w->sums;
}

static void end_work(Work *w) {
    free(w->features); free(w->wrong); free(w->factor); free(w->errors); free(w->sums);
}

static inline uint8_t *features_at(const Work *w, const Job *j, int tensor, size_t token) {
    return w->features + (tensor % w->ring) * w->slot + token * up((size_t)j->tensor[tensor].dim * j->heads, 4);
}

/* By how many quarter octaves sigma of each token differs. */
static void token_factors(Work *w, const Job *j, int n) {
    const Tensor *t = &j->tensor[n];
    for (int i = 0; i < j->tokens; i++) {
        int32_t out = 0;
        if (t->mode == BY_TABLE) out = j->entries[i] ? 0 : j->missing[n];
        else if (t->factors >= 0) {
            int64_t total = t->token[2 * t->factors];
            for (int k = 0; k < t->factors; k++)
                total += (int64_t)t->token[2 * k] * ((int64_t)w->errors[(size_t)t->factor[k] * j->tokens + i] - t->token[2 * k + 1]);
            total = (total + 8) >> 4;
            out = (int32_t)(total < -TOKEN_CAP ? -TOKEN_CAP : total > TOKEN_CAP ? TOKEN_CAP : total);
        }
        w->factor[i] = out;
        w->wrong[i] = 0;
    }
}

static void token_errors(Work *w, const Job *j, int n) {
    int64_t channels = (int64_t)j->tensor[n].dim * j->heads;
    for (int i = 0; i < j->tokens; i++)
        w->errors[(size_t)n * j->tokens + i] = quarter_log((int64_t)w->wrong[i] * 16 / channels + 1);
}

static inline void load_words(int32_t *out, const char *from, int width, int n) {
    if (width == 2)
        for (int i = 0; i < n; i++) { uint16_t w; memcpy(&w, from + 2 * i, 2); out[i] = w; }
    else memcpy(out, from, 4 * (size_t)n);
}

static inline void store_words(char *to, const int32_t *from, int width, int n) {
    if (width == 2)
        for (int i = 0; i < n; i++) { uint16_t w = (uint16_t)from[i]; memcpy(to + 2 * i, &w, 2); }
    else memcpy(to, from, 4 * (size_t)n);
}

/* What the encoder keeps of each value until it writes, from the last value to the first. */
typedef struct { uint16_t *index, *raw, *high; uint8_t *count; } Split; /* high: of raw bits, in float32 */

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)

#define LEVEL 0
#define AS(name) JOIN(name, _portable)
#include "_rows.h"
#undef AS
#undef LEVEL

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define WIDER 1
#include <immintrin.h>

#define AVX2 "avx2,bmi,popcnt"
#define AVX512 "avx512f,avx512bw,avx512vl,avx512cd,avx512dq,avx512vnni,avx2,bmi,popcnt"

#define LEVEL 1
#define AS(name) JOIN(name, _avx2)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target(AVX2))), apply_to = function)
#include "_rows.h"
#pragma clang attribute pop
#else
#pragma GCC push_options
#pragma GCC target("avx2,bmi,popcnt")
#include "_rows.h"
#pragma GCC pop_options
#endif
#undef AS
#undef LEVEL

#define LEVEL 2
#define AS(name) JOIN(name, _avx512)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target(AVX512))), apply_to = function)
#include "_rows.h"
#pragma clang attribute pop
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512cd,avx512dq,avx512vnni,avx2,bmi,popcnt,prefer-vector-width=512")
#include "_rows.h"
#pragma GCC pop_options
#endif
#undef AS
#undef LEVEL
#endif

/* The best form that this processor has: 0 portable, 1 AVX2, 2 AVX-512 with VNNI. */
static int best_level(void) {
#ifdef WIDER
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni") &&
        __builtin_cpu_supports("bmi"))
        return 2;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi")) return 1;
#endif
    return 0;
}

static int decode_chunk(Job *j, const uint8_t *wire, size_t length, int level) {
#ifdef WIDER
    if (level == 2) return decode_chunk_avx512(j, wire, length);
    if (level == 1) return decode_chunk_avx2(j, wire, length);
#endif
    return decode_chunk_portable(j, wire, length);
}

/* Writes a chunk; the bytes are *out, to be freed by the caller. */
static int encode_chunk(Job *j, uint8_t **out, size_t *length, int level) {
#ifdef WIDER
    if (level == 2) return encode_chunk_avx512(j, out, length);
    if (level == 1) return encode_chunk_avx2(j, out, length);
#endif
    return encode_chunk_portable(j, out, length);
}
