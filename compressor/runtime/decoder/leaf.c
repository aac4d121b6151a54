/* Coded values in panels: how they come there from the artefact's rows, and single rows of them. */
#include "runtime.h"
#include "trellis.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* Of one segment, so that the sum of (code - centre / 2) times x is below 2^31: 127 * 32639 * 512 for 8 bits, and
 * 15 * 32639 * 1024 for 4 bits with zero points. */
enum { INT8_COLUMNS = 512 };
enum { MAPPED_BYTES = 1 << 16 };

float half_to_float(uint16_t bits)
{
    const uint32_t sign = (uint32_t)(bits & 0x8000) << 16, exponent = bits >> 10 & 31, fraction = bits & 1023;
    union { uint32_t bits; float value; } number;
    if (exponent == 0) {
        number.value = (float)fraction * 0x1p-24f;
        number.bits |= sign;
    }
    else
        number.bits = sign | (exponent == 31 ? 255u : exponent + 112) << 23 | fraction << 13;
    return number.value;
}

uint16_t float_to_half(float value)
{
    union { float value; uint32_t bits; } number = { value };
    const uint16_t sign = (uint16_t)(number.bits >> 16 & 0x8000);
    number.bits &= 0x7fffffff;
    if (number.value < 0x1p-14f) { /* the fractions of denormals end where fp32's end next to 1/2 */
        number.value += 0.5f;
        return (uint16_t)(sign | (number.bits - 0x3f000000));
    }
    const uint32_t rounded = number.bits + 0xfff + (number.bits >> 13 & 1);
    return (uint16_t)(sign | (rounded - (112u << 23)) >> 13);
}

float bf16_to_float(uint16_t bits)
{
    union { uint32_t bits; float value; } number = { (uint32_t)bits << 16 };
    return number.value;
}

int bits_of(Element element)
{
    static const int bits[] = { 32, 16, 16, 8, 4, 3, 2, 4, 3, 2, 1 };
    return bits[element];
}

/* Return zeros behind 64 bytes that say how many were mapped. Much is mapped, in huge pages where the system gives them,
 * so that it goes back to the system when it is freed, and what was allocated meanwhile does not hold it. */
static void *zeroed(int64_t bytes, int64_t *sum)
{
    const size_t size = 64 + (size_t)padded(bytes, 64), mapped = size < MAPPED_BYTES ? 0 : size;
    char *memory = mapped ? mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
                          : aligned_alloc(64, size);
    if (!memory || memory == MAP_FAILED)
        return NULL;
    if (mapped)
        madvise(memory, size, MADV_HUGEPAGE);
    else
        memset(memory, 0, size);
    memcpy(memory, &mapped, sizeof mapped);
    *sum += (int64_t)size - 64;
    return memory + 64;
}

static void free_zeroed(void *memory)
{
    char *start = memory ? (char *)memory - 64 : NULL;
    size_t mapped = 0;
    if (start)
        memcpy(&mapped, start, sizeof mapped);
    if (mapped)
        munmap(start, mapped);
    else
        free(start);
}

void free_leaf(Leaf *leaf)
{
    free_zeroed(leaf->codes);
    free(leaf->segments);
    free(leaf->signs);
    free_zeroed(leaf->scale);
    free_zeroed(leaf->zero);
    memset(leaf, 0, sizeof *leaf);
}

int pack_floats(Leaf *leaf, Element element, int64_t n, int64_t k, const void *values)
{
    const int64_t size = element == FP32 ? 4 : 2, panels = padded(n, LANES) / LANES;
    *leaf = (Leaf){ .n = n, .k = k, .panels = panels, .panel_bytes = k * LANES * size, .element = element };
    leaf->codes = zeroed(panels * leaf->panel_bytes, &leaf->bytes);
    if (!leaf->codes)
        return 0;
    for (int64_t row = 0; row < n; row++) {
        uint8_t *to = leaf->codes + row / LANES * leaf->panel_bytes + row % LANES * size;
        const uint8_t *from = (const uint8_t *)values + row * k * size;
        if (size == 4)
            for (int64_t c = 0; c < k; c++)
                memcpy(to + c * LANES * 4, from + c * 4, 4);
        else
            for (int64_t c = 0; c < k; c++)
                memcpy(to + c * LANES * 2, from + c * 2, 2);
    }
    return 1;
}

/* Cut columns into groups and these into segments, each of which begins a vector. */
static int make_segments(Leaf *leaf, int64_t group)
{
    const int64_t most = leaf->planes == 1 ? STEP_COLUMNS
                         : leaf->element == CODES8 || leaf->element >= PATHS4 ? INT8_COLUMNS : COLUMNS;
    int64_t vector = 0;
    for (int pass = 0; pass < 2; pass++) {
        leaf->segment_count = vector = 0;
        for (int64_t g = 0; g < leaf->groups; g++)
            for (int64_t c = g * group, end = least(c + group, leaf->k); c < end; c += most) {
                const int64_t columns = least(most, end - c), vectors = padded(columns, VECTOR) / VECTOR;
                if (pass)
                    leaf->segments[leaf->segment_count] = (Segment){ c, columns, vector, vectors, g };
                leaf->segment_count++;
                vector += vectors;
            }
        if (!pass && !(leaf->segments = malloc((size_t)leaf->segment_count * sizeof *leaf->segments)))
            return 0;
    }
    leaf->bytes += leaf->segment_count * (int64_t)sizeof *leaf->segments;
    leaf->vectors = vector;
    return 1;
}

