/* Random rounding of float32 in one pass: the random numbers that torch.Generator draws from the same seed, and what
   rounding.py makes of them, bit for bit.

   torch draws one word of a Mersenne Twister (M. Matsumoto, T. Nishimura, ACM TOMACS 8, 1998: MT19937) after another
   and hands each through memory; here all 624 words of a turn are drawn at once, which vectorises, and used in place.
   No sum may be contracted: products are rounded before they are added, as torch does it. */

#include <stdint.h>

enum { WORDS = 624, AWAY = 397, REST = WORDS - AWAY };

typedef struct {
    uint32_t state[WORDS];
    uint32_t drawn[WORDS]; /* of this turn, tempered */
    int64_t used;          /* how many of them */
} Stream;

int64_t stream_bytes(void) { return sizeof(Stream); }

void stream_seed(Stream *s, uint32_t seed) {
    s->state[0] = seed;
    for (int i = 1; i < WORDS; i++) {
        uint32_t before = s->state[i - 1];
        s->state[i] = 1812433253u * (before ^ (before >> 30)) + (uint32_t)i;
    }
    s->used = WORDS;
}

static inline uint32_t twisted(uint32_t a, uint32_t b) {
    return (((a & 0x80000000u) | (b & 0x7fffffffu)) >> 1) ^ (-(b & 1u) & 0x9908b0dfu);
}

static inline uint32_t tempered(uint32_t y) {
    y ^= y >> 11;
    y ^= (y << 7) & 0x9d2c5680u;
    y ^= (y << 15) & 0xefc60000u;
    return y ^ (y >> 18);
}

/* Loops in three parts: none reads what it has written a vector before. */
static void turn(Stream *s) {
    uint32_t *w = s->state;
    for (int i = 0; i < REST; i++) w[i] = w[i + AWAY] ^ twisted(w[i], w[i + 1]);
    for (int i = REST; i < 2 * REST; i++) w[i] = w[i - REST] ^ twisted(w[i], w[i + 1]);
    for (int i = 2 * REST; i < WORDS - 1; i++) w[i] = w[i - REST] ^ twisted(w[i], w[i + 1]);
    w[WORDS - 1] = w[AWAY - 1] ^ twisted(w[WORDS - 1], w[0]);
    for (int i = 0; i < WORDS; i++) s->drawn[i] = tempered(w[i]);
    s->used = 0;
}

/* Words at hand, at most as many as are wanted; they count as used. */
static inline const uint32_t *take(Stream *s, int64_t wanted, int64_t *got) {
    if (s->used == WORDS) turn(s);
    const uint32_t *words = s->drawn + s->used;
    *got = wanted < WORDS - s->used ? wanted : WORDS - s->used;
    s->used += *got;
    return words;
}

/* to = x + x * u * 2^-23, u uniform in [-1/2, 1/2): 24 bits of a word. */
void jitter(Stream *s, const float *restrict x, float *restrict to, int64_t n) {
    for (int64_t at = 0, got; at < n; at += got) {
        const uint32_t *words = take(s, n - at, &got);
        for (int64_t i = 0; i < got; i++) {
            float u = (float)(int32_t)(words[i] & 0xffffffu) * 0x1p-24f - 0.5f;
            to[at + i] = u * 0x1p-23f * x[at + i] + x[at + i];
        }
    }
}

/* Bits of float32 in, of bfloat16 in float32 out: 16 random bits are added below the cut; not to what is not finite. */
void to_bf16(Stream *s, const uint32_t *restrict x, uint32_t *restrict to, int64_t n) {
    for (int64_t at = 0, got; at < n; at += got) {
        const uint32_t *words = take(s, n - at, &got);
        for (int64_t i = 0; i < got; i++) {
            uint32_t bits = x[at + i], rounded = (bits + (words[i] & 0xffffu)) & 0xffff0000u;
            to[at + i] = (bits & 0x7f800000u) == 0x7f800000u ? bits : rounded;
        }
    }
}
