/* What must hold after every event, seen by one who looks into both sides at once. */
#include "js_sim.h"

#include <string.h>

/* From sender `a` to receiver `b`. */
static int32_t check_way(const js_sim *sim, const js_sim_side *from, const js_sim_side *to)
{
    const js_rel *a = from->rel;
    const js_rel *b = to->rel;
    uint32_t flight = a->nxt - a->una;
    bool is_ordered = !js_rel_before(b->rcv_nxt, a->una) && !js_rel_before(a->nxt, b->rcv_nxt) &&
                      !js_rel_before(b->promised, a->nxt) && !js_rel_before(b->promised, a->limit);
    if (!is_ordered || flight > sim->config.window) {
        return JS_SIM_WINDOW;
    }
    if (js_rel_before(b->promised, to->promised) || b->promised - b->rcv_nxt > JS_REL_WINDOW_MAX) {
        return JS_SIM_CREDIT;
    }
    js_rel_bits sacked = a->sacked;
    while (sacked != 0) {
        uint32_t psn = a->una + js_rel_lowest(sacked);
        sacked &= sacked - 1;
        bool has_come =
            js_rel_before(psn, b->rcv_nxt) || ((b->received >> (psn - b->rcv_nxt)) & 1) != 0;
        if (!has_come) {
            return JS_SIM_SACK;
        }
    }
    /* What nobody has been told to free must not be taken for free. */
    if (js_rel_before(to->read_count, js_rel_consumed(a, 0))) {
        return JS_SIM_CONSUMED;
    }
    return a->state == JS_REL_FAILED ? JS_SIM_LOST : JS_SIM_OK;
}

void js_sim_check(js_sim *sim)
{
    for (uint32_t i = 0; i < 2; i++) {
        js_sim_side *to = &sim->sides[1 - i];
        int32_t verdict = check_way(sim, &sim->sides[i], to);
        to->promised = to->rel->promised;
        if (verdict != JS_SIM_OK) {
            js_sim_fail(sim, &sim->sides[i], verdict);
        }
    }
}

/* Is it the refusal that a genuine frame may meet: before the other side is open, or for good? */
static bool check_may_refuse(const js_sim_side *side, js_wire_reason reason)
{
    return reason == JS_WIRE_STALE && js_rel_get_state(side->rel) != JS_REL_OPEN;
}

void js_sim_hand_over(js_sim *sim, js_sim_side *side, uint32_t index)
{
    const js_sim_frame *frame = &sim->frames[index];
    js_wire_frame decoded;
    js_wire_reason reason = js_wire_decode(js_sim_bytes_of(sim, index), frame->bytes, &decoded);
    bool is_corrupt = (frame->marks & JS_SIM_CORRUPT) != 0;
    if (reason != JS_WIRE_OK || is_corrupt) {
        sim->result->refused++;
        if (is_corrupt != (reason != JS_WIRE_OK)) {
            js_sim_fail(sim, side, is_corrupt ? JS_SIM_ACCEPTED : JS_SIM_REFUSED);
        }
        return;
    }
    bool is_forged = (frame->marks & JS_SIM_FORGED) != 0;
    if (is_forged) {
        memcpy(side->before, side->rel, js_rel_bytes());
    }
    reason = js_rel_rx(side->rel, js_sim_clock(sim, side), &decoded);
    if (is_forged) {
        sim->result->refused++;
        memcpy(&side->before->stats, &side->rel->stats, sizeof(side->rel->stats));
        if (reason == JS_WIRE_OK) {
            js_sim_fail(sim, side, JS_SIM_ACCEPTED);
        } else if (memcmp(side->before, side->rel, js_rel_bytes()) != 0) {
            js_sim_fail(sim, side, JS_SIM_TOUCHED);
        }
    } else if (reason != JS_WIRE_OK && (frame->marks & JS_SIM_REPLAYED) == 0 &&
               !check_may_refuse(side, reason)) {
        js_sim_fail(sim, side, JS_SIM_REFUSED);
    }
}
