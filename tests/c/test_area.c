/* js_area: which configurations are taken, and that no two parts of the layout share a byte. */
#include "js_area.h"
#include "js_assert.h"
#include "js_link_shm.h"
#include "js_seg.h"
#include "js_status.h"
#include "js_test.h"

#include <sys/mman.h>

#define PARTS_MAX 8192u

typedef struct area_part {
    uintptr_t start;
    uintptr_t end;
    const char *name;
} area_part;

static area_part parts[PARTS_MAX];
static size_t part_count;

static void part_add(const char *name, const void *at, uint64_t bytes)
{
    JS_TEST_REQUIRE(part_count < PARTS_MAX);
    uintptr_t start = (uintptr_t)at;
    JS_TEST_EQ_U64(start % JS_CACHE_LINE, 0);
    parts[part_count++] = (area_part){ .start = start, .end = start + bytes, .name = name };
}

static int part_compare(const void *a, const void *b)
{
    const area_part *first = a;
    const area_part *second = b;
    return first->start < second->start ? -1 : first->start > second->start;
}

static void part_check_all(const js_area *area)
{
    qsort(parts, part_count, sizeof(parts[0]), part_compare);
    for (size_t i = 1; i < part_count; i++) {
        if (parts[i].start < parts[i - 1].end) {
            fprintf(stderr, "world %u: %s overlaps %s\n", area->config.world, parts[i - 1].name,
                    parts[i].name);
        }
        JS_TEST_CHECK(parts[i].start >= parts[i - 1].end);
    }
    uintptr_t base = (uintptr_t)area->base;
    JS_TEST_CHECK(parts[0].start >= base + area->control_offset);
    JS_TEST_CHECK(parts[part_count - 1].end <= base + area->end_offset);
}

static void part_add_stream(const char *name, void *memory, const js_stream_layout *layout)
{
    js_stream_tx tx;
    uint64_t ends[64];
    JS_TEST_REQUIRE(layout->slots <= JS_ARRAY_LEN(ends));
    js_stream_open_tx(&tx, memory, layout, ends, 0);
    part_add(name, tx.readers, layout->reader_count * sizeof(js_stream_reader));
    part_add(name, tx.lines, layout->slots * sizeof(js_stream_line));
    part_add(name, tx.payload, layout->payload_bytes);
}

static void part_add_rank(const js_area *area, uint32_t rank)
{
    part_add("board", js_area_board(area, rank), sizeof(js_board));
    part_add("counters", js_area_counters(area, rank), JS_AREA_COUNTER_SLOTS * sizeof(uint64_t));
    part_add("records", js_area_records(area, rank), JS_RECORD_SLOTS * sizeof(js_record));
    part_add("port", js_area_get_port(area, rank), sizeof(js_area_port));
    part_add_stream("all stream", js_area_all_stream(area, rank), &area->all_layout);
    for (uint32_t target = 0; target < area->config.world; target++) {
        part_add_stream("peer stream", js_area_peer_stream(area, rank, target), &area->peer_layout);
        part_add_stream("message stream", js_area_message_stream(area, rank, target),
                        &area->message_layout);
    }
}

