/* The runtime: matrices as they are stored, their products, and a decoder made of them.
 *
 * Laws: activations that meet integer codes are rounded to 16 bits with one step per row, or to 8 bits with a step per
 * segment, as the matrix says; integer sums are exact, sums in fp32 have a fixed order. So a row of a result is bitwise its own: whatever else is computed with it, with any number
 * of threads, in any tiles and with any set of instructions.
 */
#ifndef TTGPT_RUNTIME_H
#define TTGPT_RUNTIME_H

#include <stddef.h>
#include <stdint.h>

enum { LANES = 16 };         /* rows of a panel, which are multiplied side by side */
enum { VECTOR = 4 };         /* columns of integer codes that are multiplied at a time */
enum { UNIT = 8 };           /* vectors whose codes are packed together */
enum { LARGEST = 32639 };    /* of a rounded activation: 127 * 256 + 127, so that both its bytes are signed */
enum { MOST_DIMENSIONS = 64 };
enum { COLUMNS = 1024 };     /* of integer codes that make a segment at most */
enum { STEP_COLUMNS = 128 }; /* that do where each has its own step */
enum { LARGEST_BYTE = 127 }; /* of an activation rounded to 8 bits */
enum { CHUNK = 256 };        /* of them that are unpacked at a time, unless a segment has more */
enum { FLOAT_COLUMNS = 256 }; /* of floats */
enum { ROWS = 64 };          /* of x, for which a panel is unpacked once */
enum { BATCH_BYTES = 2 * (128 + 8 * 16 * 64) }; /* of sums in tiles */
enum { CHUNK_BYTES = (COLUMNS / VECTOR + 2 * UNIT) * 64 }; /* of unpacked codes */
enum { SPARE_ROWS = 8 };     /* of rounded x, that are read behind the last one */
enum { COMBINED = 4 };       /* rows that are looked up together */
enum { QUERIES = 8 };        /* rows that meet keys and values together */
enum { STEP_ROWS = 128 };    /* that go through all blocks together: what lies between two products stays near the core */

typedef enum {
    FP32, BF16, FP16,
    CODES8, CODES4, CODES3, CODES2,   /* integers, from here on */
    PATHS4, PATHS3, PATHS2, PATHS1,   /* and of a trellis */
    ELEMENT_COUNT
} Element;
typedef enum { CODED, LOW_RANK, STACKED, RESIDUAL, SPARSE, TT_MATRIX, TOKEN_MPS } Kind;
typedef enum { NO_ACTIVATION, GELU_NEW, GELU, RELU, SILU, TANH, QUICK_GELU, ACTIVATION_COUNT } Activation;

/* Columns whose products with one row of x are added up as integers, exactly, before they are scaled. */
typedef struct {
    int64_t column, columns, vector, vectors, group;
} Segment;

/* Blocks of columns that are rotated, each by a Hadamard matrix of order base * 2^j, after signs were turned. */
typedef struct {
    int64_t block;             /* columns; 0 for no rotation */
    int64_t base;              /* 1, 12 or 20 */
} Rotation;

/* Coded values [n, k] in panels of 16 rows.
 *
 * Floats: [panels][k][16]. Integers: unsigned codes of [16 rows][4 columns] are a vector, and every group begins with a
 * new one. 8 bits: [panels][vectors][64]. Fewer: per 8 vectors, bit fields of 64 bytes, see `unpack_unit`. Of a trellis:
 * [panels][vectors][4 columns][16 codes], see `unpack_path`; rows of these have one scale.
 *
 * Values may be rotated: W is these values times a rotation, by which x is multiplied first, see `rotate`.
 */
typedef struct {
    int64_t n, k, panels, panel_bytes, vectors, segment_count, groups;
    Element element;
    int centre;                /* twice the code that is 0; 0 where there are zero points */
    int planes;                /* bytes of a rounded activation, 2 or 1 */
    Rotation rotation;
    uint16_t *signs;           /* that a rotation turns, a bit for a column; or NULL */
    uint8_t *codes;
    Segment *segments;
    uint16_t *scale, *zero;    /* bf16 [panels][groups][16]; zero is NULL without zero points */
    int64_t bytes;
} Leaf;

/* One contraction of a tensor train with the state [M, in, tail] that x has become: W [out, in] makes it [M, out, tail]. */
typedef struct {
    const struct Matrix *weight;
    int64_t in, out, tail, core;
    int from_left;             /* whether W is [(o s), (r i)] of its core, or else [(r o), (i s)] */
} TrainStep;

