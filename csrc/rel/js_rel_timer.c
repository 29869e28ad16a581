/* Time: round trips (RFC 6298), the tail probe (RFC 8985), the retransmission time-out, repeats of
 * control frames, and the peer that is given up. */
#include "js_rel_state.h"

void js_rel_set_timeouts(js_rel *rel)
{
    uint64_t spread_ns = rel->srtt_ns + 4 * rel->rttvar_ns;
    uint64_t rto_ns = js_max_u64(spread_ns + rel->config.ack_delay_ns, rel->config.rto_min_ns);
    rel->rto_ns = js_min_u64(rto_ns, rel->config.rto_max_ns);
    uint64_t pto_ns = js_max_u64(2 * rel->srtt_ns, spread_ns) + rel->config.ack_delay_ns;
    /* Nothing is known yet: as long as it takes at least, before a round trip has been seen. */
    rel->pto_ns = rel->srtt_ns == 0 ? rel->rto_ns : js_min_u64(pto_ns, rel->rto_ns);
}

void js_rel_sample(js_rel *rel, uint64_t rtt_ns)
{
    rtt_ns = js_max_u64(rtt_ns, 1);
    rel->stats.rtt_histogram[js_min_u64(63u - (uint32_t)__builtin_clzll(rtt_ns), 31)]++;
    if (rel->srtt_ns == 0) {
        rel->srtt_ns = rtt_ns;
        rel->rttvar_ns = rtt_ns / 2;
        rel->rtt_min_ns = rtt_ns;
    } else {
        uint64_t apart_ns = rtt_ns > rel->srtt_ns ? rtt_ns - rel->srtt_ns : rel->srtt_ns - rtt_ns;
        rel->rttvar_ns = rel->rttvar_ns - rel->rttvar_ns / 4 + apart_ns / 4;
        rel->srtt_ns = rel->srtt_ns - rel->srtt_ns / 8 + rtt_ns / 8;
        rel->rtt_min_ns = js_min_u64(rel->rtt_min_ns, rtt_ns);
    }
    rel->stats.srtt_ns = rel->srtt_ns;
    rel->stats.rttvar_ns = rel->rttvar_ns;
    rel->stats.rtt_min_ns = rel->rtt_min_ns;
    js_rel_set_timeouts(rel);
}

/* A duration doubled `times`, up to a maximum. */
static uint64_t timer_doubled(uint64_t ns, uint32_t times, uint64_t max_ns)
{
    return js_min_u64(ns << js_min_u64(times, JS_REL_SHIFT_MAX), max_ns);
}

static uint64_t timer_rto(const js_rel *rel, uint32_t times)
{
    return timer_doubled(rel->rto_ns, times, rel->config.rto_max_ns);
}

/* Is there anything that only the peer can bring about? */
static bool timer_is_awaiting(const js_rel *rel)
{
    return rel->state == JS_REL_OPENING || rel->una != rel->nxt || rel->is_stalled ||
           (rel->is_asked && rel->ask_tries != 0);
}

/* HELLO and BYE, until they are answered. Returns when it is time again. */
static uint64_t timer_shake(js_rel *rel, uint64_t now_ns)
{
    bool is_hello = rel->state == JS_REL_OPENING && !rel->has_hello_ack;
    bool is_bye = rel->state == JS_REL_DRAINING && js_rel_is_quiet(rel);
    if (!is_hello && !is_bye) {
        return JS_REL_NEVER;
    }
    uint32_t bit = is_hello ? JS_REL_DUE_HELLO : JS_REL_DUE_BYE;
    if ((rel->due & bit) != 0) {
        return JS_REL_NEVER; /* on its way */
    }
    uint32_t tries = rel->state == JS_REL_OPENING && rel->proven_bytes != 0
                         ? rel->hello_rounds + rel->hello_silent
                         : rel->shake_tries;
    uint64_t due_ns = rel->shake_ns + timer_rto(rel, tries);
    if (now_ns < due_ns) {
        return due_ns;
    }
    if (is_hello && js_rel_path_ends(rel)) {
        if (rel->has_hello) {
            js_rel_become_open(rel, now_ns);
        }
        return JS_REL_NEVER;
    }
    if (is_bye && rel->shake_tries >= JS_REL_BYE_TRIES) {
        rel->state = JS_REL_CLOSED; /* all that was sent has come: there is nothing to lose */
        return JS_REL_NEVER;
    }
    rel->due |= bit;
    return JS_REL_NEVER;
}

/* The question of js_rel_ask, until it is answered. */
static uint64_t timer_ask(js_rel *rel, uint64_t now_ns)
{
    if (!rel->is_asked || (rel->due & JS_REL_DUE_PROBE) != 0) {
        return JS_REL_NEVER;
    }
    uint64_t due_ns = rel->ask_ns + timer_rto(rel, rel->ask_tries);
    if (now_ns < due_ns) {
        return due_ns;
    }
    rel->due |= JS_REL_DUE_PROBE;
    return JS_REL_NEVER;
}