static void layout_check(js_seg_config config, uint64_t start_offset)
{
    js_area area;
    JS_TEST_REQUIRE(js_area_config_check(&config) == JS_OK);
    js_area_init(&area, NULL, &config, start_offset);
    /* Only addresses are asked for: nothing is touched, so nothing is given. */
    void *memory =
        mmap(NULL, area.end_offset, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    JS_TEST_REQUIRE(memory != MAP_FAILED);
    js_area_init(&area, memory, &config, start_offset);
    part_count = 0;
    part_add("control", js_area_control(&area), sizeof(js_control));
    for (uint32_t rank = 0; rank < config.world; rank++) {
        part_add_rank(&area, rank);
    }
    part_check_all(&area);
    munmap(memory, area.end_offset);
}

static void test_parts_are_disjoint(void)
{
    for (uint32_t world = 1; world <= 16; world++) {
        layout_check((js_seg_config){ .world = world }, 0);
        layout_check((js_seg_config){ .world = world,
                                      .stream_slots = 4,
                                      .all_bytes = 1u << 20,
                                      .peer_bytes = 1u << 18,
                                      .message_bytes = 1u << 17,
                                      .queue_slots = 4 },
                     8192);
    }
}

static void test_defaults(void)
{
    js_seg_config config = { .world = 3 };
    JS_TEST_EQ_I64(js_area_config_check(&config), JS_OK);
    JS_TEST_CHECK(config.stream_slots != 0 && config.all_bytes != 0 && config.peer_bytes != 0);
    JS_TEST_CHECK(config.message_bytes != 0 && config.queue_slots != 0);
    JS_TEST_EQ_U64(config.sequence_start, 0);
    js_seg_config again = config;
    JS_TEST_EQ_I64(js_area_config_check(&again), JS_OK);
    JS_TEST_CHECK(memcmp(&again, &config, sizeof(config)) == 0);
}

static void test_ranges(void)
{
    static const struct {
        js_seg_config config;
        int32_t want;
    } rows[] = {
        { { .world = 0 }, JS_ERR_INVALID },
        { { .world = JS_RANKS_MAX }, JS_OK },
        { { .world = JS_RANKS_MAX + 1 }, JS_ERR_INVALID },
        { { .world = 2, .stream_slots = 4 }, JS_OK },
        { { .world = 2, .stream_slots = 2 }, JS_ERR_INVALID },
        { { .world = 2, .stream_slots = 48 }, JS_ERR_INVALID },
        { { .world = 2, .stream_slots = 32768 }, JS_OK },
        { { .world = 2, .stream_slots = 65536 }, JS_ERR_INVALID },
        { { .world = 2, .all_bytes = 262144 }, JS_OK },
        { { .world = 2, .all_bytes = 131072 }, JS_ERR_INVALID }, /* two of the largest frames */
        { { .world = 2, .all_bytes = 262145 }, JS_ERR_INVALID },
        { { .world = 2, .peer_bytes = 131072 }, JS_ERR_INVALID },
        { { .world = 2, .message_bytes = 65536 }, JS_OK },
        { { .world = 2, .message_bytes = 32768 }, JS_ERR_INVALID },
        { { .world = 2, .peer_bytes = 1ull << 30 }, JS_OK },
        { { .world = 2, .peer_bytes = 1ull << 31 }, JS_ERR_INVALID },
        { { .world = 2, .message_bytes = 1ull << 63 }, JS_ERR_INVALID },
        { { .world = 2, .queue_slots = 4 }, JS_OK },
        { { .world = 2, .queue_slots = 2 }, JS_ERR_INVALID },
        { { .world = 2, .queue_slots = 16384 }, JS_OK },
        { { .world = 2, .queue_slots = 32768 }, JS_ERR_INVALID },
        { { .world = 2, .sequence_start = 1 }, JS_OK },
        { { .world = 2, .sequence_start = UINT32_MAX - 63 }, JS_OK },
        { { .world = 2, .sequence_start = UINT32_MAX - 62 }, JS_ERR_INVALID },
        { { .world = 2, .stream_slots = 4, .sequence_start = UINT32_MAX - 3 }, JS_OK },
    };
    for (size_t i = 0; i < JS_ARRAY_LEN(rows); i++) {
        js_seg_config config = rows[i].config;
        int32_t got = js_area_config_check(&config);
        if (got != rows[i].want) {
            fprintf(stderr, "row %zu: %s\n", i, js_last_error()->text);
        }
        JS_TEST_EQ_I64(got, rows[i].want);
    }
}

/* The readers of a stream to all are the other ranks of its host, each with a number of its own. */
static void test_reader_numbers(void)
{
    static const uint16_t hosts[5] = { 0, 1, 0, 0, 1 };
    js_seg_config config = { .world = 5, .heap_bytes = 2u << 20 };
    js_seg *seg = NULL;
    JS_TEST_REQUIRE(js_seg_create(&config, &seg) == JS_OK);
    for (uint32_t source = 0; source < 5; source++) {
        const js_stream_reader *first = js_area_all_stream(&seg->world_area, source);
        uint32_t seen = 0;
        for (uint32_t reader = 0; reader < 5; reader++) {
            js_link_shm link;
            JS_TEST_REQUIRE(js_link_shm_open(&link, &seg->world_area, reader, hosts) == JS_OK);
            bool is_local = hosts[reader] == hosts[source];
            JS_TEST_CHECK(is_local || link.peer_tx[source].segment_bytes == 0);
            if (is_local && reader != source) {
                uint32_t number = (uint32_t)(link.all_rx[source].self - first);
                JS_TEST_CHECK((seen >> number & 1) == 0);
                seen |= 1u << number;
                JS_TEST_EQ_U64(link.all_tx.reader_count, hosts[reader] == 0 ? 2 : 1);
            } else {
                JS_TEST_CHECK(link.all_rx[source].lines == NULL);
            }
            js_link_shm_close(&link);
        }
        JS_TEST_EQ_U64(seen, hosts[source] == 0 ? 3 : 1);
    }
    js_seg_detach(seg);
}

JS_TEST_MAIN(JS_TEST(test_parts_are_disjoint), JS_TEST(test_defaults), JS_TEST(test_ranges),
             JS_TEST(test_reader_numbers))
