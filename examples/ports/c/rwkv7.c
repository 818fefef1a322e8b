/* RWKV-7 "Goose" inference in one C99 file that needs a POSIX libc and libm alone: a complete port, small enough to read at once.
 *
 *   rwkv7                            speaks the protocol of docs/protocol.md on stdin and stdout
 *   rwkv7 --kit DIR --dump OUT       runs a kit (docs/kit.md) and writes a dump, a folder
 *   rwkv7 ... --bug NAME             plants a mistake, to see whether the harness names it; --help lists them
 *
 * It reads safetensors with official names in F32, BF16 or F16 and computes in F32, one token at a time.
 * Letters as in the paper (arXiv 2503.14456): L layers, C width, H heads of N, F width of the channel mix, V vocabulary.
 * Parts: memory and errors, JSON, base64, safetensors, the model, its state, the mathematics, protocol, kit.
 */
#define _POSIX_C_SOURCE 200809L /* for mkdir */
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define VERSION "1.0"

/* ---- memory and errors -------------------------------------------------------------------------------------------- */

static jmp_buf refused; /* where a request goes that cannot be served; its memory is lost */
static int may_refuse;
static char words[512];

static void die(const char *format, ...) { /* ends the request if there is one, else the program */
    va_list rest;
    va_start(rest, format);
    vsnprintf(words, sizeof words, format, rest);
    va_end(rest);
    if (may_refuse) longjmp(refused, 1);
    fprintf(stderr, "rwkv7: %s\n", words);
    exit(1);
}

static void *allocate(size_t count, size_t size) {
    void *memory = calloc(count ? count : 1, size);
    if (!memory) die("out of memory for %zu x %zu bytes", count, size);
    return memory;
}

static float *floats(size_t count) { return allocate(count, sizeof(float)); }

static char *read_file(const char *path, size_t *length) { /* with a NUL behind it */
    FILE *file = fopen(path, "rb");
    if (!file) die("%s cannot be opened", path);
    size_t room = 1 << 16, got;
    char *text = allocate(room + 1, 1);
    *length = 0;
    while ((got = fread(text + *length, 1, room - *length, file)) > 0) {
        *length += got;
        if (*length == room && !(text = realloc(text, (room *= 2) + 1))) die("out of memory for %s", path);
    }
    fclose(file);
    text[*length] = 0;
    return text;
}

/* ---- JSON: parsed in place into a tree whose strings lie in the text itself ---------------------------------------- */

typedef struct Json {
    char kind;         /* '{' '[' '"', or the first character of anything else */
    char *key, *text;  /* own name inside an object; a string without quotes, or a literal and what follows it */
    struct Json *first, *next;
} Json;

typedef struct {
    char *at;
    Json *pool;
    size_t used;
} Parser;

static void skip_space(Parser *p) {
    while (*p->at && strchr(" \t\r\n", *p->at)) p->at++;
}

static char *parse_string(Parser *p) { /* at the opening quote; \uXXXX becomes '?', nothing here needs more */
    char *begin = ++p->at, *out = begin;
    for (; *p->at != '"'; p->at++) {
        if (!*p->at) die("a string of JSON does not end");
        if (*p->at != '\\') {
            *out++ = *p->at;
            continue;
        }
        const char *found = strchr("nrtbf", *++p->at);
        if (*p->at == 'u' && strlen(p->at) > 4) p->at += 4, *out++ = '?';
        else if (*p->at) *out++ = found ? "\n\r\t\b\f"[found - "nrtbf"] : *p->at;
        else die("a string of JSON does not end");
    }
    p->at++;
    *out = 0; /* never behind the closing quote, which has been passed */
    return begin;
}

static Json *parse_value(Parser *p, int depth) {
    Json *value = &p->pool[p->used++], **tail = &value->first;
    skip_space(p);
    value->kind = *p->at;
    if (depth > 64 || !*p->at || strchr("]},:", *p->at)) die("that is no JSON: %.40s", p->at);
    if (*p->at == '"') {
        value->text = parse_string(p);
        return value;
    }
    if (*p->at != '{' && *p->at != '[') { /* a number, true, false, null */
        value->text = p->at;
        p->at += strcspn(p->at, " \t\r\n,]}");
        return value;
    }
    const char end = *p->at++ == '{' ? '}' : ']';
    for (skip_space(p); *p->at != end; skip_space(p)) {
        char *key = NULL;
        if (end == '}') {
            if (*p->at != '"') die("a key of JSON is due: %.40s", p->at);
            key = parse_string(p);
            skip_space(p);
            if (*p->at++ != ':') die("a colon of JSON is due behind %s", key);
        }
        *tail = parse_value(p, depth + 1);
        (*tail)->key = key;
        tail = &(*tail)->next;
        skip_space(p);
        if (*p->at == ',') p->at++;
        else if (*p->at != end) die("a comma of JSON is due: %.40s", p->at);
    }
    p->at++;
    return value;
}

static Json *parse_json(char *text) { /* freed by free(); the text is changed and has to live as long */
    size_t values = 2;
    for (const char *c = text; *c; c++) values += *c == '[' || *c == ',' || *c == ':' || *c == '{';
    Parser parser = {text, allocate(values, sizeof(Json)), 0};
    return parse_value(&parser, 0);
}

static Json *get(const Json *object, const char *key) { /* NULL if it is not there */
    for (Json *value = object ? object->first : NULL; value; value = value->next)
        if (value->key && !strcmp(value->key, key)) return value;
    return NULL;
}

static size_t number(const Json *value) { return value && value->text ? strtoull(value->text, NULL, 10) : 0; }

static int is(const Json *value, const char *word) {
    return value && value->text && !strncmp(value->text, word, strlen(word));
}

static int count(const Json *list) {
    int n = 0;
    for (const Json *value = list ? list->first : NULL; value; value = value->next) n++;
    return n;
}

