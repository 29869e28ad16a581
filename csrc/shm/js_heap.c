/* Best fit over a sorted list of free spans, which merge with their neighbours when freed. */
#include "js_heap.h"

#include "js_assert.h"
#include "js_status.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* Linux 5.14 */
#endif

#define HEAP_PAGE_BYTES 4096u
#define HEAP_SPANS_MIN 64u
/* Below this, writing zeros is cheaper than taking pages away and getting them back. */
#define HEAP_RANGE_BYTES_MIN (64u << 10)

/* --- lists of spans ------------------------------------------------------------------------- */

/* Index of the first span at or behind offset. */
static size_t heap_find(const js_heap_spans *spans, uint64_t offset)
{
    size_t low = 0;
    size_t high = spans->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (spans->items[middle].offset < offset) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

static int32_t heap_reserve(js_heap_spans *spans, size_t count)
{
    size_t capacity = spans->capacity ? spans->capacity : HEAP_SPANS_MIN;
    while (capacity < count) {
        capacity *= 2;
    }
    if (capacity == spans->capacity) {
        return JS_OK;
    }
    js_heap_span *items = realloc(spans->items, capacity * sizeof(*items));
    if (items == NULL) {
        return JS_FAIL(JS_ERR_NO_MEMORY, "no memory to keep account of the symmetric heap");
    }
    spans->items = items;
    spans->capacity = capacity;
    return JS_OK;
}

static void heap_insert(js_heap_spans *spans, size_t index, js_heap_span span)
{
    JS_ASSERT(spans->count < spans->capacity);
    js_heap_span *at = &spans->items[index];
    memmove(at + 1, at, (spans->count - index) * sizeof(*at));
    *at = span;
    spans->count++;
}

static void heap_remove(js_heap_spans *spans, size_t index)
{
    js_heap_span *at = &spans->items[index];
    spans->count--;
    memmove(at, at + 1, (spans->count - index) * sizeof(*at));
}

/* --- opening and closing ---------------------------------------------------------------------- */

int32_t js_heap_open(js_seg *seg, uint32_t rank, js_heap **out)
{
    js_heap *heap = calloc(1, sizeof(*heap));
    if (heap == NULL) {
        return JS_FAIL(JS_ERR_NO_MEMORY, "no memory for a symmetric heap");
    }
    heap->seg = seg;
    heap->rank = rank;
    heap->refs = 1;
    heap->pid = getpid();
    heap->start_offset = js_seg_heap_offset(seg, rank);
    heap->total_bytes = seg->world_area.config.heap_bytes;
    int32_t result = heap_reserve(&heap->free, 1);
    if (result != JS_OK || pthread_mutex_init(&heap->mutex, NULL) != 0) {
        free(heap->free.items);
        free(heap);
        return result != JS_OK ? result : JS_FAIL(JS_ERR_NO_MEMORY, "no memory for a mutex");
    }
    heap_insert(&heap->free, 0, (js_heap_span){ heap->start_offset, heap->total_bytes });
    js_seg_retain(seg);
    *out = heap;
    return JS_OK;
}

void js_heap_retain(js_heap *heap)
{
    js_add_seq_u32(&heap->refs, 1);
}

void js_heap_release(js_heap *heap)
{
    if (js_add_seq_u32(&heap->refs, UINT32_MAX) != 1) {
        return;
    }
    pthread_mutex_destroy(&heap->mutex);
    js_seg_detach(heap->seg);
    free(heap->used.items);
    free(heap->free.items);
    free(heap);
}

void *js_heap_address(const js_heap *heap, uint64_t offset)
{
    JS_ASSERT(offset >= heap->start_offset && offset < heap->start_offset + heap->total_bytes);
    return heap->seg->base + offset;
}

/* --- pages ------------------------------------------------------------------------------------ */

/* Gives the whole pages inside a span back to the system: they read as zeros. */
static bool heap_punch(const js_heap *heap, js_heap_span span)
{
    uint64_t from = js_round_up(span.offset, HEAP_PAGE_BYTES);
    uint64_t to = (span.offset + span.bytes) & ~(uint64_t)(HEAP_PAGE_BYTES - 1);
    return from >= to || fallocate(heap->seg->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                                   (off_t)from, (off_t)(to - from)) == 0;
}

/* Counts bytes, not what is really resident: a loop that makes and drops one array never gets
 * here. Best effort: where it fails, the pages stay for the next block. */
static void heap_trim(js_heap *heap)
{
    for (size_t i = 0; i < heap->free.count; i++) {
        if (heap->free.items[i].bytes >= HEAP_RANGE_BYTES_MIN) {
            (void)heap_punch(heap, heap->free.items[i]);
        }
    }
    heap->freed_bytes = 0;
}

void js_heap_zero(js_heap *heap, uint64_t offset, uint64_t bytes)
{
    uint8_t *at = js_heap_address(heap, offset);
    if (bytes < HEAP_RANGE_BYTES_MIN || !heap_punch(heap, (js_heap_span){ offset, bytes })) {
        memset(at, 0, bytes);
        return;
    }
    uint64_t head_bytes = js_round_up(offset, HEAP_PAGE_BYTES) - offset;
    uint64_t tail_bytes = (offset + bytes) % HEAP_PAGE_BYTES;
    memset(at, 0, head_bytes);
    memset(at + bytes - tail_bytes, 0, tail_bytes);
}

int32_t js_heap_prefault(js_heap *heap, uint64_t offset, uint64_t bytes)
{
    uint64_t from = offset & ~(uint64_t)(HEAP_PAGE_BYTES - 1);
    uint64_t to = js_round_up(offset + bytes, HEAP_PAGE_BYTES);
    if (madvise(heap->seg->base + from, to - from, MADV_POPULATE_WRITE) == 0 || errno == EINVAL) {
        return JS_OK;
    }
    return js_status_fail(JS_ERR_NO_MEMORY, errno,
                          "symmetric heap of rank %u: the system has no memory for %llu bytes",
                          heap->rank, (unsigned long long)bytes);
}

/* --- blocks ----------------------------------------------------------------------------------- */

static uint64_t heap_align(uint64_t bytes, uint64_t align)
{
    uint64_t least = bytes >= JS_HEAP_HUGE_BYTES ? JS_HEAP_HUGE_BYTES
                     : bytes >= HEAP_PAGE_BYTES  ? HEAP_PAGE_BYTES
                                                 : JS_CACHE_LINE;
    return js_max_u64(least, align);
}

static bool heap_fits(js_heap_span span, uint64_t bytes, uint64_t align)
{
    uint64_t skip = js_round_up(span.offset, align) - span.offset;
    return skip <= span.bytes && bytes <= span.bytes - skip;
}

/* Index of the smallest free span that can hold the block; free.count if none can. */
static size_t heap_best(const js_heap *heap, uint64_t bytes, uint64_t align)
{
    size_t best = heap->free.count;
    for (size_t i = 0; i < heap->free.count; i++) {
        js_heap_span span = heap->free.items[i];
        if (heap_fits(span, bytes, align) &&
            (best == heap->free.count || span.bytes < heap->free.items[best].bytes)) {
            best = i;
        }
    }
    return best;
}

static uint64_t heap_largest(const js_heap *heap)
{
    uint64_t bytes = 0;
    for (size_t i = 0; i < heap->free.count; i++) {
        bytes = js_max_u64(bytes, heap->free.items[i].bytes);
    }
    return bytes;
}

static js_result heap_exhausted(const js_heap *heap, uint64_t bytes)
{
    return JS_FAIL(
        JS_ERR_NO_MEMORY,
        "symmetric heap of rank %u cannot hold %llu bytes more: %llu of its %llu bytes "
        "are used, largest free block %llu bytes; set JETSTREAM_HEAP_BYTES to enlarge it",
        heap->rank, (unsigned long long)bytes, (unsigned long long)heap->used_bytes,
        (unsigned long long)heap->total_bytes, (unsigned long long)heap_largest(heap));
}

static int32_t heap_take(js_heap *heap, uint64_t bytes, uint64_t align, uint64_t *out_offset)
{
    size_t index = heap_best(heap, bytes, align);
    if (index == heap->free.count) {
        return heap_exhausted(heap, bytes);
    }
    /* Between two free spans lies a used one, so that freeing never has to allocate. */
    JS_TRY(heap_reserve(&heap->used, heap->used.count + 1));
    JS_TRY(heap_reserve(&heap->free, heap->used.count + 3));
    js_heap_span span = heap->free.items[index];
    uint64_t offset = js_round_up(span.offset, align);
    js_heap_span front = { span.offset, offset - span.offset };
    js_heap_span back = { offset + bytes, span.offset + span.bytes - (offset + bytes) };
    heap_remove(&heap->free, index);
    if (back.bytes != 0) {
        heap_insert(&heap->free, index, back);
    }
    if (front.bytes != 0) {
        heap_insert(&heap->free, index, front);
    }
    heap_insert(&heap->used, heap_find(&heap->used, offset), (js_heap_span){ offset, bytes });
    heap->used_bytes += bytes;
    heap->freed_bytes -= js_min_u64(heap->freed_bytes, bytes);
    *out_offset = offset;
    return JS_OK;
}

int32_t js_heap_alloc(js_heap *heap, uint64_t bytes, uint64_t align, uint64_t *out_offset)
{
    if (align > JS_HEAP_HUGE_BYTES || (align != 0 && !js_is_pow2(align))) {
        return JS_FAIL(JS_ERR_INVALID, "alignment %llu: needs a power of two up to %u",
                       (unsigned long long)align, JS_HEAP_HUGE_BYTES);
    }
    if (heap->pid != getpid()) {
        return JS_FAIL(JS_ERR_FORKED, "the symmetric heap belongs to the parent process");
    }
    uint64_t rounded = js_round_up(js_max_u64(bytes, 1), JS_CACHE_LINE);
    pthread_mutex_lock(&heap->mutex);
    int32_t result = bytes > heap->total_bytes
                         ? heap_exhausted(heap, bytes) /* rounding might overflow */
                         : heap_take(heap, rounded, heap_align(bytes, align), out_offset);
    pthread_mutex_unlock(&heap->mutex);
    return result;
}

/* Makes a span free and merges it with its neighbours. */
static void heap_give(js_heap *heap, js_heap_span span)
{
    size_t index = heap_find(&heap->free, span.offset);
    if (index < heap->free.count && heap->free.items[index].offset == span.offset + span.bytes) {
        span.bytes += heap->free.items[index].bytes;
        heap_remove(&heap->free, index);
    }
    js_heap_span *before = index > 0 ? &heap->free.items[index - 1] : NULL;
    if (before != NULL && before->offset + before->bytes == span.offset) {
        before->bytes += span.bytes;
    } else {
        heap_insert(&heap->free, index, span);
    }
}

int32_t js_heap_free(js_heap *heap, uint64_t offset)
{
    if (heap->pid != getpid()) {
        return JS_OK; /* and leaves the mutex alone, which another thread may have held */
    }
    int32_t result = JS_OK;
    pthread_mutex_lock(&heap->mutex);
    size_t index = heap_find(&heap->used, offset);
    if (index == heap->used.count || heap->used.items[index].offset != offset) {
        result = JS_FAIL(JS_ERR_INVALID, "no block of the symmetric heap begins at offset %llu",
                         (unsigned long long)offset);
    } else {
        js_heap_span span = heap->used.items[index];
        heap_remove(&heap->used, index);
        heap->used_bytes -= span.bytes;
        heap->freed_bytes += span.bytes;
        heap_give(heap, span);
        if (heap->freed_bytes > heap->total_bytes / JS_HEAP_KEPT_SHARE) {
            heap_trim(heap);
        }
    }
    pthread_mutex_unlock(&heap->mutex);
    return result;
}

void js_heap_get_usage(js_heap *heap, js_heap_usage *out)
{
    pthread_mutex_lock(&heap->mutex);
    *out = (js_heap_usage){
        .total_bytes = heap->total_bytes,
        .used_bytes = heap->used_bytes,
        .largest_free_bytes = heap_largest(heap),
        .block_count = heap->used.count,
    };
    pthread_mutex_unlock(&heap->mutex);
}
