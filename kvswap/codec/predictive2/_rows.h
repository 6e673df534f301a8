/* One form of the codec, included by `_core.h` for each: AS(name) is a function's name in this form, LEVEL which it is
 * (0 portable, 1 AVX2, 2 AVX-512).  What has no branch on LEVEL is left to the compiler's own vectors. */

/* -- sums of features times weights: features are stored with 128 added, which `correction` takes off again ---------- */

static void AS(sums)(Work *w, const Job *j, int n, int head, int first, int tokens) {
    const Tensor *t = &j->tensor[n];
    const size_t wide = up(t->dim, TILE), block = t->fours * TILE * 4;
    const int8_t *weights = t->weights + head * (wide / TILE) * block;
    for (size_t c = 0; c < wide; c += TILE, weights += block) {
        const int32_t *correction = t->correction + head * wide + c;
        for (int row = 0; row < tokens; row += ROWS) {
            int32_t *out = w->sums + row * wide + c;
            const int8_t *at = weights;
#if LEVEL == 2
            __m512i a[ROWS][2];
            for (int r = 0; r < ROWS; r++)
                for (int k = 0; k < 2; k++) a[r][k] = _mm512_loadu_si512(correction + 16 * k);
            for (int i = 0; i < t->inputs; i++) {
                const size_t step = up((size_t)j->tensor[t->input[i]].dim * j->heads, 4);
                const uint8_t *f = features_at(w, j, t->input[i], first + row);
                for (size_t g = 0; g < step; g += 4, at += TILE * 4) {
                    __m512i low = _mm512_loadu_si512(at), high = _mm512_loadu_si512(at + 64);
#pragma GCC unroll 8
                    for (int r = 0; r < ROWS; r++) {
                        int32_t four;
                        memcpy(&four, f + r * step + g, 4);
                        __m512i x = _mm512_set1_epi32(four);
                        a[r][0] = _mm512_dpbusd_epi32(a[r][0], x, low);
                        a[r][1] = _mm512_dpbusd_epi32(a[r][1], x, high);
                    }
                }
            }
            for (int r = 0; r < ROWS; r++)
                for (int k = 0; k < 2; k++) _mm512_storeu_si512(out + r * wide + 16 * k, a[r][k]);
#elif LEVEL == 1
            const __m256i ones = _mm256_set1_epi16(1);
            for (int r = 0; r < ROWS; r += 2) { /* two weights are 128 at most together: so products with bytes fit int16 */
                __m256i a[2][4];
                for (int k = 0; k < 4; k++)
                    a[0][k] = a[1][k] = _mm256_loadu_si256((const __m256i *)(correction + 8 * k));
                at = weights;
                for (int i = 0; i < t->inputs; i++) {
                    const size_t step = up((size_t)j->tensor[t->input[i]].dim * j->heads, 4);
                    const uint8_t *f = features_at(w, j, t->input[i], first + row + r);
                    for (size_t g = 0; g < step; g += 4, at += TILE * 4) {
                        int32_t four[2];
                        memcpy(&four[0], f + g, 4);
                        memcpy(&four[1], f + step + g, 4);
                        __m256i x = _mm256_set1_epi32(four[0]), y = _mm256_set1_epi32(four[1]);
#pragma GCC unroll 4
                        for (int k = 0; k < 4; k++) {
                            __m256i v = _mm256_loadu_si256((const __m256i *)(at + 32 * k));
                            a[0][k] = _mm256_add_epi32(a[0][k], _mm256_madd_epi16(_mm256_maddubs_epi16(x, v), ones));
                            a[1][k] = _mm256_add_epi32(a[1][k], _mm256_madd_epi16(_mm256_maddubs_epi16(y, v), ones));
                        }
                    }
                }
                for (int k = 0; k < 4; k++) {
                    _mm256_storeu_si256((__m256i *)(out + r * wide + 8 * k), a[0][k]);
                    _mm256_storeu_si256((__m256i *)(out + (r + 1) * wide + 8 * k), a[1][k]);
                }
            }
#else
            for (int r = 0; r < ROWS; r++) {
                int32_t a[TILE];
                memcpy(a, correction, sizeof a);
                at = weights;
                for (int i = 0; i < t->inputs; i++) {
                    const size_t step = up((size_t)j->tensor[t->input[i]].dim * j->heads, 4);
                    const uint8_t *f = features_at(w, j, t->input[i], first + row + r);
                    for (size_t g = 0; g < step; g += 4, at += TILE * 4) {
                        const int32_t x0 = f[g], x1 = f[g + 1], x2 = f[g + 2], x3 = f[g + 3];
                        for (int k = 0; k < TILE; k++)
                            a[k] += x0 * at[4 * k] + x1 * at[4 * k + 1] + x2 * at[4 * k + 2] + x3 * at[4 * k + 3];
                    }
                }
                memcpy(out + r * wide, a, sizeof a);
            }
#endif
        }
    }
}

/* -- what is expected of a row, and where that puts the buckets ---------------------------------------------------- */

static inline void AS(expect)(Row *row, const Job *j, const Tensor *t, const int32_t *sums, int head, int token) {
    const int dim = t->dim, pairs = t->rotated ? j->pairs : 0;
    const float *scale = t->scale + head * dim, *mean = t->mean + head * dim;
    float *mu = row->mu;
    if (sums)
        for (int i = 0; i < dim; i++) {
            float product = (float)sums[i] * scale[i];
            mu[i] = product + mean[i];
        }
    else memcpy(mu, mean, 4 * (size_t)dim);
    const float *cosine = j->cosine + (size_t)token * j->pairs, *sine = j->sine + (size_t)token * j->pairs;
    for (int i = 0; i < pairs; i++) {
        float a = mu[i], b = mu[i + pairs], c = cosine[i], s = sine[i];
        float ac = a * c, bs = b * s, bc = b * c, as = a * s;
        mu[i] = ac - bs;
        mu[i + pairs] = bc + as;
    }
}