static int *integers(const Json *list) {
    int n = 0, *numbers = allocate((size_t)count(list), sizeof(int));
    for (const Json *value = list ? list->first : NULL; value; value = value->next) numbers[n++] = (int)number(value);
    return numbers;
}

/* ---- base64 ------------------------------------------------------------------------------------------------------- */

static const char DIGITS[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

static void print_base64(const void *data, size_t length) {
    const unsigned char *byte = data;
    for (size_t i = 0; i < length; i += 3) {
        const size_t left = length - i;
        const uint32_t three = (uint32_t)byte[i] << 16 | (left > 1 ? (uint32_t)byte[i + 1] << 8 : 0) | (left > 2 ? byte[i + 2] : 0);
        const char four[4] = {DIGITS[three >> 18], DIGITS[three >> 12 & 63], left > 1 ? DIGITS[three >> 6 & 63] : '=',
                              left > 2 ? DIGITS[three & 63] : '='};
        fwrite(four, 1, 4, stdout);
    }
}

static size_t read_base64(unsigned char *out, size_t room, const char *text) { /* bytes written; room + 1 if too many */
    uint32_t bits = 0;
    size_t length = 0;
    int held = 0;
    for (const char *digit; *text && *text != '=' && (digit = strchr(DIGITS, *text)); text++) {
        bits = bits << 6 | (uint32_t)(digit - DIGITS);
        if ((held += 6) < 8) continue;
        if (length == room) return room + 1;
        out[length++] = (unsigned char)(bits >> (held -= 8));
    }
    return length;
}

/* ---- safetensors: the header's length, the header as JSON, raw numbers --------------------------------------------- */

typedef struct {
    char *bytes;
    const unsigned char *data;
    Json *header;
    size_t size; /* of the data */
} Checkpoint;

static Checkpoint open_checkpoint(const char *path) {
    size_t length, header = 0;
    char *bytes = read_file(path, &length);
    for (int i = 7; i >= 0; i--) header = header << 8 | (length > 7 ? (unsigned char)bytes[i] : 0);
    if (length < 8 || header > length - 8) die("%s is no safetensors file", path);
    char *text = allocate(header + 1, 1); /* lives as long as the program, like all that is loaded */
    memcpy(text, bytes + 8, header);
    return (Checkpoint){bytes, (unsigned char *)bytes + 8 + header, parse_json(text), length - 8 - header};
}

static float wider(const unsigned char *at, char kind) { /* one number: F32, B(F16) or 'H' for F16, little-endian */
    uint32_t bits = at[0] | (uint32_t)at[1] << 8;
    float value;
    if (kind == 'F') bits |= (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
    else if (kind == 'B') bits <<= 16;
    else { /* sign, 5 bits of exponent, 10 of mantissa */
        const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
        value = exponent == 31  ? (mantissa ? NAN : INFINITY)
                : exponent == 0 ? ldexpf((float)mantissa, -24)
                                : ldexpf((float)(1024 + mantissa), exponent - 25);
        return bits & 0x8000 ? -value : value;
    }
    memcpy(&value, &bits, sizeof value);
    return value;
}

static const Json *find(const Checkpoint *file, const char *format, int layer, char *name, size_t room) {
    snprintf(name, room, format, layer);
    return get(file->header, name);
}

static size_t length_of(const Checkpoint *file, const char *format, int axis) { /* of layer 0; axis from the end */
    char name[96];
    const Json *tensor = find(file, format, 0, name, sizeof name), *shape = get(tensor, "shape");
    const int n = count(shape);
    if (n <= axis) die("the checkpoint lacks %s", name);
    const Json *length = shape->first;
    for (int skip = n - 1 - axis; skip > 0; skip--) length = length->next;
    return number(length);
}

static float *weight(const Checkpoint *file, const char *format, int layer, size_t due) {
    char name[96];
    const Json *tensor = find(file, format, layer, name, sizeof name), *offsets = get(tensor, "data_offsets");
    if (!tensor || count(offsets) != 2) die("the checkpoint lacks %s", name);
    const Json *dtype = get(tensor, "dtype");
    const char kind = is(dtype, "F32") ? 'F' : is(dtype, "BF16") ? 'B' : is(dtype, "F16") ? 'H' : 0;
    const size_t width = kind == 'F' ? 4 : 2, begin = number(offsets->first), end = number(offsets->first->next);
    if (!kind) die("%s has number format %s", name, dtype->text);
    if (end > file->size || begin > end || end - begin != due * width) die("%s has not %zu numbers", name, due);
    float *values = floats(due);
    for (size_t i = 0; i < due; i++) values[i] = wider(file->data + begin + i * width, kind);
    return values;
}

/* ---- the model: weights, and a buffer for every named tensor -------------------------------------------------------- */

/* Named tensors in the order of evaluation; inside a sub-layer they are recorded in this order. */
enum { EMB, LN0,
       LN1, SHIFT, XR, XW, XK, XV, XA, XG, R, W_LORA, W_RAW, W, K_RAW, KK, A_LORA, A, K, V_RAW, V_LORA, V_, G_LORA, G,
       STATE, Y, LN_X, BONUS, OUT, RES,
       LN2, FFN_SHIFT, FFN_XK, FFN_K, ACT, FFN_OUT, FFN_RES,
       LN_OUT, HEAD, TENSORS };

static const char *const NAMES[TENSORS] = {
    "emb", "ln0",
    "att.ln1", "att.shift", "att.xr", "att.xw", "att.xk", "att.xv", "att.xa", "att.xg", "att.r", "att.w_lora", "att.w_raw",
    "att.w", "att.k_raw", "att.kk", "att.a_lora", "att.a", "att.k", "att.v_raw", "att.v_lora", "att.v", "att.g_lora", "att.g",
    "att.state", "att.y", "att.ln_x", "att.bonus", "att.out", "att.res",
    "ffn.ln2", "ffn.shift", "ffn.xk", "ffn.k", "ffn.act", "ffn.out", "ffn.res",
    "ln_out", "head"};

typedef struct {
    float *ln1_w, *ln1_b, *ln2_w, *ln2_b, *ln_x_w, *ln_x_b;
    float *mix[6]; /* x_r, x_w, x_k, x_v, x_a, x_g */
    float *w0, *w1, *w2, *a0, *a1, *a2, *v0, *v1, *v2, *g1, *g2, *k_k, *k_a, *r_k;
    float *receptance, *key, *value, *output;
    float *ffn_mix, *ffn_key, *ffn_value;
} Block;

typedef struct { /* rows that are recorded of one named tensor; none if `rows` is NULL */
    float *rows;
    size_t filled;
} Record;

typedef struct {
    int L, C, H, N, F, V, rank_w, rank_a, rank_v, rank_g;
    float *emb, *ln0_w, *ln0_b, *ln_out_w, *ln_out_b, *head;
    Block *block;
    float *t[TENSORS]; /* the named tensors of the token at hand; t[STATE] points into the state */
    float *v_first;    /* value of layer 0, for the later layers */
    Record *record;    /* L x TENSORS */
} Model;

static int is_alone(int id) { return id <= LN0 || id >= LN_OUT; } /* outside the blocks: recorded with layer 0 */

static size_t length(const Model *m, int id) {
    const int lengths[] = {m->C, m->rank_w, m->rank_a, m->rank_v, m->rank_g, m->F, m->V, m->C * m->N};
    const int which = id == W_LORA ? 1 : id == A_LORA ? 2 : id == V_LORA ? 3 : id == G_LORA ? 4
                    : id == FFN_K || id == ACT ? 5 : id == HEAD ? 6 : id == STATE ? 7 : 0;
    return (size_t)lengths[which];
}

static void load_block(Block *b, const Checkpoint *file, const Model *m, int l) {
    static const char *const MIX[] = {"blocks.%d.att.x_r", "blocks.%d.att.x_w", "blocks.%d.att.x_k",
                                      "blocks.%d.att.x_v", "blocks.%d.att.x_a", "blocks.%d.att.x_g"};
    const size_t C = (size_t)m->C, F = (size_t)m->F;
#define READ(name, format, size) b->name = weight(file, "blocks.%d." format, l, (size))
    READ(ln1_w, "ln1.weight", C);
    READ(ln1_b, "ln1.bias", C);
    READ(ln2_w, "ln2.weight", C);
    READ(ln2_b, "ln2.bias", C);
    READ(ln_x_w, "att.ln_x.weight", C);
    READ(ln_x_b, "att.ln_x.bias", C);
    for (int i = 0; i < 6; i++) b->mix[i] = weight(file, MIX[i], l, C);
    READ(w0, "att.w0", C);
    READ(w1, "att.w1", C * (size_t)m->rank_w);
    READ(w2, "att.w2", C * (size_t)m->rank_w);
    READ(a0, "att.a0", C);
    READ(a1, "att.a1", C * (size_t)m->rank_a);
    READ(a2, "att.a2", C * (size_t)m->rank_a);
    if (l) { /* layer 0 has no value residual; files that carry these weights there never use them */
        READ(v0, "att.v0", C);
        READ(v1, "att.v1", C * (size_t)m->rank_v);
        READ(v2, "att.v2", C * (size_t)m->rank_v);
    }
    READ(g1, "att.g1", C * (size_t)m->rank_g);
    READ(g2, "att.g2", C * (size_t)m->rank_g);
    READ(k_k, "att.k_k", C);
    READ(k_a, "att.k_a", C);
    READ(r_k, "att.r_k", C);
    READ(receptance, "att.receptance.weight", C * C);
    READ(key, "att.key.weight", C * C);
    READ(value, "att.value.weight", C * C);
    READ(output, "att.output.weight", C * C);
    READ(ffn_mix, "ffn.x_k", C);
    READ(ffn_key, "ffn.key.weight", F * C);
    READ(ffn_value, "ffn.value.weight", C * F);
#undef READ
}

static Model *load_model(const char *path) {
    Checkpoint file = open_checkpoint(path);
    Model *m = allocate(1, sizeof(Model));
    char name[96];
    while (find(&file, "blocks.%d.ln1.weight", m->L, name, sizeof name)) m->L++;
    m->V = (int)length_of(&file, "emb.weight", 1);
    m->C = (int)length_of(&file, "emb.weight", 0);
    m->H = (int)length_of(&file, "blocks.%d.att.r_k", 1);
    m->N = (int)length_of(&file, "blocks.%d.att.r_k", 0);
    m->F = (int)length_of(&file, "blocks.%d.ffn.key.weight", 1);
    m->rank_w = (int)length_of(&file, "blocks.%d.att.w1", 0);
    m->rank_a = (int)length_of(&file, "blocks.%d.att.a1", 0);
    m->rank_g = (int)length_of(&file, "blocks.%d.att.g1", 0);
    const Json *v1 = find(&file, "blocks.%d.att.v1", 1, name, sizeof name);
    if (v1) m->rank_v = (int)number(get(v1, "shape")->first->next);
    const size_t C = (size_t)m->C, V = (size_t)m->V;
    m->emb = weight(&file, "emb.weight", 0, V * C);
    m->ln0_w = weight(&file, "blocks.0.ln0.weight", 0, C);
    m->ln0_b = weight(&file, "blocks.0.ln0.bias", 0, C);
    m->ln_out_w = weight(&file, "ln_out.weight", 0, C);
    m->ln_out_b = weight(&file, "ln_out.bias", 0, C);
    m->head = weight(&file, "head.weight", 0, V * C);
    m->block = allocate((size_t)m->L, sizeof(Block));
    for (int l = 0; l < m->L; l++) load_block(&m->block[l], &file, m, l);
    for (int id = 0; id < TENSORS; id++) m->t[id] = id == STATE ? NULL : floats(length(m, id));
    m->v_first = floats(C);
    m->record = allocate((size_t)m->L * TENSORS, sizeof(Record));
    free(file.bytes);
    return m;
}

static void keep(Model *m, int l, int from, int to) { /* record named tensors of layer l */
    for (int id = from; id <= to; id++) {
        Record *record = &m->record[l * TENSORS + id];
        if (!record->rows) continue;
        memcpy(record->rows + record->filled, m->t[id], length(m, id) * sizeof(float));
        record->filled += length(m, id);
    }
}

/* ---- the state: what one token leaves behind for the next ----------------------------------------------------------- */

typedef struct {
    float *att_shift, *wkv, *ffn_shift; /* L x C; L x H x N value x N key; L x C */
} State;

static size_t shift_length(const Model *m) { return (size_t)m->L * (size_t)m->C; }

static State *new_state(const Model *m, const State *from) { /* zero, or a copy */
    const size_t n = shift_length(m), N = (size_t)m->N;
    State *s = allocate(1, sizeof(State));
    s->att_shift = floats(n * (2 + N));
    s->ffn_shift = s->att_shift + n;
    s->wkv = s->ffn_shift + n;
    if (from) memcpy(s->att_shift, from->att_shift, n * (2 + N) * sizeof(float));
    return s;
}

static void free_state(State *s) {
    if (s) free(s->att_shift);
    free(s);
}

/* ---- the mathematics ------------------------------------------------------------------------------------------------ */

/* Mistakes that porters make, off by default. */
enum { NO_BUG, NO_TANH, TRANSPOSED_READ_OUT, GROUP_NORM_EPS, K_A_BEFORE_KAPPA, NO_BONUS, V6_DECAY, LOST_SHIFT, BUGS };
static const char *const BUG_NAMES[BUGS] = {"", "no-tanh", "transposed-read-out", "group-norm-eps", "k_a-before-kappa",
                                            "no-bonus", "v6-decay", "lost-shift"};
static int bug = NO_BUG;

static float sigmoid(float x) { return 1 / (1 + expf(-x)); }

static float dot(const float *a, const float *b, int n) { /* eight sums, so that a compiler may use vectors */
    float s[8] = {0};
    int i = 0;
    for (; i + 8 <= n; i += 8)
        for (int j = 0; j < 8; j++) s[j] += a[i + j] * b[i + j];
    for (; i < n; i++) s[i & 7] += a[i] * b[i];
    return ((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7]));
}

static void matvec(float *out, const float *matrix, const float *x, int rows, int columns) { /* W x, W (rows, columns) */
    for (int i = 0; i < rows; i++) out[i] = dot(matrix + (size_t)i * (size_t)columns, x, columns);
}

static void vecmat(float *out, const float *x, const float *matrix, int rows, int columns) { /* x w, w (rows, columns) */
    memset(out, 0, (size_t)columns * sizeof(float));
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < columns; j++) out[j] += x[i] * matrix[(size_t)i * (size_t)columns + (size_t)j];
}

