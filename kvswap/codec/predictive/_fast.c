/* The inner loops of the codec `predictive`: what buckets.py, rans.py, rope.py and predictor.py say in
 * numpy, in one pass each, without the interpreter lock.  Integer arithmetic throughout; the two places
 * where floating point occurs (bit patterns to whole units, sums of integers below 2^24) are exact.
 * A wheel without this module is complete: the numpy form reads and writes the same bytes. */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>
#include <stdint.h>
#include <string.h>

#if defined(__GNUC__) && defined(__x86_64__) && defined(__GLIBC__) && !defined(__clang__)
#define WIDE __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define WIDE
#endif

enum { LANES = 128, SLOTS = 4096, ESCAPE = 127, MIDDLE = 64, FINEST = -12, COARSEST = 11, LONGEST_RUN = 15 };
enum { LARGEST = 1 << 26, FAR = 1 << 30, CAP = 8 * 16, FEATURE = 127 };
#define LOW 65536u

static inline int bits_of(uint64_t x) {
#if defined(__GNUC__)
    return x ? 64 - __builtin_clzll(x) : 0;
#else
    int n = 0;
    while (x) { n++; x >>= 1; }
    return n;
#endif
}

typedef struct { int bits, mantissa, bias, exponents; } Form; /* exponents: the mask of the field */

static Form form_of(int kind) { /* 0 bfloat16, 1 float16, 2 float32 */
    Form f[3] = {{16, 7, 127, 255}, {16, 10, 15, 31}, {32, 23, 127, 255}};
    return f[kind];
}

static inline uint32_t word_at(const void *words, int width, size_t i) {
    return width == 2 ? ((const uint16_t *)words)[i] : ((const uint32_t *)words)[i];
}

/* -- where the buckets lie (buckets.Frame) ------------------------------------------------------ */

enum { COLUMNS = 256 };
typedef struct {
    int32_t base[COLUMNS]; /* below 2^25: a bucket is no finer than the last place */
    int32_t log_width[COLUMNS];
    uint8_t context[COLUMNS];
} Frames;

/* Apart from the coding, so that the compiler makes vector instructions of it. */
WIDE static void frames_of(Frames *r, Form f, const int32_t *mu, const int16_t *log_sigma, int token, int unit,
                           size_t n) {
    const int64_t least = 1 - f.bias - f.mantissa, finest = -unit - 4;
    for (size_t i = 0; i < n; i++) {
        int64_t m = mu[i], sigma = log_sigma[i] + token, octave = sigma >> 2;
        int64_t size = m < 0 ? -m : m, power = octave + unit;
        power = power < 0 ? 0 : power > 40 ? 40 : power;
        double reach = (double)(size + ((int64_t)1 << power)); /* exact: below 2^53 */
        int64_t raw;
        memcpy(&raw, &reach, 8);
        int64_t width = (raw >> 52) - 1023 - unit - f.mantissa;
        width = width < least ? least : width;
        width = width < octave - 2 ? octave - 2 : width;
        width = width < finest ? finest : width;
        int64_t shift = width + unit + 4, ratio = sigma - 4 * width;
        shift = shift > 62 ? 62 : shift;
        ratio = ratio < FINEST ? FINEST : ratio > COARSEST ? COARSEST : ratio;
        r->base[i] = (int32_t)((size << 4) >> shift);
        r->log_width[i] = (int32_t)width;
        r->context[i] = (uint8_t)((ratio - FINEST) * 4 + (((size << 6) >> shift) & 3));
    }
}

/* -- bits ---------------------------------------------------------------------------------------- */

typedef struct { const uint8_t *data; uint64_t at, end; } Reader; /* 8 bytes behind the end are readable */

static inline uint64_t window(const Reader *r) {
    uint64_t w;
    memcpy(&w, r->data + (r->at >> 3), 8); /* little endian, which Python's callers check */
    return w >> (r->at & 7);
}

typedef struct { uint8_t *data; uint64_t hold; int held; size_t at, room; } Writer;

static inline int put(Writer *w, uint64_t value, int count) { /* count <= 32 */
    if (w->held >= 8) return 0; /* there was no room before: nothing is shifted any further */
    w->hold |= value << w->held;
    w->held += count;
    while (w->held >= 8) {
        if (w->at >= w->room) return 0;
        w->data[w->at++] = (uint8_t)w->hold;
        w->hold >>= 8;
        w->held -= 8;
    }
    return 1;
}

/* -- one segment --------------------------------------------------------------------------------- */

typedef struct {
    Form form;
    int width, unit;
    size_t tokens, channels;
    const int32_t *mu;         /* [tokens, channels] */
    const int16_t *log_sigma;  /* [channels] */
    const int16_t *token;      /* [tokens] */
} Segment;

