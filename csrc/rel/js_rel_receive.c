/* Data frames: which are taken, where they go, when their chunks are delivered, and when the peer
 * is told. */
#include "js_rel_state.h"

#include <string.h>

/* Everything that can be wrong with a frame that is in the window, its place aside. */
static js_wire_reason receive_check(const js_rel *rel, const js_wire_frame *frame,
                                    uint32_t *out_ack)
{
    uint32_t ack = js_rel_extend(rel->una, frame->ack);
    uint16_t credit = (uint16_t)(frame->credit - frame->ack);
    if (JS_UNLIKELY(!js_rel_is_possible_ack(rel, ack) || credit > JS_REL_WINDOW_MAX)) {
        return JS_WIRE_WINDOW;
    }
    *out_ack = ack;
    if (frame->opcode == JS_WIRE_SEND) {
        return JS_WIRE_OK;
    }
    uint64_t end = (uint64_t)frame->offset + frame->bytes;
    bool is_inside = frame->total_bytes <= JS_REL_CHUNK_BYTES_MAX &&
                     frame->bytes <= frame->total_bytes &&
                     end <= rel->config.ring_bytes[frame->channel];
    if (JS_UNLIKELY(!is_inside || !rel->sink.place(rel->sink.context, frame->channel, frame->offset,
                                                   frame->payload, frame->bytes))) {
        return JS_WIRE_PLACE;
    }
    return JS_WIRE_OK;
}

/* A frame that has come before. If its acknowledgement may have been lost, it is repeated. */
static js_wire_reason receive_duplicate(js_rel *rel, uint64_t now_ns, const js_wire_frame *frame)
{
    rel->stats.duplicates++;
    if (rel->rcv_nxt - frame->psn <= JS_REL_WINDOW_MAX ||
        !js_rel_before(frame->psn, rel->rcv_nxt)) {
        rel->trigger = frame->psn;
        rel->trigger_ns = now_ns;
        rel->trigger_is_repeat = (frame->flags & JS_WIRE_FLAG_RETX) != 0;
        rel->due |= JS_REL_DUE_ACK_FULL;
    }
    return JS_WIRE_OK;
}

static void receive_deliver(js_rel *rel, const js_rel_chunk *chunk)
{
    rel->stats.chunks_received++;
    rel->sink.deliver(rel->sink.context, chunk);
}

/* A part of a chunk of several, in order; false: it does not fit those before. */
static bool receive_join(js_rel *rel, const js_rel_part *part)
{
    js_rel_chunk *open = &rel->open;
    uint32_t done = rel->open_done_bytes;
    if (done == 0) {
        *open = (js_rel_chunk){
            .bytes = part->total_bytes,
            .offset = part->offset,
            .imm = part->imm,
            .fragment = part->fragment,
            .channel = part->channel,
            .flags = part->flags & (JS_WIRE_FLAG_SOM | JS_WIRE_FLAG_EOM),
        };
    } else if (part->total_bytes != open->bytes || part->offset != open->offset + done ||
               part->imm != open->imm || part->fragment != open->fragment ||
               part->channel != open->channel) {
        return false;
    }
    done += part->bytes;
    bool has_more = (part->flags & JS_WIRE_FLAG_MORE) != 0;
    if (done > open->bytes || (done < open->bytes) != has_more) {
        return false;
    }
    rel->open_done_bytes = has_more ? done : 0;
    if (!has_more) {
        receive_deliver(rel, open);
    }
    return true;
}

/* Hands on the next part in order; false: the peer broke the protocol. */
static bool receive_take(js_rel *rel, const js_rel_part *part)
{
    rel->rcv_nxt++;
    if (part->opcode == JS_WIRE_PUT) {
        return receive_join(rel, part);
    }
    if (rel->open_done_bytes != 0) {
        return false;
    }
    js_rel_chunk chunk = {
        .payload = part->payload,
        .bytes = part->bytes,
        .imm = part->imm,
        .fragment = part->fragment,
        .channel = part->channel,
        .flags = part->flags & (JS_WIRE_FLAG_SOM | JS_WIRE_FLAG_EOM),
    };
    receive_deliver(rel, &chunk);
    return true;
}

