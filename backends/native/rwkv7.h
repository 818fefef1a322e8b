/* What Python hands over. Every pointer of `struct layer` and its order are those of LAYER in packing.py.
 *
 * Letters: B rows, T tokens, M = B T columns, L layers, C width, F inner width, H heads, N head size, V vocabulary, and
 * Rw Ra Rv Rg, the ranks of the low-rank pairs. Vectors are float32. Matrices are (out, in) in panels (matmul.h);
 * the second halves of the pairs are (H, R, N) with N padded to whole vectors (wkv7.h). */
#ifndef RWKV7_H
#define RWKV7_H

#include "vec.h"

struct layer {
    const float *ln1_weight, *ln1_bias, *mixes; /* mixes (6, C): r w k v a g */
    const float *w0, *a0, *v0, *k_k, *k_a, *r_k, *ln_x_weight, *ln_x_bias;
    const float *ln2_weight, *ln2_bias, *ffn_mix;
    const weight *receptance, *key, *value, *output, *w1, *a1, *v1, *g1; /* v0 v1 v2: NULL in layer 0 */
    const weight *w2, *a2, *v2, *g2;
    const weight *ffn_key, *ffn_value;
    int64_t skips; /* whether weights of ffn_value that meet zeros may be left out: all of them are finite */
};

struct model {
    int L, C, F, H, N, V, Rw, Ra, Rv, Rg;
    const weight *emb; /* (V, C) as it is */
    const float *ln0_weight, *ln0_bias, *ln_out_weight, *ln_out_bias;
    const weight *head;
    const struct layer *layers;
};

/* One layer's state: shifts (B, C), S (B, H, N value, N key). */
struct state {
    weight *att;
    float *S;
    weight *ffn;
};

enum logits { NONE, LAST, ALL };

#endif