static int decode_segment(const Segment *s, uint32_t *state, const uint16_t *words, size_t *at, size_t end,
                          const uint8_t *symbols, const uint16_t *starts, const uint16_t *frequencies,
                          Reader *runs, Reader *plain, void *out) {
    const Form f = s->form;
    const uint32_t mask = (1u << f.mantissa) - 1;
    size_t lane = 0, position = *at;
    Frames r;
    for (size_t t = 0; t < s->tokens; t++) {
        if (position > end) return 1; /* a row of words behind the end is readable */
        for (size_t c = 0; c < s->channels; c++) {
            size_t i = t * s->channels + c, k = c % COLUMNS;
            if (!k) {
                size_t n = s->channels - c < COLUMNS ? s->channels - c : COLUMNS;
                frames_of(&r, f, s->mu + i, s->log_sigma + c, s->token[t], s->unit, n);
            }
            uint32_t x = state[lane], slot = x & (SLOTS - 1);
            uint32_t symbol = symbols[(size_t)r.context[k] * SLOTS + slot];
            size_t entry = (size_t)r.context[k] * 128 + symbol;
            x = frequencies[entry] * (x >> 12) + slot - starts[entry];
            uint32_t low = x < LOW; /* without a branch: it would be guessed wrong every fourth time */
            uint32_t longer = x << 16 | words[position];
            x = low ? longer : x;
            position += low;
            state[lane] = x;
            lane = (lane + 1) & (LANES - 1);
            uint32_t word;
            if (symbol == ESCAPE) {
                if (plain->at + f.bits > plain->end) return 2;
                word = (uint32_t)(window(plain) & (f.bits == 32 ? 0xFFFFFFFFu : 0xFFFFu));
                plain->at += f.bits;
            } else {
                int64_t bucket = (int64_t)symbol - MIDDLE + r.base[k];
                uint32_t sign = (uint32_t)((bucket < 0) ^ (s->mu[i] < 0));
                uint64_t steps = (uint64_t)(bucket < 0 ? -1 - bucket : bucket);
                uint32_t fraction;
                int exponent;
                if (steps == 0) {
                    uint64_t w = window(runs);
                    if (!w) return 3;
                    int run = bits_of(w & (~w + 1)) - 1;
                    runs->at += run + 1;
                    if (run > LONGEST_RUN || runs->at > runs->end || plain->at + f.mantissa > plain->end) return 3;
                    fraction = (uint32_t)window(plain) & mask;
                    plain->at += f.mantissa;
                    exponent = r.log_width[k] - 1 - run + f.bias;
                } else {
                    int over = f.mantissa - (bits_of(steps) - 1);
                    if (over >= 0) {
                        if (plain->at + over > plain->end) return 2;
                        fraction = (uint32_t)(steps << over | (window(plain) & (((uint64_t)1 << over) - 1))) & mask;
                        plain->at += over;
                    } else
                        fraction = (uint32_t)(steps >> (over < -60 ? 60 : -over)) & mask;
                    exponent = r.log_width[k] - over + f.mantissa + f.bias;
                }
                word = ((uint32_t)exponent & f.exponents) << f.mantissa | fraction | sign << (f.bits - 1);
            }
            if (s->width == 2) ((uint16_t *)out)[i] = (uint16_t)word;
            else ((uint32_t *)out)[i] = word;
        }
    }
    *at = position;
    return position > end;
}

/* -- the same for 16-bit formats, sixteen values at a time ----------------------------------------- */

#if defined(__GNUC__) && defined(__x86_64__)
#include <immintrin.h>
#define HAVE_KERNELS 1
#define SIXTEEN "avx512f,avx512bw,avx512vl,avx512cd,avx512dq,popcnt,bmi"

/* Of a group's symbols: the states move on, `words` gives what they lack.  `table` has for each slot of each
 * context symbol, place within the symbol, and frequency, in 7, 12 and 13 bits. */
__attribute__((target(SIXTEEN))) static inline __m512i next_symbols(uint32_t *state, const uint16_t *words,
                                                                    size_t *position, const uint32_t *table,
                                                                    const uint8_t *context) {
    __m512i x = _mm512_loadu_si512(state);
    __m512i row = _mm512_slli_epi32(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)context)), 12);
    __m512i slot = _mm512_and_si512(x, _mm512_set1_epi32(SLOTS - 1));
    __m512i entry = _mm512_i32gather_epi32(_mm512_or_si512(row, slot), table, 4);
    __m512i place = _mm512_and_si512(_mm512_srli_epi32(entry, 7), _mm512_set1_epi32(SLOTS - 1));
    x = _mm512_add_epi32(_mm512_mullo_epi32(_mm512_srli_epi32(entry, 19), _mm512_srli_epi32(x, 12)), place);
    __mmask16 low = _mm512_cmplt_epu32_mask(x, _mm512_set1_epi32(LOW));
    __m512i more = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(words + *position)));
    __m512i longer = _mm512_or_si512(_mm512_slli_epi32(x, 16), _mm512_maskz_expand_epi32(low, more));
    *position += (size_t)__builtin_popcount(low);
    _mm512_storeu_si512(state, _mm512_mask_mov_epi32(x, low, longer));
    return _mm512_and_si512(entry, _mm512_set1_epi32(127));
}

/* Exclusive sums. */
__attribute__((target(SIXTEEN))) static inline __m512i before_each(__m512i counts) {
    const __m512i zero = _mm512_setzero_si512();
    __m512i s = counts;
    s = _mm512_add_epi32(s, _mm512_alignr_epi32(s, zero, 15));
    s = _mm512_add_epi32(s, _mm512_alignr_epi32(s, zero, 14));
    s = _mm512_add_epi32(s, _mm512_alignr_epi32(s, zero, 12));
    s = _mm512_add_epi32(s, _mm512_alignr_epi32(s, zero, 8));
    return _mm512_sub_epi32(s, counts);
}