static void normalize(float *out, const float *x, int n, float eps) {
    double mean = 0, variance = 0;
    for (int i = 0; i < n; i++) mean += x[i];
    mean /= n;
    for (int i = 0; i < n; i++) variance += (x[i] - mean) * (x[i] - mean);
    const double scale = 1 / sqrt(variance / n + eps);
    for (int i = 0; i < n; i++) out[i] = (float)((x[i] - mean) * scale);
}

static void layer_norm(float *out, const float *x, const float *weight, const float *bias, int n) {
    normalize(out, x, n, 1e-5f);
    for (int i = 0; i < n; i++) out[i] = out[i] * weight[i] + bias[i];
}

static void lerp(float *out, const float *x, const float *previous, const float *share, int n) { /* token shift */
    for (int i = 0; i < n; i++) out[i] = x[i] + (previous[i] - x[i]) * share[i];
}

/* S' = S (diag(w) - kk (kk a)^T) + v k^T, rows = value channels; then y = S' r. */
static void recurrence(const Model *m, float *S, int head) {
    const int N = m->N, at = head * N;
    const float *w = m->t[W] + at, *kk = m->t[KK] + at, *a = m->t[A] + at, *k = m->t[K] + at, *r = m->t[R] + at;
    const float *v = m->t[V_] + at;
    float *y = m->t[Y] + at;
    for (int i = 0; i < N; i++) {
        float *row = S + (size_t)i * (size_t)N;
        const float removed = dot(row, kk, N);
        for (int j = 0; j < N; j++) row[j] = row[j] * w[j] - removed * (kk[j] * a[j]) + v[i] * k[j];
        y[i] = dot(row, r, N);
    }
    if (bug != TRANSPOSED_READ_OUT) return;
    for (int i = 0; i < N; i++) {
        y[i] = 0;
        for (int j = 0; j < N; j++) y[i] += S[j * N + i] * r[j];
    }
}

