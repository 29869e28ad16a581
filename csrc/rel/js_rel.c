/* A connection's life: its beginning and end, and what its owner hands in, sets and asks. */
#include "js_rel_state.h"

#include <string.h>

void js_rel_set_patience(js_rel *rel, uint64_t give_up_ns)
{
    rel->config.give_up_ns = give_up_ns;
}

size_t js_rel_bytes(void)
{
    return sizeof(js_rel);
}

void js_rel_set_frame_bytes(js_rel *rel, uint32_t bytes)
{
    rel->mtu_bytes = bytes;
    rel->part_bytes_max = bytes - JS_WIRE_PUT_BYTES - JS_WIRE_CRC_BYTES;
    rel->stats.frame_bytes = bytes;
}

void js_rel_init(js_rel *rel, const js_rel_config *config, const js_rel_sink *sink)
{
    memset(rel, 0, sizeof(*rel));
    rel->config = *config;
    rel->sink = *sink;
    rel->window = config->window;
    rel->share = config->window;
    rel->local_dcid = config->local_dcid;
    rel->local_epoch = config->local_epoch;
    rel->remote_dcid = config->remote_dcid;
    rel->remote_epoch = config->remote_epoch;
    rel->una = config->send_psn;
    rel->nxt = config->send_psn;
    rel->limit = config->send_psn;
    rel->rcv_nxt = config->receive_psn;
    rel->rcv_high = config->receive_psn;
    rel->promised = config->receive_psn;
    rel->trigger = config->receive_psn - 1;
    rel->rack_psn = config->send_psn;
    js_rel_set_frame_bytes(rel, config->mtu_bytes);
    rel->distance = JS_REL_DISTANCE_FRAMES;
    rel->reorder_steps = 1;
    rel->timer_ns = JS_REL_NEVER;
    rel->reorder_ns = JS_REL_NEVER;
    js_rel_set_timeouts(rel);
}

void js_rel_open(js_rel *rel, uint64_t now_ns, uint32_t probe_bytes)
{
    if (rel->was_open || rel->state != JS_REL_CLOSED) {
        return;
    }
    rel->state = JS_REL_OPENING;
    rel->was_open = true;
    js_rel_path_begin(rel, probe_bytes);
    rel->due |= JS_REL_DUE_HELLO;
    rel->shake_ns = now_ns;
    rel->heard_ns = now_ns;
    rel->await_ns = now_ns;
    rel->base_ns = now_ns;
    rel->timer_ns = now_ns;
}

void js_rel_close(js_rel *rel, uint64_t now_ns)
{
    if (rel->state == JS_REL_OPENING) {
        rel->chunk_first = rel->chunk_end; /* nothing has gone, and nothing will */
    } else if (rel->state != JS_REL_OPEN) {
        return;
    }
    rel->state = JS_REL_DRAINING;
    rel->due &= ~(uint32_t)JS_REL_DUE_HELLO;
    rel->is_asked = false;
    rel->shake_tries = 0;
    rel->await_ns = now_ns;
    rel->timer_ns = now_ns;
    js_rel_check_drained(rel, now_ns);
}

void js_rel_fail(js_rel *rel, js_rel_error error)
{
    if (rel->state == JS_REL_FAILED) {
        return;
    }
    rel->state = JS_REL_FAILED;
    rel->error = (uint8_t)error;
    rel->due = error == JS_REL_RESET ? 0 : JS_REL_DUE_RESET;
    rel->lost = 0;
    rel->received = 0;
    rel->unacked = 0;
    rel->timer_ns = JS_REL_NEVER;
}

void js_rel_abort(js_rel *rel, const void *note, uint32_t bytes)
{
    if (!rel->was_open) {
        rel->due = 0;
        rel->state = JS_REL_FAILED;
        return;
    }
    js_rel_set_note(rel, note, bytes);
    js_rel_fail(rel, JS_REL_OK);
    if (rel->error != JS_REL_RESET) {
        rel->due = JS_REL_DUE_RESET;
    }
}

bool js_rel_post(js_rel *rel, const js_rel_chunk *chunk)
{
    if (rel->chunk_end - rel->chunk_first >= JS_REL_CHUNKS_MAX ||
        (rel->state != JS_REL_OPEN && rel->state != JS_REL_OPENING)) {
        return false;
    }
    rel->chunks[rel->chunk_end & (JS_REL_CHUNKS_MAX - 1)] = *chunk;
    rel->chunk_end++;
    return true;
}

void js_rel_set_consumed(js_rel *rel, uint32_t channel, uint32_t chunks, uint32_t urge)
{
    rel->consumed[channel] = chunks;
    if (chunks - rel->consumed_told[channel] >= urge && chunks != rel->consumed_told[channel] &&
        js_rel_is_alive(rel)) {
        rel->due |= JS_REL_DUE_ACK_FULL;
    }
}

uint32_t js_rel_consumed(const js_rel *rel, uint32_t channel)
{
    return rel->peer_consumed[channel];
}

void js_rel_set_share(js_rel *rel, uint32_t frames)
{
    rel->share = frames < 1 ? 1 : frames > JS_REL_WINDOW_MAX ? JS_REL_WINDOW_MAX : frames;
}

void js_rel_set_note(js_rel *rel, const void *note, uint32_t bytes)
{
    rel->note_bytes = (uint32_t)js_min_u64(bytes, JS_WIRE_NOTE_BYTES_MAX);
    if (rel->note_bytes != 0) {
        memcpy(rel->note, note, rel->note_bytes);
    }
}

void js_rel_ask(js_rel *rel)
{
    if (rel->state == JS_REL_OPEN && !rel->is_asked && !rel->has_bye) {
        rel->is_asked = true;
        rel->ask_tries = 0;
        rel->due |= JS_REL_DUE_PROBE;
    }
}

js_rel_state js_rel_get_state(const js_rel *rel)
{
    return (js_rel_state)rel->state;
}

js_rel_error js_rel_get_error(const js_rel *rel)
{
    return (js_rel_error)rel->error;
}

uint32_t js_rel_frame_bytes(const js_rel *rel)
{
    return rel->mtu_bytes;
}

bool js_rel_has_backlog(const js_rel *rel)
{
    return rel->chunk_first != rel->chunk_end && rel->state != JS_REL_FAILED;
}

bool js_rel_is_quiet(const js_rel *rel)
{
    return rel->una == rel->nxt && rel->chunk_first == rel->chunk_end;
}

const js_rel_stats *js_rel_get_stats(const js_rel *rel)
{
    return &rel->stats;
}
