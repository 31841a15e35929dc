/* The loops of drawing on a CPU for which torch has no fast form. Vector types of GCC and Clang; see kernels.py. */

#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

typedef float floats __attribute__((vector_size(64)));  // 16 at a time, on any machine
typedef float floats8 __attribute__((vector_size(32)));
typedef float floats4 __attribute__((vector_size(16)));
typedef int32_t integers __attribute__((vector_size(64)));
typedef uint16_t bf16;

static inline floats load_float(const float *p) {
    floats x;
    memcpy(&x, p, sizeof x);
    return x;
}

static inline floats load_int8_t(const int8_t *p) {
#if defined(__AVX512F__)
    return (floats)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
#elif defined(__AVX2__)
    __m256 low = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
    __m256 high = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(p + 8))));
    floats x;
    memcpy(&x, &low, sizeof low);
    memcpy((char *)&x + sizeof low, &high, sizeof high);
    return x;
#else
    float x[16];
    for (int i = 0; i < 16; i++) x[i] = p[i];
    return load_float(x);
#endif
}

static inline float sum(floats x) {
    floats8 a = __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7) +
                __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15);
    floats4 b = __builtin_shufflevector(a, a, 0, 1, 2, 3) + __builtin_shufflevector(a, a, 4, 5, 6, 7);
    return (b[0] + b[2]) + (b[1] + b[3]);
}

/* One row of E numbers into the cache, where each row has a scale. */
static inline float store_float(const float *x, float *row, int64_t E) {
    memcpy(row, x, E * sizeof *x);
    return 1;
}

static inline float store_int8_t(const float *x, int8_t *row, int64_t E) {  // the largest becomes 127
    float top = 1e-12f;
    for (int64_t e = 0; e < E; e++) top = fabsf(x[e]) > top ? fabsf(x[e]) : top;
    for (int64_t e = 0; e < E; e++) row[e] = (int8_t)lrintf(x[e] * (127 / top));
    return top / 127;
}

/* e^x for -87 <= x <= 0: 2^n times the first terms of the series, |r| <= ln 2 / 2; off by at most about 2e-7 of it. */
static inline floats exponential(floats x) {
    integers n = __builtin_convertvector(x * 1.44269504f - 0.5f, integers);
    floats whole = __builtin_convertvector(n, floats);
    floats r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;  // ln 2 in two parts
    floats p = 1 + r * (1 + r * (1 / 2.f + r * (1 / 6.f + r * (1 / 24.f + r * (1 / 120.f + r * (1 / 720.f))))));
    return p * (floats)((n + 127) << 23);
}

/* Scores in place become exp(score - largest), up to the next multiple of 16; returns the sum of `count` of them. */
static float exponentials(float *scores, int64_t count) {
    float top = scores[0];
    floats total = {0};
    for (int64_t t = 1; t < count; t++) top = scores[t] > top ? scores[t] : top;
    for (int64_t t = count; t % 16; t++) scores[t] = -INFINITY;
    for (int64_t t = 0; t < count; t += 16) {
        floats x = load_float(scores + t) - top;
        integers counts = x > -87.f;  // not the padding; what it would become as an integer is not defined
        x = (floats)((integers)exponential((floats)((integers)x & counts)) & counts);
        memcpy(scores + t, &x, sizeof x);
        total += x;
    }
    return sum(total);
}

/* One query a row. q, k, v, out: (B, N, E) floats; keys, values: (B, N, T, E), their scales (B, N, T); row b stores
   k and v into slot positions[b] and attends to the slots up to it. Prefetching: a slot is too short for the processor
   to foresee the one after next. */
#define AHEAD 32
#define ATTEND(TYPE)                                                                                              \
    void attend_##TYPE(const float *q, const float *k, const float *v, TYPE *keys, TYPE *values, float *key_scales, \
                       float *value_scales, const int64_t *positions, float *out, int64_t B, int64_t N, int64_t T, \
                       int64_t E, int threads) {                                                                  \
        _Pragma("omp parallel for schedule(static) num_threads(threads)")                                         \
        for (int64_t head = 0; head < B * N; head++) {                                                            \
            const float *query = q + head * E;                                                                    \
            TYPE *K = keys + head * T * E, *V = values + head * T * E;                                            \
            float *k_scales = key_scales + head * T, *v_scales = value_scales + head * T;                         \
            float *result = out + head * E, scores[T + 16], scale = 1 / sqrtf(E);                                 \
            int64_t last = positions[head / N], count = last + 1, e;                                              \
            k_scales[last] = store_##TYPE(k + head * E, K + last * E, E);                                         \
            v_scales[last] = store_##TYPE(v + head * E, V + last * E, E);                                         \
            for (int64_t t = 0; t < count; t++) {                                                                 \
                floats dot = {0};                                                                                 \
                float rest = 0;                                                                                   \
                for (e = 0; e + 16 <= E; e += 16) {                                                               \
                    if (e % 64 == 0) __builtin_prefetch(K + (t + AHEAD) * E + e);                                 \
                    dot += load_float(query + e) * load_##TYPE(K + t * E + e);                                    \
                }                                                                                                 \
                for (; e < E; e++) rest += query[e] * K[t * E + e];                                               \
                scores[t] = sum(dot) + rest;                                                                      \
            }                                                                                                     \
            for (int64_t t = 0; t < count; t++) scores[t] *= k_scales[t] * scale;                                 \
            float total = exponentials(scores, count);                                                            \
            for (int64_t t = 0; t < count; t++) scores[t] *= v_scales[t];                                         \
            for (e = 0; e + 64 <= E; e += 64) {                                                                   \
                floats a = {0}, b = {0}, c = {0}, d = {0};                                                        \
                for (int64_t t = 0; t < count; t++) {                                                             \
                    const TYPE *row = V + t * E + e;                                                              \
                    __builtin_prefetch(row + AHEAD * E);                                                          \
                    a += scores[t] * load_##TYPE(row), b += scores[t] * load_##TYPE(row + 16);                    \
                    c += scores[t] * load_##TYPE(row + 32), d += scores[t] * load_##TYPE(row + 48);               \
                }                                                                                                 \
                floats sums[4] = {a / total, b / total, c / total, d / total};                                    \
                memcpy(result + e, sums, sizeof sums);                                                            \
            }                                                                                                     \
            for (; e + 16 <= E; e += 16) {                                                                        \
                floats a = {0};                                                                                   \
                for (int64_t t = 0; t < count; t++) a += scores[t] * load_##TYPE(V + t * E + e);                  \
                a /= total;                                                                                       \
                memcpy(result + e, &a, sizeof a);                                                                 \
            }                                                                                                     \
            for (; e < E; e++) {                                                                                  \
                float a = 0;                                                                                      \
                for (int64_t t = 0; t < count; t++) a += scores[t] * V[t * E + e];                                \
                result[e] = a / total;                                                                            \
            }                                                                                                     \
        }                                                                                                         \
    }

