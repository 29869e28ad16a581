/* js_block: symmetric memory of a rank; life time, exhaustion, what peers see. */
#include "js_comm.h"
#include "js_status.h"
#include "js_test.h"
#include "js_test_world.h"

#define HEAP_BYTES ((uint64_t)4 << 20)

static const js_seg_config small = {
    .world = 2, .stream_slots = 4, .queue_slots = 4, .heap_bytes = HEAP_BYTES
};

static js_heap_usage block_usage(js_test_rank *self)
{
    js_heap_usage usage;
    js_comm_heap_usage(self->comm, &usage);
    return usage;
}

static void body_blocks(js_test_rank *self)
{
    js_block *block = NULL;
    JS_TEST_REQUIRE(js_block_new(self->comm, 100000, 0, &block) == JS_OK);
    uint8_t *bytes = js_block_address(block);
    JS_TEST_CHECK(bytes >= self->seg->base + js_seg_heap_offset(self->seg, self->rank));
    JS_TEST_CHECK(bytes < self->seg->base + js_seg_heap_offset(self->seg, self->rank) + HEAP_BYTES);
    JS_TEST_EQ_U64(block_usage(self).block_count, 1);
    memset(bytes, 0xff, 100000);
    js_block_free(block);
    JS_TEST_EQ_U64(block_usage(self).used_bytes, 0);
    JS_TEST_REQUIRE(js_block_new(self->comm, 100000, 1, &block) == JS_OK);
    JS_TEST_CHECK(js_block_address(block) == bytes); /* the same memory, and clean again */
    for (size_t i = 0; i < 100000; i++) {
        JS_TEST_EQ_U64(bytes[i], 0);
    }
    js_block_free(block);
}

static void test_blocks(void)
{
    js_test_world(&small, body_blocks, NULL);
}

static void body_exhaustion(js_test_rank *self)
{
    js_block *first = NULL;
    js_block *second = NULL;
    JS_TEST_REQUIRE(js_block_new(self->comm, HEAP_BYTES / 2, 0, &first) == JS_OK);
    JS_TEST_EQ_I64(js_block_new(self->comm, HEAP_BYTES / 2 + 1, 0, &second), JS_ERR_NO_MEMORY);
    JS_TEST_CHECK(strstr(js_last_error()->text, "JETSTREAM_HEAP_BYTES") != NULL);
    JS_TEST_CHECK(second == NULL);
    JS_TEST_EQ_U64(block_usage(self).used_bytes, HEAP_BYTES / 2);
    JS_TEST_REQUIRE(js_block_new(self->comm, HEAP_BYTES / 2, 0, &second) == JS_OK);
    js_block_free(first);
    js_block_free(second);
    JS_TEST_EQ_U64(block_usage(self).largest_free_bytes, HEAP_BYTES);
}

static void test_exhaustion(void)
{
    js_test_world(&small, body_exhaustion, NULL);
}

static void body_keep(js_test_rank *self)
{
    js_block **kept = self->context;
    JS_TEST_REQUIRE(js_block_new(self->comm, 4096, 0, &kept[self->rank]) == JS_OK);
    memset(js_block_address(kept[self->rank]), (int)self->rank + 1, 4096);
}

static void test_blocks_outlive_everything(void)
{
    js_block *kept[2];
    js_test_world(&small, body_keep, kept); /* closes communicators, engines and the segment */
    for (size_t i = 0; i < 2; i++) {
        uint8_t *bytes = js_block_address(kept[i]);
        JS_TEST_EQ_U64(bytes[4095], i + 1);
        bytes[0] = 7;
        js_block_free(kept[i]);
    }
}

JS_TEST_MAIN(JS_TEST(test_blocks), JS_TEST(test_exhaustion),
             JS_TEST(test_blocks_outlive_everything))