static inline void AS(frame)(Row *row, const Form *f, const int32_t *log_sigma, int32_t factor, int dim) {
    const int32_t lost = 127 + f->mantissa, least = f->least;
    for (int i = 0; i < dim; i++) {
        int32_t sigma = log_sigma[i] + factor, octave = sigma >> 2;
        float size = as_float(as_int(row->mu[i]) & 0x7fffffff);
        float reach = size + as_float((octave + 127) << 23);
        int32_t width = (as_int(reach) >> 23) - lost;
        width = width < octave - COARSE ? octave - COARSE : width;
        width = width < least ? least : width;
        int32_t quarters = (int32_t)(size * as_float((129 - width) << 23));
        int32_t ratio = sigma - 4 * width;
        ratio = ratio < FINEST ? FINEST : ratio > COARSEST ? COARSEST : ratio;
        row->base[i] = quarters >> 2;
        row->width[i] = width;
        row->context[i] = (ratio - FINEST) * 4 + (quarters & 3);
    }
}

/* -- what a row gives on: its error and its features ---------------------------------------------------------------- */

static inline float AS(value_of)(int32_t word, int kind) {
    int32_t bits;
    if (kind == 0) bits = (int32_t)((uint32_t)word << 16);
    else if (kind == 2) bits = word;
    else {
        int32_t size = word & 0x7fff, exponent = size >> 10;
        int32_t small = as_int((float)(size & 1023) * 0x1p-24f);
        bits = (size << 13) + (112 << 23);
        bits = exponent == 0 ? small : bits;
        bits = exponent == 31 ? 0 : bits;
        bits |= (int32_t)((uint32_t)(word & 0x8000) << 16);
    }
    uint32_t exponent = ((uint32_t)bits >> 23) & 255;
    return as_float(exponent - TINY < KEPT ? bits : 0); /* so that nothing below overflows, or is denormal and matters */
}

static inline void AS(values)(Row *row, int kind, int dim) {
    if (kind == 0) for (int i = 0; i < dim; i++) row->value[i] = AS(value_of)(row->word[i], 0);
    else if (kind == 1) for (int i = 0; i < dim; i++) row->value[i] = AS(value_of)(row->word[i], 1);
    else for (int i = 0; i < dim; i++) row->value[i] = AS(value_of)(row->word[i], 2);
}

#define ROUNDED(x) (((x) + 12582912.0f) - 12582912.0f) /* to the nearest integer, half to even; |x| <= 2^22 */

static inline int32_t AS(error)(const Row *row, const float *inverse, int dim) {
    int32_t total = 0;
    for (int i = 0; i < dim; i++) {
        float d = as_float(as_int(row->value[i] - row->mu[i]) & 0x7fffffff) * inverse[i];
        d = d < (float)WRONG_CAP ? d : (float)WRONG_CAP;
        total += (int32_t)ROUNDED(d);
    }
    return total;
}

static inline void AS(features)(Row *row, const Job *j, const Tensor *t, int head, int token, uint8_t *out) {
    const int dim = t->dim, pairs = t->rotated ? j->pairs : 0;
    const float *by = t->feature + head * dim, *mean = t->mean + head * dim;
    const float *cosine = j->cosine + (size_t)token * j->pairs, *sine = j->sine + (size_t)token * j->pairs;
    float *x = row->value;
    for (int i = 0; i < pairs; i++) {
        float a = x[i], b = x[i + pairs], c = cosine[i], s = sine[i];
        float ac = a * c, bs = b * s, bc = b * c, as = a * s;
        x[i] = ac + bs;
        x[i + pairs] = bc - as;
    }
    for (int i = 0; i < dim; i++) {
        float off = x[i] - mean[i];
        float y = off * by[i];
        y = y > -127.0f ? y : -127.0f;
        y = y < 127.0f ? y : 127.0f;
        out[i] = (uint8_t)((int32_t)ROUNDED(y) + 128);
    }
}

/* -- decoding a row ------------------------------------------------------------------------------------------------- */

static inline int AS(refill)(Stream *s, uint32_t *x) {
    if (*x >= LOW) return 1;
    if (s->end - s->at < 2) return 0;
    *x = *x << 16 | word_at(s->at);
    s->at += 2;
    return 1;
}

static int AS(decode_any)(Stream *s, const Job *j, const Form *f, Row *row, int from, int n) {
    const uint32_t mask = (1u << j->bits) - 1, fraction = (1u << f->mantissa) - 1;
    int32_t symbol[LANES], steps[LANES], run[LANES], count[LANES];
    uint32_t raw[LANES];
    for (int l = 0; l < n; l++) {
        uint32_t x = s->state[l], e = j->slots[((uint32_t)row->context[from + l] << j->bits) | (x & mask)];
        x = (e >> 19) * (x >> j->bits) + ((e >> 7) & 4095);
        symbol[l] = (int32_t)(e & 127);
        if (!AS(refill)(s, &x)) return NO_WORDS;
        s->state[l] = x;
    }
    for (int l = 0; l < n; l++) {
        uint32_t x = s->state[l];
        int32_t bucket = symbol[l] - MIDDLE + row->base[from + l];
        steps[l] = bucket < 0 ? ~bucket : bucket;
        run[l] = -1;
        count[l] = 0;
        if (symbol[l] != ESCAPE) {
            if (steps[l]) {
                int over = f->mantissa - log_of((uint32_t)steps[l]);
                count[l] = over > 0 ? over : 0;
            } else {
                uint32_t low = x & ((2u << f->longest) - 1);
                if (!low) return NO_RUN;
                run[l] = log_of(low & (~low + 1));
                count[l] = run[l] + 1 + f->mantissa;
            }
        }
        int now = count[l] < 16 ? count[l] : 16;
        raw[l] = x & ((1u << now) - 1);
        x >>= now;
        if (!AS(refill)(s, &x)) return NO_WORDS;
        s->state[l] = x;
    }
    if (f->bits == 32)
        for (int l = 0; l < n; l++)
            if (count[l] > 16) {
                uint32_t x = s->state[l];
                raw[l] |= (x & ((1u << (count[l] - 16)) - 1)) << 16;
                x >>= count[l] - 16;
                if (!AS(refill)(s, &x)) return NO_WORDS;
                s->state[l] = x;
            }
    for (int l = 0; l < n; l++) {
        int i = from + l;
        if (symbol[l] == ESCAPE) {
            if (s->end - s->at < f->bits / 8) return NO_WORDS;
            uint32_t word = word_at(s->at);
            if (f->bits == 32) word |= word_at(s->at + 2) << 16;
            s->at += f->bits / 8;
            row->word[i] = (int32_t)word;
            continue;
        }
        int negative = (symbol[l] - MIDDLE + row->base[i] < 0) ^ (as_int(row->mu[i]) < 0);
        int exponent;
        uint32_t rest;
        if (steps[l]) {
            int octave = log_of((uint32_t)steps[l]), over = f->mantissa - octave;
            exponent = row->width[i] + octave;
            rest = over >= 0 ? (uint32_t)steps[l] << over | raw[l] : (uint32_t)steps[l] >> -over;
        } else {
            exponent = row->width[i] - 1 - run[l];
            rest = run[l] < 31 ? raw[l] >> (run[l] + 1) : 0;
        }
        uint32_t word = ((uint32_t)(exponent + f->bias) & (uint32_t)f->exponents) << f->mantissa | (rest & fraction);
        row->word[i] = (int32_t)(word | (uint32_t)negative << (f->bits - 1));
    }
    return GOOD;
}