ATTEND(float)
ATTEND(int8_t)

/* y (M, R) = x (M, C) times weight (R, C) transposed, each row of weight times its scale; R % 4 = 0 and C % 64 = 0. */
void multiply_int8(const float *x, const int8_t *weight, const float *scale, float *y, int64_t M, int64_t R, int64_t C,
                   int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t r = 0; r < R; r += 4) {
        const int8_t *a = weight + r * C, *b = a + C, *c = b + C, *d = c + C;
        for (int64_t m = 0; m < M; m++) {
            floats p = {0}, q = {0}, s = {0}, t = {0};
            for (int64_t k = 0; k < C; k += 64) {
                if (m == 0)  // short rows defeat the processor's own prefetching: fetch the rows after next
                    for (int64_t row = 8; row < 12; row++) __builtin_prefetch(a + row * C + k);
                for (int64_t j = k; j < k + 64; j += 16) {
                    floats z = load_float(x + m * C + j);
                    p += z * load_int8_t(a + j), q += z * load_int8_t(b + j);
                    s += z * load_int8_t(c + j), t += z * load_int8_t(d + j);
                }
            }
            float *result = y + m * R + r;
            result[0] = sum(p) * scale[r], result[1] = sum(q) * scale[r + 1];
            result[2] = sum(s) * scale[r + 2], result[3] = sum(t) * scale[r + 3];
        }
    }
}

/* Rows up to which int8 weights are worth it: with more, a packed bf16 matrix of oneDNN's is faster. */
#if defined(__AVX512BF16__)
int64_t int8_rows(void) { return 16; }

/* Two rows of weights become bf16 for `rows` (a constant) rows of x. */
static inline __attribute__((always_inline)) void tile(const int rows, const bf16 *x, const int8_t *weight,
                                                       const float *scale, float *y, int64_t R, int64_t C) {
    __m512 sums[8][2];
    for (int m = 0; m < rows; m++) sums[m][0] = sums[m][1] = _mm512_setzero_ps();
    for (int64_t k = 0; k < C; k += 32) {
        __m512bh w[2];
        for (int r = 0; r < 2; r++) {
            const int8_t *part = weight + r * C + k;
            if (k % 64 == 0) __builtin_prefetch(part + 8 * C);
            w[r] = _mm512_cvtne2ps_pbh((__m512)load_int8_t(part + 16), (__m512)load_int8_t(part));
        }
        for (int m = 0; m < rows; m++) {
            __m512bh z = (__m512bh)_mm512_loadu_si512(x + m * C + k);
            for (int r = 0; r < 2; r++) sums[m][r] = _mm512_dpbf16_ps(sums[m][r], z, w[r]);
        }
    }
    for (int m = 0; m < rows; m++)
        for (int r = 0; r < 2; r++) y[m * R + r] = sum((floats)sums[m][r]) * scale[r];
}

/* multiply_int8 for more than two rows, x in bf16. */
void multiply_int8_bf16(const bf16 *x, const int8_t *weight, const float *scale, float *y, int64_t M, int64_t R,
                        int64_t C, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t r = 0; r < R; r += 2) {
        int64_t m = 0;
        for (; m + 8 <= M; m += 8) tile(8, x + m * C, weight + r * C, scale + r, y + m * R + r, R, C);
        if (M - m >= 4) tile(4, x + m * C, weight + r * C, scale + r, y + m * R + r, R, C), m += 4;
        if (M - m >= 2) tile(2, x + m * C, weight + r * C, scale + r, y + m * R + r, R, C), m += 2;
        if (M > m) tile(1, x + m * C, weight + r * C, scale + r, y + m * R + r, R, C);
    }
}
#else
int64_t int8_rows(void) { return 4; }
#endif
