/* js_heap: alignment, reuse, exhaustion, pages given back, life time; random use against a model
 * that knows every byte. */
#include "js_heap.h"
#include "js_status.h"
#include "js_test.h"

#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define MIB ((uint64_t)1 << 20)

static js_heap *heap_new(uint64_t heap_bytes)
{
    const js_seg_config config = { .world = 3, .stream_slots = 4, .heap_bytes = heap_bytes };
    js_seg *seg = NULL;
    js_heap *heap = NULL;
    JS_TEST_REQUIRE(js_seg_create(&config, &seg) == JS_OK);
    JS_TEST_REQUIRE(js_heap_open(seg, 1, &heap) == JS_OK);
    js_seg_detach(seg); /* the heap keeps it */
    return heap;
}

static uint64_t heap_take(js_heap *heap, uint64_t bytes, uint64_t align)
{
    uint64_t offset = 0;
    JS_TEST_REQUIRE(js_heap_alloc(heap, bytes, align, &offset) == JS_OK);
    return offset;
}

static js_heap_usage heap_usage(js_heap *heap)
{
    js_heap_usage usage;
    js_heap_get_usage(heap, &usage);
    return usage;
}

/* Memory that the segment takes at present. */
static uint64_t heap_resident_bytes(const js_heap *heap)
{
    struct stat status;
    JS_TEST_REQUIRE(fstat(js_seg_fd(heap->seg), &status) == 0);
    return (uint64_t)status.st_blocks * 512;
}

static void test_layout(void)
{
    const js_seg_config config = { .world = 3, .stream_slots = 4, .heap_bytes = 6 * MIB };
    js_seg *seg = NULL;
    JS_TEST_REQUIRE(js_seg_create(&config, &seg) == JS_OK);
    JS_TEST_EQ_U64((uintptr_t)seg->base % JS_HEAP_HUGE_BYTES, 0);
    JS_TEST_EQ_U64(js_seg_heap_offset(seg, 0) % JS_HEAP_HUGE_BYTES, 0);
    JS_TEST_CHECK(js_seg_heap_offset(seg, 0) >= seg->world_area.end_offset);
    JS_TEST_EQ_U64(js_seg_heap_offset(seg, 2), js_seg_heap_offset(seg, 0) + 12 * MIB);
    JS_TEST_EQ_U64(js_seg_bytes(seg), js_seg_heap_offset(seg, 2) + 6 * MIB);
    js_seg_detach(seg);
}

/* Equal places in the heaps of two ranks never differ in high address bits alone. */
static void test_distances(void)
{
    static const uint64_t heap_bytes[] = { 0, 2 * MIB, 4 * MIB, 256 * MIB };

    for (uint32_t i = 0; i < JS_ARRAY_LEN(heap_bytes); i++) {
        const js_seg_config config = { .world = 5, .stream_slots = 4, .heap_bytes = heap_bytes[i] };
        js_seg *seg = NULL;
        JS_TEST_REQUIRE(js_seg_create(&config, &seg) == JS_OK);
        uint64_t own_bytes = seg->world_area.config.heap_bytes;
        for (uint32_t rank = 1; rank < 5; rank++) {
            uint64_t start = js_seg_heap_offset(seg, rank);
            JS_TEST_CHECK(start >= js_seg_heap_offset(seg, rank - 1) + own_bytes);
            JS_TEST_EQ_U64(start % JS_HEAP_HUGE_BYTES, 0);
            for (uint32_t peer = 0; peer < rank; peer++) {
                JS_TEST_CHECK((start - js_seg_heap_offset(seg, peer)) % (256 * MIB) != 0);
            }
        }
        JS_TEST_CHECK(js_seg_bytes(seg) >= js_seg_heap_offset(seg, 4) + own_bytes);
        js_seg_detach(seg);
    }
}

static void test_alignment(void)
{
    static const struct {
        uint64_t bytes;
        uint64_t align;
        uint64_t want;
    } rows[] = {
        { 0, 0, 64 },
        { 1, 0, 64 },
        { 65, 32, 64 },
        { 100, 1024, 1024 },
        { 4095, 0, 64 },
        { 4096, 0, 4096 },
        { 10000, 64, 4096 },
        { 2 * MIB - 1, 0, 4096 },
        { 2 * MIB, 0, 2 * MIB },
        { 64, 2 * MIB, 2 * MIB },
    };
    js_heap *heap = heap_new(64 * MIB);
    for (size_t i = 0; i < JS_ARRAY_LEN(rows); i++) {
        uint64_t odd = heap_take(heap, 64, 0); /* so that nothing is aligned by chance */
        uint64_t offset = heap_take(heap, rows[i].bytes, rows[i].align);
        JS_TEST_EQ_U64(offset % rows[i].want, 0);
        JS_TEST_EQ_U64((uintptr_t)js_heap_address(heap, offset) % rows[i].want, 0);
        JS_TEST_CHECK(odd != offset);
    }
    uint64_t offset = 0;
    JS_TEST_EQ_I64(js_heap_alloc(heap, 64, 4 * MIB, &offset), JS_ERR_INVALID);
    JS_TEST_EQ_I64(js_heap_alloc(heap, 64, 96, &offset), JS_ERR_INVALID);
    js_heap_release(heap);
}