#if LEVEL == 2
#define F(x) _mm512_set1_epi32(x)
static inline __m512i AS(renewed)(__m512i x, const uint8_t **at) {
    __mmask16 low = _mm512_cmplt_epu32_mask(x, F((int)LOW));
    __m512i more = _mm512_maskz_expand_epi32(low, _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)*at)));
    *at += 2 * _mm_popcnt_u32(low);
    return _mm512_mask_or_epi32(x, low, _mm512_slli_epi32(x, 16), more);
}

static inline __m512i AS(symbols)(__m512i *state, const Job *j, const int32_t *context, const uint8_t **at) {
    const __m128i bits = _mm_cvtsi32_si128(j->bits);
    __m512i x = *state, place = _mm512_and_si512(x, F((1 << j->bits) - 1));
    __m512i e = _mm512_i32gather_epi32(_mm512_or_si512(_mm512_sll_epi32(_mm512_loadu_si512(context), bits), place), j->slots, 4);
    x = _mm512_mullo_epi32(_mm512_srli_epi32(e, 19), _mm512_srl_epi32(x, bits));
    x = _mm512_add_epi32(x, _mm512_and_si512(_mm512_srli_epi32(e, 7), F(4095)));
    *state = AS(renewed)(x, at);
    return _mm512_and_si512(e, F(127));
}

/* The words of sixteen symbols, escapes left out. */
static inline __m512i AS(joined)(__m512i *state, const Form *f, const Row *row, int i, __m512i symbol, __mmask16 escape,
                                 const uint8_t **at, __mmask16 *bad) {
    const __m128i mantissa = _mm_cvtsi32_si128(f->mantissa);
    __m512i x = *state, width = _mm512_loadu_si512(row->width + i);
    __m512i bucket = _mm512_add_epi32(_mm512_sub_epi32(symbol, F(MIDDLE)), _mm512_loadu_si512(row->base + i));
    __mmask16 below = _mm512_movepi32_mask(bucket);
    __mmask16 negative = below ^ _mm512_movepi32_mask(_mm512_loadu_si512(row->mu + i));
    __m512i steps = _mm512_mask_xor_epi32(bucket, below, bucket, F(-1));
    __mmask16 touching = _mm512_testn_epi32_mask(steps, steps) & ~escape;
    __m512i top = _mm512_srl_epi32(_mm512_castps_si512(_mm512_cvtepi32_ps(steps)), _mm_cvtsi32_si128(23 - f->mantissa));
    __m512i octave = _mm512_sub_epi32(_mm512_srl_epi32(top, mantissa), F(127));
    __m512i over = _mm512_max_epi32(_mm512_sub_epi32(F(f->mantissa), octave), F(0));
    __m512i count = _mm512_maskz_mov_epi32(~escape, over), exponent = _mm512_add_epi32(octave, width);
    __m512i run = F(0);
    if (touching) {
        __m512i low = _mm512_and_si512(x, F((2 << f->longest) - 1));
        *bad |= _mm512_mask_testn_epi32_mask(touching, low, low);
        run = _mm512_sub_epi32(F(31), _mm512_lzcnt_epi32(_mm512_and_si512(low, _mm512_sub_epi32(F(0), low))));
        run = _mm512_and_si512(run, F(15));
        count = _mm512_mask_add_epi32(count, touching, run, F(1 + f->mantissa));
        exponent = _mm512_mask_sub_epi32(exponent, touching, _mm512_sub_epi32(width, F(1)), run);
    }
    __m512i raw = _mm512_and_si512(x, _mm512_sub_epi32(_mm512_sllv_epi32(F(1), count), F(1)));
    *state = AS(renewed)(_mm512_srlv_epi32(x, count), at);
    __m512i fraction = _mm512_or_si512(top, raw);
    if (touching) fraction = _mm512_mask_srlv_epi32(fraction, touching, raw, _mm512_add_epi32(run, F(1)));
    exponent = _mm512_and_si512(_mm512_add_epi32(exponent, F(f->bias)), F(f->exponents));
    __m512i word = _mm512_or_si512(_mm512_sll_epi32(exponent, mantissa), _mm512_and_si512(fraction, F((1 << f->mantissa) - 1)));
    return _mm512_mask_or_epi32(word, negative, word, F(0x8000));
}

static inline __m512i AS(literal)(__m512i word, __mmask16 escape, const uint8_t **at) {
    __m512i more = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)*at));
    *at += 2 * _mm_popcnt_u32(escape);
    return _mm512_mask_expand_epi32(word, escape, more);
}

