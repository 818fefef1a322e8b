/* Vectors of LANES floats in GCC's and clang's portable notation, and the two formats of a weight.
 *
 * The same source is compiled once per instruction set: 16 lanes with AVX-512, 8 with AVX2, 4 elsewhere (SSE2, NEON).
 * With -DBF16, weights and the activations that meet them are bfloat16, two to a 32-bit word; sums are float32. */
#ifndef VEC_H
#define VEC_H

#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif

#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));
typedef uint32_t uvec __attribute__((vector_size(4 * LANES)));
typedef uint16_t half __attribute__((vector_size(2 * LANES)));

#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (ivec){__VA_ARGS__})
#endif

INLINE vec all(float value) { return value - (vec){0}; }

INLINE vec load(const float *p) {
    vec x;
    memcpy(&x, p, sizeof x);
    return x;
}

INLINE void store(float *p, vec x) { memcpy(p, &x, sizeof x); }

/* The first n values, zeros behind them. */
INLINE vec load_n(const float *p, int n) {
    if (n >= LANES) return load(p);
    vec x = {0};
    memcpy(&x, p, sizeof(float) * n);
    return x;
}

INLINE void store_n(float *p, vec x, int n) { memcpy(p, &x, n >= LANES ? sizeof x : sizeof(float) * n); }

INLINE vec choose(ivec where, vec a, vec b) { return (vec)((where & (ivec)a) | (~where & (ivec)b)); }

/* Four sums over lanes, in the first four. The order of additions is the same wherever a vector stands among them. */
INLINE vec sums(vec a, vec b, vec c, vec d) {
#if LANES == 16
    vec ab = SHUFFLE(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
             SHUFFLE(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    vec cd = SHUFFLE(c, d, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
             SHUFFLE(c, d, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    vec s = SHUFFLE(ab, cd, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
            SHUFFLE(ab, cd, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
    s += SHUFFLE(s, s, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
    s += SHUFFLE(s, s, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
    return SHUFFLE(s, s, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12);
#elif LANES == 8
    vec ab = SHUFFLE(a, b, 0, 1, 2, 3, 8, 9, 10, 11) + SHUFFLE(a, b, 4, 5, 6, 7, 12, 13, 14, 15);
    vec cd = SHUFFLE(c, d, 0, 1, 2, 3, 8, 9, 10, 11) + SHUFFLE(c, d, 4, 5, 6, 7, 12, 13, 14, 15);
    vec s = SHUFFLE(ab, cd, 0, 1, 4, 5, 8, 9, 12, 13) + SHUFFLE(ab, cd, 2, 3, 6, 7, 10, 11, 14, 15);
    s += SHUFFLE(s, s, 1, 0, 3, 2, 5, 4, 7, 6);
    return SHUFFLE(s, s, 0, 2, 4, 6, 0, 2, 4, 6);
#else
    vec ab = SHUFFLE(a, b, 0, 1, 4, 5) + SHUFFLE(a, b, 2, 3, 6, 7);
    vec cd = SHUFFLE(c, d, 0, 1, 4, 5) + SHUFFLE(c, d, 2, 3, 6, 7);
    return SHUFFLE(ab, cd, 0, 2, 4, 6) + SHUFFLE(ab, cd, 1, 3, 5, 7);
#endif
}

INLINE float sum(vec a) { return sums(a, a, a, a)[0]; }

/* e^x within 2 units of the last place: x = n ln 2 + f, the polynomial of Cephes' expf for e^f, 2^n by its bits.
 * NaN stays NaN: comparisons with it are false and leave it where it is. */
INLINE vec v_exp(vec x) {
    x = choose(x > all(88.0f), all(88.0f), x);
    x = choose(x < all(-87.0f), all(-87.0f), x);
    const vec round = all(12582912.0f); /* 1.5 * 2^23: adding it leaves a whole number in the low bits */
    vec shifted = x * 1.44269504088896341f + round;
    vec n = shifted - round;
    vec f = x - n * 0.693359375f + n * 2.12194440e-4f;
    vec p = all(1.9875691500e-4f);
    p = p * f + 1.3981999507e-3f;
    p = p * f + 8.3334519073e-3f;
    p = p * f + 4.1665795894e-2f;
    p = p * f + 1.6666665459e-1f;
    p = p * f + 5.0000001201e-1f;
    vec e = p * f * f + f + 1.0f;
    return (vec)((ivec)e + (((ivec)shifted - (ivec)round) << 23));
}

INLINE vec v_sigmoid(vec x) { return 1.0f / (1.0f + v_exp(-x)); }

/* Cephes' tanhf: an odd polynomial near 0, where 1 - 2 / (e^2x + 1) would lose digits. */
INLINE vec v_tanh(vec x) {
    vec z = x * x, p = all(-5.70498872745e-3f);
    p = p * z + 2.06390887954e-2f;
    p = p * z - 5.37397155531e-2f;
    p = p * z + 1.33314422036e-1f;
    p = p * z - 3.33332819422e-1f;
    return choose(z < all(0.390625f), x + x * z * p, 1.0f - 2.0f / (v_exp(x + x) + 1.0f));
}

#ifdef BF16
typedef uint16_t weight; /* also the format of activations that meet a matrix */
typedef uvec word;       /* 2 LANES of them */
#define STEP 2           /* weights of a row that lie together */

INLINE float widen(weight w) {
    uint32_t bits = (uint32_t)w << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* To nearest, ties to even. */
INLINE weight narrow(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return x != x ? 0x7fc0 : (weight)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

INLINE vec widened(const weight *p) {
    half h;
    memcpy(&h, p, sizeof h);
    return (vec)(__builtin_convertvector(h, uvec) << 16);
}

/* The first n values, rounded as `narrow` does. */
INLINE void store_narrowed(weight *p, vec x, int n) {
    uvec bits = (uvec)x, rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    rounded = (uvec)choose(x == x, (vec)rounded, (vec)((uvec){0} + 0x7fc0));
    half h = __builtin_convertvector(rounded, half);
    memcpy(p, &h, n >= LANES ? sizeof h : sizeof(weight) * n);
}

/* acc + the products of even and of odd elements. */
INLINE vec dot(vec acc, word w, word x) {
#if defined(__AVX512BF16__)
    return (vec)_mm512_dpbf16_ps((__m512)acc, (__m512bh)w, (__m512bh)x);
#else
    return acc + (vec)(w << 16) * (vec)(x << 16) + (vec)(w & 0xffff0000) * (vec)(x & 0xffff0000);
#endif
}
#else
typedef float weight;
typedef vec word;
#define STEP 1

INLINE float widen(weight w) { return w; }
INLINE weight narrow(float x) { return x; }
INLINE vec widened(const weight *p) { return load(p); }
INLINE void store_narrowed(weight *p, vec x, int n) { store_n(p, x, n); }
INLINE vec dot(vec acc, word w, word x) { return acc + w * x; }
#endif

INLINE word words(const weight *p) {
    word x;
    memcpy(&x, p, sizeof x);
    return x;
}

/* The same STEP weights for every lane. */
INLINE word spread(const weight *p) {
#ifdef BF16
    uint32_t pair;
    memcpy(&pair, p, sizeof pair);
    return pair - (word){0};
#else
    return all(*p);
#endif
}

#endif