static void inner_values(Model *m, const Block *b, int l) { /* r w k v kk a g from the six mixed inputs */
    const int C = m->C, N = m->N;
    float **t = m->t;
    matvec(t[R], b->receptance, t[XR], C, C);
    vecmat(t[W_LORA], t[XW], b->w1, C, m->rank_w);
    for (int i = 0; i < m->rank_w && bug != NO_TANH; i++) t[W_LORA][i] = tanhf(t[W_LORA][i]);
    vecmat(t[W_RAW], t[W_LORA], b->w2, m->rank_w, C);
    matvec(t[K_RAW], b->key, t[XK], C, C);
    vecmat(t[A_LORA], t[XA], b->a1, C, m->rank_a);
    vecmat(t[A], t[A_LORA], b->a2, m->rank_a, C);
    matvec(t[V_RAW], b->value, t[XV], C, C);
    vecmat(t[G_LORA], t[XG], b->g1, C, m->rank_g);
    for (int i = 0; i < m->rank_g; i++) t[G_LORA][i] = sigmoid(t[G_LORA][i]);
    vecmat(t[G], t[G_LORA], b->g2, m->rank_g, C);
    if (l) {
        vecmat(t[V_LORA], t[XV], b->v1, C, m->rank_v);
        vecmat(t[V_], t[V_LORA], b->v2, m->rank_v, C);
    }
    for (int i = 0; i < C; i++) {
        const float x = b->w0[i] + t[W_RAW][i];
        t[W][i] = bug == V6_DECAY ? expf(-expf(x)) : expf(-0.60653066f * sigmoid(x)); /* exp(-1/2) bounds the exponent */
        t[A][i] = sigmoid(b->a0[i] + t[A][i]);
        t[K][i] = t[K_RAW][i] * (1 + (t[A][i] - 1) * b->k_a[i]);
        t[KK][i] = (bug == K_A_BEFORE_KAPPA ? t[K][i] : t[K_RAW][i]) * b->k_k[i];
        t[V_][i] = l ? t[V_RAW][i] + (m->v_first[i] - t[V_RAW][i]) * sigmoid(b->v0[i] + t[V_][i]) : t[V_RAW][i];
    }
    for (int head = 0; head < m->H; head++) { /* unit norm; the floor is no term under the root */
        float *kk = t[KK] + head * N;
        const float norm = fmaxf(sqrtf(dot(kk, kk, N)), 1e-12f);
        for (int i = 0; i < N; i++) kk[i] /= norm;
    }
    if (!l) memcpy(m->v_first, t[V_], (size_t)C * sizeof(float));
}

