/* The protocol under a network that may do anything: every state that two real connections can
 * reach with a small window is visited. A channel holds a few frames per way, and delivers any of
 * them at any time, keeps it for another time, or drops it; timers may fire at any time; once, both
 * sides begin anew with new epochs while old frames are still on their way. In every state the
 * invariants hold, and from a sample of them the rest comes through if the network only behaves.
 *
 * Time is abstract: in a state all moments lie in the past at the same distance. A step is a frame
 * that comes at once, with what is sent in answer, or time that passes until a delayed ACK, a probe
 * or a time-out is due. */
#include "js_rel_state.h"
#include "js_test.h"

#define PSNS 6u   /* more than are ever used */
#define CHUNKS 4u /* as many are posted at most, per way */
#define FRAMES 2u /* in the channel, per way */
#define CHUNK_LONG 100u
#define MTU 128u

#define PAST_NS 1000000u
#define RTT_NS 100u
static const uint64_t model_times_ns[] = { PAST_NS + 2, PAST_NS + 150, PAST_NS + 250,
                                           PAST_NS + 1000 };

typedef enum rel_bug {
    BUG_NONE,
    BUG_FORGET_EARLY, /* the receiver loses what came early, after it has said so */
    BUG_ACK_AHEAD,    /* the sender takes an acknowledgement for one frame more */
    BUG_ANY_EPOCH,    /* frames of the former incarnation are not refused */
    BUG_TAKE_BACK,    /* a promised limit is taken back */
    BUG_NO_WINDOW,    /* the sender does not mind its window */
    BUG_TWICE,        /* a frame that has come counts as the next one */
    BUG_NO_TIMER,     /* neither probe nor time-out */
} rel_bug;

static struct {
    uint32_t window;
    uint32_t share;
    uint32_t chunks[2]; /* posted by each side */
    uint32_t incarnations;
    bool is_open; /* the handshake is over when the search begins */
    rel_bug bug;
} setting;

/* What differs from state to state of a connection, without what is never used. */
typedef struct model_rel {
    uint8_t hot[offsetof(js_rel, config)];
    js_rel_sent sent[PSNS];
    js_rel_part parts[PSNS];
    js_rel_chunk chunks[CHUNKS];
} model_rel;

typedef struct model_state {
    model_rel rels[2];
    js_wire_frame frames[2][FRAMES]; /* to each side, sorted */
    uint32_t counts[2];
    uint32_t delivered[2]; /* in this incarnation */
    uint32_t promised[2];
    uint32_t incarnation;
} model_state;

static js_rel *rels[2];
static model_state now; /* what is not in rels */
static model_state *stack;
static uint32_t stack_count;
static uint32_t stack_max = 20000;
static uint64_t *table;
static uint32_t table_slots = 1u << 18; /* power of two */
static uint64_t state_count;
static uint64_t step_count;
static const char *violation;
static bool is_behaved;                            /* the network: frames come at once */
static uint8_t contents[4][2][CHUNKS][CHUNK_LONG]; /* by incarnation, side, number */

static uint32_t model_start(uint32_t side)
{
    return side == 0 ? UINT32_MAX - 1 : 65535;
}

static uint32_t model_bytes(uint32_t n)
{
    return n == 1 ? CHUNK_LONG : 8; /* two frames, one */
}

static void model_require(bool holds, const char *what)
{
    if (!holds && violation == NULL) {
        violation = what;
    }
}

/* --- the connections ------------------------------------------------------------ */
static bool model_on_place(void *context, uint32_t channel, uint32_t offset, const uint8_t *payload,
                           uint32_t bytes)
{
    uint32_t side = *(uint32_t *)context;
    bool is_inside = channel == 0 && offset + bytes <= CHUNK_LONG;
    model_require(is_inside, "placed outside");
    model_require(!is_inside ||
                      memcmp(payload, contents[now.incarnation][1 - side][1] + offset, bytes) == 0,
                  "placed bytes of another chunk");
    return is_inside;
}

