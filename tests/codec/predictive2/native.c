/* The C core of `predictive2` under sanitizers, a fuzzer or another processor: no Python, no file of the package but the
 * headers.  An input says a shape and a predictor (drawn by chance within the format's bounds), then either words, which
 * every form must encode alike and give back, or a stream, valid up to some changed bytes or any bytes, of which every
 * form must make the same.  Without a fuzzer `main` runs the files it is given and prints what came out of each. */

#include <stdio.h>

#include "_core.h"

static uint64_t seed;

static uint32_t drawn(void) { /* splitmix64 */
    uint64_t z = (seed += UINT64_C(0x9E3779B97F4A7C15));
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return (uint32_t)((z ^ (z >> 31)) >> 16);
}

static int32_t between(int64_t low, int64_t high) { return (int32_t)(low + (int64_t)(drawn() % (uint64_t)(high - low + 1))); }

static float power(int by) { return as_float((by + 127) << 23); }

static void *reserved(size_t n) { /* exactly as long as needed, so that a byte over is seen */
    void *p = malloc(n ? n : 1);
    if (!p) abort();
    return p;
}

static void constants(Tensor *t, const Job *j, int wild) {
    const size_t channels = (size_t)t->dim * j->heads;
    float *each[4];
    int32_t *sigma = reserved(4 * channels);
    const int unit = between(0, 24);
    for (int k = 0; k < 4; k++) each[k] = reserved(4 * channels);
    for (size_t c = 0; c < channels; c++) {
        const int far = wild && drawn() % 8 == 0;
        each[0][c] = (float)(far ? between(-(1 << 30), 1 << 30) : between(-300, 300)) * power(-unit);
        each[1][c] = (float)(far ? between(0, INT32_MAX - 1) : between(0, 1 << 16)) * power(-24 - unit);
        each[2][c] = (float)(far ? between(0, INT32_MAX - 1) : between(0, 1 << 14)) * power(unit - 16);
        each[3][c] = (float)(far ? between(0, INT32_MAX - 1) : between(0, 1 << 16)) * power(unit - 16);
        sigma[c] = far ? between(-200, 200) : between(-24, 8);
    }
    t->mean = each[0]; t->scale = each[1]; t->feature = each[2]; t->inverse = each[3];
    t->log_sigma = sigma;
}

static void weights(Tensor *t, const Job *j) {
    const size_t wide = up(t->dim, TILE), tiles = wide / TILE;
    t->fours = 0;
    for (int i = 0; i < t->inputs; i++) t->fours += up((size_t)j->tensor[t->input[i]].dim * j->heads, 4) / 4;
    int8_t *w = reserved(j->heads * wide * t->fours * 4);
    int32_t *correction = reserved(4 * j->heads * wide);
    memset(correction, 0, 4 * j->heads * wide);
    for (size_t i = 0, n = j->heads * tiles * t->fours * TILE; i < n; i++)
        for (int k = 0; k < 4; k += 2) {
            const size_t tile = i / TILE / t->fours, channel = tile * TILE + i % TILE;
            const int one = between(-127, 127), most = 128 - (one < 0 ? -one : one), other = between(-most, most < 127 ? most : 127);
            w[4 * i + k] = (int8_t)one;
            w[4 * i + k + 1] = (int8_t)other;
            correction[channel] -= 128 * (one + other);
        }
    t->weights = w;
    t->correction = correction;
}

static void tables(Job *j) {
    const size_t slots = (size_t)CONTEXTS << j->bits;
    uint32_t *by_slot = reserved(4 * slots), *by_symbol = reserved(4 * CONTEXTS * SYMBOLS);
    double *reciprocal = reserved(8 * CONTEXTS * SYMBOLS);
    for (int c = 0; c < CONTEXTS; c++) {
        int32_t f[SYMBOLS], left = 1 << j->bits;
        for (int s = 0; s < SYMBOLS; s++) {
            f[s] = drawn() % 4 ? between(0, 40) / (1 + (s > MIDDLE ? s - MIDDLE : MIDDLE - s) / 8) : 0;
            if (f[s] > left - 1) f[s] = left > 1 ? left - 1 : 0;
            left -= f[s];
        }
        f[ESCAPE] += left;
        for (int s = 0, at = 0; s < SYMBOLS; s++) {
            by_symbol[c * SYMBOLS + s] = (uint32_t)f[s] | (uint32_t)at << 16;
            reciprocal[c * SYMBOLS + s] = f[s] ? 1.0 / f[s] : 0;
            for (int k = 0; k < f[s]; k++)
                by_slot[((size_t)c << j->bits) + at++] = (uint32_t)s | (uint32_t)k << 7 | (uint32_t)f[s] << 19;
        }
    }
    j->slots = by_slot; j->frequency = by_symbol; j->reciprocal = reciprocal;
}