__attribute__((target(SIXTEEN))) static int decode_sixteens(const Segment *s, uint32_t *state, const uint16_t *words,
                                                            size_t *at, size_t end, const uint32_t *table,
                                                            Reader *runs, Reader *plain, uint16_t *out) {
    const Form f = s->form;
    const __m512i one = _mm512_set1_epi32(1), mask = _mm512_set1_epi32((1 << f.mantissa) - 1);
    const __m512i mantissa = _mm512_set1_epi32(f.mantissa), bias = _mm512_set1_epi32(f.bias);
    size_t lane = 0, position = *at;
    Frames r;
    for (size_t t = 0; t < s->tokens; t++) {
        if (position > end) return 1;
        for (size_t c = 0; c < s->channels; c += 16) {
            size_t i = t * s->channels + c, k = c % COLUMNS;
            if (!k) {
                size_t n = s->channels - c < COLUMNS ? s->channels - c : COLUMNS;
                frames_of(&r, f, s->mu + i, s->log_sigma + c, s->token[t], s->unit, n);
            }
            __m512i symbol = next_symbols(state + lane, words, &position, table, r.context + k);
            lane = (lane + 16) & (LANES - 1);
            __mmask16 escaped = _mm512_cmpeq_epi32_mask(symbol, _mm512_set1_epi32(ESCAPE));
            __m512i bucket = _mm512_add_epi32(_mm512_sub_epi32(symbol, _mm512_set1_epi32(MIDDLE)),
                                              _mm512_loadu_si512(r.base + k));
            __mmask16 below = _mm512_movepi32_mask(bucket);
            __mmask16 negative = below ^ _mm512_movepi32_mask(_mm512_loadu_si512(s->mu + i));
            __m512i steps = _mm512_mask_xor_epi32(bucket, below, bucket, _mm512_set1_epi32(-1));
            __mmask16 touching = _mm512_cmpeq_epi32_mask(steps, _mm512_setzero_si512()) & ~escaped;
            __m512i octave = _mm512_sub_epi32(_mm512_set1_epi32(31), _mm512_lzcnt_epi32(steps));
            __m512i over = _mm512_sub_epi32(mantissa, octave), width = _mm512_loadu_si512(r.log_width + k);
            __m512i shorter = _mm512_max_epi32(over, _mm512_setzero_si512());
            __m512i exponent = _mm512_add_epi32(_mm512_add_epi32(_mm512_sub_epi32(width, over), mantissa), bias);
            __m512i count = _mm512_mask_mov_epi32(shorter, touching, mantissa);
            count = _mm512_mask_mov_epi32(count, escaped, _mm512_set1_epi32(16));
            __m512i first = before_each(count);
            uint64_t total = (uint64_t)(uint32_t)_mm512_reduce_add_epi32(count);
            if (plain->at + total > plain->end) return 2;
            __m512i bit = _mm512_add_epi32(first, _mm512_set1_epi32((int)(plain->at & 7)));
            __m512i bits = _mm512_i32gather_epi32(_mm512_srli_epi32(bit, 3), plain->data + (plain->at >> 3), 1);
            bits = _mm512_srlv_epi32(bits, _mm512_and_si512(bit, _mm512_set1_epi32(7)));
            bits = _mm512_and_si512(bits, _mm512_sub_epi32(_mm512_sllv_epi32(one, count), one));
            plain->at += total;
            __m512i longer = _mm512_srlv_epi32(steps, _mm512_max_epi32(_mm512_sub_epi32(_mm512_setzero_si512(), over),
                                                                       _mm512_setzero_si512()));
            __m512i fraction = _mm512_or_si512(_mm512_sllv_epi32(longer, shorter), bits);
            if (touching) {
                int32_t run[16];
                for (uint32_t left = touching; left; left &= left - 1) {
                    uint64_t w = window(runs);
                    if (!w) return 3;
                    int n = __builtin_ctzll(w);
                    runs->at += n + 1;
                    if (n > LONGEST_RUN || runs->at > runs->end) return 3;
                    run[__builtin_ctz(left)] = n;
                }
                __m512i small = _mm512_sub_epi32(_mm512_sub_epi32(width, one), _mm512_maskz_loadu_epi32(touching, run));
                exponent = _mm512_mask_add_epi32(exponent, touching, small, bias);
                fraction = _mm512_mask_mov_epi32(fraction, touching, bits);
            }
            __m512i word = _mm512_sllv_epi32(_mm512_and_si512(exponent, _mm512_set1_epi32(f.exponents)), mantissa);
            word = _mm512_or_si512(word, _mm512_and_si512(fraction, mask));
            word = _mm512_mask_or_epi32(word, negative, word, _mm512_set1_epi32(0x8000));
            word = _mm512_mask_mov_epi32(word, escaped, bits);
            _mm256_storeu_si256((__m256i *)(out + i), _mm512_cvtepi32_epi16(word));
        }
    }
    *at = position;
    return position > end;
}