static void model_on_deliver(void *context, const js_rel_chunk *chunk)
{
    uint32_t side = *(uint32_t *)context;
    uint32_t n = now.delivered[side]++;
    bool is_next = n < setting.chunks[1 - side] && chunk->imm == (now.incarnation << 8 | n) &&
                   chunk->bytes == model_bytes(n);
    model_require(is_next, "another chunk than the next was delivered");
    if (is_next && chunk->payload != NULL) {
        model_require(
            memcmp(chunk->payload, contents[now.incarnation][1 - side][n], chunk->bytes) == 0,
            "delivered bytes of another chunk");
    }
}

static void model_begin(uint32_t incarnation)
{
    static uint32_t sides[2] = { 0, 1 };
    now.incarnation = incarnation;
    for (uint32_t i = 0; i < 2; i++) {
        js_rel_config config = {
            .local_dcid = (uint16_t)(1 + i),
            .local_epoch = (uint16_t)(10 + incarnation),
            .remote_dcid = (uint16_t)(2 - i),
            .remote_epoch = (uint16_t)(10 + incarnation),
            .local_key = 20 + incarnation,
            .remote_key = 20 + incarnation,
            .send_psn = model_start(i),
            .receive_psn = model_start(1 - i),
            .mtu_bytes = MTU,
            .window = setting.window,
            .ring_bytes = { CHUNK_LONG, 0 },
            .rto_min_ns = 400, /* after one probe */
            .rto_max_ns = 400,
            .ack_delay_ns = 10,
            .give_up_ns = JS_REL_NEVER / 4,
        };
        js_rel_sink sink = { model_on_place, model_on_deliver, NULL, &sides[i] };
        js_rel_init(rels[i], &config, &sink);
        js_rel_set_share(rels[i], setting.share);
        js_rel_open(rels[i], PAST_NS, 0);
        for (uint32_t n = 0; n < setting.chunks[i]; n++) {
            js_rel_chunk chunk = { .payload = contents[incarnation][i][n],
                                   .bytes = model_bytes(n),
                                   .imm = incarnation << 8 | n };
            JS_TEST_REQUIRE(js_rel_post(rels[i], &chunk));
        }
        now.delivered[i] = 0;
    }
    for (uint32_t i = 0; i < 2; i++) {
        if (setting.is_open) {
            js_rel *rel = rels[i];
            rel->has_hello = rel->has_hello_ack = true;
            rel->promised += setting.share;
            rel->limit += setting.share;
            rel->due = 0;
            rel->state = JS_REL_OPEN;
        }
        now.promised[i] = rels[i]->promised;
    }
}

static uint32_t model_cap(uint32_t value, uint32_t most)
{
    return value < most ? value : most;
}

/* Makes states equal that differ in nothing that matters: moments, counts of tries, what lies in
 * places that are not in use. */
static void model_normalize(js_rel *rel)
{
    rel->base_ns = rel->heard_ns = rel->await_ns = rel->shake_ns = rel->ask_ns = PAST_NS;
    rel->trigger_ns = PAST_NS;
    rel->timer_ns = 0;
    rel->probe_ns = rel->probe_ns != 0 ? PAST_NS : 0;
    rel->probe_psn = rel->probe_ns != 0 ? rel->probe_psn : 0;
    rel->ack_due_ns = rel->unacked != 0 ? PAST_NS + 10 : 0;
    rel->rack_ns = rel->rack_ns != 0 ? PAST_NS : 0;
    rel->reorder_ns = rel->reorder_ns != JS_REL_NEVER ? PAST_NS + 125 : JS_REL_NEVER;
    rel->srtt_ns = rel->rtt_min_ns = RTT_NS;
    rel->rttvar_ns = 0;
    rel->sample_from_ns = JS_REL_NEVER;
    js_rel_set_timeouts(rel);
    rel->shake_tries = model_cap(rel->shake_tries, 1);
    rel->hello_silent = 0;
    rel->idle_tries = 0;
    rel->backoff = model_cap(rel->backoff, 1);
    rel->probe_tries = model_cap(rel->probe_tries, 1);
    rel->distance = 1;
    rel->reorder_steps = 1;
    rel->reorder_keep = 0;
    rel->unacked = model_cap(rel->unacked, JS_REL_ACK_EVERY);
    if (rel->open_done_bytes == 0) {
        memset(&rel->open, 0, sizeof(rel->open));
    }
    for (uint32_t psn = rel->config.send_psn, i = 0; i < PSNS; i++, psn++) {
        js_rel_sent *sent = js_rel_sent_of(rel, psn);
        if (psn - rel->una >= rel->nxt - rel->una) {
            memset(sent, 0, sizeof(*sent));
        } else {
            sent->first_ns = sent->sent_ns = PAST_NS;
            sent->repeats = (uint8_t)model_cap(sent->repeats, 1);
        }
    }
    for (uint32_t psn = rel->config.receive_psn, i = 0; i < PSNS; i++, psn++) {
        uint32_t ahead = psn - rel->rcv_nxt;
        if (ahead >= JS_REL_WINDOW_MAX || ((rel->received >> ahead) & 1) == 0) {
            memset(&rel->parts[psn & JS_REL_INDEX], 0, sizeof(js_rel_part));
        }
    }
}

