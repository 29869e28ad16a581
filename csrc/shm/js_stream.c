/* Layout of a stream and the slow half of its flow control. */
#include "js_stream.h"

#include "js_assert.h"
#include "js_clock.h"

#define STREAM_PAGE_BYTES 4096u

static uint64_t stream_lines_offset(const js_stream_layout *layout)
{
    return (uint64_t)layout->reader_count * sizeof(js_stream_reader);
}

static uint64_t stream_payload_offset(const js_stream_layout *layout)
{
    uint64_t lines_end = stream_lines_offset(layout) + layout->slots * sizeof(js_stream_line);
    return js_round_up(lines_end, STREAM_PAGE_BYTES);
}

uint64_t js_stream_bytes(const js_stream_layout *layout)
{
    return js_round_up(stream_payload_offset(layout) + layout->payload_bytes, STREAM_PAGE_BYTES);
}

bool js_stream_start_fits(uint32_t sequence_start, uint32_t slots)
{
    uint32_t last = sequence_start + slots - 1;
    return sequence_start != 0 && last >= sequence_start;
}

/* How many frames reader number i has not consumed yet. */
static uint32_t stream_behind(const js_stream_tx *tx, uint32_t i)
{
    uint32_t sent = tx->psn - tx->sequence_start;
    return sent - js_load_acq_u32(&tx->readers[i].consumed);
}

void js_stream_open_tx(js_stream_tx *tx, void *memory, const js_stream_layout *layout,
                       uint64_t *ends, uint64_t route)
{
    uint8_t *base = memory;
    JS_ASSERT(js_is_pow2(layout->slots) && js_is_pow2(layout->payload_bytes));
    JS_ASSERT(js_stream_start_fits(layout->sequence_start, layout->slots));
    *tx = (js_stream_tx){
        .lines = (js_stream_line *)(void *)(base + stream_lines_offset(layout)),
        .payload = base + stream_payload_offset(layout),
        .readers = memory,
        .mask = layout->slots - 1,
        .sequence_start = layout->sequence_start,
        .reader_count = layout->reader_count,
        .psn = layout->sequence_start,
        .room_until = layout->sequence_start + layout->slots,
        .payload_bytes = layout->payload_bytes,
        .window_bytes = layout->payload_bytes,
        .segment = layout->segment,
        .segment_bytes = layout->segment_bytes,
        .ends = ends,
        .route = route,
    };
}

void js_stream_open_rx(js_stream_rx *rx, void *memory, const js_stream_layout *layout,
                       uint32_t reader)
{
    uint8_t *base = memory;
    JS_ASSERT(reader < layout->reader_count);
    *rx = (js_stream_rx){
        .lines = (js_stream_line *)(void *)(base + stream_lines_offset(layout)),
        .payload = base + stream_payload_offset(layout),
        .self = (js_stream_reader *)memory + reader,
        .mask = layout->slots - 1,
        .sequence_start = layout->sequence_start,
        .psn = layout->sequence_start,
        .payload_bytes = layout->payload_bytes,
        .segment = layout->segment,
        .segment_bytes = layout->segment_bytes,
    };
}

bool js_stream_is_consumed(const js_stream_tx *tx, uint32_t psn)
{
    uint32_t later = tx->psn - psn;
    for (uint32_t i = 0; i < tx->reader_count; i++) {
        if (stream_behind(tx, i) > later) {
            return false;
        }
    }
    return true;
}

js_stream_line *js_stream_peek_timed(js_stream_rx *rx)
{
    uint64_t start = js_clock_ticks_ordered();
    js_stream_line *line = js_stream_look(rx);
    uint64_t ticks = js_clock_ticks_ordered() - start;
    if (line == NULL) {
        rx->awaited = rx->psn;
    } else if (rx->awaited == rx->psn) { /* else it may have been fetched with the line before */
        rx->timed = rx->psn;
        js_distance_vote(rx->distance, ticks);
    }
    return line;
}

uint32_t js_stream_slowest(const js_stream_tx *tx)
{
    uint32_t slowest = 0;
    uint32_t most = 0;
    for (uint32_t i = 0; i < tx->reader_count; i++) {
        uint32_t behind = stream_behind(tx, i);
        if (behind > most) {
            most = behind;
            slowest = i;
        }
    }
    return slowest;
}

void js_stream_refresh(js_stream_tx *tx)
{
    uint32_t most = 0;
    for (uint32_t i = 0; i < tx->reader_count; i++) {
        uint32_t behind = stream_behind(tx, i);
        most = behind > most ? behind : most;
    }
    /* What is lent is not free before it has been taken back. */
    uint32_t held = tx->lent_count != 0 ? tx->psn - tx->lent_first : 0;
    most = held > most ? held : most;
    /* A reader cannot be more than a ring behind; a word that says so blocks the stream. The end
     * before a whole ring has been overwritten: then nothing becomes free, bytes neither. */
    most = most > tx->mask + 1 ? tx->mask + 1 : most;
    tx->room_until = tx->psn - most + tx->mask + 1;
    if (most <= tx->mask) {
        tx->tail = most == 0 ? tx->head : tx->ends[(tx->psn - most - 1) & tx->mask];
    }
}

bool js_stream_change_window(js_stream_tx *tx, uint64_t bytes)
{
    JS_ASSERT(js_is_pow2(bytes) && bytes <= tx->payload_bytes);
    js_stream_refresh(tx);
    if (tx->room_until - tx->psn <= tx->mask) {
        return false;
    }
    tx->head = js_round_up(tx->head, tx->payload_bytes);
    tx->tail = tx->head;
    tx->ends[(tx->psn - 1) & tx->mask] = tx->head; /* where the last frame ends, as of now */
    tx->window_bytes = bytes;
    return true;
}
