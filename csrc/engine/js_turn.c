/* Several threads in one communicator take turns.
 *
 * Who has the turn (`busy`) may touch everything; nobody else may touch anything but the words at
 * the end of js_comm and the slots of operations. Who waits inside for an operation gives its turn
 * away as soon as another thread wants one, and from then on waits here, outside:
 *
 * - Who makes rounds completes the operations of all threads, and wakes those that sleep on a slot.
 *   What is complete is collected without a turn.
 * - As long as others go in and out, a waiter stays outside: it looks ever more seldom. When it
 *   finds that nobody has been inside since it last looked, it takes the turn again and goes on as
 *   any waiter does. A patient one makes rounds only as long as they lead to something and nobody
 *   wants in, and leaves even these to the engine thread, if there is one.
 * - Now and then each asks after the peers that it waits for itself: those inside ask after theirs.
 *   Who only looks, again and again, does so too.
 *
 * Who closes waits for all these. A call that comes later finds `busy` and the slots in place, and
 * that the communicator is closed: this memory goes with js_comm_free.
 *
 * Where threads have met once, who has spun long enough for its operation sleeps outside too, with
 * its doorbell up: others then come in without waking it. If they take the doorbell down, they wake
 * it when they leave.
 *
 * A wake-up can be missed here by a look and a store that pass each other; no pause is longer than
 * 2 ms (20 ms at the doorbell), so it is late then, not lost. */
#include "js_comm.h"

#include "js_status.h"

#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define TURN_PAUSE_NS_MIN 5000u
#define TURN_PAUSE_NS_MAX 2000000u
#define TURN_PATIENT_NS_MIN 50000u
#define TURN_SLEEP_NS 40000u  /* a shorter pause costs more to sleep than to yield */
#define TURN_ASK_NS 20000000u /* between questions after the peers */
#define TURN_MS_NS 1000000u
#define TURN_SIGNALS_NS 100000000u /* until the caller looks after signals */
#define TURN_PASS_SPINS 50u
#define TURN_ENDING_NS 1000000000u /* for threads to come out of a communicator that has failed */

static void turn_wake_all(uint32_t *word)
{
    (void)syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0u);
}

static void turn_sleep(uint32_t *word, uint32_t value, uint64_t ns)
{
    struct timespec slice = { .tv_nsec = (long)ns };
    (void)syscall(SYS_futex, word, FUTEX_WAIT, value, &slice, NULL, 0u);
}

/* The half of a slot's word that changes with its state. */
static uint32_t *turn_futex(js_comm_slot *slot)
{
    return (uint32_t *)(void *)&slot->word;
}

static uint64_t turn_span_ns(const js_comm *comm, uint64_t since, uint64_t now)
{
    return now > since ? js_clock_span_ns(&comm->engine->clock, now - since) : 0;
}

/* Is the operation no longer under way? */
static bool turn_is_over(const js_turn *turn)
{
    return js_load_acq_u64(&turn->slot->word) !=
           js_comm_slot_word(turn->wr_id, JS_COMM_SLOT_OUTSTANDING);
}

/* --- those inside ------------------------------------------------------------------------ */

void js_turn_wake(js_comm *comm, js_comm_slot *slot)
{
    turn_wake_all(turn_futex(slot));
    if (comm->dozers != 0) {
        turn_wake_all(&comm->board->doorbell);
    }
}

void js_turn_pass(js_comm *comm)
{
    uint32_t *doorbell = &comm->board->doorbell;
    bool is_wanted = js_load_rlx_u32(&comm->wanted) != 0;
    bool has_disarmed = comm->dozers != 0 && !comm->waiter.is_armed;
    if (has_disarmed) {
        comm->dozers = 0;
    }
    js_store_rel_u32(&comm->busy, JS_COMM_FREE);
    /* From here on it may be closed; the area stays as long as the process is in the job. */
    if (has_disarmed) {
        turn_wake_all(doorbell);
    }
    for (uint32_t i = 0; is_wanted && i < TURN_PASS_SPINS; i++) {
        js_cpu_relax(); /* calls back to back leave too short a gap for another thread */
    }
    if (is_wanted) {
        sched_yield();
    }
}

