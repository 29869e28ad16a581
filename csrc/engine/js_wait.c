/* Waiting: spin, then yield, then sleep on this rank's doorbell.
 *
 * How long to spin is learned: a wait that ended soon after the spin gave up makes the next one
 * spin longer, a wait that outlasted it by far makes it shorter.
 *
 * With more ranks than cores a spinner may keep the awaited rank off the core, so it yields at
 * once. Only between two ranks may brief spins pay off: if they answer each other from two cores,
 * they need no scheduler in between. It is tried now and then, ever more seldom while it fails.
 * Even then a core is given up after a while, so that other ranks get their turn.
 *
 * Where another program wants the core, a yield costs its whole time slice, and to have spun costs
 * it at the next wait: the scheduler runs whoever slept before whoever has used his share. So
 * after a yield that took long, or a spin that lost its core, the next waits sleep at once, and
 * ever more of them while it is the same whenever it is tried again.
 *
 * Falling asleep without losing a wake-up needs the order "doorbell up, then look again" on this
 * side and "publish, then look at the doorbell" on the other, with a full barrier in between on
 * both. The publisher must not pay for one on every frame; so the sleeper issues it for both by
 * membarrier(2), which interrupts the publishers' cores. Where that is missing, and in any case
 * to notice deaths and deadlines, sleep is cut into slices. */
#include "js_comm.h"

#include "js_counter.h"
#include "js_status.h"

#include <errno.h>
#include <linux/futex.h>
#include <linux/membarrier.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define WAIT_BARE_SPINS 64u /* before the first look at the clock */
#define WAIT_RELAX_AFTER 16u
#define WAIT_SPIN_NS_MIN 5000u
#define WAIT_SPIN_NS_MAX 1000000u
#define WAIT_YIELD_NS 2000000u
#define WAIT_BRIEF_NS 4000u  /* about what two switches to another process and back cost */
#define WAIT_TURN_NS 100000u /* how long brief spins may keep a core */
#define WAIT_LUCK_MAX 8u
#define WAIT_PROBE_MIN 16u
#define WAIT_PROBE_MAX 256u
#define WAIT_FOREIGN_NS 250000u /* a yield that lasts longer has served another program */
#define WAIT_FOREIGN_SPIN_NS 50000u
#define WAIT_FOREIGN_MIN 16u /* waits that sleep at once, until a yield is tried again */
#define WAIT_FOREIGN_MAX 1024u
#define WAIT_CHECK_NS 50000u       /* between looks at the peers' boards */
#define WAIT_LIVENESS_NS 20000000u /* between questions to the kernel */
#define WAIT_SLICE_NS 20000000u
#define WAIT_SLICE_HELP_NS 1000000u  /* the shortest slice where other communicators are at work */
#define WAIT_SLICE_BLIND_NS 1000000u /* without membarrier a wake-up may be lost for so long */

static uint64_t wait_ticks(const js_comm *comm, uint64_t ns)
{
    return js_clock_ns_to_ticks(&comm->engine->clock, ns);
}

static uint64_t wait_spin_ticks(const js_comm *comm)
{
    const js_wait_config *config = &comm->engine->wait;
    if (config->oversubscribed) {
        return 0;
    }
    if (config->spin_us != 0) {
        return wait_ticks(comm, (uint64_t)config->spin_us * 1000u);
    }
    if (comm->waiter.foreign != 0) {
        return js_min_u64(comm->waiter.spin_ticks, wait_ticks(comm, WAIT_FOREIGN_SPIN_NS));
    }
    return comm->waiter.spin_ticks;
}

static void wait_learn(js_comm *comm, uint64_t waited_ticks)
{
    js_waiter *w = &comm->waiter;
    uint64_t low = wait_ticks(comm, WAIT_SPIN_NS_MIN);
    uint64_t high = wait_ticks(comm, WAIT_SPIN_NS_MAX);
    if (waited_ticks > high) {
        w->spin_ticks = js_max_u64(w->spin_ticks / 2, low);
    } else if (waited_ticks + waited_ticks / 2 > w->spin_ticks) {
        w->spin_ticks = js_min_u64(js_max_u64(2 * waited_ticks, low), high);
    }
}