static void inputs(Tensor *t, int n, int value, int before, int table) {
    const int layer = n / 2, wanted = before < layer ? before : layer;
    for (int b = 1; b <= wanted; b++)
        for (int k = 0; k < 2; k++) t->input[t->inputs++] = 2 * (layer - b) + k;
    if (value && !(table && !layer)) t->input[t->inputs++] = n - 1;
    if (value) t->factor[t->factors++] = n - 1;
    if (layer)
        for (int k = 0; k < 2; k++) t->factor[t->factors++] = 2 * layer - 2 + k;
    for (int k = 0; k < 7; k++) t->token[k] = between(-60, 60);
}

static void job_of(Job *j, const uint8_t *head) {
    static const int DIMS[8] = {16, 32, 64, 128, 256, 40, 96, 24};
    memset(j, 0, sizeof *j);
    seed = head[7];
    const int layers = 1 + head[0] % 3, flags = head[6];
    j->heads = 1 + head[1] % 2;
    j->tokens = 1 + head[2] % 70;
    j->kind = head[3] % 3;
    j->bits = 10 + head[3] / 3 % 3;
    j->slice_log = 5;
    j->count = 2 * layers;
    j->has_table = flags & 1;
    const int dims[2] = {DIMS[head[4] % 8], DIMS[head[5] % 8]}, given = layers > 1 && !j->has_table && (flags & 2) ? 2 : 0;
    j->pairs = flags & 4 ? dims[0] / 2 : flags & 8 ? dims[0] / 4 : 0;
    j->tensor = calloc(j->count, sizeof *j->tensor);
    for (int n = 0; n < j->count; n++) {
        Tensor *t = &j->tensor[n];
        t->dim = dims[n % 2];
        t->rotated = n % 2 == 0;
        t->given = n < given;
        inputs(t, n, n % 2, 1 + flags / 64, j->has_table);
        t->mode = j->has_table && n < 2 ? BY_TABLE : t->inputs && !t->given ? BY_SUMS : BY_MEAN;
        if (given) t->factors = -1;
        if (t->mode != BY_SUMS) t->inputs = 0;
        constants(t, j, flags & 16);
        if (t->mode == BY_SUMS) weights(t, j);
        const size_t item = (size_t)FORMS[j->kind].bits / 8;
        t->words = reserved(item * j->heads * j->tokens * t->dim);
        t->token_stride = (ptrdiff_t)(item * t->dim);
        t->head_stride = t->token_stride * j->tokens;
    }
    float *angles = reserved(8 * (size_t)j->tokens * j->pairs);
    for (int i = 0; i < j->tokens * j->pairs; i++) {
        angles[2 * i] = (float)between(-16384, 16384) / 16384;
        angles[2 * i + 1] = (float)between(-16384, 16384) / 16384;
    }
    j->cosine = angles;
    j->sine = angles + (size_t)j->tokens * j->pairs;
    tables(j);
    if (j->has_table) {
        const size_t width = (size_t)j->heads * (dims[0] + dims[1]);
        int16_t *table = reserved(2 * width * 5);
        j->rows = 5;
        for (size_t i = 0; i < width * 5; i++) table[i] = (int16_t)between(-32768, 32767);
        j->table = table;
        j->entries = reserved(2 * (size_t)j->tokens);
        for (int i = 0; i < j->tokens; i++) j->entries[i] = (uint16_t)between(0, 5);
        j->missing[0] = between(-64, 64);
        j->missing[1] = between(-64, 64);
    }
}

static void job_gone(Job *j) {
    for (int n = 0; n < j->count; n++) {
        Tensor *t = &j->tensor[n];
        free((void *)t->mean); free((void *)t->scale); free((void *)t->feature); free((void *)t->inverse);
        free((void *)t->log_sigma); free((void *)t->weights); free((void *)t->correction); free(t->words);
    }
    free(j->tensor); free((void *)j->cosine); free((void *)j->slots); free((void *)j->frequency);
    free((void *)j->reciprocal); free((void *)j->table); free(j->entries);
}

static size_t bytes_of(const Job *j, int n) {
    return (size_t)j->tensor[n].head_stride * j->heads;
}

