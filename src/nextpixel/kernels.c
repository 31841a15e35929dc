/* The loops of drawing on a CPU for which torch has no fast form. Vector types of GCC and Clang; see kernels.py.

   Weights and cache are bytes, a number n as n + 128, in the order of the processors' product of fours: the bytes of a
   vector are LANES times four, each four of them are multiplied by the same four numbers of x, and added up. */

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512VNNI__)
#include <immintrin.h>
#define LANES 16
#define DOT(sum, bytes, four) \
    (integers)_mm512_dpbusd_epi32((__m512i)(sum), (__m512i)(bytes), _mm512_set1_epi32(four))
#elif defined(__AVXVNNI__)
#include <immintrin.h>
#define LANES 8
#define ROWS 2
#define DOT(sum, bytes, four) \
    (integers)_mm256_dpbusd_avx_epi32((__m256i)(sum), (__m256i)(bytes), _mm256_set1_epi32(four))
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#define LANES 4
#define BIAS 0  // the bytes are made signed again
#define DOT(sum, bytes, four) vdotq_s32(sum, (int8x16_t)((bytes) ^ (int32_t)0x80808080), (int8x16_t)vdupq_n_s32(four))
#elif defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif
#ifndef ROWS
#define ROWS 4  // of x that meet a vector of weights at once: their sums fill the registers
#endif
#ifndef BIAS
#define BIAS 128  // what a byte is more than its number
#endif
#define INLINE static inline __attribute__((always_inline))

typedef float floats __attribute__((vector_size(4 * LANES)));
typedef int32_t integers __attribute__((vector_size(4 * LANES)));
typedef int8_t bytes __attribute__((vector_size(LANES)));

#define CHUNK 128  // rows of x that a thread takes at once: few prompts may be all there is to share among many
#define EVEN 6     // see pack

int64_t lanes(void) { return LANES; }  // Python must know the order of the bytes

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

/* To the nearest whole number; above 2^22 it would not be. */
INLINE integers rounded(floats x) { return __builtin_convertvector(x + 0x1.8p23f - 0x1.8p23f, integers); }

INLINE void narrow(integers x, int8_t *to) {
    bytes y = __builtin_convertvector(x, bytes);
    memcpy(to, &y, sizeof y);
}

/* Numbers to multiply bytes by, as the processor wants them, and running sums of the products. */
#if defined(DOT)
/* x = (128 * high + low) * unit: 15 bits, or 8 where all of low is zero. A byte n + BIAS adds BIAS * x too much, which
   the sums begin without. */
typedef struct {
    int8_t *high, *low;
    int32_t high_begin, low_begin;
    float unit;
    int32_t coarse;
} numbers;
typedef struct {
    integers high, low;
} sums;

/* In 8 bits what is at most `even` times its root mean square; rounding is then off by up to even / 127 / sqrt(12) of
   that in the mean of squares. The rest in 15. */
INLINE numbers pack(const float *x, void *into, int64_t C, float even) {
    int8_t *high = into, *low = high + C;
    floats most = {0}, wrong = {0}, squares = {0};
    integers highs = {0}, lows = {0};
    for (int64_t c = 0; c < C; c += LANES) {
        floats y = load(x + c);
        most = larger(most, (floats)((integers)y & 0x7fffffff));
        wrong += y * 0;  // what is no number must not become one
        squares += y * y;
    }
    float top = fmaxf(largest(most), 1e-30f) + sum(wrong), steps = 16256 / top;
    float all = sum(squares);
    int32_t coarse = even && all > FLT_MIN && all < FLT_MAX && top * top * C <= even * even * all;
    for (int64_t c = 0; c < C; c += LANES) {
        integers n = rounded(load(x + c) * steps), h = (n + 64) >> 7, l = (n - h * 128) * !coarse;
        narrow(h, high + c), narrow(l, low + c);
        highs += h, lows += l;
    }
    int32_t h = 0, l = 0;
    for (int i = 0; i < LANES; i++) h += highs[i], l += lows[i];
    return (numbers){high, low, -BIAS * h, -BIAS * l, top / 16256, coarse};
}

INLINE sums begin(numbers x) { return (sums){(integers){0} + x.high_begin, (integers){0} + x.low_begin}; }