static inline const uint8_t *AS(decode_wide)(const uint8_t *at, uint32_t *state, const Job *j, const Form *f, Row *row, int dim,
                                             int *wrong) {
    __m512i x = _mm512_loadu_si512(state), y = _mm512_loadu_si512(state + 16);
    __mmask16 bad = 0;
    for (int i = 0; i < dim; i += LANES) {
        __m512i s = AS(symbols)(&x, j, row->context + i, &at), t = AS(symbols)(&y, j, row->context + i + 16, &at);
        __mmask16 e = _mm512_cmpeq_epi32_mask(s, F(ESCAPE)), g = _mm512_cmpeq_epi32_mask(t, F(ESCAPE));
        __m512i v = AS(joined)(&x, f, row, i, s, e, &at, &bad), u = AS(joined)(&y, f, row, i + 16, t, g, &at, &bad);
        if (__builtin_expect(e | g, 0)) {
            v = AS(literal)(v, e, &at);
            u = AS(literal)(u, g, &at);
        }
        _mm512_storeu_si512(row->word + i, v);
        _mm512_storeu_si512(row->word + i + 16, u);
    }
    _mm512_storeu_si512(state, x);
    _mm512_storeu_si512(state + 16, y);
    *wrong = bad != 0;
    return at;
}
#undef F
#elif LEVEL == 1
#define F(x) _mm256_set1_epi32(x)
/* The words that follow, each where its lane lacks one: lane i gets the n-th, n the number of lanes before it that do. */
static inline __m256i AS(handed)(unsigned lanes, const uint8_t **at) {
    uint64_t each = ((uint64_t)(lanes & 127) * 0x0000040810204081u) & 0x0001010101010101u; /* a byte a lane */
    each |= (uint64_t)(lanes >> 7 & 1) << 56;
    uint64_t place = each * 0x0101010101010101u - each; /* exclusive sums */
    __m256i words = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)*at));
    *at += 2 * _mm_popcnt_u32(lanes);
    return _mm256_permutevar8x32_epi32(words, _mm256_cvtepu8_epi32(_mm_cvtsi64_si128((long long)place)));
}

static inline __m256i AS(renewed)(__m256i x, const uint8_t **at) {
    __m256i low = _mm256_cmpeq_epi32(_mm256_srli_epi32(x, 16), _mm256_setzero_si256());
    unsigned lanes = (unsigned)_mm256_movemask_ps(_mm256_castsi256_ps(low));
    return _mm256_blendv_epi8(x, _mm256_or_si256(_mm256_slli_epi32(x, 16), AS(handed)(lanes, at)), low);
}

static inline __m256i AS(symbols)(__m256i *state, const Job *j, const int32_t *context, const uint8_t **at) {
    const __m128i bits = _mm_cvtsi32_si128(j->bits);
    __m256i x = *state, place = _mm256_and_si256(x, F((1 << j->bits) - 1));
    __m256i c = _mm256_sll_epi32(_mm256_loadu_si256((const __m256i *)context), bits);
    __m256i e = _mm256_i32gather_epi32((const int *)j->slots, _mm256_or_si256(c, place), 4);
    x = _mm256_mullo_epi32(_mm256_srli_epi32(e, 19), _mm256_srl_epi32(x, bits));
    x = _mm256_add_epi32(x, _mm256_and_si256(_mm256_srli_epi32(e, 7), F(4095)));
    *state = AS(renewed)(x, at);
    return _mm256_and_si256(e, F(127));
}

static inline __m256i AS(joined)(__m256i *state, const Form *f, const Row *row, int i, __m256i symbol, __m256i *bad,
                                 const uint8_t **at) {
    const __m128i mantissa = _mm_cvtsi32_si128(f->mantissa);
    const __m256i zero = _mm256_setzero_si256(), one = F(1);
    __m256i x = *state, width = _mm256_loadu_si256((const __m256i *)(row->width + i));
    __m256i escape = _mm256_cmpeq_epi32(symbol, F(ESCAPE));
    __m256i bucket = _mm256_add_epi32(_mm256_sub_epi32(symbol, F(MIDDLE)), _mm256_loadu_si256((const __m256i *)(row->base + i)));
    __m256i below = _mm256_srai_epi32(bucket, 31);
    __m256i negative = _mm256_xor_si256(bucket, _mm256_loadu_si256((const __m256i *)(row->mu + i))); /* its sign bit */
    __m256i steps = _mm256_xor_si256(bucket, below);
    __m256i touching = _mm256_andnot_si256(escape, _mm256_cmpeq_epi32(steps, zero));
    __m256i top = _mm256_srl_epi32(_mm256_castps_si256(_mm256_cvtepi32_ps(steps)), _mm_cvtsi32_si128(23 - f->mantissa));
    __m256i octave = _mm256_sub_epi32(_mm256_srl_epi32(top, mantissa), F(127));
    __m256i over = _mm256_max_epi32(_mm256_sub_epi32(F(f->mantissa), octave), zero);
    __m256i count = _mm256_andnot_si256(escape, over), exponent = _mm256_add_epi32(octave, width), run = zero;
    const int any = _mm256_movemask_epi8(touching);
    if (any) {
        __m256i low = _mm256_and_si256(x, F((2 << f->longest) - 1));
        *bad = _mm256_or_si256(*bad, _mm256_and_si256(touching, _mm256_cmpeq_epi32(low, zero)));
        low = _mm256_castps_si256(_mm256_cvtepi32_ps(_mm256_and_si256(low, _mm256_sub_epi32(zero, low))));
        run = _mm256_and_si256(_mm256_sub_epi32(_mm256_srli_epi32(low, 23), F(127)), F(15));
        count = _mm256_blendv_epi8(count, _mm256_add_epi32(run, F(1 + f->mantissa)), touching);
        exponent = _mm256_blendv_epi8(exponent, _mm256_sub_epi32(_mm256_sub_epi32(width, one), run), touching);
    }
    __m256i raw = _mm256_and_si256(x, _mm256_sub_epi32(_mm256_sllv_epi32(one, count), one));
    *state = AS(renewed)(_mm256_srlv_epi32(x, count), at);
    __m256i fraction = _mm256_or_si256(top, raw);
    if (any) fraction = _mm256_blendv_epi8(fraction, _mm256_srlv_epi32(raw, _mm256_add_epi32(run, one)), touching);
    exponent = _mm256_and_si256(_mm256_add_epi32(exponent, F(f->bias)), F(f->exponents));
    __m256i word = _mm256_or_si256(_mm256_sll_epi32(exponent, mantissa), _mm256_and_si256(fraction, F((1 << f->mantissa) - 1)));
    return _mm256_or_si256(word, _mm256_and_si256(_mm256_srli_epi32(negative, 16), F(0x8000)));
}