static void model_save(model_state *to)
{
    *to = now;
    for (uint32_t i = 0; i < 2; i++) {
        js_rel *rel = rels[i];
        model_rel *save = &to->rels[i];
        model_normalize(rel);
        memcpy(save->hot, rel, sizeof(save->hot));
        for (uint32_t k = 0; k < PSNS; k++) {
            save->sent[k] = *js_rel_sent_of(rel, rel->config.send_psn + k);
            save->parts[k] = rel->parts[(rel->config.receive_psn + k) & JS_REL_INDEX];
        }
        memcpy(save->chunks, rel->chunks, sizeof(save->chunks));
    }
}

static void model_load(const model_state *from)
{
    if (from->incarnation != now.incarnation) {
        model_begin(from->incarnation); /* for what model_rel does not hold */
    }
    now = *from;
    for (uint32_t i = 0; i < 2; i++) {
        js_rel *rel = rels[i];
        const model_rel *save = &from->rels[i];
        memcpy(rel, save->hot, sizeof(save->hot));
        for (uint32_t k = 0; k < PSNS; k++) {
            *js_rel_sent_of(rel, rel->config.send_psn + k) = save->sent[k];
            rel->parts[(rel->config.receive_psn + k) & JS_REL_INDEX] = save->parts[k];
        }
        memcpy(rel->chunks, save->chunks, sizeof(save->chunks));
    }
}

/* --- the channel ------------------------------------------------------------ */
/* Puts a frame on its way; equal ones are one, as any can be delivered twice. Full: it is lost. */
static void model_push(uint32_t side, const js_wire_frame *frame)
{
    uint32_t at = 0;
    while (at < now.counts[side]) {
        int order = memcmp(frame, &now.frames[side][at], sizeof(*frame));
        if (order == 0) {
            return;
        }
        if (order < 0) {
            break;
        }
        at++;
    }
    if (now.counts[side] == FRAMES) {
        return;
    }
    memmove(&now.frames[side][at + 1], &now.frames[side][at],
            (now.counts[side] - at) * sizeof(*frame));
    now.frames[side][at] = *frame;
    now.counts[side]++;
}

static void model_remove(uint32_t side, uint32_t at)
{
    now.counts[side]--;
    memmove(&now.frames[side][at], &now.frames[side][at + 1],
            (now.counts[side] - at) * sizeof(js_wire_frame));
    memset(&now.frames[side][now.counts[side]], 0, sizeof(js_wire_frame));
}

/* --- steps ------------------------------------------------------------ */
static void model_apply_bug(js_rel *rel, js_wire_frame *frame)
{
    if (setting.bug == BUG_ANY_EPOCH) {
        frame->epoch = rel->local_epoch;
        frame->key = rel->config.local_key;
    } else if (setting.bug == BUG_ACK_AHEAD && frame->opcode == JS_WIRE_ACK &&
               (uint16_t)rel->nxt != frame->ack) {
        frame->ack++;
        frame->credit++;
    } else if (setting.bug == BUG_TWICE && js_wire_is_data(frame->opcode) &&
               frame->psn == rel->rcv_nxt - 1) {
        frame->psn++;
    }
}