static void test_exhaustion(void)
{
    js_heap *heap = heap_new(4 * MIB);
    uint64_t first = heap_take(heap, 3 * MIB, 0);
    uint64_t offset = 77;
    JS_TEST_EQ_I64(js_heap_alloc(heap, MIB + 1, 0, &offset), JS_ERR_NO_MEMORY);
    JS_TEST_EQ_U64(offset, 77);
    const char *text = js_last_error()->text;
    JS_TEST_CHECK(strstr(text, "rank 1") != NULL);
    JS_TEST_CHECK(strstr(text, "1048640 bytes more") != NULL); /* whole lines */
    JS_TEST_CHECK(strstr(text, "3145728 of its 4194304 bytes are used") != NULL);
    JS_TEST_CHECK(strstr(text, "largest free block 1048576 bytes") != NULL);
    JS_TEST_CHECK(strstr(text, "JETSTREAM_HEAP_BYTES") != NULL);
    JS_TEST_EQ_I64(js_heap_alloc(heap, UINT64_MAX, 0, &offset), JS_ERR_NO_MEMORY);
    JS_TEST_EQ_I64(js_heap_alloc(heap, UINT64_MAX - 62, 0, &offset), JS_ERR_NO_MEMORY);
    uint64_t last = heap_take(heap, MIB, 0); /* what is there can still be had */
    JS_TEST_EQ_I64(js_heap_alloc(heap, 1, 0, &offset), JS_ERR_NO_MEMORY);
    JS_TEST_EQ_I64(js_heap_free(heap, first), JS_OK);
    JS_TEST_EQ_I64(js_heap_free(heap, last), JS_OK);
    JS_TEST_EQ_U64(heap_take(heap, 4 * MIB, 0), first);
    js_heap_release(heap);
}

static void test_freed_blocks_merge(void)
{
    enum {
        COUNT = 16
    };
    uint64_t offsets[COUNT];
    js_heap *heap = heap_new(2 * MIB);
    for (size_t i = 0; i < COUNT; i++) {
        offsets[i] = heap_take(heap, 2 * MIB / COUNT, 0);
    }
    JS_TEST_EQ_U64(heap_usage(heap).largest_free_bytes, 0);
    for (size_t i = 0; i < COUNT; i += 2) {
        JS_TEST_EQ_I64(js_heap_free(heap, offsets[i]), JS_OK);
    }
    JS_TEST_EQ_U64(heap_usage(heap).largest_free_bytes, 2 * MIB / COUNT);
    JS_TEST_EQ_U64(heap_usage(heap).used_bytes, MIB);
    JS_TEST_EQ_U64(heap_usage(heap).block_count, COUNT / 2);
    for (size_t i = 1; i < COUNT; i += 2) {
        JS_TEST_EQ_I64(js_heap_free(heap, offsets[i]), JS_OK);
    }
    JS_TEST_EQ_U64(heap_usage(heap).largest_free_bytes, 2 * MIB);
    JS_TEST_EQ_U64(heap->free.count, 1);
    js_heap_release(heap);
}

static void test_smallest_fit_is_taken(void)
{
    js_heap *heap = heap_new(2 * MIB);
    uint64_t large = heap_take(heap, 64 << 10, 0);
    uint64_t wall = heap_take(heap, 4096, 0);
    uint64_t small = heap_take(heap, 8 << 10, 0);
    uint64_t end = heap_take(heap, 4096, 0);
    JS_TEST_CHECK(large < wall && wall < small && small < end);
    JS_TEST_EQ_I64(js_heap_free(heap, large), JS_OK);
    JS_TEST_EQ_I64(js_heap_free(heap, small), JS_OK);
    JS_TEST_EQ_U64(heap_take(heap, 8 << 10, 0), small);
    JS_TEST_EQ_U64(heap_take(heap, 16 << 10, 0), large);
    js_heap_release(heap);
}

static void test_only_blocks_can_be_freed(void)
{
    js_heap *heap = heap_new(2 * MIB);
    uint64_t offset = heap_take(heap, 4096, 0);
    JS_TEST_EQ_I64(js_heap_free(heap, offset + 64), JS_ERR_INVALID);
    JS_TEST_EQ_I64(js_heap_free(heap, 0), JS_ERR_INVALID);
    JS_TEST_EQ_I64(js_heap_free(heap, offset), JS_OK);
    JS_TEST_EQ_I64(js_heap_free(heap, offset), JS_ERR_INVALID);
    js_heap_release(heap);
}

