/* The RWKV-7 recurrence and its gradient, token by token in float32, for training on a CPU.

   Per row and head, S[value i][key j]:   u = S kk,   S <- S diag(w) - u b' + v k',   y = S r.

   Compiled with -DN=head size. All sequences are (B, T, H, N); states (B, H, N, N). The forward pass keeps u and the
   state before every CHUNK tokens, from which the backward pass computes the states in between once more. */

#define CHUNK 16
#define LOOP(x) _Pragma("GCC ivdep") for (int x = 0; x < N; x++)
#define AT(p, t) ((p) + (((long)row * T + (t)) * H + head) * N)

static void forward_head(int T, int H, int row, int head, const float *r, const float *w, const float *k, const float *v,
                         const float *kk, const float *b, float *S, float *y, float *u, float *saved, long stride) {
  float X[N][N]; /* X[j][i]: transposed, so that sums over keys are sums of vectors */
  LOOP(i) LOOP(j) X[j][i] = S[i * N + j];
  for (int t = 0; t < T; t++) {
    const float *rt = AT(r, t), *wt = AT(w, t), *kt = AT(k, t), *vt = AT(v, t), *at = AT(kk, t), *bt = AT(b, t);
    float *yt = AT(y, t), *ut = AT(u, t), U[N] = {0}, Y[N] = {0};
    if (t % CHUNK == 0) LOOP(i) LOOP(j) saved[t / CHUNK * stride + i * N + j] = X[j][i];
    LOOP(j) LOOP(i) U[i] += X[j][i] * at[j];
    LOOP(j) LOOP(i) {
      X[j][i] = X[j][i] * wt[j] - U[i] * bt[j] + vt[i] * kt[j];
      Y[i] += X[j][i] * rt[j];
    }
    LOOP(i) { yt[i] = Y[i]; ut[i] = U[i]; }
  }
  LOOP(i) LOOP(j) S[i * N + j] = X[j][i];
}

void forward(int B, int T, int H, const float *r, const float *w, const float *k, const float *v, const float *kk,
             const float *b, float *S, float *y, float *u, float *saved) {
  for (int row = 0; row < B; row++)
    for (int head = 0; head < H; head++) {
      long place = ((long)row * H + head) * N * N;
      forward_head(T, H, row, head, r, w, k, v, kk, b, S + place, y, u, saved + place, (long)B * H * N * N);
    }
}

/* One token backwards: P is the state before it, X after it, D the gradient of X, which becomes that of P. */
static void backward_token(const float P[N][N], const float X[N][N], float D[N][N], const float *rt, const float *wt,
                           const float *kt, const float *vt, const float *at, const float *bt, const float *ut,
                           const float *gy, float *dr, float *dw, float *dk, float *dv, float *da, float *db) {
  float R[N] = {0}, W[N] = {0}, K[N] = {0}, A[N] = {0}, E[N] = {0};
  LOOP(i) {
    float v_sum = 0, u_sum = 0;
    LOOP(j) {
      R[j] += X[i][j] * gy[i];
      D[i][j] += rt[j] * gy[i];
      W[j] += D[i][j] * P[i][j];
      K[j] += D[i][j] * vt[i];
      E[j] -= D[i][j] * ut[i];
      v_sum += D[i][j] * kt[j];
      u_sum -= D[i][j] * bt[j];
    }
    dv[i] = v_sum;
    LOOP(j) {
      A[j] += P[i][j] * u_sum;
      D[i][j] = D[i][j] * wt[j] + u_sum * at[j];
    }
  }
  LOOP(j) { dr[j] = R[j]; dw[j] = W[j]; dk[j] = K[j]; da[j] = A[j]; db[j] = E[j]; }
}

static void backward_head(int T, int H, int row, int head, const float *r, const float *w, const float *k, const float *v,
                          const float *kk, const float *b, const float *u, const float *saved, long stride,
                          const float *gy, float *dS, float *dr, float *dw, float *dk, float *dv, float *da, float *db) {
  static _Thread_local float X[CHUNK + 1][N][N], D[N][N];
  LOOP(i) LOOP(j) D[i][j] = dS[i * N + j];
  for (int start = (T - 1) / CHUNK * CHUNK; start >= 0; start -= CHUNK) {
    int n = T - start < CHUNK ? T - start : CHUNK;
    LOOP(i) LOOP(j) X[0][i][j] = saved[start / CHUNK * stride + i * N + j];
    for (int s = 0; s < n; s++) {
      int t = start + s;
      const float *wt = AT(w, t), *kt = AT(k, t), *vt = AT(v, t), *bt = AT(b, t), *ut = AT(u, t);
      LOOP(i) LOOP(j) X[s + 1][i][j] = X[s][i][j] * wt[j] - ut[i] * bt[j] + vt[i] * kt[j];
    }
    for (int s = n - 1; s >= 0; s--) {
      int t = start + s;
      backward_token((const float(*)[N])X[s], (const float(*)[N])X[s + 1], D, AT(r, t), AT(w, t), AT(k, t), AT(v, t),
                     AT(kk, t), AT(b, t), AT(u, t), AT(gy, t), AT(dr, t), AT(dw, t), AT(dk, t), AT(dv, t), AT(da, t),
                     AT(db, t));
    }
  }
  LOOP(i) LOOP(j) dS[i * N + j] = D[i][j];
}

/* dS: gradient of the final state on entry, of the first one on return. */
void backward(int B, int T, int H, const float *r, const float *w, const float *k, const float *v, const float *kk,
              const float *b, const float *u, const float *saved, const float *gy, float *dS, float *dr, float *dw,
              float *dk, float *dv, float *da, float *db) {
  for (int row = 0; row < B; row++)
    for (int head = 0; head < H; head++) {
      long place = ((long)row * H + head) * N * N;
      backward_head(T, H, row, head, r, w, k, v, kk, b, u, saved + place, (long)B * H * N * N, gy, dS + place, dr, dw,
                    dk, dv, da, db);
    }
}
