/* Acknowledgements: what they free, what they say about time, and what must be lost, because
 * frames sent later have come (RFC 8985). */
#include "js_rel_state.h"

void js_rel_note_evidence(js_rel *rel, uint64_t sent_ns, uint32_t psn)
{
    if (sent_ns > rel->rack_ns || (sent_ns == rel->rack_ns && js_rel_before(rel->rack_psn, psn))) {
        rel->rack_ns = sent_ns;
        rel->rack_psn = psn;
    }
}

/* A frame is known to have come. It counts as evidence against those sent before it, unless it was
 * repeated and the answer is too early for the repetition: then the original has come after all. */
static void ack_take_evidence(js_rel *rel, uint64_t now_ns, uint32_t psn)
{
    const js_rel_sent *sent = js_rel_sent_of(rel, psn);
    if (sent->repeats != 0 && now_ns - sent->sent_ns < rel->rtt_min_ns) {
        return;
    }
    js_rel_note_evidence(rel, sent->sent_ns, psn);
}

/* A repetition was not needed: be slower to repeat. */
static void ack_note_spurious(js_rel *rel)
{
    rel->stats.spurious++;
    rel->backoff = 0;
    rel->reorder_keep = JS_REL_REORDER_KEEP;
    if (rel->reorder_steps < JS_REL_REORDER_STEPS_MAX) {
        rel->reorder_steps++;
    }
    if (rel->distance < rel->window / 2) {
        rel->distance++;
    }
}

/* Frames repeated among those that a cumulative acknowledgement frees. */
static void ack_take_repeated(js_rel *rel, uint64_t now_ns, js_rel_bits repeated)
{
    while (repeated != 0) {
        uint32_t index = js_rel_lowest(repeated);
        repeated &= repeated - 1;
        uint64_t sent_ns = js_rel_sent_of(rel, rel->una + index)->sent_ns;
        if (now_ns - sent_ns < rel->rtt_min_ns) {
            ack_note_spurious(rel);
        } else {
            ack_take_evidence(rel, now_ns, rel->una + index);
        }
    }
}

/* Something has moved: timers begin anew. */
static void ack_note_progress(js_rel *rel, uint64_t now_ns)
{
    rel->base_ns = now_ns;
    rel->backoff = 0;
    rel->probe_tries = 0;
}

static bool ack_has_evidence(const js_rel *rel)
{
    return rel->una != rel->nxt && (rel->sacked != 0 || rel->repeated != 0 ||
                                    rel->sent[rel->una & JS_REL_INDEX].sent_ns <= rel->rack_ns);
}

/* The part of js_rel_take_ack that detection is not part of. */
static void ack_advance(js_rel *rel, uint64_t now_ns, uint32_t ack)
{
    uint32_t count = ack - rel->una;
    if (JS_UNLIKELY((rel->sacked | rel->lost | rel->repeated) != 0)) {
        ack_take_repeated(rel, now_ns, rel->repeated & ~rel->sacked & js_rel_low_bits(count));
        rel->sacked = js_rel_drop_bits(rel->sacked, count);
        rel->lost = js_rel_drop_bits(rel->lost, count);
        rel->repeated = js_rel_drop_bits(rel->repeated, count);
    }
    ack_take_evidence(rel, now_ns, ack - 1);
    rel->una = ack;
    ack_note_progress(rel, now_ns);
    if (JS_UNLIKELY(rel->state == JS_REL_DRAINING)) {
        js_rel_check_drained(rel, now_ns);
    }
}

void js_rel_take_ack(js_rel *rel, uint64_t now_ns, uint32_t ack)
{
    const js_rel_sent *newest = js_rel_sent_of(rel, ack - 1);
    /* The answer took the peer's own time too: it can only show that the way is shorter. */
    if (newest->repeats == 0 && newest->sent_ns >= rel->sample_from_ns &&
        now_ns - newest->sent_ns < rel->srtt_ns) {
        js_rel_sample(rel, now_ns - newest->sent_ns);
    }
    /* What is lost is found out by the next ACK: this number does not tell what has come behind a
     * gap, and the ACK that went ahead of it to tell may have been lost. */
    ack_advance(rel, now_ns, ack);
}

void js_rel_detect(js_rel *rel, uint64_t now_ns)
{
    uint64_t reorder_ns = js_min_u64((rel->rtt_min_ns >> 2) * rel->reorder_steps, rel->srtt_ns);
    uint64_t patience_ns = rel->srtt_ns + reorder_ns;
    uint32_t top = rel->sacked != 0 ? js_rel_highest(rel->sacked) : 0;
    js_rel_bits open = js_rel_low_bits(rel->nxt - rel->una) & ~rel->sacked & ~rel->lost;

    rel->reorder_ns = JS_REL_NEVER;
    while (open != 0) {
        uint32_t index = js_rel_lowest(open);
        open &= open - 1;
        uint32_t psn = rel->una + index;
        const js_rel_sent *sent = js_rel_sent_of(rel, psn);
        uint64_t age_ns = now_ns - sent->sent_ns;
        bool is_overtaken = sent->sent_ns < rel->rack_ns ||
                            (sent->sent_ns == rel->rack_ns && js_rel_before(psn, rel->rack_psn));
        bool is_far =
            sent->repeats == 0 && top >= index + rel->distance && age_ns >= rel->rtt_min_ns;
        if (is_far || (is_overtaken && age_ns >= patience_ns)) {
            rel->lost |= js_rel_bit(index);
        } else if (is_overtaken) {
            rel->reorder_ns = js_min_u64(rel->reorder_ns, sent->sent_ns + patience_ns);
        }
    }
    rel->timer_ns = js_min_u64(rel->timer_ns, rel->reorder_ns);
}