static void receive_keep(js_rel_part *part, const js_wire_frame *frame)
{
    part->offset = frame->offset;
    part->total_bytes = frame->total_bytes;
    part->imm = frame->imm;
    part->fragment = frame->fragment;
    part->bytes = frame->bytes;
    part->opcode = frame->opcode;
    part->channel = frame->channel;
    part->flags = frame->flags;
    if (frame->opcode == JS_WIRE_SEND && frame->bytes != 0) {
        memcpy(part->payload, frame->payload, frame->bytes);
    }
}

/* In order, and nothing waits behind it: no need to keep it first. */
static bool receive_in_order(js_rel *rel, const js_wire_frame *frame)
{
    if (JS_UNLIKELY(frame->opcode != JS_WIRE_SEND)) {
        js_rel_part part;
        receive_keep(&part, frame);
        return receive_take(rel, &part);
    }
    if (JS_UNLIKELY(rel->open_done_bytes != 0)) {
        return false;
    }
    rel->rcv_nxt++;
    js_rel_chunk chunk = {
        .payload = frame->payload,
        .bytes = frame->bytes,
        .imm = frame->imm,
        .fragment = frame->fragment,
        .channel = frame->channel,
        .flags = frame->flags & (JS_WIRE_FLAG_SOM | JS_WIRE_FLAG_EOM),
    };
    receive_deliver(rel, &chunk);
    return true;
}

/* Keeps the frame, then hands on all that are in order now. */
static bool receive_out_of_order(js_rel *rel, const js_wire_frame *frame)
{
    receive_keep(&rel->parts[frame->psn & JS_REL_INDEX], frame);
    rel->received |= js_rel_bit(frame->psn - rel->rcv_nxt);
    while ((rel->received & 1) != 0) {
        rel->received >>= 1;
        if (!receive_take(rel, &rel->parts[rel->rcv_nxt & JS_REL_INDEX])) {
            return false;
        }
    }
    return true;
}

/* Decides when this frame is acknowledged. */
static void receive_note_ack(js_rel *rel, uint64_t now_ns, const js_wire_frame *frame,
                             bool is_newest)
{
    rel->trigger = frame->psn;
    rel->trigger_ns = now_ns;
    rel->trigger_is_repeat = (frame->flags & JS_WIRE_FLAG_RETX) != 0;
    if (rel->unacked++ == 0) {
        rel->ack_due_ns = now_ns + rel->config.ack_delay_ns;
    }
    uint32_t every = JS_REL_ACK_EVERY;
    if (JS_UNLIKELY(rel->received != 0)) {
        every = JS_REL_ACK_EVERY_GAP;
    } else if (JS_UNLIKELY(rel->share < 2 * JS_REL_ACK_EVERY)) {
        every = (rel->share + 1) / 2;
    }
    if (JS_UNLIKELY(!is_newest)) {
        rel->due |= JS_REL_DUE_ACK_FULL;
    } else if ((frame->flags & JS_WIRE_FLAG_ACKREQ) != 0 || rel->unacked >= every) {
        rel->due |= JS_REL_DUE_ACK;
    }
}