static void time_mix(Model *m, int l, State *s, float *x) {
    const int C = m->C, N = m->N;
    const Block *b = &m->block[l];
    float **t = m->t, *last = s->att_shift + (size_t)l * (size_t)C;
    t[STATE] = s->wkv + (size_t)l * (size_t)C * (size_t)N;
    layer_norm(t[LN1], x, b->ln1_w, b->ln1_b, C);
    memcpy(t[SHIFT], last, (size_t)C * sizeof(float));
    memcpy(last, t[LN1], (size_t)C * sizeof(float)); /* what is remembered is the normed input */
    for (int i = 0; i < 6; i++) lerp(t[XR + i], t[LN1], t[SHIFT], b->mix[i], C);
    inner_values(m, b, l);
    float *gated = m->t[RES]; /* holds (ln_x + bonus) g for a moment */
    for (int head = 0; head < m->H; head++) {
        const int at = head * N;
        recurrence(m, t[STATE] + (size_t)at * (size_t)N, head);
        /* group norm, one group a head; 1e-5 * 8^2, since training divides its input by 8 */
        normalize(t[LN_X] + at, t[Y] + at, N, bug == GROUP_NORM_EPS ? 1e-5f : 64e-5f);
        float weight = 0;
        for (int i = at; i < at + N; i++) weight += t[R][i] * t[K][i] * b->r_k[i];
        for (int i = at; i < at + N; i++) {
            t[LN_X][i] = t[LN_X][i] * b->ln_x_w[i] + b->ln_x_b[i];
            t[BONUS][i] = bug == NO_BONUS ? 0 : weight * t[V_][i];
            gated[i] = (t[LN_X][i] + t[BONUS][i]) * t[G][i];
        }
    }
    matvec(t[OUT], b->output, gated, C, C);
    for (int i = 0; i < C; i++) t[RES][i] = x[i] + t[OUT][i];
    memcpy(x, t[RES], (size_t)C * sizeof(float));
    keep(m, l, LN1, RES);
}

static void channel_mix(Model *m, int l, State *s, float *x) {
    const int C = m->C;
    const Block *b = &m->block[l];
    float **t = m->t, *last = s->ffn_shift + (size_t)l * (size_t)C;
    layer_norm(t[LN2], x, b->ln2_w, b->ln2_b, C);
    memcpy(t[FFN_SHIFT], last, (size_t)C * sizeof(float));
    memcpy(last, t[LN2], (size_t)C * sizeof(float));
    lerp(t[FFN_XK], t[LN2], t[FFN_SHIFT], b->ffn_mix, C);
    matvec(t[FFN_K], b->ffn_key, t[FFN_XK], m->F, C);
    for (int i = 0; i < m->F; i++) t[ACT][i] = t[FFN_K][i] > 0 ? t[FFN_K][i] * t[FFN_K][i] : t[FFN_K][i] * 0; /* NaN stays */
    matvec(t[FFN_OUT], b->ffn_value, t[ACT], C, m->F);
    for (int i = 0; i < C; i++) t[FFN_RES][i] = x[i] + t[FFN_OUT][i];
    memcpy(x, t[FFN_RES], (size_t)C * sizeof(float));
    keep(m, l, LN2, FFN_RES);
}

static void feed(Model *m, State *s, int token, int with_logits) { /* one token; its logits stand in t[HEAD] */
    float **t = m->t, *x = t[LN_OUT]; /* the stream; becomes its own norm at the end */
    memcpy(t[EMB], m->emb + (size_t)token * (size_t)m->C, (size_t)m->C * sizeof(float));
    layer_norm(t[LN0], t[EMB], m->ln0_w, m->ln0_b, m->C);
    memcpy(x, t[LN0], (size_t)m->C * sizeof(float));
    keep(m, 0, EMB, LN0);
    for (int l = 0; l < m->L; l++) {
        time_mix(m, l, s, x);
        channel_mix(m, l, s, x);
    }
    layer_norm(x, x, m->ln_out_w, m->ln_out_b, m->C);
    if (with_logits) matvec(t[HEAD], m->head, x, m->V, m->C);
    keep(m, 0, LN_OUT, HEAD);
}

static int largest(const float *x, int n) { /* the lowest index among equals */
    int best = 0;
    for (int i = 1; i < n; i++)
        if (x[i] > x[best]) best = i;
    return best;
}

static void begin_call(const Model *m, State *s) { /* a bug lives here: token shift starts anew in every call */
    if (bug == LOST_SHIFT) memset(s->att_shift, 0, shift_length(m) * sizeof(float));
}

/* ---- the protocol: docs/protocol.md --------------------------------------------------------------------------------- */