static inline const uint8_t *AS(decode_wide)(const uint8_t *at, uint32_t *state, const Job *j, const Form *f, Row *row, int dim,
                                             int *wrong) {
    __m256i x[4], bad = _mm256_setzero_si256();
    for (int k = 0; k < 4; k++) x[k] = _mm256_loadu_si256((const __m256i *)(state + 8 * k));
    for (int i = 0; i < dim; i += LANES) {
        __m256i s[4], v[4], any = _mm256_setzero_si256();
        for (int k = 0; k < 4; k++) s[k] = AS(symbols)(&x[k], j, row->context + i + 8 * k, &at);
        for (int k = 0; k < 4; k++) {
            v[k] = AS(joined)(&x[k], f, row, i + 8 * k, s[k], &bad, &at);
            any = _mm256_or_si256(any, _mm256_cmpeq_epi32(s[k], F(ESCAPE)));
        }
        if (__builtin_expect(_mm256_movemask_epi8(any), 0))
            for (int k = 0; k < 4; k++) {
                __m256i e = _mm256_cmpeq_epi32(s[k], F(ESCAPE));
                unsigned lanes = (unsigned)_mm256_movemask_ps(_mm256_castsi256_ps(e));
                v[k] = _mm256_blendv_epi8(v[k], AS(handed)(lanes, &at), e);
            }
        for (int k = 0; k < 4; k++) _mm256_storeu_si256((__m256i *)(row->word + i + 8 * k), v[k]);
    }
    for (int k = 0; k < 4; k++) _mm256_storeu_si256((__m256i *)(state + 8 * k), x[k]);
    *wrong = _mm256_movemask_epi8(bad) != 0;
    return at;
}
#undef F
#endif

static int AS(decode_row)(Stream *s, const Job *j, const Form *f, Row *row, int dim) {
#if LEVEL
    if (f->bits == 16 && dim % LANES == 0) {
        /* A row takes three words a value at most, and vectors are loaded from where words end: near the end of the
         * stream both come from a copy with zeros behind it. */
        enum { LOADED = 64 };
        uint8_t copy[6 * MOST_DIM + LOADED];
        const size_t left = (size_t)(s->end - s->at), most = 6 * (size_t)dim + LOADED;
        const uint8_t *from = s->at;
        int bad;
        if (left < most) {
            memcpy(copy, s->at, left);
            memset(copy + left, 0, most - left);
            from = copy;
        }
        size_t used = (size_t)(AS(decode_wide)(from, s->state, j, f, row, dim, &bad) - from);
        if (bad) return NO_RUN;
        if (used > left) return NO_WORDS;
        s->at += used;
        return GOOD;
    }
#endif
    for (int i = 0; i < dim; i += LANES) {
        int failed = AS(decode_any)(s, j, f, row, i, dim - i < LANES ? dim - i : LANES);
        if (failed) return failed;
    }
    return GOOD;
}

/* -- splitting a row into symbols and raw bits ---------------------------------------------------------------------- */

#if LEVEL == 2
#define F(x) _mm512_set1_epi32(x)
static inline void AS(split_wide)(const Row *row, const Job *j, const Form *f, int dim, const Split *v, size_t at) {
    const __m128i mantissa = _mm_cvtsi32_si128(f->mantissa);
    const int32_t mask = (1 << f->mantissa) - 1;
    const __m512i one = F(1);
    for (int i = 0; i < dim; i += 16, at += 16) {
        __m512i word = _mm512_loadu_si512(row->word + i), rest = _mm512_and_si512(word, F(mask));
        __m512i exponent = _mm512_and_si512(_mm512_srl_epi32(word, mantissa), F(f->exponents));
        __m512i whole = _mm512_or_si512(rest, F(mask + 1)), width = _mm512_loadu_si512(row->width + i);
        __mmask16 negative = _mm512_test_epi32_mask(word, F(0x8000)) ^ _mm512_movepi32_mask(_mm512_loadu_si512(row->mu + i));
        __m512i over = _mm512_sub_epi32(_mm512_add_epi32(width, F(f->bias + f->mantissa)), exponent);
        __mmask16 near = _mm512_cmpgt_epi32_mask(over, F(f->mantissa)), finer = _mm512_movepi32_mask(over);
        __m512i down = _mm512_maskz_mov_epi32(~finer, over);
        __m512i steps = _mm512_mask_slli_epi32(_mm512_srlv_epi32(whole, down), finer, whole, 1);
        steps = _mm512_maskz_mov_epi32(~near, steps);
        steps = _mm512_mask_xor_epi32(steps, negative, steps, F(-1));
        __m512i symbol = _mm512_add_epi32(_mm512_sub_epi32(steps, _mm512_loadu_si512(row->base + i)), F(MIDDLE));
        __mmask16 usual = _mm512_cmplt_epu32_mask(_mm512_sub_epi32(exponent, one), F(f->exponents - 1)) &
                          _mm512_cmpge_epi32_mask(over, F(-1)) & _mm512_cmple_epi32_mask(over, F(f->mantissa + 1 + f->longest)) &
                          _mm512_cmplt_epu32_mask(symbol, F(ESCAPE));
        __m512i start = _mm512_slli_epi32(_mm512_loadu_si512(row->context + i), 6);
        __m512i entry = _mm512_add_epi32(start, symbol);
        __m512i e = _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), usual, entry, j->frequency, 4);
        usual &= _mm512_test_epi32_mask(e, F(0xffff));
        __m512i count = down, raw = _mm512_and_si512(whole, _mm512_sub_epi32(_mm512_sllv_epi32(one, down), one));
        if (near) {
            __m512i run = _mm512_sub_epi32(over, F(f->mantissa + 1));
            __m512i bits = _mm512_or_si512(_mm512_sllv_epi32(one, run), _mm512_sllv_epi32(rest, _mm512_add_epi32(run, one)));
            raw = _mm512_mask_mov_epi32(raw, near, bits);
        }
        entry = _mm512_mask_add_epi32(entry, ~usual, start, F(ESCAPE));
        raw = _mm512_mask_mov_epi32(word, usual, raw);
        count = _mm512_maskz_mov_epi32(usual, count); /* of a near value it is over, too: mantissa + 1 + run */
        _mm256_storeu_si256((__m256i *)(v->index + at), _mm512_cvtepi32_epi16(entry));
        _mm256_storeu_si256((__m256i *)(v->raw + at), _mm512_cvtepi32_epi16(raw));
        _mm_storeu_si128((__m128i *)(v->count + at), _mm512_cvtepi32_epi8(count));
    }
}
#undef F
#endif