/* Decides whether a wait that begins spins briefly. For a collective of more than two ranks it does
 * not: one of them has no core, and spinning keeps it from one. */
static void wait_begin_brief(js_comm *comm)
{
    js_waiter *w = &comm->waiter;
    if (comm->exec.plan != NULL && comm->world > 2) {
        return;
    }
    w->is_brief = w->luck != 0 || ++w->waits > w->probe_period;
    w->waits = w->is_brief ? 0 : w->waits;
}

static void wait_learn_brief(js_waiter *w, bool has_paid_off)
{
    if (has_paid_off) {
        w->luck = w->luck + 2 < WAIT_LUCK_MAX ? w->luck + 2 : WAIT_LUCK_MAX;
        w->probe_period = WAIT_PROBE_MIN;
    } else if (w->luck != 0) {
        w->luck--;
    } else {
        uint32_t longer = 2 * w->probe_period;
        w->probe_period = longer < WAIT_PROBE_MIN   ? WAIT_PROBE_MIN
                          : longer < WAIT_PROBE_MAX ? longer
                                                    : WAIT_PROBE_MAX;
    }
    w->is_brief = 0;
}

/* Spin a little, though there are more ranks than cores? */
static bool wait_is_brief(js_comm *comm, uint64_t now, uint64_t waited)
{
    js_waiter *w = &comm->waiter;
    if (w->is_brief == 0 || now - w->ran_ticks > wait_ticks(comm, WAIT_TURN_NS)) {
        return false;
    }
    if (waited < wait_ticks(comm, WAIT_BRIEF_NS)) {
        return true;
    }
    wait_learn_brief(w, false);
    return false;
}

/* May other threads of a device post, and would this one have to see it? Not if the engine thread
 * does: then that word is its own. */
static bool wait_sees_posts(const js_comm *comm)
{
    return comm->queue != NULL && !comm->queue->is_served;
}

static void wait_disarm(js_comm *comm)
{
    js_store_rlx_u32(&comm->board->doorbell, 0);
    if (wait_sees_posts(comm)) {
        js_store_rlx_u32(&comm->queue->qp.control->status.need_wakeup, 0);
    }
    js_add_seq_u32(&comm->control->sleepers, UINT32_MAX);
    comm->waiter.is_armed = false;
}

void js_wait_reset(js_comm *comm)
{
    js_wait_reset_at(comm, comm->waiter.since_ticks != 0 ? js_clock_ticks() : 0);
}

void js_wait_reset_at(js_comm *comm, uint64_t now_ticks)
{
    js_waiter *w = &comm->waiter;
    if (w->is_armed) {
        wait_disarm(comm);
    }
    if (w->since_ticks != 0) {
        /* It may have ended before it was noticed that it had begun. */
        uint64_t waited = now_ticks > w->since_ticks ? now_ticks - w->since_ticks : 0;
        comm->wait_ticks += waited;
        if (waited > w->spin_ticks / 4) {
            wait_learn(comm, waited);
        }
    }
    if (w->has_slept != 0) {
        w->foreign -= w->foreign != 0;
        w->has_slept = 0;
    }
    if (w->is_brief != 0) {
        wait_learn_brief(w, true);
    }
    w->since_ticks = 0;
    w->helped_ticks = 0;
    w->spins = 0;
    w->suspect = 0;
}

void js_wait_forget(js_comm *comm)
{
    js_waiter *w = &comm->waiter;
    w->since_ticks = 0; /* how long it lasts is not known: nothing is learned */
    w->is_brief = 0;
    js_wait_reset_at(comm, 0);
}

