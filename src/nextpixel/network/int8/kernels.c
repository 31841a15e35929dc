/* CPU kernels for drawing, where torch has no fast equivalent. Uses the vector types of GCC and Clang; see kernels.py.

   Weights and cache are bytes, n stored as n + 128, in the layout of the processors' four-way dot products: a vector has
   LANES groups of four bytes; each group is multiplied by the same four numbers of x and summed. */

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#else
static int omp_get_thread_num(void) { return 0; }
static int omp_get_num_threads(void) { return 1; }
#endif

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#if defined(__AVX512VNNI__)
#define LANES 16
#define DOT(sum, bytes, four) \
    (integers)_mm512_dpbusd_epi32((__m512i)(sum), (__m512i)(bytes), _mm512_set1_epi32(four))
#elif defined(__AVXVNNI__)
#define LANES 8
#define ROWS 2
#define DOT(sum, bytes, four) \
    (integers)_mm256_dpbusd_avx_epi32((__m256i)(sum), (__m256i)(bytes), _mm256_set1_epi32(four))
#elif defined(__ARM_FEATURE_DOTPROD)
#define LANES 4
#define BIAS 0  // the bytes are converted back to signed
#define DOT(sum, bytes, four) vdotq_s32(sum, (int8x16_t)((bytes) ^ (int32_t)0x80808080), (int8x16_t)vdupq_n_s32(four))
#elif defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif
#ifndef ROWS
#define ROWS 4  // rows of x multiplied by a vector of weights at once: their sums fill the registers
#endif
#ifndef BIAS
#define BIAS 128  // a byte minus its number
#endif
#define INLINE static inline __attribute__((always_inline))

typedef float floats __attribute__((vector_size(4 * LANES)));
typedef int32_t integers __attribute__((vector_size(4 * LANES)));
typedef int8_t bytes __attribute__((vector_size(LANES)));

#define OWN 16     // from this many rows per thread on, threads split rows instead of columns
#define CHUNK 128  // rows that a thread takes through a block at once, so that the activations stay in its cache
#define QUERIES 4  // queries of a head that are multiplied by its cache at once
#define GROUP 64   // numbers that share a scale

int64_t lanes(void) { return LANES; }  // Python needs it for the layout of the bytes

INLINE floats load(const float *p) {
    floats x;
    memcpy(&x, p, sizeof x);
    return x;
}

INLINE integers load_bytes(const uint8_t *p) {
    integers x;
    memcpy(&x, p, sizeof x);
    return x;
}

/* a * b + c, fused where the processor can. Compilers may not contract on their own: they would in some tiles and not in
   others, and a row must not depend on the tile it is computed in. */
