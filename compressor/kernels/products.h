/* Products of codes and rounded activations; linear.c includes this once per set of instructions.
 *
 * TARGET is the attribute, NAMED(x) the name of a function and DOT(sum, a, b) adds the products of 16 pairs of 16-bit
 * integers to 8 sums of 32 bits. WIDE says whether there are 32 registers: enough for tiles of 2 x 8. All integers
 * add up exactly and all floats in the same order, so that both sets give bitwise the same result.
 */
#define INLINED TARGET static inline __attribute__((always_inline))

/* total[r][c] += 8 parts of row n + r of the codes times row c of x; fetches codes `ahead` bytes further, if not 0. */
INLINED void NAMED(tile8)(const Matrix *m, const int16_t *x, int64_t n, int64_t ahead, const int R, const int C,
                          __m256 total[2][8])
{
    const int8_t *w = (const int8_t *)m->codes + n * m->k;
    for (int64_t start = 0; start < m->k; start += SPAN) {
        const int64_t end = start + SPAN < m->k ? start + SPAN : m->k;
        __m256i part[2][8];
        for (int r = 0; r < R; r++)
            for (int c = 0; c < C; c++)
                part[r][c] = _mm256_setzero_si256();
        for (int64_t i = start; i < end; i += 16) {
            if (ahead && i % 64 == 0)
                for (int r = 0; r < R; r++)
                    _mm_prefetch((const char *)(w + r * m->k + i + ahead), _MM_HINT_T1);
            __m256i codes[2];
            for (int r = 0; r < R; r++)
                codes[r] = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(w + r * m->k + i)));
            for (int c = 0; c < C; c++) {
                const __m256i v = _mm256_loadu_si256((const __m256i *)(x + c * m->k + i));
                for (int r = 0; r < R; r++)
                    part[r][c] = DOT(part[r][c], codes[r], v);
            }
        }
        for (int r = 0; r < R; r++)
            for (int c = 0; c < C; c++)
                total[r][c] = _mm256_add_ps(total[r][c], _mm256_cvtepi32_ps(part[r][c]));
    }
}

/* The same for 4-bit codes and with their scales; `EACH` says that every vector has one. */
INLINED void NAMED(tile4)(const Matrix *m, const Rounded *of, int64_t row, int64_t n, int64_t ahead, const int R,
                          const int C, const int EACH, __m256 total[2][8])
{
    const int64_t vectors = m->k / INT4_COLUMNS;
    const int16_t *x = of->x + row * m->k;
    const int32_t *offset = of->offset + row * vectors * 8;
    const __m256i *w = (const __m256i *)((const uint8_t *)m->codes + n * (m->k / 2));
    const uint16_t *scales = m->scale + n * m->groups;
    const __m256i nibble = _mm256_set1_epi16(15);
    int64_t left = of->span;
    for (int64_t g = 0; g < vectors; g++) {
        __m256i codes[2][4];
        __m256 scale[2];
        for (int r = 0; r < R; r++) {
            if (ahead && g % 2 == 0)
                _mm_prefetch((const char *)(w + r * vectors + g) + ahead, _MM_HINT_T1);
            const __m256i packed = _mm256_loadu_si256(w + r * vectors + g);
            codes[r][0] = _mm256_and_si256(packed, nibble);
            codes[r][1] = _mm256_and_si256(_mm256_srli_epi16(packed, 4), nibble);
            codes[r][2] = _mm256_and_si256(_mm256_srli_epi16(packed, 8), nibble);
            codes[r][3] = _mm256_srli_epi16(packed, 12);
            const int16_t bits = (int16_t)scales[r * m->groups]; /* bf16 */
            scale[r] = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_set1_epi16(bits), 16));
        }
        for (int c = 0; c < C; c++) {
            const __m256i *v = (const __m256i *)(x + c * m->k + g * INT4_COLUMNS);
            const __m256i origin = _mm256_loadu_si256((const __m256i *)(offset + (c * vectors + g) * 8));
            __m256i part[2] = { origin, origin };
            for (int j = 0; j < 4; j++)
                for (int r = 0; r < R; r++)
                    part[r] = DOT(part[r], codes[r][j], _mm256_loadu_si256(v + j));
            for (int r = 0; r < R; r++)
                total[r][c] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(part[r]), scale[r], total[r][c]);
        }
        if (EACH)
            scales++;
        else if (--left == 0) {
            scales++;
            left = of->span;
        }
    }
}