/* Puts the doorbell up; the caller looks once more for work before it sleeps. */
static void wait_arm(js_comm *comm)
{
    js_store_rlx_u32(&comm->board->doorbell, 1);
    if (wait_sees_posts(comm)) {
        js_store_rlx_u32(&comm->queue->qp.control->status.need_wakeup, 1);
    }
    js_add_seq_u32(&comm->control->sleepers, 1);
    if (comm->engine->has_membarrier) {
        (void)syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL_EXPEDITED, 0, 0);
    }
    comm->waiter.is_armed = true;
}

/* Nobody rings this communicator's doorbell for the sake of others that this process has operations
 * in flight in: the longer nothing has happened there, the later that is noticed. */
static uint64_t wait_slice_ns(const js_comm *comm, uint64_t waited)
{
    if (!comm->engine->has_membarrier) {
        return WAIT_SLICE_BLIND_NS;
    }
    if (JS_LIKELY(!js_help_is_wanted(comm))) {
        return WAIT_SLICE_NS;
    }
    uint64_t slice_ns = js_clock_span_ns(&comm->engine->clock, waited) / 8;
    return js_min_u64(js_max_u64(slice_ns, WAIT_SLICE_HELP_NS), WAIT_SLICE_NS);
}

static void wait_sleep(js_comm *comm, uint64_t slice_ns)
{
    struct timespec slice = { .tv_nsec = (long)slice_ns };
    js_counter_add(comm->counters, JS_COUNTER_SLEEPS, 1);
    if (comm->mirror != NULL) {
        bool is_shared = js_load_rlx_u32(&comm->is_shared) != 0; /* no other thread can wake it */
        js_mirror_sleep(comm, is_shared ? WAIT_SLICE_HELP_NS : slice_ns);
    } else {
        (void)syscall(SYS_futex, &comm->board->doorbell, FUTEX_WAIT, 1u, &slice, NULL, 0u);
    }
    wait_disarm(comm);
}

/* Returns 1 if somebody was asleep there. */
static uint32_t wait_ring(uint32_t *doorbell)
{
    if (js_load_rlx_u32(doorbell) == 0 || js_swap_acq_u32(doorbell, 0) != 1) {
        return 0;
    }
    (void)syscall(SYS_futex, doorbell, FUTEX_WAKE, 1u, NULL, NULL, 0u);
    return 1;
}

void js_wait_wake_self(js_comm *comm)
{
    (void)wait_ring(&comm->board->doorbell);
}

void js_wait_wake_all(js_comm *comm)
{
    if (JS_LIKELY(js_load_rlx_u32(&comm->control->sleepers) == 0)) {
        return;
    }
    for (uint32_t i = 0; i < comm->world; i++) {
        js_board *board = js_area_board(&comm->area, i);
        if (i != comm->rank) {
            uint32_t woken = wait_ring(&board->doorbell) + wait_ring(&board->engine_doorbell);
            js_counter_add(comm->counters, JS_COUNTER_WAKES, woken);
        }
    }
}

int32_t js_wait_check(js_comm *comm, uint64_t now_ticks)
{
    js_waiter *w = &comm->waiter;
    js_engine *engine = comm->engine;
    if (now_ticks - w->checked_ticks <= wait_ticks(comm, WAIT_CHECK_NS)) {
        return JS_OK;
    }
    w->checked_ticks = now_ticks;
    if (comm->mirror != NULL) {
        js_mirror_ask(comm, js_clock_to_ns(&engine->clock, now_ticks));
    }
    uint64_t asked = js_load_rlx_u64(&engine->liveness_ticks);
    if (now_ticks - asked > wait_ticks(comm, WAIT_LIVENESS_NS)) {
        js_engine_check_liveness(engine);
        js_counter_add(comm->counters, JS_COUNTER_LIVENESS_CHECKS, 1);
    }
    return js_fault_check_peers(comm);
}

/* This rank has done nothing but look around, or yield, since then; 0: it may have. Returns whether
 * its core served another program meanwhile. */