/* A side gets a frame, and its readers read at once. */
static void model_receive(uint32_t side, js_wire_frame frame)
{
    js_rel *rel = rels[side];
    bool is_old = frame.epoch != rel->local_epoch;
    model_apply_bug(rel, &frame);
    js_wire_reason reason = js_rel_rx(rel, model_times_ns[0], &frame);
    model_require(reason != JS_WIRE_OK || !is_old, "a frame of the former incarnation is accepted");
    model_require(reason == JS_WIRE_OK || reason == JS_WIRE_STALE, "a genuine frame is refused");
    js_rel_set_consumed(rel, 0, now.delivered[side], 2);
    if (setting.bug == BUG_TAKE_BACK && rel->promised != rel->rcv_nxt) {
        rel->promised--;
    } else if (setting.bug == BUG_NO_WINDOW) {
        rel->window = 2 * setting.window;
    }
}

/* A side sends all that it has to send at a time. */
static void model_send(uint32_t side, uint64_t now_ns)
{
    uint8_t out[MTU];
    uint32_t bytes = js_rel_tx(rels[side], now_ns, out);
    for (uint32_t count = 0; bytes != 0; count++) {
        js_wire_frame decoded;
        js_wire_frame frame;
        if (count == 100 || js_wire_decode(out, bytes, &decoded) != JS_WIRE_OK) {
            model_require(false, "frames without end, or none");
            return;
        }
        memset(&frame, 0, sizeof(frame)); /* padding too: frames are compared as bytes */
        frame.opcode = decoded.opcode;
        frame.channel = decoded.channel;
        frame.flags = decoded.flags;
        frame.dcid = decoded.dcid;
        frame.epoch = decoded.epoch;
        frame.psn = decoded.psn;
        frame.ack = decoded.ack;
        frame.credit = decoded.credit;
        frame.bytes = decoded.bytes;
        frame.imm = decoded.imm;
        frame.offset = decoded.offset;
        frame.total_bytes = decoded.total_bytes;
        memcpy(frame.sack, decoded.sack, sizeof(frame.sack));
        frame.trigger = decoded.trigger;
        memcpy(frame.consumed, decoded.consumed, sizeof(frame.consumed));
        frame.key = decoded.key;
        frame.mtu = decoded.mtu;
        frame.padding = decoded.padding;
        if (js_wire_is_data(frame.opcode)) {
            const uint8_t *content = contents[frame.imm >> 8][side][frame.imm & 0xff];
            frame.payload = content + frame.offset;
            model_require(memcmp(frame.payload, decoded.payload, frame.bytes) == 0,
                          "sent bytes of another chunk");
        }
        if (is_behaved) {
            model_receive(1 - side, frame);
        } else {
            model_push(1 - side, &frame);
        }
        bytes = js_rel_tx(rels[side], now_ns, out);
    }
    model_require(js_rel_deadline(rels[side]) > now_ns, "a deadline that stays in the past");
    if (setting.bug == BUG_FORGET_EARLY) {
        rels[side]->received = 0;
    }
}

static void model_check(void)
{
    for (uint32_t i = 0; i < 2; i++) {
        const js_rel *a = rels[i];
        const js_rel *b = rels[1 - i];
        model_require(a->state != JS_REL_FAILED, "a connection fails");
        model_require(!js_rel_before(b->rcv_nxt, a->una) && !js_rel_before(a->nxt, b->rcv_nxt) &&
                          !js_rel_before(b->promised, a->nxt) &&
                          !js_rel_before(b->promised, a->limit) &&
                          a->nxt - a->una <= setting.window,
                      "una <= rcv_nxt <= nxt <= limit, nxt - una <= window");
        model_require(!js_rel_before(b->promised, now.promised[1 - i]),
                      "a promised limit is taken back");
        now.promised[1 - i] = b->promised;
        for (uint32_t k = 0; k < setting.window; k++) {
            bool has_come = js_rel_before(a->una + k, b->rcv_nxt) ||
                            ((b->received >> (a->una + k - b->rcv_nxt)) & 1) != 0;
            model_require(((a->sacked >> k) & 1) == 0 || has_come,
                          "a frame counts as received that is not");
        }
        model_require(now.delivered[1 - i] >= js_rel_consumed(a, 0),
                      "more counts as consumed than is");
    }
}