/* What an ACK says, in full numbers. */
typedef struct ack_facts {
    uint32_t ack;
    uint32_t limit;
    uint32_t consumed[JS_WIRE_CHANNELS];
    js_rel_bits sacked; /* from ack on */
} ack_facts;

/* Completes the 16-bit numbers; false: such an ACK can never have been sent. */
static bool ack_complete(const js_rel *rel, const js_wire_frame *frame, ack_facts *out)
{
    uint32_t after = frame->trigger + 1;
    uint32_t ack = js_rel_extend(after, frame->ack);
    uint16_t credit = (uint16_t)(frame->credit - frame->ack);
    if (js_rel_before(rel->nxt, after) || !js_rel_is_possible_ack(rel, ack) ||
        ack - after + JS_REL_WINDOW_MAX > 2 * JS_REL_WINDOW_MAX || credit > JS_REL_WINDOW_MAX ||
        js_rel_before(rel->promised, frame->psn)) {
        return false;
    }
    out->ack = ack;
    out->limit = ack + credit;
    out->sacked = ((js_rel_bits)frame->sack[1] << 64 | frame->sack[0]) << 1;
    uint32_t flight = rel->nxt - ack;
    if (flight <= JS_REL_WINDOW_MAX && (out->sacked & ~js_rel_low_bits(flight)) != 0) {
        return false;
    }
    bool is_recent = js_rel_before(rel->una - JS_REL_STALE_FRAMES, ack);
    for (uint32_t i = 0; i < JS_WIRE_CHANNELS; i++) {
        out->consumed[i] = rel->peer_consumed[i];
        int32_t more = (int16_t)(uint16_t)(frame->consumed[i] - (uint16_t)out->consumed[i]);
        if (is_recent && more > 0) {
            out->consumed[i] += (uint32_t)more;
            if (rel->chunks_posted[i] - rel->peer_consumed[i] < (uint32_t)more) {
                return false;
            }
        }
    }
    return true;
}

/* The round trip of the frame that caused the ACK, and whether its repetition was needed. */
static void ack_take_time(js_rel *rel, uint64_t now_ns, const js_wire_frame *frame)
{
    uint32_t index = frame->trigger - rel->una;
    if (index >= rel->nxt - rel->una || (rel->sacked & js_rel_bit(index)) != 0) {
        return; /* known already */
    }
    const js_rel_sent *sent = js_rel_sent_of(rel, frame->trigger);
    bool is_of_repeat = (frame->flags & JS_WIRE_FLAG_RETX) != 0;
    bool is_known = !is_of_repeat || sent->repeats == 1;
    uint64_t sent_ns = is_of_repeat ? sent->sent_ns : sent->first_ns;
    uint64_t waited_ns = (uint64_t)frame->delay << 6;
    uint64_t age_ns = now_ns - sent_ns;
    if (is_known && frame->delay != UINT16_MAX && sent_ns >= rel->sample_from_ns &&
        age_ns > waited_ns) {
        js_rel_sample(rel, age_ns - waited_ns);
    }
    if (sent->repeats != 0 && !is_of_repeat) {
        ack_note_spurious(rel);
        rel->repeated &= ~js_rel_bit(index);
    }
}

js_wire_reason js_rel_rx_ack(js_rel *rel, uint64_t now_ns, const js_wire_frame *frame)
{
    ack_facts facts;
    if (!ack_complete(rel, frame, &facts)) {
        return JS_WIRE_WINDOW;
    }
    rel->stats.acks_received++;
    for (uint32_t i = 0; i < JS_WIRE_CHANNELS; i++) {
        if (facts.consumed[i] != rel->peer_consumed[i]) {
            rel->peer_consumed[i] = facts.consumed[i];
            rel->idle_tries = 0;
        }
    }
    if (js_rel_before(facts.ack, rel->una)) {
        return JS_WIRE_OK; /* overtaken by a newer one */
    }
    if (js_rel_before(rel->limit, facts.limit)) {
        rel->limit = facts.limit;
    }
    ack_take_time(rel, now_ns, frame);
    if (facts.ack != rel->una) {
        ack_advance(rel, now_ns, facts.ack);
    }
    js_rel_bits fresh = facts.sacked & ~rel->sacked;
    if (fresh != 0) {
        ack_note_progress(rel, now_ns);
        rel->sacked |= fresh;
        rel->lost &= ~fresh;
        while (fresh != 0) {
            ack_take_evidence(rel, now_ns, rel->una + js_rel_lowest(fresh));
            fresh &= fresh - 1;
        }
    }
    if (rel->is_probe_answered) {
        js_rel_note_evidence(rel, rel->probe_ns, rel->probe_psn);
        rel->is_probe_answered = false;
        rel->probe_ns = 0;
    }
    if (ack_has_evidence(rel)) {
        js_rel_detect(rel, now_ns);
    }
    return JS_WIRE_OK;
}
