/* What goes out next, and how it looks: control frames, acknowledgements, repeats, new data. */
#include "js_rel_state.h"

#include <string.h>

/* The limit of PSNs that is promised from now on; it never goes back. */
static uint16_t send_credit(js_rel *rel)
{
    uint32_t limit = rel->rcv_nxt + rel->share;
    if (js_rel_before(rel->promised, limit)) {
        rel->promised = limit;
    }
    return (uint16_t)rel->promised;
}

static void send_count(js_rel *rel, uint32_t bytes)
{
    rel->stats.frames_sent++;
    rel->stats.bytes_sent += bytes;
}

/* Encodes a data frame that is in flight now. */
static uint32_t send_data(js_rel *rel, const js_rel_sent *sent, uint32_t psn, uint8_t more_flags,
                          uint8_t *out)
{
    js_wire_frame frame;
    frame.opcode = sent->opcode;
    frame.channel = sent->channel;
    frame.flags = sent->flags | more_flags;
    frame.dcid = rel->remote_dcid;
    frame.epoch = rel->remote_epoch;
    frame.psn = psn;
    frame.ack = (uint16_t)rel->rcv_nxt;
    frame.credit = send_credit(rel);
    frame.bytes = sent->bytes;
    frame.fragment = sent->fragment;
    frame.imm = sent->imm;
    frame.offset = sent->offset;
    frame.total_bytes = sent->total_bytes;
    frame.payload = sent->payload;
    uint32_t bytes = js_wire_encode(&frame, 0, out);
    send_count(rel, bytes);
    return bytes;
}

static uint32_t send_ack(js_rel *rel, uint64_t now_ns, uint8_t *out)
{
    js_rel_bits sack = rel->received >> 1;
    uint64_t delay = (now_ns - rel->trigger_ns) >> 6;
    js_wire_frame frame = {
        .opcode = JS_WIRE_ACK,
        .flags = rel->trigger_is_repeat ? JS_WIRE_FLAG_RETX : 0,
        .dcid = rel->remote_dcid,
        .epoch = rel->remote_epoch,
        .psn = rel->nxt,
        .ack = (uint16_t)rel->rcv_nxt,
        .credit = send_credit(rel),
        .sack = { (uint64_t)sack, (uint64_t)(sack >> 64) },
        .trigger = rel->trigger,
        .delay = (uint16_t)js_min_u64(delay, UINT16_MAX),
    };
    for (uint32_t i = 0; i < JS_WIRE_CHANNELS; i++) {
        frame.consumed[i] = (uint16_t)rel->consumed[i];
        rel->consumed_told[i] = rel->consumed[i];
    }
    rel->unacked = 0;
    rel->due &= ~(uint32_t)JS_REL_DUE_ACKS;
    rel->stats.acks_sent++;
    uint32_t bytes = js_wire_encode(&frame, 0, out);
    send_count(rel, bytes);
    return bytes;
}

/* What sending a control frame changes. */
static uint8_t send_note_control(js_rel *rel, uint64_t now_ns, uint32_t bit)
{
    switch (bit) {
    case JS_REL_DUE_RESET:
        return JS_WIRE_RESET;
    case JS_REL_DUE_HELLO_ACK:
        return JS_WIRE_HELLO_ACK;
    case JS_REL_DUE_HELLO:
        return JS_WIRE_HELLO;
    case JS_REL_DUE_BYE:
        rel->shake_ns = now_ns;
        rel->shake_tries++;
        rel->timer_ns = 0;
        return JS_WIRE_BYE;
    case JS_REL_DUE_BYE_ACK:
        return JS_WIRE_BYE_ACK;
    case JS_REL_DUE_PROBE_ACK:
        return JS_WIRE_PROBE_ACK;
    default:
        break;
    }
    rel->stats.probes++;
    if (rel->probe_ns == 0) {
        rel->probe_ns = now_ns;
        rel->probe_psn = rel->nxt;
    }
    if (rel->is_asked) {
        if (rel->ask_tries == 0 && js_rel_is_quiet(rel)) {
            rel->await_ns = now_ns;
        }
        rel->ask_ns = now_ns;
        rel->ask_tries++;
    }
    rel->timer_ns = 0;
    return JS_WIRE_PROBE;
}