static bool wait_learn_foreign(js_comm *comm, uint64_t since, uint64_t now)
{
    js_waiter *w = &comm->waiter;
    if (comm->engine->wait.oversubscribed != 0) { /* more likely another rank */
        return false;
    }
    if (JS_LIKELY(since == 0 || now - since <= wait_ticks(comm, WAIT_FOREIGN_NS))) {
        return false;
    }
    uint32_t longer = 2 * w->foreign_period;
    w->foreign_period = longer < WAIT_FOREIGN_MIN   ? WAIT_FOREIGN_MIN
                        : longer < WAIT_FOREIGN_MAX ? longer
                                                    : WAIT_FOREIGN_MAX;
    w->foreign = w->foreign_period;
    return true;
}

static void wait_yield(js_comm *comm)
{
    js_waiter *w = &comm->waiter;
    uint64_t began = js_clock_ticks();
    sched_yield();
    w->is_brief = 0;
    w->ran_ticks = js_clock_ticks();
    w->looked_ticks = w->ran_ticks;
    js_counter_add(comm->counters, JS_COUNTER_YIELDS, 1);
    if (!wait_learn_foreign(comm, began, w->ran_ticks) && w->foreign_period != 0) {
        w->foreign_period--; /* thousands of such yields make a calm wait */
    }
}

static int32_t wait_slow(js_comm *comm, uint64_t now, uint64_t waited)
{
    js_waiter *w = &comm->waiter;
    JS_TRY(js_wait_check(comm, now));
    waited = js_min_u64(waited, now - w->helped_ticks);
    if (w->foreign == 0 && waited < wait_spin_ticks(comm) + wait_ticks(comm, WAIT_YIELD_NS)) {
        wait_yield(comm);
    } else if (!w->is_armed) {
        wait_arm(comm);
    } else {
        w->has_slept = 1;
        wait_sleep(comm, wait_slice_ns(comm, waited));
        w->looked_ticks = js_clock_ticks();
    }
    return JS_OK;
}

int32_t js_wait_before_door(js_comm *comm, uint64_t *out_slice_ns)
{
    js_waiter *w = &comm->waiter;
    if (js_load_rlx_u32(&comm->control->abort) != 0) {
        return js_fault_adopt(comm);
    }
    uint64_t now = js_clock_ticks();
    if (js_help_others(comm) != 0) {
        w->helped_ticks = now;
    }
    JS_TRY(js_wait_check(comm, now));
    *out_slice_ns = wait_slice_ns(comm, now - js_max_u64(w->since_ticks, w->helped_ticks));
    w->has_slept = 1;
    return JS_OK;
}

int32_t js_wait_idle(js_comm *comm)
{
    js_waiter *w = &comm->waiter;
    if (JS_UNLIKELY(js_load_rlx_u32(&comm->control->abort) != 0)) {
        return js_fault_adopt(comm);
    }
    if (w->since_ticks == 0) {
        w->since_ticks = js_clock_ticks();
        w->looked_ticks = w->since_ticks;
        if (comm->engine->wait.oversubscribed != 0) {
            wait_begin_brief(comm);
        }
        return JS_OK;
    }
    w->spins++;
    if (w->spins < WAIT_BARE_SPINS && comm->engine->wait.oversubscribed == 0) {
        if (w->spins > WAIT_RELAX_AFTER) {
            js_cpu_relax();
        }
        return JS_OK;
    }
    uint64_t now = js_clock_ticks();
    (void)wait_learn_foreign(comm, w->looked_ticks, now);
    w->looked_ticks = now;
    if (JS_UNLIKELY(js_help_is_wanted(comm)) && js_help_others(comm) != 0) {
        w->helped_ticks = now; /* whoever is served there may be the one awaited here */
        w->looked_ticks = js_clock_ticks();
    }
    uint64_t waited = now - w->since_ticks;
    if (waited < wait_spin_ticks(comm) || wait_is_brief(comm, now, waited)) {
        js_cpu_relax();
        return JS_OK;
    }
    return wait_slow(comm, now, waited);
}