/* Nothing in flight, but the peer has not said that all is consumed: its ACK may have been lost,
 * and this side may be waiting for the room. */
static uint64_t timer_idle(js_rel *rel, uint64_t now_ns)
{
    bool is_consumed = true;
    for (uint32_t i = 0; i < JS_WIRE_CHANNELS; i++) {
        is_consumed = is_consumed && rel->peer_consumed[i] == rel->chunks_posted[i];
    }
    if (is_consumed || rel->state != JS_REL_OPEN || rel->has_bye) {
        return JS_REL_NEVER;
    }
    uint64_t wait_ns = timer_doubled(rel->rto_ns, JS_REL_IDLE_SHIFT + rel->idle_tries,
                                     js_max_u64(JS_REL_IDLE_MAX_NS, rel->rto_ns));
    if (now_ns < rel->base_ns + wait_ns) {
        return rel->base_ns + wait_ns;
    }
    rel->idle_tries++;
    rel->base_ns = now_ns;
    rel->due |= JS_REL_DUE_PROBE;
    return JS_REL_NEVER;
}

/* Data in flight, or data that may not go: first a probe, then, RTO by RTO, the first frame. */
static uint64_t timer_flight(js_rel *rel, uint64_t now_ns)
{
    if (js_rel_is_quiet(rel)) {
        return timer_idle(rel, now_ns);
    }
    if (rel->state == JS_REL_OPENING) {
        return JS_REL_NEVER;
    }
    if (rel->lost != 0 || js_rel_can_send(rel)) {
        return now_ns + rel->pto_ns; /* something goes at once */
    }
    /* Probes cost little and hurt nobody: several may go before the time-out, which has to be long
     * enough for the slowest peer. */
    uint64_t wait_ns = rel->pto_ns << js_min_u64(rel->probe_tries, JS_REL_SHIFT_MAX);
    bool is_timeout = rel->backoff != 0 || (rel->probe_tries != 0 && wait_ns >= rel->rto_ns);
    if (is_timeout) {
        wait_ns = timer_rto(rel, rel->backoff);
    }
    if (now_ns < rel->base_ns + wait_ns) {
        return rel->base_ns + wait_ns;
    }
    rel->base_ns = now_ns;
    rel->probe_tries++;
    rel->due |= JS_REL_DUE_PROBE;
    if (is_timeout) {
        rel->backoff++;
        if (rel->una != rel->nxt) {
            rel->stats.timeouts++;
            rel->lost |= 1; /* the others follow when an answer shows that they are */
        }
    }
    return JS_REL_NEVER; /* asked again when the probe has gone */
}

void js_rel_run_timers(js_rel *rel, uint64_t now_ns)
{
    if (rel->state == JS_REL_CLOSED || rel->state == JS_REL_FAILED) {
        rel->timer_ns = JS_REL_NEVER;
        return;
    }
    uint64_t next_ns = JS_REL_NEVER;
    if (timer_is_awaiting(rel)) {
        next_ns = js_max_u64(rel->heard_ns, rel->await_ns) + rel->config.give_up_ns;
        if (now_ns >= next_ns) {
            js_rel_fail(rel, JS_REL_LOST);
            return;
        }
    }
    if (now_ns >= rel->reorder_ns) {
        js_rel_detect(rel, now_ns);
    }
    next_ns = js_min_u64(next_ns, rel->reorder_ns);
    next_ns = js_min_u64(next_ns, timer_shake(rel, now_ns));
    next_ns = js_min_u64(next_ns, timer_ask(rel, now_ns));
    next_ns = js_min_u64(next_ns, timer_flight(rel, now_ns));
    rel->timer_ns = next_ns;
}

uint64_t js_rel_deadline(const js_rel *rel)
{
    if (rel->due != 0 || rel->lost != 0 || js_rel_can_send(rel)) {
        return 0;
    }
    return rel->unacked != 0 ? js_min_u64(rel->timer_ns, rel->ack_due_ns) : rel->timer_ns;
}

void js_rel_resume(js_rel *rel, uint64_t now_ns)
{
    rel->heard_ns = now_ns;
    rel->base_ns = now_ns;
    rel->shake_ns = now_ns;
    rel->ask_ns = now_ns;
    rel->sample_from_ns = now_ns;
    if (js_rel_is_alive(rel)) {
        rel->timer_ns = now_ns;
    }
}

void js_rel_note_absence(js_rel *rel, uint64_t now_ns)
{
    rel->sample_from_ns = now_ns;
}
