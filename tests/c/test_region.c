/* js_region: keys, bounds, and taking a region back, on a layout in private memory. */
#include "js_region.h"
#include "js_test.h"

#include <sys/mman.h>

#define WORLD 3u

static js_area region_area;

static void region_open(void)
{
    js_seg_config config = { .world = WORLD, .stream_slots = 4, .queue_slots = 4 };
    JS_TEST_REQUIRE(js_area_config_check(&config) == JS_OK);
    js_area_init(&region_area, NULL, &config, 0);
    void *memory = mmap(NULL, region_area.end_offset, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    JS_TEST_REQUIRE(memory != MAP_FAILED);
    js_area_init(&region_area, memory, &config, 0);
    region_area.segment_bytes = region_area.end_offset;
}

static void region_close(void)
{
    munmap(region_area.base, region_area.end_offset);
}

/* What rank 1 gets when it wants to write to rank 2. */
static int32_t region_try(uint32_t key, uint64_t offset, uint64_t bytes, uint64_t *out_offset)
{
    js_region_target target = { 2, key, offset, bytes };
    int32_t status = 1;
    uint8_t *at = js_region_begin(&region_area, 1, &target, &status);
    JS_TEST_CHECK((at == NULL) == (status != JS_OK));
    JS_TEST_CHECK(js_region_is_written(&region_area, 2, 1) == (at != NULL));
    JS_TEST_CHECK(!js_region_is_written(&region_area, 0, 1));
    *out_offset = at != NULL ? (uint64_t)(at - region_area.base) : 0;
    js_region_end(&region_area, 1);
    JS_TEST_CHECK(!js_region_is_written(&region_area, 2, 1));
    return status;
}

static void test_bounds(void)
{
    static const struct {
        uint64_t offset;
        uint64_t bytes;
        int32_t want;
    } rows[] = {
        { 0, 0, JS_OK },
        { 0, 100, JS_OK },
        { 99, 1, JS_OK },
        { 100, 0, JS_OK },
        { 0, 101, JS_ERR_BOUNDS },
        { 100, 1, JS_ERR_BOUNDS },
        { 101, 0, JS_ERR_BOUNDS },
        { UINT64_MAX, 2, JS_ERR_BOUNDS },
        { UINT64_MAX - 99, 100, JS_ERR_BOUNDS },
        { 2, UINT64_MAX, JS_ERR_BOUNDS },
    };
    uint32_t key = 0;
    region_open();
    JS_TEST_EQ_I64(js_region_add(&region_area, 2, 4096, 100, &key), JS_OK);
    for (size_t i = 0; i < JS_ARRAY_LEN(rows); i++) {
        uint64_t at = 0;
        JS_TEST_EQ_I64(region_try(key, rows[i].offset, rows[i].bytes, &at), rows[i].want);
        JS_TEST_CHECK(rows[i].want != JS_OK || at == 4096 + rows[i].offset);
    }
    region_close();
}

/* The owner's slot is in memory that others can write to: what it says is not believed. */
static void test_slot_out_of_the_segment(void)
{
    static const uint64_t offsets[] = { UINT64_MAX, UINT64_MAX - 50, 1ull << 63, 1ull << 40 };
    uint32_t key = 0;
    uint64_t at = 0;
    region_open();
    JS_TEST_EQ_I64(js_region_add(&region_area, 2, 4096, 100, &key), JS_OK);
    js_area_region *slot = &js_area_get_port(&region_area, 2)->regions[0];
    for (size_t i = 0; i < JS_ARRAY_LEN(offsets); i++) {
        slot->offset = offsets[i];
        JS_TEST_EQ_I64(region_try(key, 0, 8, &at), JS_ERR_BOUNDS);
    }
    slot->offset = region_area.segment_bytes - 99;
    JS_TEST_EQ_I64(region_try(key, 0, 8, &at), JS_ERR_BOUNDS);
    slot->offset = region_area.segment_bytes - 100;
    JS_TEST_EQ_I64(region_try(key, 92, 8, &at), JS_OK);
    slot->bytes = UINT64_MAX;
    JS_TEST_EQ_I64(region_try(key, 0, 8, &at), JS_ERR_BOUNDS);
    region_close();
}

static void test_keys(void)
{
    uint32_t keys[JS_AREA_REGIONS];
    uint32_t key = 0;
    uint64_t at = 0;
    region_open();
    JS_TEST_EQ_I64(region_try(0, 0, 1, &at), JS_ERR_ACCESS);
    for (uint32_t i = 0; i < JS_AREA_REGIONS; i++) {
        JS_TEST_EQ_I64(js_region_add(&region_area, 2, 64 * i, 64, &keys[i]), JS_OK);
        JS_TEST_CHECK(keys[i] != 0);
        for (uint32_t k = 0; k < i; k++) {
            JS_TEST_CHECK(keys[k] != keys[i]);
        }
    }
    JS_TEST_EQ_I64(js_region_add(&region_area, 2, 0, 64, &key), JS_ERR_FULL);
    JS_TEST_EQ_I64(js_region_add(&region_area, 0, 0, 64, &key), JS_OK); /* each has its own */
    for (uint32_t i = 0; i < JS_AREA_REGIONS; i++) {
        JS_TEST_EQ_I64(region_try(keys[i], 1, 1, &at), JS_OK);
        JS_TEST_EQ_U64(at, 64 * i + 1);
        JS_TEST_EQ_I64(region_try(keys[i] ^ JS_AREA_REGIONS, 1, 1, &at), JS_ERR_ACCESS);
        JS_TEST_EQ_I64(region_try(keys[i] & (JS_AREA_REGIONS - 1), 1, 1, &at), JS_ERR_ACCESS);
    }
    js_region_remove(&region_area, 2, keys[7]);
    JS_TEST_EQ_I64(region_try(keys[7], 0, 1, &at), JS_ERR_ACCESS);
    js_region_remove(&region_area, 2, keys[7]); /* twice, or one that never was: nothing happens */
    js_region_remove(&region_area, 2, keys[8] ^ JS_AREA_REGIONS);
    JS_TEST_EQ_I64(region_try(keys[8], 0, 1, &at), JS_OK);
    JS_TEST_EQ_I64(js_region_add(&region_area, 2, 128, 64, &key), JS_OK);
    JS_TEST_CHECK(key != keys[7]); /* the slot is the same, an old key does not fit */
    JS_TEST_EQ_I64(region_try(keys[7], 0, 1, &at), JS_ERR_ACCESS);
    region_close();
}

JS_TEST_MAIN(JS_TEST(test_bounds), JS_TEST(test_slot_out_of_the_segment), JS_TEST(test_keys))