/* Bytes times x[c], ..., x[c + 3]. */
INLINE sums add(sums s, integers bytes, numbers x, int64_t c, const int coarse) {
    int32_t high, low;
    memcpy(&high, x.high + c, 4), memcpy(&low, x.low + c, 4);
    s.high = DOT(s.high, bytes, high);
    if (!coarse) s.low = DOT(s.low, bytes, low);
    return s;
}

INLINE floats value(sums s, numbers x) {
    return (__builtin_convertvector(s.high, floats) * 128 + __builtin_convertvector(s.low, floats)) * x.unit;
}
#else
typedef struct {
    float *x;
    int32_t coarse;
} numbers;
typedef floats sums;

static numbers pack(const float *x, void *into, int64_t C, float even) {
    return (numbers){memcpy(into, x, C * sizeof *x), 0};
}

INLINE sums begin(numbers x) { return (sums){0}; }

INLINE sums add(sums s, integers bytes, numbers x, int64_t c, const int coarse) {
    for (int i = 0; i < 4; i++) s += __builtin_convertvector(((bytes >> 8 * i) & 255) - 128, floats) * x.x[c + i];
    return s;
}

INLINE floats value(sums s, numbers x) { return s; }
#endif

/* e^x for -87 <= x <= 0: 2^n times the first terms of the series, |r| <= ln 2 / 2; off by at most about 2e-7 of it. */
INLINE floats exponential(floats x) {
    integers n = __builtin_convertvector(x * 1.44269504f - 0.5f, integers);
    floats whole = __builtin_convertvector(n, floats);
    floats r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;  // ln 2 in two parts
    floats p = 1 + r * (1 + r * (1 / 2.f + r * (1 / 6.f + r * (1 / 24.f + r * (1 / 120.f + r * (1 / 720.f))))));
    return p * (floats)((n + 127) << 23);
}

/* Scores in place become exp(score - largest) * scale, zero from `count` to the next multiple of LANES; returns the
   sum of the exponentials. */
static float weigh(float *scores, const float *scales, int64_t count) {
    for (int64_t t = count; t % LANES; t++) scores[t] = -INFINITY;
    floats most = load(scores), total = {0};
    for (int64_t t = LANES; t < count; t += LANES) most = larger(most, load(scores + t));
    float top = largest(most);
    for (int64_t t = 0; t < count; t += LANES) {
        floats x = load(scores + t) - top;
        integers counts = ~(x <= -87.f);  // not the padding; what it would become as an integer is not defined
        x = (floats)((integers)exponential((floats)((integers)x & counts)) & counts);
        total += x;
        x = (floats)((integers)(x * load(scales + t)) & counts);
        memcpy(scores + t, &x, sizeof x);
    }
    return sum(total);
}

/* E numbers as bytes, the largest as 127 + 128; returns the scale. */
INLINE float round_bytes(const float *x, uint8_t *to, int64_t E) {
    floats most = {0}, wrong = {0};
    for (int64_t e = 0; e < E; e += LANES) {
        most = larger(most, (floats)((integers)load(x + e) & 0x7fffffff));
        wrong += load(x + e) * 0;
    }
    float top = fmaxf(largest(most), 1e-12f), steps = 127 / top;
    for (int64_t e = 0; e < E; e += LANES) narrow(rounded(load(x + e) * steps) + 128, (int8_t *)to + e);
    return top / 127 + sum(wrong);
}

/* A head's part of the cache, for T slots of E numbers, multiples of 16 both. Of keys a lane is a slot: LANES slots of
   four numbers; of values a lane is a number: four slots of LANES numbers. */
typedef struct {
    uint8_t *keys, *values;
    float *key_scales, *value_scales;
} cache;

INLINE cache part(cache all, int64_t head, int64_t T, int64_t E) {
    return (cache){all.keys + head * T * E, all.values + head * T * E, all.key_scales + head * T,
                   all.value_scales + head * T};
}