static bool heap_is_zero(const js_heap *heap, uint64_t offset, uint64_t bytes)
{
    const uint8_t *at = js_heap_address(heap, offset);
    return at[0] == 0 && memcmp(at, at + 1, bytes - 1) == 0;
}

static void test_zero_leaves_the_neighbours(void)
{
    static const uint64_t sizes[] = { 64, 4096, 65536, 65536 + 64, 200000, 3 * MIB };
    js_heap *heap = heap_new(16 * MIB);
    uint8_t *base = js_heap_address(heap, heap->start_offset);
    for (size_t i = 0; i < JS_ARRAY_LEN(sizes); i++) {
        uint64_t at = 4096 + 64 * (i % 3);
        memset(base, 0xa5, 4 * MIB);
        js_heap_zero(heap, heap->start_offset + at, sizes[i]);
        JS_TEST_CHECK(heap_is_zero(heap, heap->start_offset + at, sizes[i]));
        JS_TEST_EQ_U64(base[at - 1], 0xa5);
        JS_TEST_EQ_U64(base[at + sizes[i]], 0xa5);
    }
    js_heap_release(heap);
}

static void test_memory_goes_back(void)
{
    js_heap *heap = heap_new(256 * MIB);
    uint64_t before = heap_resident_bytes(heap);
    for (int i = 0; i < 20; i++) {
        uint64_t offset = heap_take(heap, 40 * MIB, 0);
        uint64_t small = heap_take(heap, 100000, 0);
        if (js_heap_prefault(heap, offset, 2 * MIB) != JS_OK) {
            JS_TEST_CHECK(false);
        }
        memset(js_heap_address(heap, offset), 1, 4 * MIB);
        memset(js_heap_address(heap, small), 1, 100000);
        JS_TEST_CHECK(heap_resident_bytes(heap) >= before + 4 * MIB);
        JS_TEST_EQ_I64(js_heap_free(heap, small), JS_OK);
        JS_TEST_EQ_I64(js_heap_free(heap, offset), JS_OK); /* more than may be kept */
        JS_TEST_CHECK(heap_resident_bytes(heap) <= before + MIB / 4);
    }
    uint64_t kept_max = 256 * MIB / JS_HEAP_KEPT_SHARE;
    uint64_t offsets[64];
    for (int i = 0; i < 64; i++) { /* little by little */
        offsets[i] = heap_take(heap, MIB, 0);
        memset(js_heap_address(heap, offsets[i]), 1, MIB);
    }
    for (int i = 0; i < 64; i++) {
        JS_TEST_EQ_I64(js_heap_free(heap, offsets[i]), JS_OK);
        uint64_t used = (uint64_t)(63 - i) * MIB;
        JS_TEST_CHECK(heap_resident_bytes(heap) <= before + used + kept_max + MIB / 4);
    }
    js_heap_release(heap);
}

/* Memory that is made and dropped again and again stays where it is. */
static void test_memory_is_used_again(void)
{
    js_heap *heap = heap_new(256 * MIB);
    uint64_t resident = 0;
    for (int i = 0; i < 100; i++) {
        uint64_t offset = heap_take(heap, 12 * MIB, 0);
        if (i == 0) {
            memset(js_heap_address(heap, offset), 1, 12 * MIB);
            resident = heap_resident_bytes(heap);
        }
        JS_TEST_EQ_I64(js_heap_free(heap, offset), JS_OK);
        JS_TEST_EQ_U64(heap_resident_bytes(heap), resident);
    }
    js_heap_release(heap);
}

/* Blocks may outlive engine and handle; memory stays mapped until the last holder is gone. */
static void test_holders(void)
{
    js_heap *heap = heap_new(2 * MIB);
    js_heap_retain(heap);
    js_heap_release(heap);
    uint64_t offset = heap_take(heap, 64, 0);
    memset(js_heap_address(heap, offset), 7, 64);
    JS_TEST_EQ_I64(js_heap_free(heap, offset), JS_OK);
    void *base = heap->seg->base;
    js_heap_release(heap);
    unsigned char resident;
    JS_TEST_CHECK(mincore(base, 1, &resident) != 0); /* unmapped */
}

static void test_a_child_leaves_the_heap_alone(void)
{
    js_heap *heap = heap_new(2 * MIB);
    uint64_t offset = heap_take(heap, 64, 0);
    pid_t child = fork();
    JS_TEST_REQUIRE(child >= 0);
    if (child == 0) {
        uint64_t other;
        bool ok = js_heap_free(heap, offset) == JS_OK && heap->used.count == 1 &&
                  js_heap_alloc(heap, 64, 0, &other) == JS_ERR_FORKED;
        *(uint8_t *)js_heap_address(heap, offset) = 9; /* the memory itself is shared */
        _exit(ok ? 0 : 1);
    }
    int status = 0;
    JS_TEST_CHECK(waitpid(child, &status, 0) == child && status == 0);
    JS_TEST_EQ_U64(*(uint8_t *)js_heap_address(heap, offset), 9);
    JS_TEST_EQ_I64(js_heap_free(heap, offset), JS_OK);
    js_heap_release(heap);
}