typedef struct {
    Model *model;
    State **state; /* handle - 1 -> state, NULL where released */
    size_t states;
    size_t id;
} Server;

static void open_answer(const Server *server) { printf("{\"jsonrpc\":\"2.0\",\"id\":%zu,\"result\":{", server->id); }

static void close_answer(void) {
    puts("}}");
    fflush(stdout);
}

static void refuse(const Server *server, int code, const char *reason) {
    printf("{\"jsonrpc\":\"2.0\",\"id\":%zu,\"error\":{\"code\":%d,\"message\":\"", server->id, code);
    for (; *reason; reason++) putchar(*reason == '"' || *reason == '\\' || *reason < ' ' ? '?' : *reason);
    puts("\"}}");
    fflush(stdout);
}

static void print_array(const char *name, const float *data, const size_t *shape, int axes) { /* this machine is little-endian */
    size_t n = 1;
    printf("\"%s\":{\"dtype\":\"f32\",\"shape\":[", name);
    for (int i = 0; i < axes; i++) n *= shape[i], printf("%s%zu", i ? "," : "", shape[i]);
    fputs("],\"base64\":\"", stdout);
    print_base64(data, n * sizeof(float));
    fputs("\"}", stdout);
}

static void print_name(char *name, size_t room, int l, int id) {
    if (is_alone(id)) snprintf(name, room, "%s", NAMES[id]);
    else snprintf(name, room, "blocks.%d.%s", l, NAMES[id]);
}

static void start_record(Model *m, int l, int id, size_t tokens) { m->record[l * TENSORS + id].rows = floats(tokens * length(m, id)); }

static void stop_records(Model *m) {
    for (int i = 0; i < m->L * TENSORS; i++) {
        free(m->record[i].rows);
        m->record[i] = (Record){0};
    }
}

static int shape_of(const Model *m, int id, size_t tokens, size_t *shape) { /* axes of a recorded tensor */
    const size_t state[4] = {tokens, (size_t)m->H, (size_t)m->N, (size_t)m->N}, plain[2] = {tokens, length(m, id)};
    memcpy(shape, id == STATE ? state : plain, sizeof(size_t) * (id == STATE ? 4 : 2));
    return id == STATE ? 4 : 2;
}

static int record_named(Model *m, const Json *names, size_t tokens) { /* whether `head` is among them */
    char name[64];
    for (const Json *asked = names ? names->first : NULL; asked; asked = asked->next)
        for (int i = 0; i < m->L * TENSORS; i++) {
            const int l = i / TENSORS, id = i % TENSORS;
            if ((is_alone(id) && l) || (id == V_LORA && !l)) continue;
            print_name(name, sizeof name, l, id);
            if (!strcmp(name, asked->text) && !m->record[i].rows) start_record(m, l, id, tokens);
        }
    return m->record[HEAD].rows != NULL;
}

static void print_records(const Model *m, size_t tokens) {
    const char *comma = "";
    char name[64];
    size_t shape[4];
    for (int i = 0; i < m->L * TENSORS; i++) {
        if (!m->record[i].rows) continue;
        print_name(name, sizeof name, i / TENSORS, i % TENSORS);
        fputs(comma, stdout);
        print_array(name, m->record[i].rows, shape, shape_of(m, i % TENSORS, tokens, shape));
        comma = ",";
    }
}

static State *state_of(const Server *server, const Json *handle) { /* NULL if there is none of that number */
    const size_t n = number(handle);
    return n && n <= server->states ? server->state[n - 1] : NULL;
}

static size_t new_handle(Server *server, State *state) { /* numbers are never used twice */
    server->state = realloc(server->state, (server->states + 1) * sizeof(State *));
    if (!server->state) die("out of memory for handles");
    server->state[server->states++] = state;
    return server->states;
}

static void answer_hello(Server *server, const Json *params) {
    (void)params;
    open_answer(server);
    fputs("\"protocol\":1,\"name\":\"rwkv7.c\",\"version\":\"" VERSION "\",", stdout);
    fputs("\"abilities\":[\"logits-all\",\"state\",\"trace\",\"generate\",\"tokenizer\"],", stdout);
    fputs("\"dtypes\":[\"f32\"],\"attention\":\"sequential\",\"trace\":[", stdout);
    for (int id = 0; id < TENSORS; id++) printf("%s\"%s%s\"", id ? "," : "", is_alone(id) ? "" : "blocks.*.", NAMES[id]);
    fputs("]", stdout);
    if (bug) printf(",\"notes\":[\"started with --bug %s\"]", BUG_NAMES[bug]);
    close_answer();
}

static void answer_load(Server *server, const Json *params) {
    if (server->model) {
        refuse(server, -32000, "a model is loaded already");
        return;
    }
    if (!get(params, "path") || !is(get(params, "dtype"), "f32")) {
        refuse(server, -32602, "a path and dtype f32 are due");
        return;
    }
    Model *m = server->model = load_model(get(params, "path")->text);
    open_answer(server);
    printf("\"vocab_size\":%d,\"n_embd\":%d,\"n_layer\":%d,\"n_head\":%d,\"head_size\":%d,\"n_ffn\":%d", m->V, m->C, m->L, m->H,
           m->N, m->F);
    close_answer();
}

static void answer_forward(Server *server, const Json *params) {
    Model *m = server->model;
    const Json *handle = get(params, "state"), *logits = get(params, "logits");
    const size_t T = (size_t)count(get(params, "tokens")), V = (size_t)m->V;
    const State *from = state_of(server, handle);
    if (!from && !is(handle, "null")) {
        refuse(server, -32602, "there is no such state");
        return;
    }
    int *tokens = integers(get(params, "tokens"));
    State *s = new_state(m, from);
    const int every = is(logits, "all"), some = every || is(logits, "last"), headed = record_named(m, get(params, "trace"), T);
    float *rows = some ? floats((every ? T : 1) * V) : NULL;
    begin_call(m, s);
    for (size_t i = 0; i < T; i++) {
        const int wanted = every || (some && i + 1 == T);
        feed(m, s, tokens[i], wanted || headed);
        if (wanted) memcpy(rows + (every ? i * V : 0), m->t[HEAD], V * sizeof(float));
    }
    open_answer(server);
    fputs("\"trace\":{", stdout);
    print_records(m, T);
    putchar('}');
    if (some && is(get(params, "fetch"), "true")) {
        putchar(',');
        print_array("logits", rows, (size_t[]){every ? T : 1, V}, 2);
    }
    if (is(get(params, "keep"), "true")) printf(",\"state\":%zu", new_handle(server, s));
    else free_state(s);
    close_answer();
    stop_records(m);
    free(rows);
    free(tokens);
}