js_wire_reason js_rel_rx_data(js_rel *rel, uint64_t now_ns, const js_wire_frame *frame)
{
    uint32_t ahead = frame->psn - rel->rcv_nxt;
    if (JS_UNLIKELY((int32_t)ahead < 0)) {
        return receive_duplicate(rel, now_ns, frame);
    }
    if (JS_UNLIKELY(!js_rel_before(frame->psn, rel->promised))) {
        return JS_WIRE_WINDOW;
    }
    if (JS_UNLIKELY((rel->received & js_rel_bit(ahead)) != 0)) {
        return receive_duplicate(rel, now_ns, frame);
    }
    uint32_t ack = 0;
    js_wire_reason reason = receive_check(rel, frame, &ack);
    if (JS_UNLIKELY(reason != JS_WIRE_OK)) {
        return reason;
    }
    /* Only the newest frame has something new to say about acknowledgement: what comes late might
     * be so old that its 16 bits mean another PSN. */
    bool is_newest = !js_rel_before(frame->psn, rel->rcv_high);
    bool opens_gap = frame->psn != rel->rcv_high;
    if (JS_LIKELY(is_newest)) {
        rel->rcv_high = frame->psn + 1;
        uint32_t credit = ack + (uint16_t)(frame->credit - frame->ack);
        if (js_rel_before(rel->limit, credit)) {
            rel->limit = credit;
        }
        if (js_rel_before(rel->una, ack)) {
            js_rel_take_ack(rel, now_ns, ack);
        }
    }
    bool is_sound = JS_LIKELY(ahead == 0 && rel->received == 0) ? receive_in_order(rel, frame)
                                                                : receive_out_of_order(rel, frame);
    if (JS_UNLIKELY(!is_sound)) {
        js_rel_fail(rel, JS_REL_BROKEN);
        return JS_WIRE_OK;
    }
    receive_note_ack(rel, now_ns, frame, is_newest && !opens_gap);
    return JS_WIRE_OK;
}

/* Bytes of the frame without padding. */
static uint32_t receive_bytes(const js_wire_frame *frame)
{
    uint32_t header = frame->opcode == JS_WIRE_SEND  ? JS_WIRE_SEND_BYTES
                      : frame->opcode == JS_WIRE_PUT ? JS_WIRE_PUT_BYTES
                      : frame->opcode == JS_WIRE_ACK ? JS_WIRE_ACK_BYTES
                                                     : JS_WIRE_CONTROL_BYTES;
    return header + frame->bytes + JS_WIRE_CRC_BYTES;
}

/* By opcode and state, once dcid and epoch are known to be right. */
static js_wire_reason receive_dispatch(js_rel *rel, uint64_t now_ns, const js_wire_frame *frame)
{
    if (JS_UNLIKELY(!js_wire_is_data(frame->opcode) && frame->opcode != JS_WIRE_ACK)) {
        return js_rel_rx_control(rel, now_ns, frame);
    }
    if (JS_UNLIKELY(rel->state != JS_REL_OPEN)) {
        if (rel->state == JS_REL_FAILED) {
            rel->due |= rel->error != JS_REL_RESET ? JS_REL_DUE_RESET : 0;
            return JS_WIRE_STALE;
        }
        /* Whoever sends data has seen its side of the handshake through. */
        if (rel->state == JS_REL_OPENING && (!rel->has_hello || frame->opcode == JS_WIRE_ACK)) {
            return JS_WIRE_STALE;
        }
    }
    if (frame->opcode == JS_WIRE_ACK) {
        return js_rel_rx_ack(rel, now_ns, frame);
    }
    if (JS_UNLIKELY(frame->channel >= JS_WIRE_CHANNELS ||
                    (frame->opcode == JS_WIRE_SEND && frame->bytes > JS_WIRE_INLINE_BYTES))) {
        return JS_WIRE_HEADER;
    }
    js_wire_reason reason = js_rel_rx_data(rel, now_ns, frame);
    if (JS_UNLIKELY(rel->state == JS_REL_OPENING && reason == JS_WIRE_OK)) {
        js_rel_path_note_data(rel);
        if (rel->has_hello_ack) {
            js_rel_become_open(rel, now_ns);
        }
    }
    return reason;
}

js_wire_reason js_rel_rx(js_rel *rel, uint64_t now_ns, const js_wire_frame *frame)
{
    js_wire_reason reason = JS_WIRE_STALE;
    if (JS_LIKELY(frame->dcid == rel->local_dcid && frame->epoch == rel->local_epoch &&
                  rel->was_open)) {
        reason = receive_dispatch(rel, now_ns, frame);
    }
    if (JS_UNLIKELY(reason != JS_WIRE_OK)) {
        rel->stats.refused[reason]++;
        return reason;
    }
    rel->heard_ns = now_ns;
    rel->stats.frames_received++;
    rel->stats.bytes_received += receive_bytes(frame);
    return JS_WIRE_OK;
}
