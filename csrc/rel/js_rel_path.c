/* The handshake's search for the longest frames that get through. A switch or tunnel that takes
 * less than the interface drops longer frames without a word, so only an answer proves a size.
 *
 * The first HELLO has the size that is wanted. As long as it is not answered, further rounds have
 * HELLOs of all lesser sizes too, the shortest first: so no link puts two of them together, as they
 * do with frames of falling size, and where a small buffer has no room for a whole round the next
 * one begins with what is proven. Once something is, so many more rounds have to be answered
 * without the longer ones that not chance can have lost these; then what is proven is taken. A peer
 * that does not run at the moment answers none. The two directions do not depend on each other. */
#include "js_rel_state.h"

void js_rel_path_begin(js_rel *rel, uint32_t probe_bytes)
{
    uint64_t most = js_max_u64(js_min_u64(probe_bytes, rel->config.mtu_bytes), JS_REL_MTU_MIN);
    rel->hello_bytes[0] = (uint16_t)most;
    rel->hello_sizes = 1;
    for (uint32_t i = 0; i < JS_REL_SIZES_MAX - 1; i++) {
        uint16_t bytes = rel->config.lesser_bytes[i];
        if (bytes >= JS_REL_MTU_MIN && bytes < rel->hello_bytes[rel->hello_sizes - 1]) {
            rel->hello_bytes[rel->hello_sizes++] = bytes;
        }
    }
}

/* The longest that the peer takes is not more than it says. */
static uint32_t path_wanted(const js_rel *rel)
{
    return (uint32_t)js_min_u64(rel->hello_bytes[0], rel->mtu_bytes);
}

static void path_settle(js_rel *rel)
{
    rel->has_hello_ack = true;
    rel->due &= ~(uint32_t)JS_REL_DUE_HELLO;
    js_rel_set_frame_bytes(rel, (uint32_t)js_min_u64(rel->mtu_bytes, rel->proven_bytes));
}

static void path_check(js_rel *rel)
{
    if (rel->proven_bytes != 0 && rel->proven_bytes >= path_wanted(rel)) {
        path_settle(rel);
    }
}

uint32_t js_rel_path_next_hello(js_rel *rel, uint64_t now_ns)
{
    if (rel->hello_next == 0) {
        rel->shake_tries++;
    }
    rel->shake_ns = now_ns;
    rel->timer_ns = 0;
    uint32_t count = 1; /* of this round: what is not proven, and what is as a witness */
    while (rel->shake_tries > 1 && count < rel->hello_sizes &&
           rel->hello_bytes[count] >= rel->proven_bytes) {
        count++;
    }
    uint32_t next = rel->hello_next++;
    if (rel->hello_next < count) {
        rel->due |= JS_REL_DUE_HELLO;
    } else {
        rel->hello_next = 0;
    }
    return rel->hello_bytes[next < count ? count - 1 - next : 0];
}

void js_rel_path_note_hello(js_rel *rel, const js_wire_frame *frame)
{
    uint32_t bytes = js_wire_size(frame) + frame->padding;
    rel->seen_bytes = (uint32_t)js_max_u64(rel->seen_bytes, js_max_u64(bytes, JS_REL_MTU_MIN));
    rel->has_hello = true;
    path_check(rel); /* its MTU is known now */
}

uint16_t js_rel_path_answer(const js_rel *rel)
{
    return (uint16_t)js_min_u64(rel->seen_bytes, rel->config.mtu_bytes);
}

bool js_rel_path_take_answer(js_rel *rel, uint32_t bytes)
{
    if (bytes > rel->hello_bytes[0]) {
        return false;
    }
    rel->proven_bytes = (uint32_t)js_max_u64(rel->proven_bytes, bytes);
    rel->is_answered = true;
    path_check(rel);
    return true;
}

void js_rel_path_note_data(js_rel *rel)
{
    uint32_t shortest = rel->shake_tries > 1 ? rel->hello_sizes - 1 : 0;
    (void)js_rel_path_take_answer(rel, rel->hello_bytes[shortest]);
}

bool js_rel_path_ends(js_rel *rel)
{
    bool has_left = rel->has_bye && rel->proven_bytes != 0; /* it will not answer any more */
    if (!rel->is_answered && !has_left) {
        rel->hello_silent++;
        return false; /* the peer is not there yet, or does not run at the moment */
    }
    rel->is_answered = false;
    rel->hello_silent = 0;
    if (++rel->hello_rounds <= JS_REL_SEARCH_ROUNDS && !has_left) {
        return false;
    }
    path_settle(rel);
    return true;
}