/* --- the search ------------------------------------------------------------ */
static uint64_t model_hash(const model_state *state)
{
    const uint8_t *bytes = (const uint8_t *)state;
    uint64_t hash = 0x9e3779b97f4a7c15u;
    for (size_t i = 0; i + 8 <= sizeof(*state); i += 8) {
        uint64_t word = 0;
        memcpy(&word, bytes + i, sizeof(word));
        hash = (hash ^ word) * 0xff51afd7ed558ccdu;
        hash ^= hash >> 32;
    }
    return hash | 1;
}

/* After a step: a state not seen before is to be explored. */
static void model_visit(void)
{
    step_count++;
    model_check();
    JS_TEST_REQUIRE(stack_count < stack_max);
    model_save(&stack[stack_count]);
    uint64_t hash = model_hash(&stack[stack_count]);
    uint64_t slot = hash >> 20 & (table_slots - 1);
    while (table[slot] != 0) {
        if (table[slot] == hash) {
            return;
        }
        slot = (slot + 1) & (table_slots - 1);
    }
    table[slot] = hash;
    state_count++;
    stack_count++;
    JS_TEST_REQUIRE(state_count < table_slots / 2);
}

static bool model_is_done(void)
{
    return js_rel_is_quiet(rels[0]) && js_rel_is_quiet(rels[1]) &&
           now.delivered[0] == setting.chunks[1] && now.delivered[1] == setting.chunks[0];
}

/* Does everything come through if from now on nothing is lost and time goes on? */
static void model_check_liveness(const model_state *state)
{
    model_load(state);
    is_behaved = true;
    for (uint32_t round = 0; round < 200 && !model_is_done(); round++) {
        for (uint32_t side = 0; side < 2; side++) {
            while (now.counts[side] != 0) {
                js_wire_frame frame = now.frames[side][0];
                model_remove(side, 0);
                model_receive(side, frame);
            }
            model_send(side, model_times_ns[setting.bug == BUG_NO_TIMER ? 1 : round % 4]);
            model_normalize(rels[side]);
        }
    }
    is_behaved = false;
    model_require(model_is_done(), "something never comes through");
}

static void model_expand(const model_state *state)
{
    uint32_t times = setting.bug == BUG_NO_TIMER ? 2 : JS_ARRAY_LEN(model_times_ns);
    for (uint32_t side = 0; side < 2; side++) {
        for (uint32_t i = 1; i < times; i++) {
            model_load(state);
            model_send(side, model_times_ns[i]);
            model_visit();
        }
        for (uint32_t i = 0; i < state->counts[side]; i++) {
            model_load(state);
            model_receive(side, state->frames[side][i]); /* and it may come again */
            model_send(side, model_times_ns[0]);
            model_visit();
            model_load(state);
            model_remove(side, i);
            model_visit();
        }
    }
    if (state->incarnation + 1 < setting.incarnations) {
        model_load(state);
        model_begin(state->incarnation + 1);
        model_visit();
    }
}

static const char *model_explore(void)
{
    violation = NULL;
    state_count = step_count = 0;
    stack_count = 0;
    memset(table, 0, table_slots * sizeof(*table));
    memset(&now, 0, sizeof(now));
    model_begin(0);
    model_visit();
    while (stack_count != 0 && violation == NULL) {
        model_state state = stack[--stack_count];
        model_expand(&state);
        if (violation == NULL && state_count % 8 == 0) {
            model_check_liveness(&state);
        }
    }
    return violation;
}

/* --- cases ------------------------------------------------------------ */
typedef struct rel_case {
    uint32_t window;
    uint32_t share;
    uint32_t chunks[2];
    uint32_t incarnations;
    bool is_open;
} rel_case;

