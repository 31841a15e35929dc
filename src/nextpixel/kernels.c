/* The loops of drawing on a CPU for which torch has no fast form. Vector types of GCC and Clang; see kernels.py.

   Weights and cache are bytes, a number n as n + 128, in the order of the processors' product of fours: the bytes of a
   vector are LANES times four, each four of them are multiplied by the same four numbers of x, and added up. */

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
#define AHEAD 32  // slots to prefetch: those of a head are too few for the processor to foresee
#define INLINE static inline __attribute__((always_inline))

typedef float floats __attribute__((vector_size(4 * LANES)));
typedef int32_t integers __attribute__((vector_size(4 * LANES)));
typedef int8_t bytes __attribute__((vector_size(LANES)));

#define BLOCK 1024  // rows of x that are packed at a time

/* What Python must know: the order of the bytes, and how much room to give. */
int64_t lanes(void) { return LANES; }
int64_t block(void) { return BLOCK; }

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

/* Numbers to multiply bytes by, as the processor wants them, and running sums of the products. */
#if defined(DOT)
/* 15 bits: x = (128 * high + low) * unit. A byte n + BIAS adds BIAS * x too much, which the sums begin without. */
typedef struct {
    int8_t *high, *low;
    int32_t high_begin, low_begin;
    float unit;
} numbers;
typedef struct {
    integers high, low;
} sums;

static void narrow(integers x, int8_t *to) {
    bytes y = __builtin_convertvector(x, bytes);
    memcpy(to, &y, sizeof y);
}

INLINE numbers pack(const float *x, void *into, int64_t C) {
    int8_t *high = into, *low = high + C;
    floats most = {0}, wrong = {0};
    integers highs = {0}, lows = {0};
    for (int64_t c = 0; c < C; c += LANES) {
        most = larger(most, (floats)((integers)load(x + c) & 0x7fffffff));
        wrong += load(x + c) * 0;  // what is no number must not become one
    }
    float top = fmaxf(largest(most), 1e-30f) + sum(wrong), steps = 16256 / top;
    for (int64_t c = 0; c < C; c += LANES) {
        floats y = load(x + c) * steps + 0x1.8p23f - 0x1.8p23f;  // rounded: so large a number has no fraction
        integers n = __builtin_convertvector(y, integers), h = (n + 64) >> 7, l = n - h * 128;
        narrow(h, high + c), narrow(l, low + c);
        highs += h, lows += l;
    }
    int32_t h = 0, l = 0;
    for (int i = 0; i < LANES; i++) h += highs[i], l += lows[i];
    return (numbers){high, low, -BIAS * h, -BIAS * l, top / 16256};
}

INLINE sums begin(numbers x) { return (sums){(integers){0} + x.high_begin, (integers){0} + x.low_begin}; }

INLINE sums add(sums s, integers bytes, numbers x, int64_t c) {  // bytes times x[c], ..., x[c + 3]
    int32_t high, low;
    memcpy(&high, x.high + c, 4), memcpy(&low, x.low + c, 4);
    return (sums){DOT(s.high, bytes, high), DOT(s.low, bytes, low)};
}

INLINE floats value(sums s, numbers x) {
    return (__builtin_convertvector(s.high, floats) * 128 + __builtin_convertvector(s.low, floats)) * x.unit;
}
#else
typedef struct {
    float *x;
} numbers;
typedef floats sums;

static numbers pack(const float *x, void *into, int64_t C) { return (numbers){memcpy(into, x, C * sizeof *x)}; }

INLINE sums begin(numbers x) { return (sums){0}; }