static int has_sixteens(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512cd") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("bmi");
}
#endif

static int split_segment(const Segment *s, const void *words, const uint16_t *frequencies, uint8_t *contexts,
                         uint8_t *symbols, Writer *runs, Writer *plain) {
    const Form f = s->form;
    const uint32_t mask = (1u << f.mantissa) - 1;
    int ok = 1;
    Frames r;
    for (size_t t = 0; t < s->tokens && ok; t++) {
        for (size_t c = 0; c < s->channels; c++) {
            size_t i = t * s->channels + c, k = c % COLUMNS;
            if (!k) {
                size_t n = s->channels - c < COLUMNS ? s->channels - c : COLUMNS;
                frames_of(&r, f, s->mu + i, s->log_sigma + c, s->token[t], s->unit, n);
            }
            uint32_t word = word_at(words, s->width, i);
            int exponent = (word >> f.mantissa) & f.exponents;
            uint32_t fraction = word & mask, whole = fraction | 1u << f.mantissa;
            int negative = (int)(word >> (f.bits - 1)) ^ (s->mu[i] < 0);
            int over = r.log_width[k] - (exponent - f.bias - f.mantissa);
            int run = -1, count = 0;
            int64_t steps;
            uint32_t rest = 0;
            int usual = exponent > 0 && exponent < f.exponents && over >= -12;
            if (over > f.mantissa) {
                steps = 0;
                run = over - f.mantissa - 1;
                count = f.mantissa;
                rest = fraction;
                usual = usual && run <= LONGEST_RUN;
            } else if (over >= 0) {
                steps = whole >> over;
                count = over;
                rest = whole & ((1u << over) - 1);
            } else
                steps = (int64_t)whole << (over < -12 ? 12 : -over);
            int64_t symbol = (negative ? -1 - steps : steps) - r.base[k] + MIDDLE;
            usual = usual && symbol >= 0 && symbol < ESCAPE && frequencies[(size_t)r.context[k] * 128 + (size_t)symbol];
            contexts[i] = r.context[k];
            if (usual) {
                symbols[i] = (uint8_t)symbol;
                if (run >= 0) ok &= put(runs, (uint64_t)1 << run, run + 1);
                ok &= put(plain, rest, count);
            } else {
                symbols[i] = ESCAPE;
                ok &= put(plain, word, f.bits);
            }
        }
    }
    return !ok;
}

/* -- sums of features times weights ---------------------------------------------------------------
 * Integers, so any order gives the same sums: at most 1,040 products of 127 * 127 stay below 2^24.
 * Weights are packed by four features of one channel (VNNI), or by two, widened (AVX2). */

#ifdef HAVE_KERNELS
__attribute__((target("avx512f,avx512bw,avx512vnni"))) static void sums_of_fours(
    int32_t *out, const int8_t *x, const int8_t *w, const int32_t *correction, size_t tokens, size_t fours, size_t channels) {
    const __m512i flip = _mm512_set1_epi32((int)0x80808080u); /* x + 128 is what the instruction wants */
    for (size_t c = 0; c < channels; c += 64) {
        for (size_t t = 0; t < tokens; t += 4) {
            size_t rows = tokens - t < 4 ? tokens - t : 4;
            __m512i acc[4][4];
            for (size_t r = 0; r < 4; r++)
                for (size_t k = 0; k < 4; k++) acc[r][k] = _mm512_loadu_si512(correction + c + 16 * k);
            const int8_t *row[4];
            for (size_t r = 0; r < 4; r++) row[r] = x + (t + (r < rows ? r : 0)) * fours * 4;
            for (size_t f = 0; f < fours; f++) {
                __m512i weight[4];
                for (size_t k = 0; k < 4; k++) weight[k] = _mm512_loadu_si512(w + (f * channels + c + 16 * k) * 4);
                for (size_t r = 0; r < 4; r++) {
                    int32_t four;
                    memcpy(&four, row[r] + 4 * f, 4);
                    __m512i value = _mm512_xor_si512(_mm512_set1_epi32(four), flip);
                    for (size_t k = 0; k < 4; k++) acc[r][k] = _mm512_dpbusd_epi32(acc[r][k], value, weight[k]);
                }
            }
            for (size_t r = 0; r < rows; r++)
                for (size_t k = 0; k < 4; k++) _mm512_storeu_si512(out + (t + r) * channels + c + 16 * k, acc[r][k]);
        }
    }
}