static uint8_t levels[MOST_TRELLIS_BITS][2 * HALF_WINDOWS];

void make_levels(void)
{
    for (int bits = 1; bits <= MOST_TRELLIS_BITS; bits++)
        for (unsigned window = 0; window < 2 * HALF_WINDOWS; window++)
            levels[bits - 1][window] = trellis_level(bits, window);
}

const uint8_t *trellis_levels(int bits) { return levels[bits - 1]; }

/* The codes of a column of a path lie one behind another, lowest bits first, and the first follows the last. */
static void put_path(int bits, uint8_t *path, int64_t lane, uint32_t code)
{
    const uint32_t moved = code << lane * bits % 8;
    path[lane * bits / 8] |= (uint8_t)moved;
    if (moved >> 8)
        path[lane * bits / 8 + 1] |= (uint8_t)(moved >> 8);
}

static uint8_t level_at(int bits, const uint8_t *path, int64_t lane)
{
    const int64_t at = lane * bits / 8;
    return trellis_levels(bits)[(path[at] | path[(at + 1) % (2 * bits)] << 8) >> lane * bits % 8 & 255];
}

static inline uint32_t *word_at(uint8_t *block, int64_t lane) { return (uint32_t *)(void *)(block + lane * VECTOR); }

/* Put one lane of a vector, 4 codes, into its panel, or take it from there; of a trellis, levels are taken. */
static inline __attribute__((always_inline)) void put_vector(Element element, uint8_t *panel, int64_t vector, int64_t lane, uint32_t codes)
{
    const int bits = bits_of(element);
    const int64_t v = vector % UNIT;
    uint8_t *unit = panel + vector / UNIT * 64 * bits;
    if (element >= PATHS4) {
        for (int c = 0; c < VECTOR; c++)
            put_path(bits, panel + (vector * VECTOR + c) * 2 * bits, lane, codes >> 8 * c & 255);
        return;
    }
    if (element == CODES8)
        *word_at(panel + vector * 64, lane) = codes;
    else if (element == CODES4)
        *word_at(unit + v % 4 * 64, lane) |= codes << (v / 4 * 4);
    else
        *word_at(unit + v / 4 * 64, lane) |= (codes & 0x03030303) << (v % 4 * 2);
    if (element == CODES3)
        *word_at(unit + 128, lane) |= (codes >> 2 & 0x01010101) << v;
}

static inline __attribute__((always_inline)) uint32_t vector_at(Element element, uint8_t *panel, int64_t vector, int64_t lane)
{
    const int bits = bits_of(element);
    const int64_t v = vector % UNIT;
    uint8_t *unit = panel + vector / UNIT * 64 * bits;
    if (element >= PATHS4) {
        uint32_t found = 0;
        for (int c = 0; c < VECTOR; c++)
            found |= (uint32_t)level_at(bits, panel + (vector * VECTOR + c) * 2 * bits, lane) << 8 * c;
        return found;
    }
    if (element == CODES8)
        return *word_at(panel + vector * 64, lane);
    if (element == CODES4)
        return *word_at(unit + v % 4 * 64, lane) >> (v / 4 * 4) & 0x0f0f0f0f;
    const uint32_t low = *word_at(unit + v / 4 * 64, lane) >> (v % 4 * 2) & 0x03030303;
    return element == CODES3 ? low | (*word_at(unit + 128, lane) >> v & 0x01010101) << 2 : low;
}

/* 4 codes from column c of a row on, as the artefact stores them: int8, or one behind another, lowest bits first. */
static inline __attribute__((always_inline)) uint32_t stored_codes(Element element, const uint8_t *row, int64_t row_bytes, int64_t c)
{
    const int bits = bits_of(element);
    const int64_t at = c * bits / 8;
    const uint32_t mask = (1u << bits) - 1;
    uint32_t word = 0;
    if (at + 4 <= row_bytes)
        memcpy(&word, row + at, 4);
    else
        memcpy(&word, row + at, (size_t)(row_bytes - at));
    if (element == CODES8)
        return word ^ 0x80808080; /* from signed to unsigned, 128 being 0 */
    word >>= c * bits % 8;
    return (word & mask) | (word >> bits & mask) << 8 | (word >> (2 * bits) & mask) << 16 | (word >> (3 * bits) & mask) << 24;
}

/* Put the codes of a row into its panel; compiled for each element. */
static inline __attribute__((always_inline)) void pack_row(const Leaf *leaf, Element element, uint8_t *panel, int64_t lane,
                                                           const uint8_t *codes, int64_t row_bytes)
{
    for (int64_t s = 0; s < leaf->segment_count; s++) {
        const Segment *segment = &leaf->segments[s];
        int64_t c = 0;
        for (; c + VECTOR <= segment->columns; c += VECTOR)
            put_vector(element, panel, segment->vector + c / VECTOR, lane,
                       stored_codes(element, codes, row_bytes, segment->column + c));
        if (c < segment->columns) {
            const uint32_t own = (1u << 8 * (segment->columns - c)) - 1;
            put_vector(element, panel, segment->vector + c / VECTOR, lane,
                       stored_codes(element, codes, row_bytes, segment->column + c) & own);
        }
    }
}