typedef struct Matrix {
    Kind kind;
    int64_t n, k;
    Leaf leaf;                        /* CODED; the values of SPARSE [n, kept]; the cores of TOKEN_MPS [n, values] */
    int64_t count;                    /* of parts, or of cores */
    int64_t part_count;
    const struct Matrix **parts;      /* LOW_RANK: left, right; STACKED; RESIDUAL: base, correction; what `leaf` is of */
    float *row_scale, *column_offset; /* LOW_RANK: [n] and [k], or NULL */
    int32_t *columns;                 /* SPARSE [panels][kept][16] */
    int64_t modes[MOST_DIMENSIONS], out_modes[MOST_DIMENSIONS], ranks[MOST_DIMENSIONS + 1];
    TrainStep *steps;                 /* TT_MATRIX, in the cheapest order */
    int64_t most_state;               /* values of the largest state of one row of x */
    int32_t *places;                  /* TT_MATRIX: the train's row of every row, or NULL */
    int64_t split;                    /* TOKEN_MPS: cores that make the left half of a row */
    int64_t bytes;                    /* that it occupies, without its leaf and its parts */
} Matrix;

typedef struct {
    const float *weight, *bias;       /* [k] */
    float epsilon;
} Norm;

/* out [rows, n] = activation(norm(x) W^T + bias) + residual. */
typedef struct {
    const float *x;                   /* [rows, k], one behind another */
    int64_t rows;
    const Norm *norm;                 /* or NULL */
    float *out;                       /* apart from x */
    int64_t out_stride;               /* between rows of out and of residual */
    const float *bias;                /* [n] or NULL */
    Activation activation;
    const float *residual;            /* or NULL; apart from out */
    int add;                          /* to what out holds, before bias and activation */
} Product;

/* x rounded for a leaf: codes in the order of its vectors, and per segment their sum, or without zero points what
 * the codes' origin makes of it. Of 16 bits sums are in steps; of 8 bits they are values, of the other sign for origins. */
typedef struct {
    int64_t rows;
    int16_t *codes;                   /* [rows + SPARE_ROWS, 4 vectors] */
    int32_t *sums;                    /* [segments, rows] */
    float *values;                    /* these of 8 bits */
    float *steps;                     /* [rows], of 8 bits [segments, rows] */
} Rounded;

typedef struct {
    float *qkv;                       /* [rows, 3, heads, size] */
    void *keys, *values;              /* [pages, layers, heads]: [size, 16] and [16, padded size] */
    const int64_t *table;             /* the pages of each slot [slots, blocks] */
    const int64_t *slots, *positions; /* [rows]; those of one slot are consecutive */
    float *out;                       /* [rows, heads, size] */
    int64_t rows, layer, layers, heads, size, blocks;
    Element element;
    float scale;
} Attention;

/* One set of instructions: the same results, bit for bit, at different speeds. */
typedef struct {
    const char *name;
    int (*supported)(void);
    void (*normalise)(const Norm *norm, const float *x, float *out, int64_t k);
    void (*rotate)(const Leaf *leaf, float *x);
    void (*round_row)(const Leaf *leaf, const Norm *norm, const float *from, int64_t row, const Rounded *to);
    /* Panels from .. to - 1; memory of `product_bytes` is the caller's own. */
    void (*product)(const Leaf *leaf, const Product *p, const Rounded *x, int64_t from, int64_t to, char *memory);
    void (*sparse)(const Matrix *m, const Product *p, int64_t from, int64_t to, char *memory);
    void (*trains)(const Matrix *m, const Product *p, int64_t from, int64_t to, char *memory);
    void (*combine)(const Leaf *leaf, const float *left, int64_t count, float *const *out, char *memory);
    void (*append)(const Attention *a, int64_t row, int64_t head);
    /* At most QUERIES rows: of slots whose first blocks are the same, none of them a row's own; or, if none is said to be, one
     * behind another in one slot. memory: scores [QUERIES][16 blocks] and sums [QUERIES][2][padded size]. */
    void (*attend)(const Attention *a, const int64_t *rows, int64_t count, int64_t blocks, int64_t head, float *memory);
    void (*finish)(const Product *p, int64_t row, int64_t n);
    void (*judge)(const float *logits, const float *reference, int64_t n, int64_t target, double *out);
    int64_t (*best)(const float *values, int64_t n);
    /* weights [n] = e^((logits - the best one) / temperature), and their sums, DRAWN at a time. */
    void (*weigh)(const float *logits, int64_t n, float temperature, float *weights, double *sums);
    int64_t (*above)(const float *values, int64_t n, float bound, int32_t *places); /* places of those >= bound */
} Instructions;

extern const Instructions neon_instructions, amx_instructions, avx512_instructions, avx2_instructions, portable_instructions;

/* Bytes that these need for themselves. */
size_t product_bytes(int64_t rows);
size_t sparse_bytes(const Matrix *m);
size_t trains_bytes(const Matrix *m);
size_t combine_bytes(const Leaf *leaf);