static bool turn_has_others(const js_comm *comm)
{
    uint32_t own = comm->is_biased; /* js_comm_enter_slow leaves it up */
    return js_load_seq_u32(&comm->outside) != 0 || js_load_seq_u32(&comm->wanted) != own;
}

/* Whoever comes writes that it does, then looks at `busy`; whoever closes does the reverse. One of
 * the two sees the other. */
int32_t js_turn_hold(js_comm *comm)
{
    uint32_t busy;
    (void)js_add_seq_u32(&comm->outside, 1);
    while ((busy = js_load_seq_u32(&comm->busy)) == JS_COMM_CLOSING) {
        sched_yield();
    }
    if (busy == JS_COMM_CLOSED) {
        js_turn_let_go(comm);
        return JS_FAIL(JS_ERR_CLOSED, "the communicator is closed");
    }
    return JS_OK;
}

void js_turn_let_go(js_comm *comm)
{
    (void)js_add_seq_u32(&comm->outside, UINT32_MAX);
}

void js_turn_close_queue(js_comm *comm)
{
    (void)js_swap_seq_u32(&comm->busy, JS_COMM_CLOSED);
    while (turn_has_others(comm)) { /* they come out, or find it closed */
        sched_yield();
    }
}

int32_t js_turn_close(js_comm *comm)
{
    uint64_t start = js_clock_ticks();
    for (;;) {
        (void)js_swap_seq_u32(&comm->busy, JS_COMM_CLOSING);
        if (!turn_has_others(comm)) {
            js_store_rel_u32(&comm->busy, JS_COMM_CLOSED);
            return JS_OK;
        }
        js_store_rel_u32(&comm->busy, JS_COMM_ENTERED);
        if (comm->failed == JS_OK && js_load_rlx_u32(&comm->control->abort) != 0) {
            (void)js_fault_adopt(comm);
        }
        if (comm->failed == JS_OK || turn_span_ns(comm, start, js_clock_ticks()) > TURN_ENDING_NS) {
            (void)js_comm_leave(comm, JS_OK);
            return JS_FAIL(JS_ERR_BUSY, "another thread is inside a call on this communicator");
        }
        (void)js_comm_leave(comm, JS_OK);
        sched_yield();
        JS_TRY(js_comm_enter(comm));
    }
}

int32_t js_turn_yield(js_turn *turn, js_cqe *out)
{
    js_comm *comm = turn->comm;
    int32_t result = JS_TURN_TAKEN;
    (void)js_turn_hold(comm); /* the caller is inside: it can */
    (void)js_comm_leave(comm, JS_OK);
    if (js_comm_enter(comm) == JS_OK) {
        comm->waiter.looked_ticks = 0;
    } else {
        turn->is_outside = true;
        result = js_turn_collect(turn->slot, turn->wr_id, out);
    }
    js_turn_let_go(comm);
    return result;
}

/* Two looks at the peers that an operation needs, with a round before each: see
 * js_fault_check_peers. */
static void turn_check_peers(const js_turn *turn)
{
    js_comm *comm = turn->comm;
    js_engine_check_liveness(comm->engine);
    comm->waiter.suspect = 0;
    for (uint32_t i = 0; i < 2; i++) {
        if (js_help_round(comm) != 0) {
            comm->waiter.suspect = 0; /* it may have sent what is awaited before it left */
        } else if (comm->failed == JS_OK && !turn_is_over(turn)) {
            comm->wr_waited = turn->wr_id;
            (void)js_fault_check_peers(comm);
        }
    }
    if (comm->mirror != NULL && comm->failed == JS_OK) {
        js_mirror_ask(comm, js_clock_to_ns(&comm->engine->clock, js_clock_ticks()));
    }
}

