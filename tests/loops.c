/* kernels.c against the formulas, in a program of its own, for processors that are only emulated: exit code 0 is right.
   Compiled with -include kernels.c. */

#include <stdio.h>
#include <stdlib.h>

enum { M = 7, R = 48, C = 192, T = 48, E = 48, WIDTH = 40, Q = 45 };

static float random_float(void) { return (float)rand() / RAND_MAX * 2 - 1; }

static double product(void) {
    static float x[M * C], scale[R], y[M * R], space[M * C];
    static int8_t weight[R * C];
    static uint8_t ordered[R * C];
    for (int i = 0; i < M * C; i++) x[i] = random_float();
    for (int i = 0; i < R; i++) scale[i] = 1 + random_float();
    for (int i = 0; i < R * C; i++) weight[i] = rand() % 255 - 127;
    for (int r = 0; r < R; r++)
        for (int c = 0; c < C; c++)
            ordered[r / LANES * LANES * C + c / 4 * 4 * LANES + r % LANES * 4 + c % 4] = weight[r * C + c] + 128;
    multiply(x, NULL, ordered, scale, NULL, y, space, M, R, C, 0, 1);
    double off = 0, all = 0;
    for (int i = 0; i < M * R; i++) {
        double exact = 0;
        for (int c = 0; c < C; c++) exact += (double)x[i / R * C + c] * weight[i % R * C + c] * scale[i % R];
        off += (exact - y[i]) * (exact - y[i]), all += exact * exact;
    }
    return sqrt(off / all);
}

static double attention(void) {
    static float q[Q * WIDTH], k[Q * WIDTH], v[Q * WIDTH], out[Q * WIDTH], key_scales[T], value_scales[T];
    static uint8_t keys[T * E], values[T * E];
    int64_t first = 0, strides[9] = {0, 0, WIDTH, 0, 0, WIDTH, 0, 0, WIDTH};
    for (int i = 0; i < Q * WIDTH; i++) q[i] = 3 * random_float(), k[i] = random_float(), v[i] = random_float();
    attend(q, k, v, strides, keys, values, key_scales, value_scales, &first, out, 1, 1, Q, T, E, WIDTH, 1);
    double off = 0, all = 0;
    for (int i = 0; i < Q; i++) {
        double total = 0, exact[WIDTH] = {0};
        for (int t = 0; t <= i; t++) {
            double dot = 0;
            for (int e = 0; e < WIDTH; e++)
                dot += q[i * WIDTH + e] * round(k[t * WIDTH + e] / key_scales[t]) * key_scales[t];
            total += exp(dot / sqrt(WIDTH));
            for (int e = 0; e < WIDTH; e++)
                exact[e] += exp(dot / sqrt(WIDTH)) * round(v[t * WIDTH + e] / value_scales[t]) * value_scales[t];
        }
        for (int e = 0; e < WIDTH; e++) {
            double wrong = exact[e] / total - out[i * WIDTH + e];
            off += wrong * wrong, all += exact[e] * exact[e] / total / total;
        }
    }
    return sqrt(off / all);
}

int main(void) {
    double one = product(), other = attention();
    printf("%d lanes, off by %g and %g\n", LANES, one, other);
    return !(one < 1e-4 && other < 2e-4);
}