__attribute__((target("avx2"))) static void sums_of_twos(int32_t *out, const int16_t *x, const int16_t *w, size_t tokens,
                                                         size_t twos, size_t channels) {
    for (size_t c = 0; c < channels; c += 16) {
        for (size_t t = 0; t < tokens; t += 4) {
            size_t rows = tokens - t < 4 ? tokens - t : 4;
            __m256i acc[4][2];
            for (size_t r = 0; r < 4; r++) acc[r][0] = acc[r][1] = _mm256_setzero_si256();
            const int16_t *row[4];
            for (size_t r = 0; r < 4; r++) row[r] = x + (t + (r < rows ? r : 0)) * twos * 2;
            for (size_t f = 0; f < twos; f++) {
                const __m256i *weight = (const __m256i *)(w + (f * channels + c) * 2);
                __m256i a = _mm256_loadu_si256(weight), b = _mm256_loadu_si256(weight + 1);
                for (size_t r = 0; r < 4; r++) {
                    int32_t two;
                    memcpy(&two, row[r] + 2 * f, 4);
                    __m256i value = _mm256_set1_epi32(two);
                    acc[r][0] = _mm256_add_epi32(acc[r][0], _mm256_madd_epi16(value, a));
                    acc[r][1] = _mm256_add_epi32(acc[r][1], _mm256_madd_epi16(value, b));
                }
            }
            for (size_t r = 0; r < rows; r++)
                for (size_t k = 0; k < 2; k++)
                    _mm256_storeu_si256((__m256i *)(out + (t + r) * channels + c + 8 * k), acc[r][k]);
        }
    }
}
#endif

/* -- what is expected, and what a decoded tensor gives on ---------------------------------------- */

WIDE static void expected(int32_t *mu, const int32_t *sums, size_t stride, const int32_t *scale, const int32_t *mean,
                          size_t tokens, size_t channels) {
    for (size_t t = 0; t < tokens; t++)
        for (size_t c = 0; c < channels; c++) {
            int64_t x = (((int64_t)sums[t * stride + c] * scale[c] + (1 << 23)) >> 24) + mean[c];
            mu[t * channels + c] = (int32_t)(x < -FAR ? -FAR : x > FAR ? FAR : x);
        }
}

WIDE static void turn(int32_t *x, const int32_t *cosines, const int32_t *sines, size_t tokens, size_t heads, size_t dim,
                      size_t pairs, int back) {
    const int64_t sign = back ? -1 : 1;
    for (size_t t = 0; t < tokens; t++)
        for (size_t h = 0; h < heads; h++) {
            int32_t *a = x + (t * heads + h) * dim, *b = a + pairs;
            const int32_t *cs = cosines + t * pairs, *sn = sines + t * pairs;
            for (size_t p = 0; p < pairs; p++) {
                int64_t u = a[p], v = b[p], c = cs[p], s = sign * sn[p];
                int64_t m = (u * c - v * s + (1 << 13)) >> 14, n = (v * c + u * s + (1 << 13)) >> 14;
                a[p] = (int32_t)(m < -FAR ? -FAR : m > FAR ? FAR : m);
                b[p] = (int32_t)(n < -FAR ? -FAR : n > FAR ? FAR : n);
            }
        }
}

static inline double value_of(uint32_t word, int kind) {
    if (kind == 1) {
        int exponent = (word >> 10) & 31;
        int32_t fraction = word & 1023;
        if (exponent == 31) return 0;
        double x = exponent ? (double)(fraction | 1024) * (double)((uint64_t)1 << exponent) / 33554432.0
                            : (double)fraction / 16777216.0;
        return word >> 15 ? -x : x;
    }
    uint32_t bits = kind == 0 ? word << 16 : word;
    if (((bits >> 23) & 255) == 255) return 0;
    float x;
    memcpy(&x, &bits, 4);
    return (double)x;
}

WIDE static void whole_units(int32_t *out, const void *words, int kind, int unit, size_t n) {
    const double by = (double)((uint64_t)1 << unit), magic = 6755399441055744.0; /* 1.5 * 2^52: rounds half to even */
    for (size_t i = 0; i < n; i++) {
        double x = value_of(kind == 2 ? ((const uint32_t *)words)[i] : ((const uint16_t *)words)[i], kind) * by;
        x = x < -LARGEST ? -LARGEST : x > LARGEST ? LARGEST : x;
        out[i] = (int32_t)((x + magic) - magic);
    }
}

static int quarter_log(int64_t x) {
    int bits = bits_of((uint64_t)x) - 1;
    int64_t mantissa = x << 20 >> bits;
    return 4 * bits + (mantissa >= 1246975) + (mantissa >= 1482911) + (mantissa >= 1763488);
}

WIDE static int64_t wrong_sum(const int32_t *x, const int32_t *mu, const int32_t *inverse, size_t channels) {
    int64_t total = 0;
    for (size_t c = 0; c < channels; c++) {
        int64_t d = (int64_t)x[c] - mu[c];
        d = (d < 0 ? -d : d) * inverse[c] >> 16;
        total += d > CAP ? CAP : d;
    }
    return total;
}

WIDE static void features(int8_t *out, const int32_t *x, const int32_t *mean, const int32_t *factor, size_t tokens,
                          size_t channels) {
    for (size_t t = 0; t < tokens; t++)
        for (size_t c = 0; c < channels; c++) {
            int64_t y = (((int64_t)x[t * channels + c] - mean[c]) * factor[c] + (1 << 15)) >> 16;
            out[t * channels + c] = (int8_t)(y < -FEATURE ? -FEATURE : y > FEATURE ? FEATURE : y);
        }
}

/* -- Python -------------------------------------------------------------------------------------- */

#define FAIL(text) (PyErr_SetString(PyExc_ValueError, text), NULL)

/* Every length is checked here: nothing above trusts its caller.  Sizes are bounded before they are multiplied, so that
 * two of them and a small factor fit 64 bits, and lengths are divided. */
