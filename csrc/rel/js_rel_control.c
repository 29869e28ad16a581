/* Control frames of the peer: the handshake, probes, the end. They carry the key of the
 * connection; none of them changes anything unless it is right. */
#include "js_rel_state.h"

void js_rel_become_open(js_rel *rel, uint64_t now_ns)
{
    rel->state = JS_REL_OPEN;
    rel->shake_tries = 0;
    rel->due &= ~(uint32_t)JS_REL_DUE_HELLO;
    rel->backoff = 0;
    rel->base_ns = now_ns;
    rel->timer_ns = now_ns;
}

void js_rel_check_drained(js_rel *rel, uint64_t now_ns)
{
    if (rel->state != JS_REL_DRAINING || !js_rel_is_quiet(rel) || rel->shake_tries != 0) {
        return;
    }
    rel->due |= JS_REL_DUE_BYE;
    rel->shake_ns = now_ns;
    rel->timer_ns = now_ns;
    if (rel->has_bye) {
        rel->state = JS_REL_CLOSED; /* the peer waits for nothing more than this */
    }
}

/* Takes what a frame of the handshake says about the peer; false: it is impossible. */
static bool control_take_hello(js_rel *rel, const js_wire_frame *frame)
{
    uint16_t credit = (uint16_t)(frame->credit - frame->ack);
    bool is_answer = frame->opcode == JS_WIRE_HELLO_ACK;
    if (frame->mtu < JS_REL_MTU_MIN || credit > JS_REL_WINDOW_MAX) {
        return false;
    }
    if (rel->state != JS_REL_OPENING) {
        return true; /* a late copy */
    }
    if (frame->ack != (uint16_t)rel->una ||
        (is_answer && !js_rel_path_take_answer(rel, frame->mtu))) {
        return false;
    }
    uint32_t limit = rel->una + credit;
    if (js_rel_before(rel->limit, limit)) {
        rel->limit = limit;
    }
    if (!is_answer) {
        rel->mtu_bytes = (uint32_t)js_min_u64(rel->mtu_bytes, frame->mtu);
    }
    return true;
}

static js_wire_reason control_shake(js_rel *rel, uint64_t now_ns, const js_wire_frame *frame)
{
    bool is_first = rel->proven_bytes == 0;
    if (!control_take_hello(rel, frame)) {
        return JS_WIRE_WINDOW;
    }
    if (frame->opcode == JS_WIRE_HELLO) {
        rel->due |= JS_REL_DUE_HELLO_ACK;
        js_rel_path_note_hello(rel, frame);
    } else if (rel->state == JS_REL_OPENING) {
        if (is_first && rel->shake_tries == 1 && rel->shake_ns >= rel->sample_from_ns &&
            now_ns > rel->shake_ns) {
            js_rel_sample(rel, now_ns - rel->shake_ns);
        }
    }
    if (rel->state == JS_REL_OPENING && rel->has_hello && rel->has_hello_ack) {
        js_rel_become_open(rel, now_ns);
    }
    return JS_WIRE_OK;
}

static void control_tell(js_rel *rel, const js_wire_frame *frame)
{
    if (rel->sink.note != NULL) {
        rel->sink.note(rel->sink.context, frame->opcode, frame->payload, frame->bytes);
    }
}

/* The peer has seen a PROBE, so it had time to see everything sent before it. What of that it has
 * not seen is told by the ACK that comes behind: one that came before may be older. */
static void control_probe_ack(js_rel *rel)
{
    rel->is_asked = false;
    rel->is_probe_answered = rel->probe_ns != 0;
}

/* The peer has nothing more to send, and everything that it was sent. */
static void control_bye(js_rel *rel, uint64_t now_ns, const js_wire_frame *frame)
{
    rel->has_bye = true;
    rel->is_asked = false; /* it will not answer any more */
    rel->due |= JS_REL_DUE_BYE_ACK;
    uint32_t flight = rel->nxt - rel->una;
    if (flight != 0 && frame->ack == (uint16_t)rel->nxt) {
        js_rel_take_ack(rel, now_ns, rel->nxt);
    }
    if (rel->state == JS_REL_DRAINING && js_rel_is_quiet(rel)) {
        rel->state = JS_REL_CLOSED;
    }
}

js_wire_reason js_rel_rx_control(js_rel *rel, uint64_t now_ns, const js_wire_frame *frame)
{
    if (frame->key != rel->config.local_key) {
        return JS_WIRE_KEY;
    }
    if (js_rel_before(rel->promised, frame->psn)) {
        return JS_WIRE_WINDOW;
    }
    if (rel->state == JS_REL_FAILED) {
        if (rel->error != JS_REL_RESET && frame->opcode != JS_WIRE_RESET) {
            rel->due |= JS_REL_DUE_RESET;
        }
        return JS_WIRE_STALE;
    }
    if (frame->opcode == JS_WIRE_HELLO || frame->opcode == JS_WIRE_HELLO_ACK) {
        return control_shake(rel, now_ns, frame);
    }
    if (frame->opcode == JS_WIRE_RESET) {
        if (rel->state == JS_REL_CLOSED) {
            return JS_WIRE_STALE;
        }
        js_rel_fail(rel, JS_REL_RESET);
        control_tell(rel, frame);
        return JS_WIRE_OK;
    }
    if (rel->state == JS_REL_OPENING && !rel->has_hello) {
        return JS_WIRE_STALE;
    }
    if (frame->opcode == JS_WIRE_PROBE) {
        rel->due |= JS_REL_DUE_PROBE_ACK | JS_REL_DUE_ACK_FULL;
        control_tell(rel, frame);
    } else if (frame->opcode == JS_WIRE_PROBE_ACK) {
        control_probe_ack(rel);
        control_tell(rel, frame);
    } else if (frame->opcode == JS_WIRE_BYE) {
        control_bye(rel, now_ns, frame);
        control_tell(rel, frame);
    } else if (frame->opcode == JS_WIRE_BYE_ACK && rel->state == JS_REL_DRAINING &&
               rel->shake_tries != 0) {
        rel->state = JS_REL_CLOSED;
        rel->due &= ~(uint32_t)JS_REL_DUE_BYE;
    }
    return JS_WIRE_OK;
}