INLINE floats multiply_add(floats a, floats b, floats c) {
#if LANES == 16
    return (floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif LANES == 8 && defined(__FMA__)
    return (floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__ARM_NEON)
    return (floats)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}

INLINE floats larger(floats a, floats b) {
    integers more = a > b;
    return (floats)(((integers)a & more) | ((integers)b & ~more));
}

INLINE float sum(floats x) {
    float total = 0;
    for (int i = 0; i < LANES; i++) total += x[i];
    return total;
}

INLINE float largest(floats x) {
    float top = x[0];
    for (int i = 1; i < LANES; i++) top = x[i] > top ? x[i] : top;
    return top;
}

/* The largest |x| of x[first] to x[end - 1]; NaN if any is NaN. Compared as integers, which order absolute values alike
   and NaN last. */
INLINE float largest_size(const float *x, int64_t first, int64_t end) {
    integers most = {0};
    for (int64_t i = first; i < end; i += LANES) {
        integers size = (integers)load(x + i) & INT32_MAX, more = size > most;
        most = (size & more) | (most & ~more);
    }
#if LANES == 16
    int32_t top = _mm512_reduce_max_epi32((__m512i)most);
#else
    int32_t top = 0;
    for (int i = 0; i < LANES; i++) top = most[i] > top ? most[i] : top;
#endif
    float found;
    memcpy(&found, &top, sizeof found);
    return found;
}

/* Rounds to the nearest integer, up to 2^22. */
INLINE integers rounded(floats x) { return __builtin_convertvector(x + 0x1.8p23f - 0x1.8p23f, integers); }

INLINE void narrow(integers x, int8_t *to) {
    bytes y = __builtin_convertvector(x, bytes);
    memcpy(to, &y, sizeof y);
}

/* Numbers in the format that the processor multiplies bytes by, and a running sum of the products of a group. */
#if defined(DOT)
/* GROUP numbers are signed bytes times a unit, the largest 127: the root mean square of the rounding error is at most
   sqrt(GROUP) / 254 of theirs. A byte n + BIAS adds BIAS times each number too much, which totals start without. */
typedef struct {
    int8_t *bytes;
    float *units;
    float begin;
} numbers;
typedef integers sums;

/* Packed into the memory of C floats. */
INLINE numbers pack(const float *x, void *room, int64_t C) {
    numbers n = {room, (float *)room + (C + 3) / 4};
    floats all = {0};
    for (int64_t first = 0; first < C; first += GROUP) {
        int64_t end = first + GROUP < C ? first + GROUP : C;
        float top = largest_size(x, first, end), steps = 127 / fmaxf(top, 1e-30f), unit = top / 127;
        integers whole = {0};
        for (int64_t c = first; c < end; c += LANES) {
            integers y = rounded(load(x + c) * steps);
            narrow(y, n.bytes + c);
            whole += y;
        }
        n.units[first / GROUP] = unit;
        all = multiply_add(__builtin_convertvector(whole, floats), (floats){0} + unit, all);
    }
    n.begin = -BIAS * sum(all);
    return n;
}

INLINE floats begin(numbers x) { return (floats){0} + x.begin; }

/* Bytes times x[c], ..., x[c + 3]. */
INLINE sums add(sums s, integers bytes, numbers x, int64_t c) {
    int32_t four;
    memcpy(&four, x.bytes + c, 4);
    return DOT(s, bytes, four);
}

/* The total plus the sum of the group that begins at c. */
INLINE floats join(floats total, sums s, numbers x, int64_t c) {
    return multiply_add(__builtin_convertvector(s, floats), (floats){0} + x.units[c / GROUP], total);
}
#else
typedef struct {
    float *x;
} numbers;
typedef floats sums;

static numbers pack(const float *x, void *room, int64_t C) { return (numbers){memcpy(room, x, C * sizeof *x)}; }

INLINE floats begin(numbers x) { return (floats){0}; }

INLINE sums add(sums s, integers bytes, numbers x, int64_t c) {
    for (int i = 0; i < 4; i++) {
        floats w = __builtin_convertvector(((bytes >> 8 * i) & 255) - 128, floats);
        s = multiply_add(w, (floats){0} + x.x[c + i], s);
    }
    return s;
}

INLINE floats join(floats total, sums s, numbers x, int64_t c) { return total + s; }
#endif

/* e^x for -87 <= x <= 0: 2^n times the first terms of the series, |r| <= ln 2 / 2; relative error about 2e-7. */
INLINE floats exponential(floats x) {
    integers n = __builtin_convertvector(x * 1.44269504f - 0.5f, integers);
    floats whole = __builtin_convertvector(n, floats);
    floats r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;  // ln 2 in two parts
    const float terms[] = {1 / 120.f, 1 / 24.f, 1 / 6.f, 1 / 2.f, 1, 1};
    floats p = (floats){0} + 1 / 720.f;
    for (int i = 0; i < 6; i++) p = multiply_add(p, r, (floats){0} + terms[i]);
    return p * (floats)((n + 127) << 23);
}

/* Scores in place become exp(score - largest) * scale, zero from `count` up to `room`, multiples of LANES; returns the
   sum of the exponentials. */
static float softmax_terms(float *scores, const float *scales, int64_t count, int64_t room) {
    for (int64_t t = count; t < room; t++) scores[t] = -INFINITY;
    floats most = load(scores), total = {0};
    for (int64_t t = LANES; t < room; t += LANES) most = larger(most, load(scores + t));
    float top = largest(most);
    for (int64_t t = 0; t < room; t += LANES) {
        floats x = load(scores + t) - top;
        integers counts = ~(x <= -87.f);  // excludes the padding, whose conversion to an integer is undefined
        x = (floats)((integers)exponential((floats)((integers)x & counts)) & counts);
        total += x;
        x = (floats)((integers)(x * load(scales + t)) & counts);
        memcpy(scores + t, &x, sizeof x);
    }
    return sum(total);
}

/* Quantises E numbers to bytes, the largest as 127 + 128; returns the scale. */
INLINE float round_bytes(const float *x, uint8_t *to, int64_t E) {
    float top = largest_size(x, 0, E), steps = 127 / fmaxf(top, 1e-12f);
    for (int64_t e = 0; e < E; e += LANES) narrow(rounded(load(x + e) * steps) + 128, (int8_t *)to + e);
    return (top + 1e-12f) / 127;
}

/* A head's part of the cache, for T slots of E numbers, both multiples of 16. A lane of keys is a slot (LANES slots of
   four numbers), a lane of values is a number (four slots of LANES numbers). */
typedef struct {
    uint8_t *keys, *values;
    float *key_scales, *value_scales;
} cache;

INLINE cache part(cache all, int64_t head, int64_t T, int64_t E) {
    return (cache){all.keys + head * T * E, all.values + head * T * E, all.key_scales + head * T,
                   all.value_scales + head * T};
}

/* Stores k and v, E numbers each, in a slot; `bytes` is scratch for E. */
static void store(cache to, int64_t slot, const float *k, const float *v, uint8_t *bytes, int64_t E) {
    to.key_scales[slot] = round_bytes(k, bytes, E);
    uint8_t *keys = to.keys + slot / LANES * LANES * E + slot % LANES * 4;
    for (int64_t e = 0; e < E; e += 4) memcpy(keys + e * LANES, bytes + e, 4);
    to.value_scales[slot] = round_bytes(v, bytes, E);
    uint8_t *values = to.values + slot / 4 * 4 * E + slot % 4;
    for (int64_t e = 0; e < E; e++) values[e * 4] = bytes[e];
}

/* A group's part of `dot`: n columns from c on. */
INLINE void dot_group(const int rows, const int columns, const numbers *x, const uint8_t *bytes, int64_t step,
                      int64_t apart, int64_t c, int64_t n, floats total[4][4]) {
    sums s[4][4] = {0};
#pragma GCC unroll 16
    for (int64_t k = c; k < c + n; k += 4) {
        integers w[4];
        for (int i = 0; i < columns; i++) w[i] = load_bytes(bytes + k * step + i * apart);
        for (int j = 0; j < rows; j++)
            for (int i = 0; i < columns; i++) s[j][i] = add(s[j][i], w[i], x[j], k);
    }
    for (int j = 0; j < rows; j++)
        for (int i = 0; i < columns; i++) total[j][i] = join(total[j][i], s[j][i], x[j], c);
}

/* `rows` times x, C numbers each, times `columns` times LANES columns of bytes: those of x[c] to x[c + 3] lie at
   c * `step`, each LANES of them `apart` from the next. */
INLINE void dot(const int rows, const int columns, const numbers *x, const uint8_t *bytes, int64_t step, int64_t apart,
                int64_t C, floats total[4][4]) {
    for (int j = 0; j < rows; j++)
        for (int i = 0; i < columns; i++) total[j][i] = begin(x[j]);
    int64_t c = 0;
    for (; c + GROUP <= C; c += GROUP) dot_group(rows, columns, x, bytes, step, apart, c, GROUP, total);
    if (c < C) dot_group(rows, columns, x, bytes, step, apart, c, C - c, total);
}

/* Replaces `rows` queries, `apart` floats from each other, by softmax(query K / sqrt(width)) V. The first sees `count`
   slots, each other one `more`, 1 or 0, than the one before. `scratch` is that of a thread. */
INLINE void attend_queries(const int rows, cache from, float *x, int64_t apart, int64_t count, int64_t more, int64_t E,
                   int64_t width, float *scratch) {
    const int columns = rows > 1 ? 2 : 4;  // as many as the registers hold
    int64_t room = (count + (rows - 1) * more + LANES - 1) / LANES * LANES;
    float *padded[QUERIES], *scores[QUERIES], *space[QUERIES], total[QUERIES];
    numbers packed[QUERIES];
    floats y[4][4];
    for (int j = 0; j < rows; j++) {
        padded[j] = scratch, scores[j] = padded[j] + E, space[j] = scores[j] + room;
        scratch = space[j] + (room > E ? room : E);
        for (int64_t e = 0; e < E; e++) padded[j][e] = e < width ? x[j * apart + e] / sqrtf(width) : 0;
        packed[j] = pack(padded[j], space[j], E);
    }
    for (int64_t t = 0; t < room; t += LANES) {
        dot(rows, 1, packed, from.keys + t * E, LANES, 0, E, y);
        for (int j = 0; j < rows; j++) {
            y[j][0] *= load(from.key_scales + t);
            memcpy(scores[j] + t, &y[j][0], sizeof(floats));
        }
    }
    for (int j = 0; j < rows; j++) {
        total[j] = softmax_terms(scores[j], from.value_scales, count + j * more, room);
        packed[j] = pack(scores[j], space[j], room);
    }
    for (int64_t e = 0; e < E;) {
        int wide = e + columns * LANES <= E;
        if (wide) dot(rows, columns, packed, from.values + e * 4, E, 4 * LANES, room, y);
        else dot(rows, 1, packed, from.values + e * 4, E, 0, room, y);
        for (int i = 0; i < (wide ? columns : 1); i++, e += LANES)
            for (int j = 0; j < rows; j++) memcpy(padded[j] + e, &y[j][i], sizeof(floats));
    }
    for (int j = 0; j < rows; j++)
        for (int64_t e = 0; e < width; e++) x[j * apart + e] = padded[j][e] / total[j];
}

/* Normalises (`qk_norm`) and rotates a query or key of E numbers, zero beyond `width`, as model.split_heads does. */
static void rotate(float *restrict x, const float *restrict cos, const float *restrict sin, int64_t E, int64_t width,
                 int qk_norm) {
    if (qk_norm) {
        floats squares = {0};
        for (int64_t e = 0; e < E; e += LANES) squares += load(x + e) * load(x + e);
        float scale = 1.2f / sqrtf(sum(squares) / width + FLT_EPSILON);
        for (int64_t e = 0; e < E; e++) x[e] *= scale;
    }
    for (int64_t e = 0; cos && e < width / 2; e++) {
        float a = x[e], b = x[e + width / 2];
        x[e] = a * cos[e] - b * sin[e], x[e + width / 2] = a * sin[e] + b * cos[e];
    }
}

/* Floats of scratch per thread; nothing on the stack grows with a picture or a network. C is the width of rows that are
   normalised. */
int64_t scratch_room(int64_t T, int64_t E, int64_t C) {
    int64_t queries = QUERIES * (E + T + (T > E ? T : E)), entries = 4 * E;
    int64_t most = queries > entries ? queries : entries;
    return most > C ? most : C;
}

/* Threads that share a piece of work, which of them this one is, and its own scratch. */
typedef struct {
    int64_t thread, threads;
    float *scratch;
} team;

INLINE team this_team(float *scratch, int64_t room) {
    int thread = omp_get_thread_num();
    return (team){thread, omp_get_num_threads(), scratch + thread * room};
}

/* A barrier. */
INLINE void wait_for_all(team of) {
    if (of.threads > 1) {
#pragma omp barrier
    }
}

/* A thread's share of `count` items, assigned `at_once` at a time. */
typedef struct {
    int64_t first, end;
} range;

INLINE range share(int64_t count, int64_t at_once, team of) {
    int64_t parts = (count + at_once - 1) / at_once;
    int64_t first = parts * of.thread / of.threads * at_once, end = parts * (of.thread + 1) / of.threads * at_once;
    return (range){first, end < count ? end : count};
}

/* Rows first <= row < end that the threads of `by` work on together, `at_once` at a time. */
typedef struct {
    int64_t first, end, at_once;
    team by;
} portion;

/* Splits M rows: all rows for all threads together, or, if there are enough, rows of its own for each thread. */
INLINE portion divide(int64_t M, team all) {
    if (all.threads > 1 && M < all.threads * OWN) return (portion){0, M, M, all};
    range own = share(M, ROWS, all);
    int64_t count = own.end - own.first, chunks = (count + CHUNK - 1) / CHUNK;
    return (portion){own.first, own.end, chunks ? ((count + chunks - 1) / chunks + ROWS - 1) / ROWS * ROWS : 1,
                     {0, 1, all.scratch}};
}

/* The settings of attention, the same for all blocks. */
typedef struct {
    int64_t B, Q, N, width;  // rows, slots of a row, heads, numbers of a head
    int64_t T, E;            // of the cache
    const int64_t *positions;
    const float *rotations;  // cos and sin for queries, cos and sin for keys: (4, 1 or B, Q, width / 2), or null
    int64_t rotations_part, rotations_row;
    int qk_norm, causal;  // causal: queries see the slots up to their own, else all of them
} heads;

/* For slots first to end of B * Q: stores the rotated queries of qkv (slots, 3, N, width) in (B, Q, N, width), keys and
   values in the cache (B, N, T, E), from slot positions[b] on. */
static void store_qkv(const float *qkv, float *queries, cache all, heads of, int64_t first, int64_t end, team by) {
    int64_t N = of.N, Q = of.Q, E = of.E, width = of.width;
    range own = share((end - first) * N, 1, by);
    for (int64_t item = own.first; item < own.end; item++) {
        int64_t row = first + item / N, n = item % N, b = row / Q, i = row % Q;
        const float *from = qkv + (item / N * 3 * N + n) * width;
        float *q = by.scratch, *k = q + E, *v = k + E;
        memset(q, 0, 3 * E * sizeof *q);
        for (int j = 0; j < 3; j++) memcpy(q + j * E, from + j * N * width, width * sizeof *from);
        for (int j = 0; j < 2; j++) {
            const float *cos = of.rotations;
            if (cos) cos += 2 * j * of.rotations_part + b * of.rotations_row + i * (width / 2);
            rotate(q + j * E, cos, cos ? cos + of.rotations_part : NULL, E, width, of.qk_norm);
        }
        memcpy(queries + (row * N + n) * width, q, width * sizeof *queries);
        store(part(all, b * N + n, of.T, E), of.positions[b] + i, k, v, (uint8_t *)(v + E), E);
    }
}

/* Replaces the queries (B, Q, N, width) by their attention over the slots up to their own, or over all. */
static void attention(float *queries, cache all, heads of, team by) {
    int64_t N = of.N, Q = of.Q, E = of.E, width = of.width, tiles = (Q + QUERIES - 1) / QUERIES;
    int64_t items = of.B * N * tiles, at_once = tiles > 1 ? 4 : (items + by.threads - 1) / by.threads;
    for (int64_t start = by.thread * at_once; start < items; start += by.threads * at_once) {  // late queries take longer
        for (int64_t item = start; item < start + at_once && item < items; item++) {
            int64_t b = item / tiles / N, n = item / tiles % N, i = item % tiles * QUERIES;
            int64_t end = i + QUERIES < Q ? i + QUERIES : Q;
            cache head = part(all, b * N + n, of.T, E);
            float *x = queries + ((b * Q + i) * N + n) * width;
            int64_t keys_end = of.positions[b] + (of.causal ? i + 1 : Q);
            if (end - i == QUERIES)
                attend_queries(QUERIES, head, x, N * width, keys_end, of.causal, E, width, by.scratch);
            else
                for (; i < end; i++, keys_end += of.causal, x += N * width)
                    attend_queries(1, head, x, 0, keys_end, 1, E, width, by.scratch);
        }
    }
}

/* y = x / rms(x) * gain, C numbers. */
static void normalise(const float *x, const float *gain, float *y, int64_t C) {
    floats squares = {0};
    for (int64_t c = 0; c < C; c += LANES) squares = multiply_add(load(x + c), load(x + c), squares);
    float scale = 1 / sqrtf(sum(squares) / C + 1e-5f);
    for (int64_t c = 0; c < C; c += LANES) {
        floats z = load(x + c) * scale * load(gain + c);
        memcpy(y + c, &z, sizeof z);
    }
}

enum { NO_ACTIVATION, QUICK_GELU, SQUARED_RELU };

INLINE floats activate(floats x, int activation) {
    if (activation == SQUARED_RELU) {
        floats positive = larger((floats){0}, x);
        return positive * positive;
    }
    if (activation == QUICK_GELU) {  // x * sigmoid(1.702 x) by e = exp(-|1.702 x|), at least e^-87
        floats z = x * 1.702f, far = (floats)((integers)z | INT32_MIN), one = (floats){0} + 1;
        floats e = exponential(larger(far, (floats){0} - 86.9f));
        integers negative = z < 0;
        return x * (floats)(((integers)e & negative) | ((integers)one & ~negative)) / (1 + e);
    }
    return x;
}

/* The steps after a product. */
typedef struct {
    const float *scale, *add;
    int activation;
} steps;

/* `rows` rows of y in `columns` times LANES columns, from column r on. */
INLINE void tile(const int rows, const int columns, const numbers *x, const uint8_t *weight, steps with, float *y,
                 int64_t R, int64_t C, int64_t m, int64_t r) {
    floats total[4][4];
    dot(rows, columns, x + m, weight + r * C, LANES, LANES * C, C, total);
    for (int j = 0; j < rows; j++) {
        for (int i = 0; i < columns; i++) {
            int64_t column = r + i * LANES, at = (m + j) * R + column;
            floats z = activate(total[j][i] * load(with.scale + column), with.activation);
            if (with.add) z += load(with.add + at);
            memcpy(y + at, &z, sizeof z);
        }
    }
}

/* The same for M rows. */
INLINE void tiles(const int columns, const numbers *x, const uint8_t *weight, steps with, float *y, int64_t M, int64_t R,
                  int64_t C, int64_t r) {
    int64_t m = 0;
    for (; m + ROWS <= M; m += ROWS) tile(ROWS, columns, x, weight, with, y, R, C, m, r);
    for (; m + 2 <= M; m += 2) tile(2, columns, x, weight, with, y, R, C, m, r);
    if (m < M) tile(1, columns, x, weight, with, y, R, C, m, r);
}

/* An int8 weight (R, C); a lane is a row: LANES rows of four columns. R and C are multiples of 16. */
typedef struct {
    const uint8_t *weight;
    const float *scale;
} matrix;

/* Memory for the packed rows of x, C floats each. */
typedef struct {
    numbers *packed;
    float *floats;
} space;

/* y (M, R) = add + activation(x (M, C) times the matrix transposed, each row of it times its scale). With a gain (C,) the
   rows of x are normalised first; add (M, R) may be null, or y. */
static void product(const float *x, const float *gain, matrix with, const float *add, int activation, float *y,
                    space in, int64_t M, int64_t R, int64_t C, team by) {
    range own = share(M, 1, by);
    for (int64_t m = own.first; m < own.end; m++) {
        if (gain) normalise(x + m * C, gain, by.scratch, C);
        in.packed[m] = pack(gain ? by.scratch : x + m * C, in.floats + m * C, C);
    }
    wait_for_all(by);
    own = share(R, 2 * LANES, by);
    steps then = {with.scale, add, activation};
    for (int64_t r = own.first; r < own.end; r += 2 * LANES) {
        if (r + 2 * LANES <= R) tiles(2, in.packed, with.weight, then, y, M, R, C, r);
        else tiles(1, in.packed, with.weight, then, y, M, R, C, r);
    }
    wait_for_all(by);
}

/* Floats of memory that `multiply` needs per row of C numbers, and `blocks` per row of D, without scratch. */
int64_t multiply_room(int64_t C) { return sizeof(numbers) / sizeof(float) + C; }
int64_t blocks_room(int64_t D) { return sizeof(numbers) / sizeof(float) + (4 + 4 + 1) * D; }

static space split(float *room, int64_t M) {
    return (space){(numbers *)room, room + M * (sizeof(numbers) / sizeof(float))};
}

/* The part from a row on, C numbers each. */
INLINE space after(space in, int64_t row, int64_t C) { return (space){in.packed + row, in.floats + row * C}; }

/* One product. */
void multiply(const float *x, const float *gain, const uint8_t *weight, const float *scale, const float *add, float *y,
              float *room, float *scratch, int64_t M, int64_t R, int64_t C, int64_t activation, int threads) {
#pragma omp parallel num_threads(threads)
    {
        portion own = divide(M, this_team(scratch, scratch_room(0, 0, C)));
        space in = after(split(room, M), own.first, C);
        for (int64_t m = own.first; m < own.end; m += own.at_once) {
            int64_t count = own.end - m < own.at_once ? own.end - m : own.at_once;
            product(x + m * C, gain, (matrix){weight, scale}, add ? add + m * R : NULL, (int)activation, y + m * R, in,
                    count, R, C, own.by);
        }
    }
}

/* The attention of one block, for tests only. */
void attend(const float *qkv, const float *rotations, uint8_t *keys, uint8_t *values, float *key_scales,
            float *value_scales, const int64_t *positions, float *out, float *scratch, int64_t B, int64_t Q, int64_t N,
            int64_t width, int64_t T, int64_t E, int64_t rotations_part, int64_t rotations_row, int64_t qk_norm,
            int threads) {
    heads of = {B, Q, N, width, T, E, positions, rotations, rotations_part, rotations_row, (int)qk_norm, 1};
    cache all = {keys, values, key_scales, value_scales};
    store_qkv(qkv, out, all, of, 0, B * Q, (team){0, 1, scratch});
#pragma omp parallel num_threads(threads)
    attention(out, all, of, this_team(scratch, scratch_room(T, E, 0)));
}

/* A block of model.py; mix is null, or the weights of h and of the network's input in the block's input. */
typedef struct {
    const float *mix, *norm_1, *norm_2;
    matrix qkv, out, up, down;
} block;

/* Applies all L blocks to h (B, Q, D) in place; x0 is the network's input. The cache is (L, slots, N, T, E), slots >= B,
   or with `one_cache` (1, slots, N, T, E), which every block overwrites. */
void blocks(const block *layers, float *h, const float *x0, const float *rotations, uint8_t *keys, uint8_t *values,
            float *key_scales, float *value_scales, const int64_t *positions, float *room, float *scratch, int64_t L,
            int64_t one_cache, int64_t slots, int64_t B, int64_t Q, int64_t N, int64_t width, int64_t T, int64_t E,
            int64_t rotations_part, int64_t rotations_row, int64_t qk_norm, int64_t causal, int64_t activation,
            int threads) {
    int64_t M = B * Q, D = N * width;
    heads of = {B, Q, N, width, T, E, positions, rotations, rotations_part, rotations_row, (int)qk_norm, (int)causal};
#pragma omp parallel num_threads(threads)
    {
        team all = this_team(scratch, scratch_room(T, E, D));
        portion own = divide(M, all);
        space in = split(room, M);
        float *attended = in.floats + 8 * M * D, *wide = in.floats + (4 * M + 4 * own.first) * D;
        in = after(in, own.first, 4 * D);
        for (int64_t layer = 0; layer < L; layer++) {
            const block *b = layers + layer;
            cache to = part((cache){keys, values, key_scales, value_scales}, one_cache ? 0 : layer * slots * N, T, E);
            for (int64_t m = own.first; m < own.end; m += own.at_once) {
                int64_t count = own.end - m < own.at_once ? own.end - m : own.at_once;
                float *x = h + m * D;
                range mine = share(count, 1, own.by);
                for (int64_t i = mine.first * D; b->mix && i < mine.end * D; i++)
                    x[i] = b->mix[0] * x[i] + b->mix[1] * x0[m * D + i];
                product(x, b->norm_1, b->qkv, NULL, NO_ACTIVATION, wide, in, count, 3 * D, D, own.by);
                store_qkv(wide, attended, to, of, m, m + count, own.by);
            }
            wait_for_all(all);
            attention(attended, to, of, all);
            wait_for_all(all);
            for (int64_t m = own.first; m < own.end; m += own.at_once) {
                int64_t count = own.end - m < own.at_once ? own.end - m : own.at_once;
                float *x = h + m * D;
                product(attended + m * D, NULL, b->out, x, NO_ACTIVATION, x, in, count, D, D, own.by);
                product(x, b->norm_2, b->up, NULL, (int)activation, wide, in, count, 4 * D, D, own.by);
                product(wide, NULL, b->down, x, NO_ACTIVATION, x, in, count, D, 4 * D, own.by);
            }
        }
    }
}