static inline void AS(split)(const Row *row, const Job *j, const Form *f, int dim, const Split *v, size_t at) {
#if LEVEL == 2
    if (f->bits == 16 && dim % 16 == 0) {
        AS(split_wide)(row, j, f, dim, v, at);
        return;
    }
#endif
    const int32_t mantissa = f->mantissa, mask = (1 << mantissa) - 1, exponents = f->exponents, sign = f->bits - 1;
    const int32_t lost = f->bias + mantissa, longest = f->longest;
    const uint32_t *frequency = j->frequency;
    for (int i = 0; i < dim; i++) {
        int32_t word = row->word[i], exponent = (word >> mantissa) & exponents, rest = word & mask, whole = rest | (mask + 1);
        int32_t negative = ((word >> sign) & 1) ^ (as_int(row->mu[i]) < 0);
        int32_t over = row->width[i] + lost - exponent, run = over - mantissa - 1;
        int32_t down = over < 0 ? 0 : over > mantissa ? mantissa : over, near = over > mantissa;
        int32_t steps = near ? 0 : over < 0 ? whole << 1 : whole >> down;
        int32_t symbol = (negative ? ~steps : steps) - row->base[i] + MIDDLE;
        int32_t usual = (exponent > 0) & (exponent < exponents) & (over >= -1) & (run <= longest) & (symbol >= 0) &
                        (symbol < ESCAPE);
        int32_t start = row->context[i] * SYMBOLS, safe = run < 0 ? 0 : run > longest ? longest : run;
        int32_t entry = start + (usual ? symbol : ESCAPE);
        usual &= (frequency[entry] & 0xffff) != 0;
        uint32_t bits = near ? 1u << safe | (uint32_t)rest << safe << 1 : (uint32_t)whole & ((1u << down) - 1);
        bits = usual ? bits : (uint32_t)word;
        v->index[at + i] = (uint16_t)(usual ? entry : start + ESCAPE);
        v->raw[at + i] = (uint16_t)bits;
        if (f->bits == 32) v->high[at + i] = (uint16_t)(bits >> 16);
        v->count[at + i] = (uint8_t)(usual ? (near ? mantissa + 1 + safe : down) : 0);
    }
}

/* -- the coder's pass, backwards ------------------------------------------------------------------------------------ */

static uint16_t *AS(write_any)(uint32_t *state, const Job *j, const Form *f, const Split *v, size_t at, int n, uint16_t *out) {
    for (int l = n; l--;)
        if (v->index[at + l] % SYMBOLS == ESCAPE) {
            if (f->bits == 32) *--out = v->high[at + l];
            *--out = v->raw[at + l];
        }
    for (int part = f->bits == 32; part >= 0; part--) /* the high part of a raw field first: it is read last */
        for (int l = n; l--;) {
            int count = v->count[at + l] - 16 * part;
            count = count < 0 ? 0 : count > 16 ? 16 : count;
            if (!count) continue;
            uint32_t x = state[l], bits = part ? v->high[at + l] : v->raw[at + l];
            if (x >> (32 - count)) {
                *--out = (uint16_t)x;
                x >>= 16;
            }
            state[l] = x << count | (bits & ((1u << count) - 1));
        }
    for (int l = n; l--;) {
        uint32_t e = j->frequency[v->index[at + l]], many = e & 0xffff, x = state[l];
        if (x >> (32 - j->bits) >= many) {
            *--out = (uint16_t)x;
            x >>= 16;
        }
        state[l] = (x / many << j->bits) + x % many + (e >> 16);
    }
    return out;
}

#if LEVEL == 2
#define F(x) _mm512_set1_epi32(x)
static inline uint16_t *AS(emitted)(__m512i *x, __mmask16 lanes, uint16_t *out) {
    int n = _mm_popcnt_u32(lanes);
    out -= n;
    _mm256_mask_storeu_epi16(out, (__mmask16)((1u << n) - 1), _mm512_cvtepi32_epi16(_mm512_maskz_compress_epi32(lanes, *x)));
    *x = _mm512_mask_srli_epi32(*x, lanes, *x, 16);
    return out;
}

static inline __m512i AS(quotient)(__m512i x, __m512i index, const double *reciprocal) {
    /* (x + 1/2) / f lies at least 1/(2 f) from an integer, and two roundings move it by less: x < 2^32, f <= 2^12 */
    const __m512d half = _mm512_set1_pd(0.5);
    __m512d a = _mm512_add_pd(_mm512_cvtepu32_pd(_mm512_castsi512_si256(x)), half);
    __m512d b = _mm512_add_pd(_mm512_cvtepu32_pd(_mm512_extracti64x4_epi64(x, 1)), half);
    a = _mm512_mul_pd(a, _mm512_i32gather_pd(_mm512_castsi512_si256(index), reciprocal, 8));
    b = _mm512_mul_pd(b, _mm512_i32gather_pd(_mm512_extracti64x4_epi64(index, 1), reciprocal, 8));
    return _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvttpd_epu32(a)), _mm512_cvttpd_epu32(b), 1);
}

static inline uint16_t *AS(put_raw)(__m512i *x, __m512i raw, __m512i count, uint16_t *out) {
    __m512i full = _mm512_srlv_epi32(*x, _mm512_sub_epi32(F(32), count));
    out = AS(emitted)(x, _mm512_test_epi32_mask(full, full), out);
    *x = _mm512_or_si512(_mm512_sllv_epi32(*x, count), raw);
    return out;
}

static inline uint16_t *AS(put_symbols)(__m512i *x, const Job *j, __m512i index, uint16_t *out) {
    __m512i e = _mm512_i32gather_epi32(index, j->frequency, 4), many = _mm512_and_si512(e, F(0xffff));
    __mmask16 full = _mm512_cmpge_epu32_mask(_mm512_srl_epi32(*x, _mm_cvtsi32_si128(32 - j->bits)), many);
    out = AS(emitted)(x, full, out);
    __m512i q = AS(quotient)(*x, index, j->reciprocal);
    q = _mm512_mullo_epi32(q, _mm512_sub_epi32(F(1 << j->bits), many)); /* q 2^bits + x - q f */
    *x = _mm512_add_epi32(_mm512_add_epi32(*x, _mm512_srli_epi32(e, 16)), q);
    return out;
}