/* Threads of this process that work on what is handed out in tiles. */
typedef void (*Work)(void *task, int64_t tile, int64_t thread);
void each_tile(int64_t threads, int64_t tiles, Work work, void *task);
int64_t prepare_team(int64_t threads); /* returns how many there are, the caller included */
int take_team(void);
void leave_team(void);
void share_tiles(int64_t threads, int64_t tiles, Work work, void *task); /* the same for a caller that has not taken it */

/* Memory of one call, given back as a whole, or what was taken since a mark. */
typedef struct Chunk Chunk;
typedef struct {
    Chunk *chunks, *spare;
    int failed;
} Arena;
typedef struct {
    Chunk *chunk;
    size_t used;
} Mark;
void *allocate(Arena *arena, size_t bytes); /* aligned to 64; NULL and `failed` if there is none */
Mark mark(const Arena *arena);
void rewind_to(Arena *arena, Mark mark);
void release(Arena *arena);

typedef struct {
    const Instructions *instructions;
    int64_t threads;
    Arena arena;
} Engine;

/* Threads that some work is worth: waking one for less takes longer than doing it. */
static inline int64_t threads_for(const Engine *engine, double work) { return work < 32768 ? 1 : engine->threads; }

void multiply(Engine *engine, const Matrix *m, const Product *p);
/* out [count, k] = the rows `ids` of m, in [0, n). */
void look_up(Engine *engine, const Matrix *m, const int64_t *ids, int64_t count, float *out);

typedef struct {
    Norm ln_1, ln_2;
    const Matrix *c_attn, *c_proj, *c_fc, *mlp_c_proj;
    const float *biases[4];           /* of these */
    float scale;                      /* of the scores */
} Block;

typedef struct {
    const Matrix *wte, *wpe, *head;
    Norm ln_f;
    Block *blocks;
    int64_t layers, width, heads, inner, positions;
    Activation activation;
} Decoder;

typedef struct {
    const int64_t *tokens, *slots, *positions; /* [rows] */
    const float *embedded;            /* rows of wte [rows, width], or NULL: look them up */
    int64_t rows;
    void *keys, *values;              /* [pages, layers, heads]: [size, 16] and [16, padded size] */
    const int64_t *table;             /* the pages of each slot, as far as it has tokens [slots, blocks] */
    int64_t page_count, slot_count, blocks;
    Element element;
    float *hidden;                    /* after the last norm [rows, width], or NULL */
    const int64_t *wanted;            /* rows whose logits are wanted [wanted_count] */
    int64_t wanted_count;
    float *logits;                    /* [wanted_count, V] */
} Step;

void decode(Engine *engine, const Decoder *decoder, const Step *step);

enum { VERDICT = 5, DRAWN = 256 };
/* out [rows, VERDICT]: for logits [rows, n] the log-probability of one target, that by the reference (or NULL), the
 * divergence from it, and the best of both. */
void judge_all(Engine *engine, const float *logits, const float *reference, int64_t rows, int64_t n, const int64_t *targets,
               double *out);

/* How a token is drawn. */
typedef struct {
    float temperature;                /* 0 takes the best token */
    int64_t top_k;                    /* 0: all */
    double top_p, typical_p;          /* 1: all */
    double min_p;                     /* 0: all */
    double uniform;                   /* the draw, in [0, 1) */
} Draw;

/* chosen [rows]: a token for each row of logits [rows, n]. */
void draw_all(Engine *engine, const float *logits, int64_t rows, int64_t n, const Draw *how, int64_t *chosen);

/* Leaves. `codes` etc. are as in the artefact; nothing of them is kept. Returns 0 if there is no memory. */
int pack_floats(Leaf *leaf, Element element, int64_t n, int64_t k, const void *values);
int pack_integers(Leaf *leaf, Element element, int64_t n, int64_t k, int64_t group, int planes, int rotated,
                  const uint8_t *codes, const uint16_t *scale, const uint16_t *zero);
void free_leaf(Leaf *leaf);
void leaf_row(const Leaf *leaf, int64_t row, float *out);
int bits_of(Element element);
const uint8_t *trellis_levels(int bits); /* of 256 windows, plus 128; `make_levels` comes first */
void make_levels(void);

/* Fill in `rotation` and `signs`; 0 when there is no memory. */
int rotate_leaf(Leaf *leaf);
static inline float sign_of(const Leaf *leaf, int64_t column)
{
    return leaf->signs[column / LANES] >> column % LANES & 1 ? -1 : 1;
}
const float *hadamard(int64_t base); /* [base, base]; `make_hadamards` comes first */
void make_hadamards(void);
void unrotate(const Leaf *leaf, float *row);
int plan_train(Matrix *m);            /* fill `steps` and `most_state`; weights are made by the caller */
float half_to_float(uint16_t bits);
uint16_t float_to_half(float value); /* to nearest, to even */
float bf16_to_float(uint16_t bits);
static inline int64_t padded(int64_t size, int64_t of) { return (size + of - 1) / of * of; }
static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

#endif
