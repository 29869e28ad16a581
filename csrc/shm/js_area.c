/* Layout of one communicator in the segment. */
#include "js_area.h"

#include "js_assert.h"
#include "js_status.h"

#include <sys/mman.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* Linux 5.14 */
#endif

#define AREA_PAGE_BYTES 4096u
#define AREA_STREAM_SLOTS 64u
/* Rings deeper than a core's own cache: a slot comes back only after the readers' copies of it
 * have left their caches, and a write that invalidates nothing costs half. Large worlds get less
 * of it, so that a rank's rings of a kind stay about 8 MiB. Nobody touches what is not used. */
#define AREA_RANK_BYTES (8u << 20)
#define AREA_ALL_BYTES (4u << 20)
#define AREA_PEER_BYTES_MAX (4u << 20)
#define AREA_PEER_BYTES_MIN (256u << 10)
/* Two of the largest frames. */
#define AREA_COLLECTIVE_BYTES_LOW (2ull * JS_PLAN_CHUNK_BYTES_MAX)
#define AREA_MESSAGE_BYTES_LOW (64ull << 10)
#define AREA_MESSAGE_BYTES_MIN (128u << 10)
#define AREA_QUEUE_SLOTS 256u
#define AREA_BYTES_MAX (1u << 30)
/* Communicators beside that of the world: what one may take of its maker's heap, if it can be had
 * by making rings smaller. Fifty of up to 8 ranks fit into a heap of the default size. */
#define AREA_GROUP_BYTES (32u << 20)
#define AREA_GROUP_QUEUE_SLOTS 64u
#define AREA_GROUP_RECORD_SLOTS 256u

static int32_t area_check_pow2(const char *name, uint64_t value, uint64_t low, uint64_t high)
{
    if (!js_is_pow2(value) || value < low || value > high) {
        return JS_FAIL(JS_ERR_INVALID, "%s = %llu: needs a power of two from %llu to %llu", name,
                       (unsigned long long)value, (unsigned long long)low,
                       (unsigned long long)high);
    }
    return JS_OK;
}

static uint64_t area_peer_bytes(uint32_t world, uint64_t least_bytes)
{
    uint64_t bytes = AREA_PEER_BYTES_MAX;
    while (bytes > least_bytes && bytes * world > AREA_RANK_BYTES) {
        bytes /= 2;
    }
    return bytes;
}

/* Streams do not begin at zero (js_stream.h). */
static uint32_t area_first_psn(const js_seg_config *config)
{
    return config->sequence_start ? config->sequence_start : config->stream_slots;
}

int32_t js_area_config_check(js_seg_config *config)
{
    if (config->world < 1 || config->world > JS_RANKS_MAX) {
        return JS_FAIL(JS_ERR_INVALID, "world = %u: needs 1 to %d", config->world, JS_RANKS_MAX);
    }
    config->stream_slots = config->stream_slots ? config->stream_slots : AREA_STREAM_SLOTS;
    config->all_bytes = config->all_bytes ? config->all_bytes : AREA_ALL_BYTES;
    if (config->peer_bytes == 0) {
        config->peer_bytes = area_peer_bytes(config->world, AREA_PEER_BYTES_MIN);
    }
    if (config->message_bytes == 0) {
        config->message_bytes = area_peer_bytes(config->world, AREA_MESSAGE_BYTES_MIN);
    }
    config->queue_slots = config->queue_slots ? config->queue_slots : AREA_QUEUE_SLOTS;
    config->record_slots = config->record_slots ? config->record_slots : JS_RECORD_SLOTS;
    uint64_t low = AREA_COLLECTIVE_BYTES_LOW;
    JS_TRY(area_check_pow2("record_slots", config->record_slots, 4, 1u << 20));
    JS_TRY(area_check_pow2("stream_slots", config->stream_slots, 4, 32768));
    JS_TRY(area_check_pow2("all_bytes", config->all_bytes, low, AREA_BYTES_MAX));
    JS_TRY(area_check_pow2("peer_bytes", config->peer_bytes, low, AREA_BYTES_MAX));
    JS_TRY(area_check_pow2("message_bytes", config->message_bytes, AREA_MESSAGE_BYTES_LOW,
                           AREA_BYTES_MAX));
    if (!js_stream_start_fits(area_first_psn(config), config->stream_slots)) {
        return JS_FAIL(JS_ERR_INVALID, "sequence_start = %u: the first lap must not contain zero",
                       config->sequence_start);
    }
    return area_check_pow2("queue_slots", config->queue_slots, 4, 16384);
}

static js_stream_layout area_stream(const js_seg_config *config, uint32_t readers, uint64_t bytes)
{
    return (js_stream_layout){
        .reader_count = readers,
        .slots = config->stream_slots,
        .payload_bytes = bytes,
        .sequence_start = area_first_psn(config),
    };
}

