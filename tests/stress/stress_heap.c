/* js_heap under several threads: no block is ever in two hands, and in the end nothing is used. */
#include "js_heap.h"
#include "js_stress.h"

#define THREADS 4u
#define BLOCKS 64u

typedef struct heap_worker {
    js_heap *heap;
    uint64_t random;
    uint64_t deadline_ns;
    uint8_t mark; /* of this thread's blocks */
    uint64_t allocated;
    uint64_t refused;
    js_heap_span blocks[BLOCKS];
} heap_worker;

/* Only the ends are written: pages that nobody touches cost nothing. */
static uint8_t *heap_end(const heap_worker *self, const js_heap_span *block)
{
    return (uint8_t *)js_heap_address(self->heap, block->offset) + block->bytes - 1;
}

static void heap_worker_free(heap_worker *self, js_heap_span *block)
{
    const uint8_t *first = js_heap_address(self->heap, block->offset);
    JS_TEST_EQ_U64(*first, self->mark);
    JS_TEST_EQ_U64(*heap_end(self, block), self->mark);
    JS_TEST_EQ_I64(js_heap_free(self->heap, block->offset), JS_OK);
    block->bytes = 0;
}

static void heap_worker_alloc(heap_worker *self, js_heap_span *block)
{
    uint64_t bytes = 1 + js_stress_below(&self->random, 1u << js_stress_below(&self->random, 23));
    int32_t result = js_heap_alloc(self->heap, bytes, 0, &block->offset);
    if (result != JS_OK) {
        JS_TEST_EQ_I64(result, JS_ERR_NO_MEMORY);
        self->refused++;
        return;
    }
    block->bytes = bytes;
    if (js_stress_below(&self->random, 4) == 0) {
        js_heap_zero(self->heap, block->offset, bytes);
        JS_TEST_EQ_U64(*heap_end(self, block), 0);
    }
    *(uint8_t *)js_heap_address(self->heap, block->offset) = self->mark;
    *heap_end(self, block) = self->mark;
    self->allocated++;
}

static void *heap_worker_main(void *argument)
{
    heap_worker *self = argument;
    while (js_clock_ns() < self->deadline_ns) {
        js_heap_span *block = &self->blocks[js_stress_below(&self->random, BLOCKS)];
        if (block->bytes == 0) {
            heap_worker_alloc(self, block);
        } else {
            heap_worker_free(self, block);
        }
    }
    for (size_t i = 0; i < BLOCKS; i++) {
        if (self->blocks[i].bytes != 0) {
            heap_worker_free(self, &self->blocks[i]);
        }
    }
    return NULL;
}

int main(int argc, char **argv)
{
    static heap_worker workers[THREADS];
    pthread_t threads[THREADS];
    js_stress stress = js_stress_arguments(argc, argv, 5);
    const js_seg_config config = { .world = 1, .stream_slots = 4, .heap_bytes = 16u << 20 };
    js_seg *seg = NULL;
    js_heap *heap = NULL;
    JS_TEST_REQUIRE(js_seg_create(&config, &seg) == JS_OK);
    JS_TEST_REQUIRE(js_heap_open(seg, 0, &heap) == JS_OK);
    for (uint32_t i = 0; i < THREADS; i++) {
        workers[i].heap = heap;
        workers[i].random = stress.seed + i;
        workers[i].deadline_ns = js_stress_deadline_ns(stress.seconds * 1000000000u);
        workers[i].mark = (uint8_t)(i + 1);
        JS_TEST_REQUIRE(pthread_create(&threads[i], NULL, heap_worker_main, &workers[i]) == 0);
    }
    for (uint32_t i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        printf("thread %u: %" PRIu64 " blocks, %" PRIu64 " refused\n", i, workers[i].allocated,
               workers[i].refused);
        JS_TEST_CHECK(workers[i].allocated > 0);
    }
    js_heap_usage usage;
    js_heap_get_usage(heap, &usage);
    JS_TEST_EQ_U64(usage.used_bytes, 0);
    JS_TEST_EQ_U64(usage.largest_free_bytes, usage.total_bytes);
    js_heap_release(heap);
    js_seg_detach(seg);
    return js_test_failures() != 0;
}