static void model_set_up(void)
{
    for (uint32_t i = 0; i < 2 && rels[i] == NULL; i++) {
        rels[i] = aligned_alloc(JS_CACHE_LINE, js_rel_bytes());
        JS_TEST_REQUIRE(rels[i] != NULL);
    }
    if (table == NULL) {
        table = malloc(table_slots * sizeof(*table));
        stack = malloc(stack_max * sizeof(*stack));
        JS_TEST_REQUIRE(table != NULL && stack != NULL);
        for (size_t i = 0; i < sizeof(contents); i++) {
            ((uint8_t *)contents)[i] = (uint8_t)(i * 2654435761u >> 13);
        }
    }
}

static void model_run(const rel_case *what, rel_bug bug)
{
    model_set_up();
    setting.window = what->window;
    setting.share = what->share;
    setting.chunks[0] = what->chunks[0];
    setting.chunks[1] = what->chunks[1];
    setting.incarnations = what->incarnations;
    setting.is_open = what->is_open;
    setting.bug = bug;
    const char *found = model_explore();
    fflush(stdout);
    printf("window %u share %u chunks %u + %u incarnations %u: %" PRIu64 " states, %" PRIu64
           " steps, %s\n",
           what->window, what->share, what->chunks[0], what->chunks[1], what->incarnations,
           state_count, step_count, found != NULL ? found : "complete");
    if ((found != NULL) != (bug != BUG_NONE)) {
        JS_TEST_CHECK(found == NULL);
        JS_TEST_CHECK(bug == BUG_NONE);
    }
}

/* Begin, nothing known, to the end. */
static void test_handshake(void)
{
    model_run(&(rel_case){ 2, 2, { 1, 0 }, 1, false }, BUG_NONE);
}

/* Both begin anew, at any time, with frames of before on their way. */
static void test_restart(void)
{
    model_run(&(rel_case){ 2, 2, { 1, 0 }, 2, true }, BUG_NONE);
}

/* The checker sees what it must see. */
static void test_seeded_bugs(void)
{
    static const rel_case open = { 2, 2, { 2, 0 }, 1, true };
    static const rel_case restart = { 2, 2, { 1, 0 }, 2, true };
    static const rel_case small_share = { 1, 2, { 2, 0 }, 1, true };
    model_run(&open, BUG_FORGET_EARLY);
    model_run(&open, BUG_ACK_AHEAD);
    model_run(&restart, BUG_ANY_EPOCH);
    model_run(&open, BUG_TAKE_BACK);
    model_run(&small_share, BUG_NO_WINDOW);
    model_run(&open, BUG_TWICE);
    model_run(&open, BUG_NO_TIMER);
}

/* What takes too long for every day: test_rel_states large. */
static void model_run_large(void)
{
    stack_max = 400000;
    table_slots = 1u << 23;
    model_run(&(rel_case){ 1, 2, { 2, 0 }, 1, true }, BUG_NONE);
    model_run(&(rel_case){ 2, 1, { 2, 0 }, 1, true }, BUG_NONE);
    model_run(&(rel_case){ 2, 2, { 2, 0 }, 1, true }, BUG_NONE);
    model_run(&(rel_case){ 2, 2, { 1, 1 }, 1, true }, BUG_NONE);
    model_run(&(rel_case){ 3, 3, { 2, 0 }, 1, true }, BUG_NONE);
    model_run(&(rel_case){ 2, 2, { 1, 0 }, 2, false }, BUG_NONE);
}

int main(int argc, char **argv)
{
    static const struct js_test tests[] = { JS_TEST(test_handshake), JS_TEST(test_restart),
                                            JS_TEST(test_seeded_bugs) };
    if (argc == 2 && strcmp(argv[1], "large") == 0) {
        model_run_large();
        return js_test_failures() == 0 ? 0 : JS_TEST_EXIT_FAIL;
    }
    return js_test_main(tests, JS_ARRAY_LEN(tests), argc, argv);
}