/* Words near what is usual, with some of every kind among them; from the input while it lasts. */
static void fill(Job *j, const uint8_t *data, size_t size) {
    size_t at = 0;
    for (int n = 0; n < j->count; n++)
        for (size_t i = 0, item = FORMS[j->kind].bits / 8; i < bytes_of(j, n); i += item) {
            float x = (float)between(-30000, 30000) / 16384;
            uint32_t word = (uint32_t)as_int(x);
            if (j->kind == 0) word >>= 16;
            if (j->kind == 1) word = ((word >> 16) & 0x8000) | ((((word >> 23) & 255) - 112) & 31) << 10 | ((word >> 13) & 1023);
            if (at + 2 <= size) {
                word ^= word_at(data + at);
                at += 2;
            }
            memcpy(j->tensor[n].words + i, &word, item);
        }
}

static uint64_t digest(const uint8_t *data, size_t size, uint64_t hash) { /* FNV-1a */
    for (size_t i = 0; i < size; i++) hash = (hash ^ data[i]) * UINT64_C(0x100000001B3);
    return hash;
}

/* What every form makes of a stream: 0 where it is refused. */
static uint64_t decoded(Job *j, const uint8_t *wire, size_t length) {
    uint64_t all = 0;
    uint8_t *copy = reserved(length); /* with nothing readable behind it */
    if (length) memcpy(copy, wire, length);
    for (int level = 0; level <= best_level(); level++) {
        for (int n = 0; n < j->count; n++)
            if (!j->tensor[n].given) memset(j->tensor[n].words, 0, bytes_of(j, n));
        uint64_t hash = UINT64_C(0xCBF29CE484222325);
        if (decode_chunk(j, copy, length, level)) hash = 0;
        else
            for (int n = 0; n < j->count; n++) hash = digest((uint8_t *)j->tensor[n].words, bytes_of(j, n), hash);
        if (level && hash != all) {
            fprintf(stderr, "form %d decodes otherwise\n", level);
            abort();
        }
        all = hash;
    }
    free(copy);
    return all;
}

static uint64_t ran(const uint8_t *data, size_t size) {
    if (size < 10) return 0;
    Job j;
    job_of(&j, data);
    if (!job_fits(&j)) abort();
    const int mode = data[8] % 3;
    uint64_t out = 0, words = UINT64_C(0xCBF29CE484222325);
    fill(&j, data + 10, mode == 0 ? size - 10 : 0);
    for (int n = 0; n < j.count; n++) words = digest((uint8_t *)j.tensor[n].words, bytes_of(&j, n), words);
    uint8_t *wire = 0;
    size_t length = 0;
    for (int level = 0; level <= best_level(); level++) {
        uint8_t *again;
        size_t as_long;
        if (encode_chunk(&j, &again, &as_long, level)) abort();
        if (level && (as_long != length || memcmp(again, wire, length))) {
            fprintf(stderr, "form %d encodes otherwise\n", level);
            abort();
        }
        free(wire);
        wire = again;
        length = as_long;
    }
    if (mode == 0) {
        out = digest(wire, length, UINT64_C(0xCBF29CE484222325));
        if (decoded(&j, wire, length) != words) {
            fprintf(stderr, "what was encoded does not come back\n");
            abort();
        }
    } else if (mode == 1) { /* changes: a place and what it is xored with; then perhaps an end */
        for (size_t i = 10; i + 4 <= size; i += 4) wire[(word_at(data + i) | (size_t)data[i + 2] << 16) % length] ^= data[i + 3];
        out = decoded(&j, wire, length - data[9] % 64 % length);
    } else out = decoded(&j, data + 10, size - 10);
    free(wire);
    job_gone(&j);
    return out;
}

#ifdef FUZZING
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    ran(data, size);
    return 0;
}
#else
/* native FILE... | native seeds N: what comes out of each file, or of N inputs by chance, a line each */
int main(int count, char **names) {
    static uint8_t data[1 << 20];
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (count == 3 && !strcmp(names[1], "seeds")) {
        for (int i = 0; i < atoi(names[2]); i++) {
            seed = (uint64_t)i << 32;
            size_t size = 10 + drawn() % 200;
            for (size_t k = 0; k < size; k++) data[k] = (uint8_t)drawn();
            printf("%d %016llx\n", i, (unsigned long long)ran(data, size));
        }
        return 0;
    }
    for (int i = 1; i < count; i++) {
        FILE *file = fopen(names[i], "rb");
        if (!file) return 1;
        size_t size = fread(data, 1, sizeof data, file);
        fclose(file);
        printf("%d %016llx\n", i, (unsigned long long)ran(data, size));
    }
    return 0;
}
#endif