static uint64_t area_record_bytes(const js_seg_config *config)
{
    return js_round_up(config->record_slots * sizeof(js_record), AREA_PAGE_BYTES);
}

static uint64_t area_bytes(const js_seg_config *config)
{
    js_area area;
    js_area_init(&area, NULL, config, 0);
    return area.end_offset;
}

void js_area_group_config(const js_seg_config *world, uint32_t count, js_seg_config *out)
{
    uint64_t low = AREA_COLLECTIVE_BYTES_LOW;
    *out = *world;
    out->world = count;
    out->heap_bytes = 0;
    out->queue_slots = (uint32_t)js_min_u64(world->queue_slots, AREA_GROUP_QUEUE_SLOTS);
    out->record_slots = (uint32_t)js_min_u64(world->record_slots, AREA_GROUP_RECORD_SLOTS);
    while (area_bytes(out) > AREA_GROUP_BYTES &&
           js_max_u64(out->all_bytes, out->peer_bytes) > low) {
        if (out->all_bytes >= out->peer_bytes) {
            out->all_bytes /= 2;
        } else {
            out->peer_bytes /= 2;
        }
        out->message_bytes =
            js_min_u64(out->message_bytes, js_max_u64(AREA_MESSAGE_BYTES_LOW, out->peer_bytes / 2));
    }
}

void js_area_init(js_area *area, uint8_t *base, const js_seg_config *config, uint64_t start_offset)
{
    uint64_t world = config->world;
    *area = (js_area){ .base = base, .config = *config };
    area->all_layout = area_stream(config, world > 1 ? config->world - 1 : 1, config->all_bytes);
    area->peer_layout = area_stream(config, 1, config->peer_bytes);
    area->message_layout = area_stream(config, 1, config->message_bytes);

    uint64_t at = start_offset;
    area->control_offset = at;
    at += js_round_up(sizeof(js_control), AREA_PAGE_BYTES);
    area->boards_offset = at;
    at += js_round_up(world * sizeof(js_board), AREA_PAGE_BYTES);
    area->counters_offset = at;
    at += js_round_up(world * JS_AREA_COUNTER_SLOTS * sizeof(uint64_t), AREA_PAGE_BYTES);
    area->records_offset = at;
    at += world * area_record_bytes(config);
    area->ports_offset = at;
    at += js_round_up(world * sizeof(js_area_port), AREA_PAGE_BYTES);
    area->all_offset = at;
    at += world * js_stream_bytes(&area->all_layout);
    area->peer_offset = at;
    at += world * world * js_stream_bytes(&area->peer_layout);
    area->message_offset = at;
    at += world * world * js_stream_bytes(&area->message_layout);
    area->end_offset = at;
}

void js_area_prefault(const js_area *area, uint32_t rank)
{
    uint64_t shared_bytes = area->records_offset - area->control_offset;
    (void)madvise(area->base + area->control_offset, shared_bytes, MADV_POPULATE_WRITE);
    (void)madvise(js_area_records(area, rank), area_record_bytes(&area->config),
                  MADV_POPULATE_WRITE);
}

js_control *js_area_control(const js_area *area)
{
    return (js_control *)(void *)(area->base + area->control_offset);
}

js_area_card *js_area_get_card(const js_area *area)
{
    return &js_area_control(area)->card;
}

js_board *js_area_board(const js_area *area, uint32_t rank)
{
    JS_ASSERT(rank < area->config.world);
    return (js_board *)(void *)(area->base + area->boards_offset) + rank;
}

uint64_t *js_area_counters(const js_area *area, uint32_t rank)
{
    JS_ASSERT(rank < area->config.world);
    return (uint64_t *)(void *)(area->base + area->counters_offset) + rank * JS_AREA_COUNTER_SLOTS;
}

js_record *js_area_records(const js_area *area, uint32_t rank)
{
    JS_ASSERT(rank < area->config.world);
    return (js_record *)(void *)(area->base + area->records_offset) +
           (size_t)rank * area->config.record_slots;
}

js_area_port *js_area_get_port(const js_area *area, uint32_t rank)
{
    JS_ASSERT(rank < area->config.world);
    return (js_area_port *)(void *)(area->base + area->ports_offset) + rank;
}

void *js_area_all_stream(const js_area *area, uint32_t source)
{
    return area->base + area->all_offset + source * js_stream_bytes(&area->all_layout);
}

void *js_area_peer_stream(const js_area *area, uint32_t source, uint32_t target)
{
    uint64_t index = (uint64_t)source * area->config.world + target;
    return area->base + area->peer_offset + index * js_stream_bytes(&area->peer_layout);
}

void *js_area_message_stream(const js_area *area, uint32_t source, uint32_t target)
{
    uint64_t index = (uint64_t)source * area->config.world + target;
    return area->base + area->message_offset + index * js_stream_bytes(&area->message_layout);
}