INLINE sums add(sums s, integers bytes, numbers x, int64_t c) {
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

/* A vector of E numbers as bytes, the largest as 127 + 128; returns the scale. */
INLINE float round_bytes(const float *x, uint8_t *bytes, int64_t E) {
    float top = 1e-12f, wrong = 0;
    for (int64_t e = 0; e < E; e++) top = fabsf(x[e]) > top ? fabsf(x[e]) : top, wrong += x[e] * 0;
    for (int64_t e = 0; e < E; e++) bytes[e] = (uint8_t)(lrintf(x[e] * (127 / top)) + 128);
    return top / 127 + wrong;
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

/* k and v, of `width` numbers, into a slot. */
static void store(cache to, int64_t slot, const float *k, const float *v, int64_t E, int64_t width) {
    uint8_t bytes[E];
    to.key_scales[slot] = round_bytes(k, bytes, width);
    uint8_t *keys = to.keys + slot / LANES * LANES * E + slot % LANES * 4;
    for (int64_t e = 0; e < width; e++) keys[e / 4 * 4 * LANES + e % 4] = bytes[e];
    to.value_scales[slot] = round_bytes(v, bytes, width);
    uint8_t *values = to.values + slot / 4 * 4 * E + slot % 4;
    for (int64_t e = 0; e < width; e++) values[e * 4] = bytes[e];
}

/* `chunks` times LANES numbers of the sum of values weighted by p. */
INLINE void mix(const int chunks, numbers p, const uint8_t *values, int64_t count, int64_t E, float *result) {
    sums s[4];
    for (int i = 0; i < chunks; i++) s[i] = begin(p);
    for (int64_t t = 0; t < count; t += 4) {
        for (int i = 0; i < chunks; i++) {
            __builtin_prefetch(values + (t + AHEAD) * E + i * 4 * LANES);
            s[i] = add(s[i], load_bytes(values + t * E + i * 4 * LANES), p, t);
        }
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
    numbers x = pack(padded, space, E);
    for (int64_t t = 0; t < count; t += LANES) {
        sums s = begin(x);
        for (int64_t e = 0; e < E; e += 4) {
            __builtin_prefetch(from.keys + (t + AHEAD) * E + e * LANES);
            s = add(s, load_bytes(from.keys + t * E + e * LANES), x, e);
        }
        floats score = value(s, x) * load(from.key_scales + t);
        memcpy(scores + t, &score, sizeof score);
    }
    float total = weigh(scores, from.value_scales, count), *result = padded;
    x = pack(scores, space, (count + LANES - 1) / LANES * LANES);
    int64_t e = 0;
    for (; e + 4 * LANES <= E; e += 4 * LANES) mix(4, x, from.values + e * 4, count, E, result + e);
    for (; e < E; e += LANES) mix(1, x, from.values + e * 4, count, E, result + e);
    for (e = 0; e < width; e++) out[e] = result[e] / total;
}

/* q, k, v (B, N, Q, width), of each the first three strides; out (B, Q, N, width); the cache (B, N, T, E). Row b stores k
   and v into the slots from positions[b] on, and each of its queries attends to the slots up to its own. */
void attend(const float *q, const float *k, const float *v, const int64_t *strides, uint8_t *keys, uint8_t *values,
            float *key_scales, float *value_scales, const int64_t *positions, float *out, int64_t B, int64_t N,
            int64_t Q, int64_t T, int64_t E, int64_t width, int threads) {
    cache all = {keys, values, key_scales, value_scales};
    int64_t share = Q > 1 ? 16 : (B * N + threads - 1) / threads;  // late queries take longer
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t head = 0; head < B * N; head++) {
            const float *keys_of = k + head / N * strides[3] + head % N * strides[4];
            const float *values_of = v + head / N * strides[6] + head % N * strides[7];
            for (int64_t i = 0; i < Q; i++)
                store(part(all, head, T, E), positions[head / N] + i, keys_of + i * strides[5],
                      values_of + i * strides[8], E, width);
        }
#pragma omp for schedule(static, share)
        for (int64_t i = 0; i < B * N * Q; i++) {
            int64_t b = i / (N * Q), n = i / Q % N, slot = i % Q;
            answer(part(all, b * N + n, T, E), q + b * strides[0] + n * strides[1] + slot * strides[2],
                   positions[b] + slot + 1, E, width, out + ((b * Q + slot) * N + n) * width);
        }
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

/* What becomes of a product, see multiply. */
typedef struct {
    const float *scale, *add;
    int activation;
} steps;

/* `rows` rows of y in `columns` times LANES columns, from column r on. */
INLINE void tile(const int rows, const int columns, const numbers *x, const uint8_t *weight, steps with, float *y,
                 int64_t R, int64_t C, int64_t m, int64_t r) {
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
            for (int i = 0; i < columns; i++) s[j][i] = add(s[j][i], w[i], x[m + j], c);
    }
    for (int j = 0; j < rows; j++)
        for (int i = 0; i < columns; i++) {
            int64_t at = (m + j) * R + r + i * LANES;
            floats z = activate(value(s[j][i], x[m + j]) * load(with.scale + r + i * LANES), with.activation);
            if (with.add) z += load(with.add + at);
            memcpy(y + at, &z, sizeof z);
        }
}

INLINE void tiles(const int columns, const numbers *x, const uint8_t *weight, steps with, float *y, int64_t M, int64_t R,
                  int64_t C, int64_t r) {
    int64_t m = 0;
    for (; m + ROWS <= M; m += ROWS) tile(ROWS, columns, x, weight, with, y, R, C, m, r);
    for (; m + 2 <= M; m += 2) tile(2, columns, x, weight, with, y, R, C, m, r);
    if (m < M) tile(1, columns, x, weight, with, y, R, C, m, r);
}

/* y (M, R) = add + activation(x (M, C) times weight (R, C) transposed, each row of weight times its scale). With a gain
   (C,) the rows of x are normalised first; add (M, R) may be null. A lane of weight is a row: LANES rows of four columns.
   R and C are multiples of 16; `space` has room for C floats a row, of BLOCK rows. */
void multiply(const float *x, const float *gain, const uint8_t *weight, const float *scale, const float *add, float *y,
              float *space, int64_t M, int64_t R, int64_t C, int64_t activation, int threads) {
    numbers packed[BLOCK];
    steps with = {scale, add, (int)activation};
    for (int64_t first = 0; first < M; first += BLOCK) {
        int64_t rows = M - first < BLOCK ? M - first : BLOCK;
        if (add) with.add = add + first * R;
#pragma omp parallel num_threads(threads)
        {
#pragma omp for schedule(static)
            for (int64_t m = 0; m < rows; m++) {
                const float *row = x + (first + m) * C;
                float normal[C];
                if (gain) normalise(row, gain, normal, C);
                packed[m] = pack(gain ? normal : row, space + m * C, C);
            }
#pragma omp for schedule(static)
            for (int64_t r = 0; r < R; r += 2 * LANES) {
                if (r + 2 * LANES <= R) tiles(2, packed, weight, with, y + first * R, rows, R, C, r);
                else tiles(1, packed, weight, with, y + first * R, rows, R, C, r);
            }
        }
    }
}