static uint32_t send_control(js_rel *rel, uint64_t now_ns, uint8_t *out)
{
    uint32_t bit = rel->due & (0u - rel->due);
    rel->due &= ~bit;
    js_wire_frame frame = {
        .opcode = send_note_control(rel, now_ns, bit),
        .dcid = rel->remote_dcid,
        .epoch = rel->remote_epoch,
        .psn = rel->nxt,
        .ack = (uint16_t)rel->rcv_nxt,
        .credit = send_credit(rel),
        .key = rel->config.remote_key,
        .mtu =
            bit == JS_REL_DUE_HELLO_ACK ? js_rel_path_answer(rel) : (uint16_t)rel->config.mtu_bytes,
    };
    bool has_note =
        (bit & (JS_REL_DUE_RESET | JS_REL_DUE_BYE | JS_REL_DUE_PROBE | JS_REL_DUE_PROBE_ACK)) != 0;
    if (has_note) {
        uint32_t room = rel->mtu_bytes - JS_WIRE_CONTROL_BYTES - JS_WIRE_CRC_BYTES;
        frame.bytes = (uint16_t)js_min_u64(rel->note_bytes, room);
        frame.payload = rel->note;
    }
    uint32_t padded = bit == JS_REL_DUE_HELLO ? js_rel_path_next_hello(rel, now_ns) : 0;
    uint32_t bytes = js_wire_encode(&frame, padded, out);
    send_count(rel, bytes);
    return bytes;
}

static uint32_t send_repeat(js_rel *rel, uint64_t now_ns, uint8_t *out)
{
    uint32_t index = js_rel_lowest(rel->lost);
    js_rel_sent *sent = js_rel_sent_of(rel, rel->una + index);
    rel->lost &= rel->lost - 1;
    rel->repeated |= js_rel_bit(index);
    sent->repeats = (uint8_t)js_min_u64(sent->repeats + 1u, UINT8_MAX);
    sent->sent_ns = now_ns;
    rel->base_ns = now_ns;
    rel->timer_ns = 0;
    rel->stats.retransmits++;
    if (rel->reorder_keep != 0 && --rel->reorder_keep == 0) {
        rel->reorder_steps = 1;
        rel->distance = JS_REL_DISTANCE_FRAMES;
    }
    return send_data(rel, sent, rel->una + index, JS_WIRE_FLAG_RETX, out);
}

/* In how large parts a chunk of several frames goes: as few as there can be, of one size, since a
 * link sends frames of one size with one system call. */
static uint32_t send_divide(const js_rel *rel, uint32_t bytes)
{
    uint32_t count = (bytes + rel->part_bytes_max - 1) / rel->part_bytes_max;
    uint32_t part_bytes = (uint32_t)js_round_up((bytes + count - 1) / count, 8);
    return (uint32_t)js_min_u64(part_bytes, rel->part_bytes_max);
}

/* Takes the next frame from the first chunk; returns whether that was its last. */
static bool send_cut(js_rel *rel, js_rel_sent *sent)
{
    const js_rel_chunk *chunk = &rel->chunks[rel->chunk_first & (JS_REL_CHUNKS_MAX - 1)];
    sent->imm = chunk->imm;
    sent->fragment = chunk->fragment;
    sent->channel = chunk->channel;
    sent->flags = chunk->flags;
    sent->repeats = 0;
    if (JS_LIKELY(chunk->bytes <= JS_WIRE_INLINE_BYTES)) {
        sent->opcode = JS_WIRE_SEND;
        sent->payload = chunk->payload;
        sent->bytes = (uint16_t)chunk->bytes;
        sent->offset = 0;
        sent->total_bytes = 0;
    } else {
        uint32_t done = rel->chunk_sent_bytes;
        if (done == 0) {
            rel->part_bytes = send_divide(rel, chunk->bytes);
        }
        uint32_t bytes = (uint32_t)js_min_u64(chunk->bytes - done, rel->part_bytes);
        sent->opcode = JS_WIRE_PUT;
        sent->payload = chunk->payload + done;
        sent->bytes = (uint16_t)bytes;
        sent->offset = chunk->offset + done;
        sent->total_bytes = chunk->bytes;
        if (done + bytes != chunk->bytes) {
            sent->flags |= JS_WIRE_FLAG_MORE;
            rel->chunk_sent_bytes = done + bytes;
            return false;
        }
    }
    rel->chunk_sent_bytes = 0;
    rel->chunk_first++;
    rel->chunks_posted[sent->channel]++;
    rel->stats.chunks_sent++;
    return true;
}