/* C rows of x from `row` on times R rows of W from n on. */
INLINED void NAMED(tile)(const Linear *t, const Rounded *of, int64_t row, int64_t n, int64_t ahead, const int R,
                         const int C)
{
    const Matrix *m = &t->w;
    __m256 total[2][8];
    for (int r = 0; r < R; r++)
        for (int c = 0; c < 8; c++)
            total[r][c] = _mm256_setzero_ps();
    if (m->groups && of->span == 1)
        NAMED(tile4)(m, of, row, n, ahead, R, C, 1, total);
    else if (m->groups)
        NAMED(tile4)(m, of, row, n, ahead, R, C, 0, total);
    else
        NAMED(tile8)(m, of->x + row * m->k, n, ahead, R, C, total);
    for (int r = 0; r < R; r++)
        for (int first = 0; first < C; first += 4) {
            const __m256 *four = total[r] + first;
            __m256 pairs = _mm256_hadd_ps(_mm256_hadd_ps(four[0], four[1]), _mm256_hadd_ps(four[2], four[3]));
            __m128 sum = _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1));
            sum = _mm_mul_ps(sum, _mm_loadu_ps(of->step + row + first));
            if (!m->groups)
                sum = _mm_mul_ps(sum, _mm_set1_ps(bf16(m->scale[n + r])));
            sum = _mm_add_ps(sum, _mm_set1_ps(m->bias ? m->bias[n + r] : 0));
            float lane[4];
            _mm_storeu_ps(lane, sum);
            for (int c = first; c < C && c < first + 4; c++)
                t->out[(row + c) * m->n + n + r] = lane[c - first];
        }
}

/* C rows of x from `row` on times rows from .. to - 1 of W. Of every `strips` tiles, the one whose `turn` it is fetches
 * the codes `ahead`. */
INLINED void NAMED(strip)(const Linear *t, const Rounded *of, int64_t row, Span w, int64_t turn, const int C)
{
    const int R = t->w.groups ? (C == 1 || WIDE ? 2 : 1) : (C == 1 ? 1 : 2); /* one row of 8 bits is one stream */
    int64_t from = w.from;
    for (; from + R <= w.to; from += R, turn = turn + 1 < w.strips ? turn + 1 : 0) {
        const int64_t mine = turn ? 0 : w.ahead;
        if (R == 2)
            NAMED(tile)(t, of, row, from, mine, 2, C);
        else
            NAMED(tile)(t, of, row, from, mine, 1, C);
    }
    if (from < w.to)
        NAMED(tile)(t, of, row, from, 0, 1, C);
}

/* Columns from .. to - 1 of all products. */
TARGET static void NAMED(products)(const Linear *t, const Rounded *of, int64_t from, int64_t to)
{
    const int64_t row_bytes = t->w.groups ? t->w.k / 2 : t->w.k;
    const int64_t block = CACHE_BYTES / row_bytes > 2 ? CACHE_BYTES / row_bytes / 2 * 2 : 2;
    const int64_t eights = WIDE && 8 * 2 * t->w.k <= WIDEST_BYTES ? t->rows / 8 : 0;
    const int64_t strips = eights + (t->rows - 8 * eights + 3) / 4;
    for (int64_t first = from; first < to; first += block) {
        const Span w = { first, first + block < to ? first + block : to, block * row_bytes, strips };
        int64_t row = 0, turn = 0;
        if (WIDE)
            for (; turn < eights; row += 8, turn++)
                NAMED(strip)(t, of, row, w, turn, 8);
        for (; row + 4 <= t->rows; row += 4, turn++)
            NAMED(strip)(t, of, row, w, turn, 4);
        switch (t->rows - row) {
        case 3: NAMED(strip)(t, of, row, w, turn, 3); break;
        case 2: NAMED(strip)(t, of, row, w, turn, 2); break;
        case 1: NAMED(strip)(t, of, row, w, turn, 1); break;
        }
    }
}

#undef INLINED
#undef TARGET
#undef NAMED
#undef DOT
#undef WIDE