static uint16_t *AS(write_wide)(uint32_t *state, const Job *j, const Split *v, size_t first, size_t count, uint16_t *out) {
    __m512i x = _mm512_loadu_si512(state), y = _mm512_loadu_si512(state + 16);
    for (size_t i = first + count; i > first;) {
        i -= LANES;
        __m512i a = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(v->index + i)));
        __m512i b = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(v->index + i + 16)));
        __m512i c = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(v->count + i)));
        __m512i d = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(v->count + i + 16)));
        __m512i r = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(v->raw + i)));
        __m512i s = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(v->raw + i + 16)));
        __mmask16 e = _mm512_cmpeq_epi32_mask(_mm512_and_si512(a, F(SYMBOLS - 1)), F(ESCAPE));
        __mmask16 g = _mm512_cmpeq_epi32_mask(_mm512_and_si512(b, F(SYMBOLS - 1)), F(ESCAPE));
        if (__builtin_expect(e | g, 0)) {
            __m512i word = s;
            out = AS(emitted)(&word, g, out);
            word = r;
            out = AS(emitted)(&word, e, out);
            r = _mm512_maskz_mov_epi32(~e, r);
            s = _mm512_maskz_mov_epi32(~g, s);
        }
        out = AS(put_raw)(&y, s, d, out);
        out = AS(put_raw)(&x, r, c, out);
        out = AS(put_symbols)(&y, j, b, out);
        out = AS(put_symbols)(&x, j, a, out);
    }
    _mm512_storeu_si512(state, x);
    _mm512_storeu_si512(state + 16, y);
    return out;
}
#undef F
#endif

/* Writes rows of one tensor in one stream, the last one first. */
static uint16_t *AS(write_rows)(uint32_t *state, const Job *j, const Form *f, const Split *v, size_t first, int rows, int dim,
                                uint16_t *out) {
#if LEVEL == 2
    if (f->bits == 16 && dim % LANES == 0) return AS(write_wide)(state, j, v, first, (size_t)rows * dim, out);
#endif
    for (int row = rows; row--;)
        for (int i = (dim - 1) / LANES * LANES; i >= 0; i -= LANES)
            out = AS(write_any)(state, j, f, v, first + (size_t)row * dim + i, dim - i < LANES ? dim - i : LANES, out);
    return out;
}

/* -- a chunk -------------------------------------------------------------------------------------------------------- */

/* What a row of known words gives on; `mu` is right where the tensor is coded. */
static inline void AS(give_on)(Work *w, const Job *j, const Form *f, Row *row, int n, int head, int token) {
    const Tensor *t = &j->tensor[n];
    AS(values)(row, j->kind, t->dim);
    (void)f;
    if (!t->given) w->wrong[token] += AS(error)(row, t->inverse + head * t->dim, t->dim);
    AS(features)(row, j, t, head, token, features_at(w, j, n, token) + head * t->dim);
}

/* Predicts a row of a tensor that is coded. */
static inline void AS(predict)(const Work *w, const Job *j, const Form *f, Row *row, int n, int head, int token, int in_slice) {
    const Tensor *t = &j->tensor[n];
    int32_t steps[MOST_DIM];
    const int32_t *sums = 0;
    if (t->mode == BY_SUMS) sums = w->sums + in_slice * up(t->dim, TILE);
    if (t->mode == BY_TABLE) {
        const size_t width = (size_t)j->heads * (j->tensor[0].dim + j->tensor[1].dim);
        const int16_t *held = j->table + (j->entries[token] ? (size_t)(j->entries[token] - 1) : 0) * width;
        held += n ? (size_t)j->heads * j->tensor[0].dim : 0;
        for (int i = 0; i < t->dim; i++) steps[i] = j->entries[token] ? held[head * t->dim + i] : 0;
        sums = steps;
    }
    AS(expect)(row, j, t, sums, head, token);
    AS(frame)(row, f, t->log_sigma + head * t->dim, w->factor[token], t->dim);
}

static int AS(decode_tensor)(Work *w, const Job *j, Stream *streams, int n) {
    const Form *f = &FORMS[j->kind];
    const Tensor *t = &j->tensor[n];
    const int width = f->bits / 8, slices = slices_of(j);
    Row row;
    for (int head = 0; head < j->heads; head++)
        for (int slice = 0; slice < slices; slice++) {
            const int first = slice << j->slice_log, tokens = slice_tokens(j, slice);
            if (t->mode == BY_SUMS && !t->given) AS(sums)(w, j, n, head, first, tokens);
            for (int i = 0; i < tokens; i++) {
                char *words = t->words + head * t->head_stride + (first + i) * t->token_stride;
                if (t->given) load_words(row.word, words, width, t->dim);
                else {
                    AS(predict)(w, j, f, &row, n, head, first + i, i);
                    int failed = AS(decode_row)(&streams[(size_t)slice * j->heads + head], j, f, &row, t->dim);
                    if (failed) return failed;
                    store_words(words, row.word, width, t->dim);
                }
                AS(give_on)(w, j, f, &row, n, head, first + i);
            }
        }
    return GOOD;
}

/* Reads header, entries and where the streams are.  Sizes are compared before anything of their size is reserved. */
static int AS(parse)(Job *j, const uint8_t *wire, size_t length, Stream **streams) {
    if (length < HEADER || wire[0] != 2 || wire[1] != j->kind || wire[2] < 5 || wire[2] > 8 || wire[3] != 5) return NO_HEADER;
    if (word_at(wire + 6)) return NO_HEADER;
    j->slice_log = wire[2];
    const size_t entries = word_at(wire + 4), count = (size_t)slices_of(j) * j->heads;
    if (entries != (j->has_table ? (size_t)j->tokens : 0)) return NO_ENTRY;
    const size_t start = HEADER + 2 * entries + 4 * count;
    if (length < start || (length - start) / (4 * LANES) < count) return NO_LENGTH;
    for (size_t i = 0; i < entries; i++) {
        j->entries[i] = (uint16_t)word_at(wire + HEADER + 2 * i);
        if (j->entries[i] > j->rows) return NO_ENTRY;
    }
    Stream *s = *streams = malloc(count * sizeof *s);
    if (!s) return NO_MEMORY;
    size_t at = 0, all = (length - start) / 2;
    for (size_t i = 0; i < count; i++) {
        uint32_t end;
        memcpy(&end, wire + HEADER + 2 * entries + 4 * i, 4);
        if (end > all || end < at || end - at < 2 * LANES) return NO_LENGTH;
        memcpy(s[i].state, wire + start + 2 * at, 4 * LANES);
        for (int l = 0; l < LANES; l++)
            if (s[i].state[l] < LOW) return NO_STATE;
        s[i].at = wire + start + 2 * at + 4 * LANES;
        s[i].end = wire + start + 2 * (size_t)end;
        at = end;
    }
    return start + 2 * at == length ? GOOD : NO_LENGTH;
}