static int small(Py_ssize_t n) { return n >= 0 && (uint64_t)n < UINT64_C(1) << 31; }

static int has(const Py_buffer *b, uint64_t items, size_t each) {
    return (size_t)b->len % each == 0 && (uint64_t)b->len / each == items;
}

static PyObject *py_expected(PyObject *self, PyObject *args) {
    Py_buffer mu, sums, scale, mean, cosines, sines;
    Py_ssize_t tokens, channels, heads, pairs, stride;
    if (!PyArg_ParseTuple(args, "w*y*y*y*y*y*nnnnn", &mu, &sums, &scale, &mean, &cosines, &sines, &tokens, &channels,
                          &heads, &pairs, &stride))
        return NULL;
    int good = small(tokens) && small(channels) && small(heads) && small(pairs) && small(stride);
    uint64_t n = good ? (uint64_t)tokens * channels : 0, angles = good ? (uint64_t)tokens * pairs : 0;
    good = good && channels > 0 && heads > 0 && channels % heads == 0 && pairs <= channels / heads / 2 &&
           has(&mu, n, 4) && stride >= channels && (has(&sums, (uint64_t)tokens * stride, 4) || sums.len == 0) &&
           has(&scale, channels, 4) && has(&mean, channels, 4) && has(&cosines, angles, 4) && has(&sines, angles, 4);
    if (good) {
        Py_BEGIN_ALLOW_THREADS
        if (sums.len) expected(mu.buf, sums.buf, stride, scale.buf, mean.buf, tokens, channels);
        else
            for (Py_ssize_t t = 0; t < tokens; t++) memcpy((int32_t *)mu.buf + t * channels, mean.buf, 4 * channels);
        if (pairs) turn(mu.buf, cosines.buf, sines.buf, tokens, heads, channels / heads, pairs, 0);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&mu); PyBuffer_Release(&sums); PyBuffer_Release(&scale);
    PyBuffer_Release(&mean); PyBuffer_Release(&cosines); PyBuffer_Release(&sines);
    if (!good) return FAIL("lengths do not agree");
    Py_RETURN_NONE;
}

static PyObject *py_kernel(PyObject *self, PyObject *args) {
    const char *best = "";
#ifdef HAVE_KERNELS
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw")) best = "fours";
    else if (__builtin_cpu_supports("avx2")) best = "twos";
#endif
    return PyUnicode_FromString(best);
}

static PyObject *py_sums(PyObject *self, PyObject *args) {
    Py_buffer out, x, w, correction;
    Py_ssize_t tokens, groups, channels;
    int by;
    if (!PyArg_ParseTuple(args, "w*y*y*y*nnni", &out, &x, &w, &correction, &tokens, &groups, &channels, &by)) return NULL;
    size_t each = by == 4 ? 1 : 2;
    int good = (by == 4 || by == 2) && small(tokens) && small(groups) && small(channels);
    good = good && groups > 0 && channels > 0 && channels % 64 == 0 && has(&out, (uint64_t)tokens * channels, 4) &&
           has(&x, (uint64_t)tokens * groups * by, each) && has(&w, (uint64_t)groups * by * channels, each) &&
           has(&correction, channels, 4);
    if (good) {
        Py_BEGIN_ALLOW_THREADS
#ifdef HAVE_KERNELS
        if (by == 4) sums_of_fours(out.buf, x.buf, w.buf, correction.buf, tokens, groups, channels);
        else sums_of_twos(out.buf, x.buf, w.buf, tokens, groups, channels);
#endif
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&out); PyBuffer_Release(&x); PyBuffer_Release(&w); PyBuffer_Release(&correction);
    if (!good) return FAIL("lengths do not agree");
    Py_RETURN_NONE;
}

static PyObject *py_known(PyObject *self, PyObject *args) {
    Py_buffer out, wrong, words, mu, inverse, mean, factor, cosines, sines, scratch;
    Py_ssize_t tokens, channels, heads, pairs;
    int kind, unit;
    if (!PyArg_ParseTuple(args, "w*w*w*y*y*y*y*y*y*y*nnnnii", &out, &wrong, &scratch, &words, &mu, &inverse, &mean,
                          &factor, &cosines, &sines, &tokens, &channels, &heads, &pairs, &kind, &unit))
        return NULL;
    int good = small(tokens) && small(channels) && small(heads) && small(pairs);
    uint64_t n = good ? (uint64_t)tokens * channels : 0, angles = good ? (uint64_t)tokens * pairs : 0;
    good = good && channels > 0 && heads > 0 && channels % heads == 0 && kind >= 0 && kind <= 2 && unit >= 0 &&
           unit <= 24 && pairs <= channels / heads / 2 && has(&out, n, 1) && has(&wrong, tokens, 8) &&
           has(&scratch, n, 4) && has(&words, n, kind == 2 ? 4 : 2) && has(&mu, n, 4) && has(&inverse, channels, 4) &&
           has(&mean, channels, 4) && has(&factor, channels, 4) && has(&cosines, angles, 4) && has(&sines, angles, 4);
    if (good) {
        Py_BEGIN_ALLOW_THREADS
        int32_t *x = scratch.buf;
        whole_units(x, words.buf, kind, unit, n);
        for (Py_ssize_t t = 0; t < tokens; t++) {
            int64_t total = wrong_sum(x + t * channels, (const int32_t *)mu.buf + t * channels, inverse.buf, channels);
            ((int64_t *)wrong.buf)[t] = quarter_log(total * 16 / channels + 1);
        }
        if (pairs) turn(x, cosines.buf, sines.buf, tokens, heads, channels / heads, pairs, 1);
        features(out.buf, x, mean.buf, factor.buf, tokens, channels);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&out); PyBuffer_Release(&wrong); PyBuffer_Release(&scratch); PyBuffer_Release(&words);
    PyBuffer_Release(&mu); PyBuffer_Release(&inverse); PyBuffer_Release(&mean); PyBuffer_Release(&factor);
    PyBuffer_Release(&cosines); PyBuffer_Release(&sines);
    if (!good) return FAIL("lengths do not agree");
    Py_RETURN_NONE;
}