/* --- against a model ------------------------------------------------------------------------ */

enum {
    MODEL_BLOCKS = 300,
    MODEL_LINES = 4 << 14,
    MODEL_ROUNDS = 20000
}; /* 4 MiB of lines */

typedef struct model {
    js_heap *heap;
    uint64_t random;
    uint16_t owner[MODEL_LINES]; /* 1 + block that has the line */
    js_heap_span blocks[MODEL_BLOCKS];
} model;

static uint64_t model_random(model *m, uint64_t below)
{
    m->random = m->random * 6364136223846793005u + 1442695040888963407u;
    return (m->random >> 33) % below;
}

static void model_mark(model *m, size_t block, uint16_t expected, uint16_t value)
{
    js_heap_span span = m->blocks[block];
    uint64_t first = (span.offset - m->heap->start_offset) / JS_CACHE_LINE;
    uint64_t lines = (span.bytes + JS_CACHE_LINE - 1) / JS_CACHE_LINE;
    JS_TEST_REQUIRE(first + lines <= MODEL_LINES);
    for (uint64_t i = first; i < first + lines; i++) {
        JS_TEST_EQ_U64(m->owner[i], expected);
        m->owner[i] = value;
    }
}

/* Is there no run of free lines that the refused block would have fitted into? */
static bool model_is_full_for(const model *m, uint64_t bytes, uint64_t align)
{
    uint64_t run = 0;
    for (uint64_t i = 0; i < MODEL_LINES; i++) {
        bool can_begin = i * JS_CACHE_LINE % align == 0;
        run = m->owner[i] != 0 || (run == 0 && !can_begin) ? 0 : run + 1;
        if (run * JS_CACHE_LINE >= bytes) {
            return false;
        }
    }
    return true;
}

static void model_alloc(model *m, size_t block)
{
    static const uint64_t limits[] = { 64, 1000, 5000, 70000, 300000 };
    uint64_t bytes = 1 + model_random(m, limits[model_random(m, JS_ARRAY_LEN(limits))]);
    uint64_t offset;
    int32_t result = js_heap_alloc(m->heap, bytes, 0, &offset);
    if (result != JS_OK) {
        JS_TEST_EQ_I64(result, JS_ERR_NO_MEMORY);
        JS_TEST_CHECK(model_is_full_for(m, bytes, bytes >= 4096 ? 4096 : 64));
        return;
    }
    m->blocks[block] = (js_heap_span){ offset, bytes };
    model_mark(m, block, 0, (uint16_t)(block + 1));
}

static void model_check(const model *m)
{
    uint64_t used_lines = 0;
    size_t runs = 0; /* of free lines */
    for (uint64_t i = 0; i < MODEL_LINES; i++) {
        used_lines += m->owner[i] != 0;
        runs += m->owner[i] == 0 && (i == 0 || m->owner[i - 1] != 0);
    }
    JS_TEST_EQ_U64(m->heap->used_bytes, used_lines * JS_CACHE_LINE);
    JS_TEST_EQ_U64(m->heap->free.count, runs);
}

static void test_random_use(void)
{
    static model m;
    m = (model){ .heap = heap_new(4 * MIB), .random = 20 };
    for (int round = 0; round < MODEL_ROUNDS; round++) {
        size_t block = model_random(&m, MODEL_BLOCKS);
        if (m.blocks[block].bytes == 0) {
            model_alloc(&m, block);
        } else {
            model_mark(&m, block, (uint16_t)(block + 1), 0);
            JS_TEST_EQ_I64(js_heap_free(m.heap, m.blocks[block].offset), JS_OK);
            m.blocks[block].bytes = 0;
        }
        if (round % 500 == 0) {
            model_check(&m);
        }
    }
    js_heap_release(m.heap);
}

JS_TEST_MAIN(JS_TEST(test_layout), JS_TEST(test_distances), JS_TEST(test_alignment),
             JS_TEST(test_exhaustion), JS_TEST(test_freed_blocks_merge),
             JS_TEST(test_smallest_fit_is_taken), JS_TEST(test_only_blocks_can_be_freed),
             JS_TEST(test_zero_leaves_the_neighbours), JS_TEST(test_memory_goes_back),
             JS_TEST(test_memory_is_used_again), JS_TEST(test_holders),
             JS_TEST(test_a_child_leaves_the_heap_alone), JS_TEST(test_random_use))