static int AS(decode_chunk)(Job *j, const uint8_t *wire, size_t length) {
    Work w;
    Stream *streams = 0;
    int failed = AS(parse)(j, wire, length, &streams);
    if (failed) {
        free(streams);
        return failed;
    }
    failed = begin_work(&w, j) ? GOOD : NO_MEMORY;
    for (int n = 0; n < j->count && !failed; n++) {
        token_factors(&w, j, n);
        failed = AS(decode_tensor)(&w, j, streams, n);
        token_errors(&w, j, n);
    }
    for (size_t i = 0; i < (size_t)slices_of(j) * j->heads && !failed; i++) {
        if (streams[i].at != streams[i].end) failed = NO_END;
        for (int l = 0; l < LANES; l++)
            if (streams[i].state[l] != LOW) failed = NO_END;
    }
    end_work(&w);
    free(streams);
    return failed;
}

static void AS(split_tensor)(Work *w, const Job *j, const Split *v, int n, size_t before, size_t row_values) {
    const Form *f = &FORMS[j->kind];
    const Tensor *t = &j->tensor[n];
    Row row;
    for (int head = 0; head < j->heads; head++)
        for (int slice = 0; slice < slices_of(j); slice++) {
            const int first = slice << j->slice_log, tokens = slice_tokens(j, slice);
            size_t at = ((size_t)first * j->heads + (size_t)head * tokens) * row_values + (size_t)tokens * before;
            if (t->mode == BY_SUMS && !t->given) AS(sums)(w, j, n, head, first, tokens);
            for (int i = 0; i < tokens; i++, at += t->dim) {
                load_words(row.word, t->words + head * t->head_stride + (first + i) * t->token_stride, f->bits / 8, t->dim);
                if (!t->given) {
                    AS(predict)(w, j, f, &row, n, head, first + i, i);
                    AS(split)(&row, j, f, t->dim, v, at);
                }
                AS(give_on)(w, j, f, &row, n, head, first + i);
            }
        }
}

/* Writes one stream into `out`, which has room before `end`; returns where it begins. */
static uint16_t *AS(write_stream)(uint32_t *state, const Job *j, const Split *v, size_t first, int tokens, uint16_t *end) {
    const Form *f = &FORMS[j->kind];
    size_t at = first;
    for (int l = 0; l < LANES; l++) state[l] = LOW;
    for (int n = 0; n < j->count; n++)
        if (!j->tensor[n].given) at += (size_t)tokens * j->tensor[n].dim;
    for (int n = j->count; n--;)
        if (!j->tensor[n].given) {
            at -= (size_t)tokens * j->tensor[n].dim;
            end = AS(write_rows)(state, j, f, v, at, tokens, j->tensor[n].dim, end);
        }
    return end;
}

static int AS(encode_chunk)(Job *j, uint8_t **out, size_t *length) {
    Work w;
    Split v = {0, 0, 0, 0};
    uint16_t *words = 0;
    size_t row_values = 0, before = 0;
    for (int n = 0; n < j->count; n++) row_values += j->tensor[n].given ? 0 : (size_t)j->tensor[n].dim;
    const size_t values = row_values * j->heads * j->tokens, count = (size_t)slices_of(j) * j->heads;
    const size_t each = j->kind == 2 ? 5 : 3, most = each * row_values * ((size_t)1 << j->slice_log); /* words a stream */
    const size_t start = HEADER + (j->has_table ? 2 * (size_t)j->tokens : 0) + 4 * count;
    size_t room = start + 4 * LANES * count + values * (j->kind == 2 ? 4 : 2) + 4096;
    uint8_t *wire = malloc(room);
    int good = begin_work(&w, j);
    v.index = malloc(2 * values + 2);
    v.raw = malloc(2 * values + 2);
    v.high = j->kind == 2 ? malloc(2 * values + 2) : 0;
    v.count = malloc(values + 1);
    words = malloc(2 * most + 2);
    good = good && wire && v.index && v.raw && (v.high || j->kind != 2) && v.count && words;
    for (int n = 0; n < j->count && good; n++) {
        token_factors(&w, j, n);
        AS(split_tensor)(&w, j, &v, n, before, row_values);
        token_errors(&w, j, n);
        before += j->tensor[n].given ? 0 : (size_t)j->tensor[n].dim;
    }
    size_t at = 0;
    for (int slice = 0; slice < slices_of(j) && good; slice++)
        for (int head = 0; head < j->heads && good; head++) {
            const int tokens = slice_tokens(j, slice);
            size_t first = (((size_t)slice << j->slice_log) * j->heads + (size_t)head * tokens) * row_values;
            uint32_t state[LANES];
            uint16_t *from = AS(write_stream)(state, j, &v, first, tokens, words + most);
            size_t size = 2 * (size_t)(words + most - from), wanted = start + 2 * at + sizeof state + size;
            if (wanted > room) { /* more than the values themselves take: rare, so by half as much again */
                room = wanted + wanted / 2;
                uint8_t *larger = realloc(wire, room);
                good = larger != 0;
                wire = good ? larger : wire;
            }
            if (!good) break;
            memcpy(wire + start + 2 * at, state, sizeof state);
            memcpy(wire + start + 2 * at + sizeof state, from, size);
            at += (sizeof state + size) / 2;
            good = at <= UINT32_MAX;
            uint32_t end = (uint32_t)at;
            memcpy(wire + start - 4 * (count - ((size_t)slice * j->heads + head)), &end, 4);
        }
    if (good) {
        const uint8_t header[HEADER] = {2, (uint8_t)j->kind, (uint8_t)j->slice_log, 5,
                                        (uint8_t)(j->has_table ? j->tokens & 255 : 0), (uint8_t)(j->has_table ? j->tokens >> 8 : 0)};
        memcpy(wire, header, HEADER);
        if (j->has_table) memcpy(wire + HEADER, j->entries, 2 * (size_t)j->tokens);
        *out = wire;
        *length = start + 2 * at;
    } else free(wire);
    end_work(&w);
    free(v.index); free(v.raw); free(v.high); free(v.count); free(words);
    return good ? GOOD : NO_MEMORY;
}