/* k and v, E numbers each, into a slot. */
static void store(cache to, int64_t slot, const float *k, const float *v, int64_t E) {
    uint8_t bytes[E];
    to.key_scales[slot] = round_bytes(k, bytes, E);
    uint8_t *keys = to.keys + slot / LANES * LANES * E + slot % LANES * 4;
    for (int64_t e = 0; e < E; e += 4) memcpy(keys + e * LANES, bytes + e, 4);
    to.value_scales[slot] = round_bytes(v, bytes, E);
    uint8_t *values = to.values + slot / 4 * 4 * E + slot % 4;
    for (int64_t e = 0; e < E; e++) values[e * 4] = bytes[e];
}

/* `chunks` times LANES numbers of the sum of values weighted by p. */
INLINE void mix(const int chunks, numbers p, const uint8_t *values, int64_t count, int64_t E, float *result) {
    sums s[4];
    for (int i = 0; i < chunks; i++) s[i] = begin(p);
    for (int64_t t = 0; t < count; t += 4) {
        for (int i = 0; i < chunks; i++) s[i] = add(s[i], load_bytes(values + t * E + i * 4 * LANES), p, t, 0);
    }
    for (int i = 0; i < chunks; i++) {
        floats x = value(s[i], p);
        memcpy(result + i * LANES, &x, sizeof x);
    }
}

/* softmax(query K / sqrt(width)) V over the first `count` slots. */
static void answer(cache from, const float *query, int64_t count, int64_t E, int64_t width, float *out) {
    float padded[E], scores[(count + LANES - 1) / LANES * LANES], space[count > E ? count + LANES : E];
    for (int64_t e = 0; e < E; e++) padded[e] = e < width ? query[e] / sqrtf(width) : 0;
    numbers x = pack(padded, space, E, 0);
    for (int64_t t = 0; t < count; t += LANES) {
        sums s = begin(x);
        for (int64_t e = 0; e < E; e += 4) s = add(s, load_bytes(from.keys + t * E + e * LANES), x, e, 0);
        floats score = value(s, x) * load(from.key_scales + t);
        memcpy(scores + t, &score, sizeof score);
    }
    float total = weigh(scores, from.value_scales, count), *result = padded;
    x = pack(scores, space, (count + LANES - 1) / LANES * LANES, 0);
    int64_t e = 0;
    for (; e + 4 * LANES <= E; e += 4 * LANES) mix(4, x, from.values + e * 4, count, E, result + e);
    for (; e < E; e += LANES) mix(1, x, from.values + e * 4, count, E, result + e);
    for (e = 0; e < width; e++) out[e] = result[e] / total;
}

/* A query or key of E numbers, zero beyond `width`, as model.split_heads makes it: with `qk_norm` of root mean square
   1.2, then turned. */