static uint32_t send_new(js_rel *rel, uint64_t now_ns, uint8_t *out)
{
    uint32_t psn = rel->nxt;
    js_rel_sent *sent = js_rel_sent_of(rel, psn);
    bool ends = send_cut(rel, sent) && rel->chunk_first == rel->chunk_end;
    sent->first_ns = now_ns;
    sent->sent_ns = now_ns;
    if (psn == rel->una) {
        rel->await_ns = now_ns;
        rel->idle_tries = 0;
        rel->timer_ns = js_min_u64(rel->timer_ns, now_ns + rel->pto_ns);
    }
    rel->nxt = psn + 1;
    rel->base_ns = now_ns;
    rel->is_stalled = false;
    uint32_t flight = rel->nxt - rel->una;
    bool closes = flight >= rel->window || rel->nxt == rel->limit;
    bool wants_ack = closes || (ends && flight >= JS_REL_BURST_FRAMES);
    /* It carries the acknowledgement, but cannot say what is missing. */
    if (JS_LIKELY(rel->received == 0)) {
        rel->unacked = 0;
        rel->due &= ~(uint32_t)JS_REL_DUE_ACK;
    }
    return send_data(rel, sent, psn, wants_ack ? JS_WIRE_FLAG_ACKREQ : 0, out);
}

/* New data waits, and the window is closed. */
static void send_note_stall(js_rel *rel, uint64_t now_ns)
{
    if (rel->chunk_first == rel->chunk_end || rel->is_stalled || rel->state == JS_REL_OPENING) {
        return;
    }
    rel->is_stalled = true;
    if (rel->una == rel->nxt) {
        rel->await_ns = now_ns;
    }
    if (rel->nxt - rel->una >= rel->window) {
        rel->stats.window_stalls++;
    } else {
        rel->stats.credit_stalls++;
    }
    rel->timer_ns = js_min_u64(rel->timer_ns, now_ns + rel->pto_ns);
}

uint32_t js_rel_tx(js_rel *rel, uint64_t now_ns, uint8_t *out)
{
    if (JS_UNLIKELY(now_ns >= rel->timer_ns)) {
        js_rel_run_timers(rel, now_ns);
    }
    if (JS_UNLIKELY((rel->due & JS_REL_DUE_CONTROL) != 0)) {
        return send_control(rel, now_ns, out);
    }
    bool can_send = js_rel_can_send(rel);
    if (JS_UNLIKELY((rel->due & JS_REL_DUE_ACKS) != 0)) {
        bool can_ride = can_send && rel->received == 0 && (rel->due & JS_REL_DUE_ACK_FULL) == 0;
        if (!can_ride) {
            return send_ack(rel, now_ns, out);
        }
    }
    if (JS_UNLIKELY(rel->lost != 0)) {
        return send_repeat(rel, now_ns, out);
    }
    if (can_send) {
        return send_new(rel, now_ns, out);
    }
    send_note_stall(rel, now_ns);
    if (rel->unacked != 0 && now_ns >= rel->ack_due_ns && rel->state != JS_REL_FAILED) {
        return send_ack(rel, now_ns, out);
    }
    return 0;
}