static void answer_generate(Server *server, const Json *params) {
    Model *m = server->model;
    const int prompt = count(get(params, "tokens")), stops = count(get(params, "stop"));
    const size_t most = number(get(params, "max_new_tokens"));
    int *tokens = integers(get(params, "tokens")), *stop = integers(get(params, "stop")), ended = 0;
    State *s = new_state(m, NULL);
    begin_call(m, s);
    for (int i = 0; i < prompt; i++) feed(m, s, tokens[i], i + 1 == prompt);
    open_answer(server);
    fputs("\"tokens\":[", stdout);
    for (size_t i = 0; i < most; i++) {
        const int token = largest(m->t[HEAD], m->V);
        for (int j = 0; j < stops; j++) ended |= stop[j] == token;
        if (ended) break;
        printf("%s%d", i ? "," : "", token);
        if (i + 1 == most) break;
        begin_call(m, s);
        feed(m, s, token, 1);
    }
    putchar(']');
    close_answer();
    free_state(s);
    free(tokens);
    free(stop);
}

static void answer_export(Server *server, const Json *params) {
    const Model *m = server->model;
    const State *s = state_of(server, get(params, "state"));
    const size_t L = (size_t)m->L, C = (size_t)m->C, N = (size_t)m->N;
    if (!s) {
        refuse(server, -32602, "there is no such state");
        return;
    }
    open_answer(server);
    print_array("att_shift", s->att_shift, (size_t[]){L, C}, 2);
    putchar(',');
    print_array("wkv", s->wkv, (size_t[]){L, (size_t)m->H, N, N}, 4);
    putchar(',');
    print_array("ffn_shift", s->ffn_shift, (size_t[]){L, C}, 2);
    close_answer();
}

static void answer_import(Server *server, const Json *params) {
    static const char *const PARTS[] = {"att_shift", "wkv", "ffn_shift"};
    const Model *m = server->model;
    State *s = new_state(m, NULL);
    float *into[] = {s->att_shift, s->wkv, s->ffn_shift};
    int whole = 1;
    for (int i = 0; i < 3; i++) {
        const size_t bytes = shift_length(m) * (i == 1 ? (size_t)m->N : 1) * sizeof(float);
        const Json *part = get(get(params, PARTS[i]), "base64");
        whole &= part && read_base64((unsigned char *)into[i], bytes, part->text) == bytes;
    }
    if (!whole) {
        free_state(s);
        refuse(server, -32602, "a part of the state is missing or has another length");
        return;
    }
    open_answer(server);
    printf("\"state\":%zu", new_handle(server, s));
    close_answer();
}

static void answer_shutdown(Server *server, const Json *params) {
    (void)params;
    open_answer(server);
    close_answer();
}

static void answer_encode(Server *server, const Json *params) { /* small models have bytes for tokens */
    if (server->model->V != 256) die("only a vocabulary of bytes is known here");
    const char *text = get(params, "bytes") ? get(params, "bytes")->text : "";
    const size_t room = strlen(text);
    unsigned char *bytes = allocate(room, 1);
    const size_t n = read_base64(bytes, room, text);
    open_answer(server);
    fputs("\"tokens\":[", stdout);
    for (size_t i = 0; i < n; i++) printf("%s%d", i ? "," : "", bytes[i]);
    putchar(']');
    close_answer();
    free(bytes);
}

static void answer_decode(Server *server, const Json *params) {
    if (server->model->V != 256) die("only a vocabulary of bytes is known here");
    const int n = count(get(params, "tokens"));
    int *tokens = integers(get(params, "tokens"));
    unsigned char *bytes = allocate((size_t)n, 1);
    for (int i = 0; i < n; i++) bytes[i] = (unsigned char)tokens[i];
    open_answer(server);
    fputs("\"bytes\":\"", stdout);
    print_base64(bytes, (size_t)n);
    putchar('"');
    close_answer();
    free(bytes);
    free(tokens);
}

static void answer_release(Server *server, const Json *params) {
    State *s = state_of(server, get(params, "state"));
    if (s) server->state[number(get(params, "state")) - 1] = NULL;
    free_state(s);
    open_answer(server);
    close_answer();
}

static const struct {
    const char *name;
    void (*answer)(Server *, const Json *);
} METHODS[] = {{"hello", answer_hello},         {"load", answer_load},       {"forward", answer_forward},
               {"generate", answer_generate},   {"release", answer_release}, {"export_state", answer_export},
               {"import_state", answer_import}, {"encode", answer_encode},   {"decode", answer_decode},
               {"shutdown", answer_shutdown}};

static int answer(Server *server, const Json *request) { /* 0 after shutdown */
    const Json *method = get(request, "method"), *params = get(request, "params");
    server->id = number(get(request, "id"));
    if (!method || method->kind != '"' || !params) die("that is no request");
    for (size_t i = 0; i < sizeof METHODS / sizeof *METHODS; i++) {
        if (strcmp(method->text, METHODS[i].name)) continue;
        const int with_model = i >= 2 && METHODS[i].answer != answer_shutdown;
        if (with_model && !server->model) die("no model is loaded");
        METHODS[i].answer(server, params);
        return METHODS[i].answer != answer_shutdown;
    }
    refuse(server, -32601, "there is no such method");
    return 1;
}