static void turn(float *restrict x, const float *restrict cos, const float *restrict sin, int64_t E, int64_t width,
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

/* What is the same for all blocks. */
typedef struct {
    int64_t B, Q, N, width;  // rows, slots of each, heads, numbers of a head
    int64_t T, E;            // of the cache
    const int64_t *positions;
    const float *turns;  // cos and sin for queries, cos and sin for keys: (4, 1 or B, Q, width / 2), or null
    int64_t turns_part, turns_row;
    int qk_norm;
} heads;

/* qkv (B, Q, 3, N, width), turned in place; out (B, Q, N, width); the cache (B, N, T, E). Row b stores k and v into the
   slots from positions[b] on, and each of its queries attends to the slots up to its own. By all threads. */
static void attention(float *qkv, cache all, float *out, heads of, int threads) {
    int64_t N = of.N, Q = of.Q, E = of.E, width = of.width, D = N * width;
    int64_t share = Q > 1 ? 16 : (of.B * N + threads - 1) / threads;  // late queries take longer
#pragma omp for schedule(static)
    for (int64_t head = 0; head < of.B * N; head++) {
        int64_t b = head / N;
        for (int64_t i = 0; i < Q; i++) {
            float *row = qkv + (b * Q + i) * 3 * D + head % N * width, parts[3][E];
            memset(parts, 0, sizeof parts);
            for (int j = 0; j < 3; j++) memcpy(parts[j], row + j * D, width * sizeof *row);
            for (int j = 0; j < 2; j++) {
                const float *cos = of.turns ? of.turns + 2 * j * of.turns_part + b * of.turns_row + i * (width / 2) : NULL;
                turn(parts[j], cos, cos ? cos + of.turns_part : NULL, E, width, of.qk_norm);
            }
            memcpy(row, parts[0], width * sizeof *row);
            store(part(all, head, of.T, E), of.positions[b] + i, parts[1], parts[2], E);
        }
    }
#pragma omp for schedule(static, share)
    for (int64_t i = 0; i < of.B * N * Q; i++) {
        int64_t b = i / (N * Q), n = i / Q % N, row = b * Q + i % Q;
        answer(part(all, b * N + n, of.T, E), qkv + row * 3 * D + n * width, of.positions[b] + i % Q + 1, E, width,
               out + row * D + n * width);
    }
}

/* y = x / rms(x) * gain, C numbers. */
static void normalise(const float *x, const float *gain, float *y, int64_t C) {
    floats squares = {0};
    for (int64_t c = 0; c < C; c += LANES) squares += load(x + c) * load(x + c);
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

/* What becomes of a product. */
typedef struct {
    const float *scale, *add;
    int activation;
} steps;

/* LANES numbers of y, from place `at` and column r on. Not inlined: where compilers join multiplications and additions
   differs from tile to tile, and a row may not depend on the tile it comes in. */
static __attribute__((noinline)) void finish(sums s, const numbers *x, int64_t r, const steps *with, float *y,
                                             int64_t at) {
    floats z = activate(value(s, *x) * load(with->scale + r), with->activation);
    if (with->add) z += load(with->add + at);
    memcpy(y + at, &z, sizeof z);
}

/* `rows` rows of y in `columns` times LANES columns, from column r on. */
INLINE void tile(const int rows, const int columns, const int coarse, const numbers *x, const uint8_t *weight,
                 steps with, float *y, int64_t R, int64_t C, int64_t m, int64_t r) {
    sums s[ROWS][2];
    for (int j = 0; j < rows; j++)
        for (int i = 0; i < columns; i++) s[j][i] = begin(x[m + j]);
    for (int64_t c = 0; c < C; c += 4) {
        integers w[2];
        for (int i = 0; i < columns; i++) {
            const uint8_t *four = weight + r * C + (i * C + c) * LANES;
            w[i] = load_bytes(four);
            __builtin_prefetch(four + columns * LANES * C);
        }
        for (int j = 0; j < rows; j++)
            for (int i = 0; i < columns; i++) s[j][i] = add(s[j][i], w[i], x[m + j], c, coarse);
    }
    for (int j = 0; j < rows; j++)
        for (int i = 0; i < columns; i++)
            finish(s[j][i], x + m + j, r + i * LANES, &with, y, (m + j) * R + r + i * LANES);
}

/* The same of the rows from m to end. Where a tile's rows are all coarse, half of the products are known to be zero. */
INLINE void tiles(const int columns, const numbers *x, const uint8_t *weight, steps with, float *y, int64_t m, int64_t end,
                  int64_t R, int64_t C, int64_t r) {
    for (; m + ROWS <= end; m += ROWS) {
        int coarse = 1;
        for (int j = 0; j < ROWS; j++) coarse &= x[m + j].coarse;
        if (coarse) tile(ROWS, columns, 1, x, weight, with, y, R, C, m, r);
        else tile(ROWS, columns, 0, x, weight, with, y, R, C, m, r);
    }
    for (; m + 2 <= end; m += 2) tile(2, columns, 0, x, weight, with, y, R, C, m, r);
    if (m < end) tile(1, columns, 0, x, weight, with, y, R, C, m, r);
}

/* int8 weight (R, C): a lane is a row, LANES rows of four columns; R and C multiples of 16. */
typedef struct {
    const uint8_t *weight;
    const float *scale;
} matrix;

/* Room for the rows of x as numbers, C floats each. */
typedef struct {
    numbers *packed;
    float *floats;
} space;

/* y (M, R) = add + activation(x (M, C) times the matrix transposed, each row of it times its scale). With a gain (C,) the
   rows of x are normalised first; add (M, R) may be null, or y. By all threads. */
static void product(const float *x, const float *gain, matrix by, const float *add, int activation, float *y, space in,
                    int64_t M, int64_t R, int64_t C) {
    steps with = {by.scale, add, activation};
#pragma omp for schedule(static)
    for (int64_t m = 0; m < M; m++) {
        float normal[C];
        if (gain) normalise(x + m * C, gain, normal, C);
        in.packed[m] = pack(gain ? normal : x + m * C, in.floats + m * C, C, EVEN);
    }
#pragma omp for schedule(static) collapse(2)
    for (int64_t r = 0; r < R; r += 2 * LANES) {
        for (int64_t first = 0; first < M; first += CHUNK) {
            int64_t end = M - first < CHUNK ? M : first + CHUNK;
            if (r + 2 * LANES <= R) tiles(2, in.packed, by.weight, with, y, first, end, R, C, r);
            else tiles(1, in.packed, by.weight, with, y, first, end, R, C, r);
        }
    }
}

/* How many floats of room `multiply` needs for a row of C numbers, and `blocks` for one of D. */
int64_t multiply_room(int64_t C) { return sizeof(numbers) / sizeof(float) + C; }
int64_t blocks_room(int64_t D) { return sizeof(numbers) / sizeof(float) + (4 + 4 + 1) * D; }

static space split(float *room, int64_t M) {
    return (space){(numbers *)room, room + M * (sizeof(numbers) / sizeof(float))};
}

/* One product. */
void multiply(const float *x, const float *gain, const uint8_t *weight, const float *scale, const float *add, float *y,
              float *room, int64_t M, int64_t R, int64_t C, int64_t activation, int threads) {
#pragma omp parallel num_threads(threads)
    product(x, gain, (matrix){weight, scale}, add, (int)activation, y, split(room, M), M, R, C);
}

/* The attention of one block, alone for tests. */
void attend(float *qkv, const float *turns, uint8_t *keys, uint8_t *values, float *key_scales, float *value_scales,
            const int64_t *positions, float *out, int64_t B, int64_t Q, int64_t N, int64_t width, int64_t T, int64_t E,
            int64_t turns_part, int64_t turns_row, int64_t qk_norm, int threads) {
    heads of = {B, Q, N, width, T, E, positions, turns, turns_part, turns_row, (int)qk_norm};
#pragma omp parallel num_threads(threads)
    attention(qkv, (cache){keys, values, key_scales, value_scales}, out, of, threads);
}

/* A block of model.py; mix is null, or how much of h and of the network's input it reads. */
typedef struct {
    const float *mix, *norm_1, *norm_2;
    matrix qkv, out, up, down;
} block;

/* All L blocks, in place: h (B, Q, D), and `first`, the network's input. The cache is (L, rows, N, T, E). */
void blocks(const block *layers, float *h, const float *first, const float *turns, uint8_t *keys, uint8_t *values,
            float *key_scales, float *value_scales, const int64_t *positions, float *room, int64_t L, int64_t rows,
            int64_t B, int64_t Q, int64_t N, int64_t width, int64_t T, int64_t E, int64_t turns_part, int64_t turns_row,
            int64_t qk_norm, int64_t activation, int threads) {
    int64_t M = B * Q, D = N * width;
    heads of = {B, Q, N, width, T, E, positions, turns, turns_part, turns_row, (int)qk_norm};
    space in = split(room, M);
    float *wide = in.floats + M * 4 * D, *answers = wide + M * 4 * D;
#pragma omp parallel num_threads(threads)
    for (int64_t layer = 0; layer < L; layer++) {
        const block *b = layers + layer;
        cache all = part((cache){keys, values, key_scales, value_scales}, layer * rows * N, T, E);
        if (b->mix) {
#pragma omp for schedule(static)
            for (int64_t m = 0; m < M; m++)
                for (int64_t c = m * D; c < (m + 1) * D; c++) h[c] = b->mix[0] * h[c] + b->mix[1] * first[c];
        }
        product(h, b->norm_1, b->qkv, NULL, NO_ACTIVATION, wide, in, M, 3 * D, D);
        attention(wide, all, answers, of, threads);
        product(answers, NULL, b->out, h, NO_ACTIVATION, h, in, M, D, D);
        product(h, b->norm_2, b->up, NULL, (int)activation, wide, in, M, 4 * D, D);
        product(wide, NULL, b->down, h, NO_ACTIVATION, h, in, M, D, 4 * D);
    }
}