static PyObject *py_decode(PyObject *self, PyObject *args) {
    Py_buffer out, state, words, runs, plain, mu, log_sigma, token, symbols, starts, frequencies, table;
    Py_ssize_t tokens, channels, at, runs_at, plain_at;
    int kind, unit, wide;
    if (!PyArg_ParseTuple(args, "w*w*y*y*y*y*y*y*y*y*y*y*nnnnniii", &out, &state, &words, &runs, &plain, &mu,
                          &log_sigma, &token, &symbols, &starts, &frequencies, &table, &tokens, &channels, &at,
                          &runs_at, &plain_at, &kind, &unit, &wide))
        return NULL;
    int good = small(tokens) && small(channels) && small(words.len) && small(runs.len) && small(plain.len);
    uint64_t n = good ? (uint64_t)tokens * channels : 0;
    size_t all = 4 * (COARSEST - FINEST + 1);
    int64_t bits_of_runs = 8 * ((int64_t)runs.len - 8), bits_of_plain = 8 * ((int64_t)plain.len - 8);
    good = good && channels > 0 && kind >= 0 && kind <= 2 && unit >= 0 && unit <= 24 &&
               has(&out, n, kind == 2 ? 4 : 2) && has(&state, LANES, 4) && words.len % 2 == 0 && words.len / 2 - 16 >= channels &&
               at <= words.len / 2 - channels - 16 && runs.len >= 8 && plain.len >= 8 && has(&mu, n, 4) && has(&log_sigma, channels, 2) && has(&token, tokens, 2) &&
               has(&symbols, all * SLOTS, 1) && has(&starts, all * 128, 2) && has(&frequencies, all * 128, 2) &&
               has(&table, all * SLOTS, 4) && at >= 0 && runs_at >= 0 && plain_at >= 0 && runs_at <= bits_of_runs &&
               plain_at <= bits_of_plain;
    int failed = 0;
    size_t position = (size_t)at;
    Reader r = {runs.buf, (uint64_t)runs_at, (uint64_t)bits_of_runs};
    Reader p = {plain.buf, (uint64_t)plain_at, (uint64_t)bits_of_plain};
    if (good) {
        Segment s = {form_of(kind), kind == 2 ? 4 : 2, unit, tokens, channels, mu.buf, log_sigma.buf, token.buf};
        size_t end = words.len / 2 - channels - 16;
        Py_BEGIN_ALLOW_THREADS
#ifdef HAVE_KERNELS
        if (wide && kind != 2 && channels % 16 == 0 && has_sixteens())
            failed = decode_sixteens(&s, state.buf, words.buf, &position, end, table.buf, &r, &p, out.buf);
        else
#endif
            failed = decode_segment(&s, state.buf, words.buf, &position, end, symbols.buf, starts.buf, frequencies.buf,
                                    &r, &p, out.buf);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&out); PyBuffer_Release(&state); PyBuffer_Release(&words); PyBuffer_Release(&runs);
    PyBuffer_Release(&plain); PyBuffer_Release(&mu); PyBuffer_Release(&log_sigma); PyBuffer_Release(&token);
    PyBuffer_Release(&symbols); PyBuffer_Release(&starts); PyBuffer_Release(&frequencies); PyBuffer_Release(&table);
    if (!good) return FAIL("lengths do not agree");
    if (failed) return FAIL(failed == 1 ? "words end early" : failed == 2 ? "bits end early" : "runs end early");
    return Py_BuildValue("nKK", (Py_ssize_t)position, (unsigned long long)r.at, (unsigned long long)p.at);
}