static char *read_line(void) { /* NULL at the end of stdin, which means: exit */
    size_t room = 1 << 12, n = 0;
    char *line = allocate(room, 1);
    int c;
    while ((c = getchar()) != EOF && c != '\n') {
        if (n + 1 == room && !(line = realloc(line, room *= 2))) die("out of memory for a request");
        line[n++] = (char)c;
    }
    line[n] = 0;
    if (c == '\n') return line;
    free(line);
    return NULL;
}

static int served(Server *server, char *line) { /* 0 after shutdown */
    may_refuse = 0; /* a line that is no JSON ends the program: nobody knows which request it was */
    Json *request = parse_json(line);
    may_refuse = 1;
    if (setjmp(refused)) {
        refuse(server, -32000, words);
        if (server->model) stop_records(server->model);
        return 1;
    }
    const int more = answer(server, request);
    free(request);
    return more;
}

static void serve(void) {
    Server server = {0};
    char *line;
    for (int more = 1; more && (line = read_line()); free(line)) more = served(&server, line);
}

/* ---- the kit: docs/kit.md ------------------------------------------------------------------------------------------- */

static FILE *create(const char *folder, const char *name) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "wb");
    if (!file) die("%s cannot be written", path);
    return file;
}

typedef struct {
    FILE *manifest, *raw;
    size_t end;
} Dump;

static void dump_array(Dump *dump, const char *name, const float *data, const size_t *shape, int axes) {
    size_t n = 1;
    fprintf(dump->manifest, "%s\n {\"name\":\"%s\",\"dtype\":\"f32\",\"shape\":[", dump->end ? "," : "", name);
    for (int i = 0; i < axes; i++) n *= shape[i], fprintf(dump->manifest, "%s%zu", i ? "," : "", shape[i]);
    fprintf(dump->manifest, "],\"file\":\"dump.bin\",\"offset\":%zu}", dump->end);
    fwrite(data, sizeof(float), n, dump->raw);
    dump->end += n * sizeof(float);
}

static void write_dump(const Model *m, const State *s, size_t T, const char *folder) { /* a manifest and raw numbers */
    const size_t L = (size_t)m->L, C = (size_t)m->C, H = (size_t)m->H, N = (size_t)m->N;
    size_t shape[4];
    char name[64];
    if (mkdir(folder, 0777) && errno != EEXIST) die("%s cannot be made", folder);
    Dump dump = {create(folder, "manifest.json"), create(folder, "dump.bin"), 0};
    fputs("{\"dump\":1,\"program\":\"rwkv7.c " VERSION "\",\"dtype\":\"f32\",\"tensors\":[", dump.manifest);
    for (int i = 0; i < m->L * TENSORS; i++) {
        if (!m->record[i].rows) continue;
        print_name(name, sizeof name, i / TENSORS, i % TENSORS);
        dump_array(&dump, i == HEAD ? "logits" : name, m->record[i].rows, shape, shape_of(m, i % TENSORS, T, shape));
    }
    dump_array(&dump, "state.att_shift", s->att_shift, (size_t[]){L, C}, 2);
    dump_array(&dump, "state.wkv", s->wkv, (size_t[]){L, H, N, N}, 4);
    dump_array(&dump, "state.ffn_shift", s->ffn_shift, (size_t[]){L, C}, 2);
    fputs("]}\n", dump.manifest);
    if (fclose(dump.manifest) | fclose(dump.raw)) die("%s cannot be written", folder);
}

static void run_kit(const char *kit, const char *dump) {
    char path[4096];
    size_t length;
    snprintf(path, sizeof path, "%s/manifest.json", kit);
    Json *manifest = parse_json(read_file(path, &length));
    const Json *file = get(manifest, "checkpoint"), *calls = get(manifest, "calls");
    const int T = count(get(manifest, "tokens"));
    if (!file || !T || !count(calls)) die("%s is no kit", kit);
    int *tokens = integers(get(manifest, "tokens"));
    snprintf(path, sizeof path, "%s/%s", kit, file->text);
    Model *m = load_model(path);
    State *s = new_state(m, NULL);
    for (int i = 0; i < m->L * TENSORS; i++) {
        const int l = i / TENSORS, id = i % TENSORS;
        if (!(is_alone(id) && l) && !(id == V_LORA && !l)) start_record(m, l, id, (size_t)T);
    }
    int fed = 0;
    for (const Json *call = calls->first; call; call = call->next) {
        begin_call(m, s);
        for (const int end = fed + (int)number(call); fed < end && fed < T; fed++) feed(m, s, tokens[fed], 1);
    }
    write_dump(m, s, (size_t)T, dump);
    fprintf(stderr, "rwkv7: wrote %s; python -m harness compare %s %s\n", dump, kit, dump);
}

static void usage(int code) { /* one line */
    FILE *out = code ? stderr : stdout;
    fputs("usage: rwkv7 [--bug NAME] [--kit DIR --dump OUT], without a kit the protocol on stdin and stdout; bugs:", out);
    for (int i = 1; i < BUGS; i++) fprintf(out, " %s", BUG_NAMES[i]);
    fputc('\n', out);
    exit(code);
}

int main(int argc, char **argv) {
    const char *kit = NULL, *dump = NULL;
    const uint16_t one = 1;
    if (!*(const unsigned char *)&one) die("this program is written for little-endian machines");
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--help")) usage(0);
        if (i + 1 == argc) usage(2);
        const char *value = argv[++i];
        if (!strcmp(argv[i - 1], "--kit")) kit = value;
        else if (!strcmp(argv[i - 1], "--dump")) dump = value;
        else if (!strcmp(argv[i - 1], "--bug")) {
            for (bug = BUGS - 1; bug && strcmp(BUG_NAMES[bug], value);) bug--;
            if (!bug) usage(2);
        } else usage(2);
    }
    if (!kit != !dump) usage(2);
    if (kit) run_kit(kit, dump);
    else serve();
    return 0;
}
