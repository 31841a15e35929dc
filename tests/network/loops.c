/* kernels.c against the formulas, in a program of its own, for processors that are only emulated: exit code 0 is right.
   Compiled with -include kernels.c. */

#include <stdio.h>
#include <stdlib.h>

enum { M = 7, R = 48, C = 192, T = 48, E = 48, WIDTH = 40, Q = 45 };

static float random_float(void) { return (float)rand() / RAND_MAX * 2 - 1; }

/* Rounds as the kernels round what is multiplied by bytes, where they do. */
static void round_in_groups(float *x, int count) {
#if defined(DOT)
    for (int first = 0; first < count; first += GROUP) {
        int end = first + GROUP < count ? first + GROUP : count;
        float top = 1e-30f;
        for (int i = first; i < end; i++) top = fmaxf(top, fabsf(x[i]));
        for (int i = first; i < end; i++) x[i] = rintf(x[i] * (127 / top)) * (top / 127);
    }
#endif
}

/* For rows with and without an outlier. */
static double error_of_product(int far) {
    static float x[M * C], scale[R], y[M * R], room[M * (C + 8)], scratch[C];
    static int8_t weight[R * C];
    static uint8_t ordered[R * C];
    for (int i = 0; i < M * C; i++) x[i] = random_float();
    for (int m = 0; far && m < M; m++) x[m * C] = 20;
    for (int i = 0; i < R; i++) scale[i] = 1 + random_float();
    for (int i = 0; i < R * C; i++) weight[i] = rand() % 255 - 127;
    for (int r = 0; r < R; r++)
        for (int c = 0; c < C; c++)
            ordered[r / LANES * LANES * C + c / 4 * 4 * LANES + r % LANES * 4 + c % 4] = weight[r * C + c] + 128;
    multiply(x, NULL, ordered, scale, NULL, y, room, scratch, M, R, C, 0, 1);
    for (int m = 0; m < M; m++) round_in_groups(x + m * C, C);
    double off = 0, all = 0;
    for (int i = 0; i < M * R; i++) {
        double exact = 0;
        for (int c = 0; c < C; c++) exact += (double)x[i / R * C + c] * weight[i % R * C + c] * scale[i % R];
        off += (exact - y[i]) * (exact - y[i]), all += exact * exact;
    }
    return sqrt(off / all);
}

static double error_of_attention(void) {
    static float qkv[Q * 3 * WIDTH], out[Q * WIDTH], key_scales[T], value_scales[T];
    static float scratch[4 * (E + 2 * T)];
    static uint8_t keys[T * E], values[T * E];
    int64_t first = 0;
    for (int i = 0; i < Q * 3 * WIDTH; i++) qkv[i] = random_float() * (i % (3 * WIDTH) < WIDTH ? 3 : 1);
    const float *q = qkv, *k = q + WIDTH, *v = k + WIDTH;  // a slot lies 3 * WIDTH from the one before it
    attend(qkv, NULL, keys, values, key_scales, value_scales, &first, out, scratch, 1, Q, 1, WIDTH, T, E, 0, 0, 0, 1);
    double off = 0, all = 0;
    for (int i = 0; i < Q; i++) {
        double total = 0, exact[WIDTH] = {0};
        float query[WIDTH], scores[T], shares[T], top = -INFINITY;
        for (int e = 0; e < WIDTH; e++) query[e] = q[i * 3 * WIDTH + e] / sqrtf(WIDTH);
        round_in_groups(query, WIDTH);
        for (int t = 0; t <= i; t++) {
            double dot = 0;
            for (int e = 0; e < WIDTH; e++) dot += query[e] * round(k[t * 3 * WIDTH + e] / key_scales[t]) * key_scales[t];
            scores[t] = dot, top = fmaxf(top, scores[t]);
        }
        for (int t = 0; t <= i; t++) total += shares[t] = expf(scores[t] - top), shares[t] *= value_scales[t];
        round_in_groups(shares, i + 1);
        for (int t = 0; t <= i; t++)
            for (int e = 0; e < WIDTH; e++) exact[e] += shares[t] * round(v[t * 3 * WIDTH + e] / value_scales[t]);
        for (int e = 0; e < WIDTH; e++) {
            double wrong = exact[e] / total - out[i * WIDTH + e];
            off += wrong * wrong, all += exact[e] * exact[e] / total / total;
        }
    }
    return sqrt(off / all);
}

int main(void) {
    double far = error_of_product(1), near = error_of_product(0), attention = error_of_attention();
    printf("%d lanes, off by %g, %g and %g\n", LANES, far, near, attention);
    return !(far < 4e-4 && near < 4e-4 && attention < 2e-4);
}
