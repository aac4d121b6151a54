/* Memory that lives as long as one call. */
#include "runtime.h"

#include <stdlib.h>

enum { LEAST_BYTES = 256 << 10 };

struct Chunk {
    Chunk *next;
    size_t used, size;
};

/* Take a chunk with room for `bytes` from those that were given back, or make one. */
static Chunk *chunk_for(Arena *arena, size_t bytes)
{
    for (Chunk **at = &arena->spare; *at; at = &(*at)->next)
        if ((*at)->size - 64 >= bytes) {
            Chunk *found = *at;
            *at = found->next;
            return found;
        }
    const size_t size = 64 + (bytes > LEAST_BYTES ? bytes : LEAST_BYTES);
    Chunk *made = aligned_alloc(64, size);
    if (made)
        made->size = size;
    return made;
}

void *allocate(Arena *arena, size_t bytes)
{
    Chunk *chunk = arena->chunks;
    bytes = bytes < SIZE_MAX / 2 ? (bytes + 63) / 64 * 64 : SIZE_MAX / 2;
    if (!chunk || chunk->size - chunk->used < bytes) {
        chunk = chunk_for(arena, bytes);
        if (!chunk) {
            arena->failed = 1;
            return NULL;
        }
        chunk->next = arena->chunks;
        chunk->used = 64;
        arena->chunks = chunk;
    }
    char *memory = (char *)chunk + chunk->used;
    chunk->used += bytes;
    return memory;
}

Mark mark(const Arena *arena) { return (Mark){ arena->chunks, arena->chunks ? arena->chunks->used : 0 }; }

void rewind_to(Arena *arena, Mark mark)
{
    while (arena->chunks != mark.chunk) {
        Chunk *chunk = arena->chunks;
        arena->chunks = chunk->next;
        chunk->next = arena->spare;
        arena->spare = chunk;
    }
    if (mark.chunk)
        mark.chunk->used = mark.used;
}

static void free_all(Chunk *chunk)
{
    while (chunk) {
        Chunk *next = chunk->next;
        free(chunk);
        chunk = next;
    }
}

void release(Arena *arena)
{
    free_all(arena->chunks);
    free_all(arena->spare);
    *arena = (Arena){ 0 };
}