/* --- those outside ----------------------------------------------------------------------- */

bool js_turn_is_free(const js_comm *comm, js_turn_look *look, uint64_t now_ticks)
{
    if (now_ticks < look->next_ticks) {
        return false;
    }
    const js_clock_scale *clock = &comm->engine->clock;
    uint32_t turns = js_load_rlx_u32(&comm->turns);
    bool is_free = turns == look->seen && js_load_rlx_u32(&comm->busy) == JS_COMM_FREE;
    uint64_t least = js_clock_ns_to_ticks(clock, TURN_PAUSE_NS_MIN);
    uint64_t most = js_clock_ns_to_ticks(clock, TURN_PAUSE_NS_MAX);
    look->seen = turns;
    look->pause_ticks =
        is_free ? least : js_min_u64(js_max_u64(2 * look->pause_ticks, least), most);
    look->next_ticks = is_free ? 0 : now_ticks + look->pause_ticks;
    return is_free;
}

static void turn_ask(const js_turn *turn)
{
    if (js_comm_enter_soon(turn->comm) == JS_OK) {
        turn_check_peers(turn);
        (void)js_comm_leave(turn->comm, JS_OK);
    }
}

bool js_turn_look_after(const js_turn *turn)
{
    js_comm *comm = turn->comm;
    js_comm_slot *slot = turn->slot;
    uint64_t now_ns = js_clock_to_ns(&comm->engine->clock, js_clock_ticks());
    uint32_t now_ms = (uint32_t)(now_ns / TURN_MS_NS);
    uint32_t asked_ms = js_load_rlx_u32(&slot->asked_ms);
    bool is_due = asked_ms != 0 && now_ms - asked_ms > TURN_ASK_NS / TURN_MS_NS;
    if (asked_ms == 0 || is_due) {
        js_store_rlx_u32(&slot->asked_ms, now_ms);
    }
    if (turn->is_outside) {
        if (is_due && js_turn_hold(comm) == JS_OK) {
            turn_ask(turn);
            js_turn_let_go(comm);
        }
        return is_due;
    }
    is_due = is_due || js_load_rlx_u32(&comm->control->abort) != 0;
    if (is_due) {
        turn_check_peers(turn);
    }
    return is_due;
}

static void turn_pause(js_turn *turn, uint64_t ns)
{
    uint32_t word = (uint32_t)js_comm_slot_word(turn->wr_id, JS_COMM_SLOT_OUTSTANDING);
    if (ns >= TURN_SLEEP_NS || turn->is_patient) {
        turn_sleep(turn_futex(turn->slot), word, ns);
        return;
    }
    uint64_t start = js_clock_ticks();
    while (!turn_is_over(turn) && turn_span_ns(turn->comm, start, js_clock_ticks()) < ns) {
        sched_yield();
    }
}

/* JS_OK as long as the caller may wait on. */
static int32_t turn_check_time(js_turn *turn, uint64_t now)
{
    turn->began_ticks = turn->began_ticks ? turn->began_ticks : now;
    if (turn_span_ns(turn->comm, turn->began_ticks, now) >= turn->timeout_ns) {
        return JS_ERR_TIMEOUT;
    }
    bool is_long = turn_span_ns(turn->comm, turn->since_ticks, now) >= TURN_SIGNALS_NS;
    return is_long ? JS_ERR_AGAIN : JS_OK;
}

/* Nobody is inside, and nobody has been lately. True: the caller is inside. */
static bool turn_take(const js_turn *turn)
{
    js_comm *comm = turn->comm;
    if (turn->is_patient && js_thread_is_running(comm->engine)) {
        return false; /* it makes the rounds */
    }
    if (!js_comm_try_enter(comm)) {
        return false;
    }
    if (!turn->is_patient) {
        return true;
    }
    while (js_help_round(comm) != 0 && js_load_rlx_u32(&comm->wanted) == 0 && !turn_is_over(turn)) {
    }
    if (js_help_is_wanted(comm)) {
        (void)js_help_others(comm);
    }
    (void)js_comm_leave(comm, JS_OK);
    return false;
}