static PyObject *py_split(PyObject *self, PyObject *args) {
    Py_buffer contexts, symbols, runs, plain, words, mu, log_sigma, token, frequencies;
    Py_ssize_t tokens, channels;
    unsigned long long runs_hold, plain_hold;
    Py_ssize_t runs_at, plain_at;
    int runs_held, plain_held, kind, unit;
    if (!PyArg_ParseTuple(args, "w*w*w*w*y*y*y*y*y*nnii(niK)(niK)", &contexts, &symbols, &runs, &plain, &words, &mu,
                          &log_sigma, &token, &frequencies, &tokens, &channels, &kind, &unit, &runs_at, &runs_held,
                          &runs_hold, &plain_at, &plain_held, &plain_hold))
        return NULL;
    int good = small(tokens) && small(channels);
    uint64_t n = good ? (uint64_t)tokens * channels : 0;
    size_t all = 4 * (COARSEST - FINEST + 1);
    good = good && channels > 0 && kind >= 0 && kind <= 2 && unit >= 0 && unit <= 24 &&
               has(&contexts, n, 1) && has(&symbols, n, 1) && has(&words, n, kind == 2 ? 4 : 2) && has(&mu, n, 4) &&
               has(&log_sigma, channels, 2) && has(&token, tokens, 2) && has(&frequencies, all * 128, 2) &&
               runs_at >= 0 && plain_at >= 0 && runs_held >= 0 && runs_held < 8 && plain_held >= 0 && plain_held < 8;
    int failed = 0;
    Writer r = {runs.buf, runs_hold, runs_held, (size_t)runs_at, (size_t)runs.len};
    Writer p = {plain.buf, plain_hold, plain_held, (size_t)plain_at, (size_t)plain.len};
    if (good) {
        Segment s = {form_of(kind), kind == 2 ? 4 : 2, unit, tokens, channels, mu.buf, log_sigma.buf, token.buf};
        Py_BEGIN_ALLOW_THREADS
        failed = split_segment(&s, words.buf, frequencies.buf, contexts.buf, symbols.buf, &r, &p);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&contexts); PyBuffer_Release(&symbols); PyBuffer_Release(&runs); PyBuffer_Release(&plain);
    PyBuffer_Release(&words); PyBuffer_Release(&mu); PyBuffer_Release(&log_sigma); PyBuffer_Release(&token);
    PyBuffer_Release(&frequencies);
    if (!good) return FAIL("lengths do not agree");
    if (failed) return FAIL("no room");
    return Py_BuildValue("(niK)(niK)", (Py_ssize_t)r.at, r.held, (unsigned long long)r.hold, (Py_ssize_t)p.at, p.held,
                         (unsigned long long)p.hold);
}

static PyObject *py_encode(PyObject *self, PyObject *args) {
    Py_buffer state, words, contexts, symbols, lengths, starts, frequencies;
    if (!PyArg_ParseTuple(args, "w*w*y*y*y*y*y*", &state, &words, &contexts, &symbols, &lengths, &starts, &frequencies))
        return NULL;
    size_t all = 4 * (COARSEST - FINEST + 1), segments = lengths.len / 8, at = words.len / 2;
    uint64_t total = 0;
    int good = 1;
    for (size_t i = 0; i < segments && good; i++) { /* no longer together than what there is */
        uint64_t length = ((const uint64_t *)lengths.buf)[i];
        good = length <= (uint64_t)symbols.len - total;
        total += good ? length : 0;
    }
    good = good && has(&state, LANES, 4) && words.len % 2 == 0 && lengths.len % 8 == 0 && has(&contexts, total, 1) &&
               has(&symbols, total, 1) && has(&starts, all * 128, 2) && has(&frequencies, all * 128, 2);
    int failed = 0;
    if (good) {
        Py_BEGIN_ALLOW_THREADS
        uint32_t *x = state.buf;
        uint16_t *out = words.buf;
        const uint8_t *ctx = contexts.buf, *sym = symbols.buf;
        const uint16_t *start = starts.buf, *frequency = frequencies.buf;
        size_t i = total;
        for (size_t s = segments; s-- && !failed;) {
            for (size_t k = ((const uint64_t *)lengths.buf)[s]; k--;) {
                i--;
                size_t entry = (size_t)ctx[i] * 128 + sym[i], lane = k & (LANES - 1);
                uint32_t f = entry < all * 128 ? frequency[entry] : 0, y = x[lane];
                if (!f) { failed = 1; break; }
                if ((y >> 20) >= f) {
                    if (!at) { failed = 1; break; }
                    out[--at] = (uint16_t)y;
                    y >>= 16;
                }
                x[lane] = (y / f << 12) + y % f + start[entry];
            }
        }
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&state); PyBuffer_Release(&words); PyBuffer_Release(&contexts); PyBuffer_Release(&symbols);
    PyBuffer_Release(&lengths); PyBuffer_Release(&starts); PyBuffer_Release(&frequencies);
    if (!good || failed) return FAIL("lengths do not agree");
    return PyLong_FromSize_t(at);
}

static PyMethodDef methods[] = {
    {"kernel", py_kernel, METH_NOARGS, "Which kernel for sums this processor has: fours, twos, or none."},
    {"sums", py_sums, METH_VARARGS, "Features times weights."},
    {"expected", py_expected, METH_VARARGS, "Sums to what is expected, turned."},
    {"known", py_known, METH_VARARGS, "Features of a decoded tensor, and how wrong its prediction was."},
    {"decode", py_decode, METH_VARARGS, "The words of a segment."},
    {"split", py_split, METH_VARARGS, "Contexts, symbols and plain bits of a segment."},
    {"encode", py_encode, METH_VARARGS, "The coder's pass, backwards over all segments."},
    {NULL, NULL, 0, NULL},
};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_fast", NULL, -1, methods, NULL, NULL, NULL, NULL};
PyMODINIT_FUNC PyInit__fast(void) { return PyModule_Create(&module); }