int pack_integers(Leaf *leaf, Element element, int64_t n, int64_t k, int64_t group, int planes, int rotated,
                  const uint8_t *codes, const uint16_t *scale, const uint16_t *zero)
{
    const int bits = bits_of(element);
    const int64_t panels = padded(n, LANES) / LANES, row_bytes = bits == 8 ? k : padded(k, 8) / 8 * bits;
    *leaf = (Leaf){ .n = n, .k = k, .panels = panels, .groups = padded(k, group) / group, .element = element,
                    .planes = planes, .centre = zero ? 0 : bits == 8 || element >= PATHS4 ? 256 : (1 << bits) - 1 };
    if (rotated && !rotate_leaf(leaf))
        return 0;
    if (!make_segments(leaf, group)) {
        free_leaf(leaf);
        return 0;
    }
    leaf->panel_bytes = bits == 8 ? leaf->vectors * 64 : padded(leaf->vectors, UNIT) / UNIT * 64 * bits;
    leaf->codes = zeroed(panels * leaf->panel_bytes + (element == PATHS3 ? 8 : 0), &leaf->bytes); /* see `path_bytes` */
    leaf->scale = zeroed(panels * leaf->groups * LANES * 2, &leaf->bytes);
    leaf->zero = zero ? zeroed(panels * leaf->groups * LANES * 2, &leaf->bytes) : NULL;
    if (!leaf->codes || !leaf->scale || (zero && !leaf->zero)) {
        free_leaf(leaf);
        return 0;
    }
    for (int64_t row = 0; row < n; row++) {
        uint8_t *panel = leaf->codes + row / LANES * leaf->panel_bytes;
        const uint8_t *own = codes + row * row_bytes;
        switch (element) {
        case CODES8: pack_row(leaf, CODES8, panel, row % LANES, own, row_bytes); break;
        case CODES4: pack_row(leaf, CODES4, panel, row % LANES, own, row_bytes); break;
        case CODES3: pack_row(leaf, CODES3, panel, row % LANES, own, row_bytes); break;
        case CODES2: pack_row(leaf, CODES2, panel, row % LANES, own, row_bytes); break;
        default: pack_row(leaf, element, panel, row % LANES, own, row_bytes);
        }
        for (int64_t g = 0; g < leaf->groups; g++) {
            const int64_t at = (row / LANES * leaf->groups + g) * LANES + row % LANES;
            leaf->scale[at] = scale[row * leaf->groups + g];
            if (zero)
                leaf->zero[at] = zero[row * leaf->groups + g];
        }
    }
    return 1;
}

static inline __attribute__((always_inline)) void unpack_row(const Leaf *leaf, Element element, uint8_t *panel, int64_t row, float *out)
{
    const int64_t lane = row % LANES;
    for (int64_t s = 0; s < leaf->segment_count; s++) {
        const Segment *segment = &leaf->segments[s];
        const int64_t at = (row / LANES * leaf->groups + segment->group) * LANES + lane;
        const float scale = bf16_to_float(leaf->scale[at]), zero = leaf->zero ? bf16_to_float(leaf->zero[at]) : 0;
        const float half = (float)leaf->centre / 2;
        for (int64_t c = 0; c < segment->columns; c++) {
            const uint32_t codes = vector_at(element, panel, segment->vector + c / VECTOR, lane);
            const float value = ((float)(codes >> c % VECTOR * 8 & 255) - half) * scale;
            out[segment->column + c] = leaf->zero ? value + zero : value;
        }
    }
}

void leaf_row(const Leaf *leaf, int64_t row, float *out)
{
    uint8_t *panel = leaf->codes + row / LANES * leaf->panel_bytes;
    const int64_t lane = row % LANES;
    switch (leaf->element) {
    case FP32:
        for (int64_t c = 0; c < leaf->k; c++)
            out[c] = ((const float *)panel)[c * LANES + lane];
        return;
    case FP16:
        for (int64_t c = 0; c < leaf->k; c++)
            out[c] = half_to_float(((const uint16_t *)panel)[c * LANES + lane]);
        return;
    case BF16:
        for (int64_t c = 0; c < leaf->k; c++)
            out[c] = bf16_to_float(((const uint16_t *)panel)[c * LANES + lane]);
        return;
    case CODES8: unpack_row(leaf, CODES8, panel, row, out); break;
    case CODES4: unpack_row(leaf, CODES4, panel, row, out); break;
    case CODES3: unpack_row(leaf, CODES3, panel, row, out); break;
    case CODES2: unpack_row(leaf, CODES2, panel, row, out); break;
    default: unpack_row(leaf, leaf->element, panel, row, out);
    }
    unrotate(leaf, out);
}