/* How long until the next look. */
static uint64_t turn_pause_ns(const js_turn *turn, const js_turn_look *look, uint64_t now)
{
    const js_comm *comm = turn->comm;
    uint64_t ns = js_clock_span_ns(&comm->engine->clock, look->pause_ticks);
    if (turn->is_patient) { /* the longer it has waited, the less it matters */
        ns = js_max_u64(ns, turn_span_ns(comm, turn->since_ticks, now) / 8);
        ns = js_max_u64(ns, TURN_PATIENT_NS_MIN);
    }
    return js_min_u64(js_max_u64(ns, TURN_PAUSE_NS_MIN), TURN_PAUSE_NS_MAX);
}

static int32_t turn_wait(js_turn *turn)
{
    js_comm *comm = turn->comm;
    js_turn_look look = { .seen = js_load_rlx_u32(&comm->turns) };
    uint64_t asked = js_clock_ticks();
    if (turn->door_ns != 0) {
        turn_sleep(&comm->board->doorbell, 1, turn->door_ns);
        turn->door_ns = 0;
    }
    for (;;) {
        if (turn_is_over(turn)) {
            return JS_OK;
        }
        uint64_t now = js_clock_ticks();
        JS_TRY(turn_check_time(turn, now));
        if (js_turn_is_free(comm, &look, now)) {
            if (turn_take(turn)) {
                return JS_TURN_TAKEN;
            }
            look.seen = js_load_rlx_u32(&comm->turns);
        }
        if (turn_span_ns(comm, asked, now) > TURN_ASK_NS) {
            turn_ask(turn);
            asked = js_clock_ticks();
            look.seen = js_load_rlx_u32(&comm->turns);
        }
        turn_pause(turn, turn_pause_ns(turn, &look, now));
    }
}

int32_t js_turn_collect(js_comm_slot *slot, uint64_t wr_id, js_cqe *out)
{
    uint64_t done = js_comm_slot_word(wr_id, JS_COMM_SLOT_DONE);
    uint64_t word = js_load_acq_u64(&slot->word);
    if (word == js_comm_slot_word(wr_id, JS_COMM_SLOT_OUTSTANDING)) {
        return JS_ERR_AGAIN;
    }
    if (word != done ||
        !js_cas_seq_u64(&slot->word, done, js_comm_slot_word(wr_id, JS_COMM_SLOT_TAKEN))) {
        return JS_FAIL(JS_ERR_INVALID, "operation %llu is not outstanding",
                       (unsigned long long)wr_id);
    }
    *out = slot->cqe;
    js_store_rel_u64(&slot->word, js_comm_slot_word(wr_id, JS_COMM_SLOT_FREE));
    return JS_OK;
}

int32_t js_turn_wait(js_turn *turn, js_cqe *out)
{
    js_comm *comm = turn->comm;
    turn->since_ticks = turn->since_ticks ? turn->since_ticks : js_clock_ticks();
    JS_TRY(js_turn_hold(comm));
    (void)js_add_seq_u32(&turn->slot->sleepers, 1);
    if (!turn->is_outside) {
        comm->dozers |= turn->door_ns != 0;
        (void)js_comm_leave(comm, JS_OK);
    }
    int32_t result = turn_wait(turn);
    turn->is_outside = result != JS_TURN_TAKEN;
    if (result == JS_OK) {
        result = js_turn_collect(turn->slot, turn->wr_id, out);
    }
    (void)js_add_seq_u32(&turn->slot->sleepers, UINT32_MAX);
    js_turn_let_go(comm);
    return result;
}
