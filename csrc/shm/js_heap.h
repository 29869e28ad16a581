/* The symmetric heap of one rank: memory in the segment that only this rank hands out and that all
 * ranks can address.
 *
 * What is used and what is free is known to the owner alone, in its private memory. So processes
 * share no lock, and nothing has to be repaired when one of them is killed; peers learn where a
 * block lies from frames. Within the process any thread may allocate and free. This is no part of
 * the hot path.
 *
 * Offsets count from the start of the segment, which is mapped at a multiple of JS_HEAP_HUGE_BYTES:
 * an aligned offset is an aligned address. A page costs memory once it has been touched. */
#ifndef JS_HEAP_H
#define JS_HEAP_H

#include "js_seg.h"

#include <pthread.h>
#include <sys/types.h>

#define JS_HEAP_HUGE_BYTES (2u << 20)
/* This part of a heap may stay resident in freed blocks, before it is given back to the system. */
#define JS_HEAP_KEPT_SHARE 16u

typedef struct js_heap_span {
    uint64_t offset;
    uint64_t bytes;
} js_heap_span;

/* Spans in the order of their offsets. */
typedef struct js_heap_spans {
    js_heap_span *items;
    size_t count;
    size_t capacity;
} js_heap_spans;

typedef struct js_heap {
    js_seg *seg;
    uint32_t rank;
    uint32_t refs; /* holders in this process */
    pid_t pid;     /* of the owner: after a fork the child has a copy, but may not use it */
    uint64_t start_offset;
    uint64_t total_bytes;
    pthread_mutex_t mutex; /* guards all that follows */
    uint64_t used_bytes;
    uint64_t freed_bytes; /* and not used again, since pages were last given back */
    js_heap_spans used;
    js_heap_spans free; /* no two of them touch */
} js_heap;

/* Opens the heap of `rank`, whose process this must be, once. It keeps the segment mapped. */
int32_t js_heap_open(js_seg *seg, uint32_t rank, js_heap **out);
void js_heap_retain(js_heap *heap);
/* With the last holder the heap goes, and with it what is still allocated. */
void js_heap_release(js_heap *heap);

/* Allocates `bytes` and stores where in *out_offset. What the memory holds is undefined. `align`:
 * a power of two of at most JS_HEAP_HUGE_BYTES, or 0. Blocks begin at least at a cache line, those
 * of 4 KiB and more at a page, those of 2 MiB and more at a huge page. Errors: JS_ERR_NO_MEMORY
 * with a text that says what is used, JS_ERR_INVALID, JS_ERR_FORKED. */
int32_t js_heap_alloc(js_heap *heap, uint64_t bytes, uint64_t align, uint64_t *out_offset);
/* Frees the block that begins at `offset`; JS_ERR_INVALID: there is none. In the child of a fork
 * it does nothing. */
int32_t js_heap_free(js_heap *heap, uint64_t offset);
/* Fills memory of a block with zeros; whole pages become untouched ones. */
void js_heap_zero(js_heap *heap, uint64_t offset, uint64_t bytes);
/* Touches the pages of a block, which keeps what they hold. JS_ERR_NO_MEMORY: the system has none
 * left. A kernel before 5.14 cannot do it, and pages are touched by use. */
int32_t js_heap_prefault(js_heap *heap, uint64_t offset, uint64_t bytes);
void *js_heap_address(const js_heap *heap, uint64_t offset);
void js_heap_get_usage(js_heap *heap, js_heap_usage *out);

#endif
