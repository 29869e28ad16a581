/* A communicator as one rank sees it, and the duty cycle that moves everything in it.
 *
 * js_comm.c      opening, closing, plans
 * js_comm_post.c what the host posts, and its waits
 * js_queue.c     what a device posts: its queue pair, seen from the engine
 * js_qp.c        making, draining and closing queue pairs; the device's waits
 * js_duty.c      one round: queues, the running plan, messages
 * js_graph.c     chains of operations
 * js_account.c   records and counters, when there is time
 * js_wait.c      spin, yield, sleep; waking others
 * js_turn.c      several threads in one communicator: they take turns
 * js_help.c      rounds for the other communicators of this process
 * js_mirror.c    the ranks of other hosts; js_mirror_open.c, _note.c, _put.c, _stat.c
 * js_fault.c     what went wrong: mismatch, death, abort
 * js_group.c     the memory of communicators of some of the ranks
 * js_thread.c    a thread that makes rounds while nobody else does
 * All of it runs in the thread that calls, or in that one where it was asked for; in one thread at
 * a time, but for what is said of threads outside. */
#ifndef JS_COMM_H
#define JS_COMM_H

#include "js_engine.h"
#include "js_exec.h"
#include "js_graph.h"
#include "js_link_shm.h"
#include "js_message.h"
#include "js_mirror.h"
#include "js_queue.h"
#include "js_thread.h"

#include <jetstream/js_api.h>

#define JS_COMM_PLANS_MAX 4096u
#define JS_COMM_GRAPHS_MAX 1024u

/* Who posted an operation, in the highest bits of its number: the host (a slot of the number), a
 * device (index in its queue), a graph. */
#define JS_COMM_ID_HOST 0u
#define JS_COMM_ID_SENT 1u
#define JS_COMM_ID_RECEIVED 2u
#define JS_COMM_ID_GRAPH 3u
#define JS_COMM_ID_SHIFT 62u

/* What became of an operation that the host posted. */
typedef enum js_comm_slot_state {
    JS_COMM_SLOT_FREE,
    JS_COMM_SLOT_OUTSTANDING,
    JS_COMM_SLOT_DONE,
    JS_COMM_SLOT_TAKEN, /* a thread outside is copying the completion */
} js_comm_slot_state;

#define JS_COMM_SLOT_BITS 2u
#define JS_COMM_SLOT_STATES 3u

typedef struct js_comm_slot {
    uint64_t word;     /* number of the operation and js_comm_slot_state; its lower half is the
                        * futex of threads outside; rel/acq */
    uint32_t sleepers; /* threads outside that wait for it (add) */
    uint32_t asked_ms; /* when a thread that only looks last asked after the peers; 0: it has not
                        * looked yet (relaxed) */
    js_cqe cqe;
} js_comm_slot;

JS_INLINE uint64_t js_comm_slot_word(uint64_t wr_id, js_comm_slot_state state)
{
    return wr_id << JS_COMM_SLOT_BITS | state;
}

/* A launch that has not begun: of a plan, or of a graph. */
typedef struct js_comm_pending {
    js_exec_plan *plan;
    js_graph *graph;
    uint64_t id;
    uint64_t input;
    uint64_t output;
} js_comm_pending;

/* An operation: what is known at its end. */
struct js_comm_done {
    uint64_t id;
    uint64_t bytes;
    int32_t status;
    uint32_t tag;
    uint16_t peer;
    uint16_t opcode; /* enum js_sq_opcode, 0 for a receive */
};

/* A collective that is over and not in the books yet. */
typedef struct js_comm_account {
    const js_exec_plan *plan; /* NULL: all is written */
    uint64_t sequence;
    uint64_t enter_ticks;
    uint64_t first_ticks;
    uint64_t arrived_ticks;
    uint64_t exit_ticks;
    uint64_t wait_ticks;
    uint64_t copy_ticks;
    uint64_t reduce_ticks;
    uint64_t bytes_sent;
    uint64_t bytes_received;
    uint32_t published;
    uint32_t referred;
    uint32_t streamed;
    uint32_t consumed;
    uint32_t last_peer;
    int32_t status;
} js_comm_account;

/* Who is inside a communicator: nothing private to it may be touched from outside. */
typedef enum js_comm_busy {
    JS_COMM_FREE,
    JS_COMM_ENTERED, /* a call */
    JS_COMM_HELPED,  /* a thread that waits in another communicator; leaves soon */
    JS_COMM_FORKED,  /* for good: this is a child of the process that opened it */
    JS_COMM_CLOSING, /* for a moment: closed, or entered again */
    JS_COMM_CLOSED,  /* for good; a call that comes late, or a device, finds the memory in place */
} js_comm_busy;

/* When a thread that would rather not disturb others looks again whether they are active. */
typedef struct js_turn_look {
    uint32_t seen; /* turns at the last look */
    uint64_t pause_ticks;
    uint64_t next_ticks;
} js_turn_look;

/* The wait of one thread for one operation, outside. */
typedef struct js_turn {
    js_comm *comm;
    js_comm_slot *slot;
    uint64_t wr_id;
    uint64_t timeout_ns;
    uint64_t since_ticks; /* when the call was first known to last */
    uint64_t began_ticks; /* when this thread first waited for it; 0: not known yet */
    uint64_t door_ns;     /* not 0: the doorbell is up, sleep there for so long */
    bool is_outside;
    bool is_patient; /* never inside while others want in */
    bool is_alone;   /* no other thread can wait for this operation */
} js_turn;

/* State of the wait in progress. */
typedef struct js_waiter {
    uint64_t since_ticks;   /* when nothing moved any more; 0: it moves */
    uint64_t helped_ticks;  /* when another communicator last moved instead */
    uint64_t checked_ticks; /* when the peers' boards were last looked at */
    uint64_t spin_ticks;    /* learned: how long spinning has paid off */
    /* With more ranks than cores: do brief spins pay off? */
    uint64_t ran_ticks;    /* since when this rank has had its core, as far as it knows */
    uint32_t is_brief;     /* non-zero: this wait spins before it yields */
    uint32_t luck;         /* brief spins that paid off, less those that did not */
    uint32_t waits;        /* since the last brief spin */
    uint32_t probe_period; /* waits between brief spins while they do not pay off */
    /* Does another program want this core? */
    uint32_t foreign;        /* waits yet that sleep instead of yielding; 0: it does not */
    uint32_t foreign_period; /* how many there were at the last time */
    uint32_t has_slept;      /* non-zero: this wait did */
    uint64_t looked_ticks;   /* when this rank last looked around; 0: who knows */
    uint32_t spins;
    uint32_t suspect; /* 1 + peer that looked wrong at the last check */
    bool is_armed;    /* the doorbell is up: the next idle round sleeps */
} js_waiter;

struct js_comm {
    js_engine *engine;
    uint64_t serial; /* of all communicators of the process: an address may be used again */
    uint32_t rank;
    uint32_t world;
    uint16_t *members; /* [world]: their ranks in the job */
    js_area area;
    js_control *control;
    js_board *board; /* of this rank */
    uint64_t *counters;
    js_record *records;
    uint64_t record_mask;
    js_link_shm link;
    js_mirror *mirror; /* NULL: no ranks on other hosts */

    js_exec exec;
    js_message message;
    js_queue *queue;           /* of the device that this communicator serves; NULL: the host */
    js_comm_pending *launches; /* accepted, not started: FIFO */
    uint32_t launch_mask;
    uint32_t launch_head;
    uint32_t launch_tail;
    js_comm_pending current;
    js_graph_run run; /* of the graph that is current */
    js_comm_account account;
    uint64_t sequence; /* collectives started */
    uint64_t enter_ticks;
    uint64_t exit_ticks; /* of the previous collective */
    uint64_t wait_ticks;
    uint64_t foreign_ticks; /* when a frame of another host first did not fit; 0: none */
    uint64_t recorded;      /* collective of the last complete record; R: any thread, rel/acq */

    js_exec_plan **plans; /* [JS_COMM_PLANS_MAX], by id modulo that */
    uint32_t plan_count;
    uint32_t plan_unloads; /* an id is not used again: another thread may have it in its hand */
    js_graph **graphs;     /* [JS_COMM_GRAPHS_MAX], by id */
    js_comm_slot *slots;   /* by wr_id */
    uint32_t slot_mask;
    uint64_t wr_next;
    uint64_t wr_waited; /* being waited for now, by whoever has the turn */

    js_waiter waiter;
    int32_t failed; /* status that every further call returns */
    js_fault fault;
    js_comm *next;       /* in the engine's list (its lock) */
    uint32_t has_mirror; /* there are ranks on other hosts; R: any thread, rel/acq */
    uint32_t has_work;   /* it was left with operations in flight; R: any thread, relaxed */
    bool has_posted;     /* something, since its last round */
    /* What other threads of the process look at: one line, which those who go in and out own. */
    uint32_t busy JS_ALIGNED(JS_CACHE_LINE); /* js_comm_busy; who enters (cas), or leaves */
    uint32_t wanted;    /* threads that want in: whoever waits inside comes out (add) */
    uint32_t turns;     /* how often a thread has gone in, but to help or to look; W: who is
                         * inside */
    uint32_t outside;   /* threads in the middle of a call that are not inside (add) */
    uint32_t dozers;    /* not 0: threads sleep outside, at the doorbell; W: who is inside */
    uint32_t is_shared; /* not 0: two threads have met here (relaxed) */
    uint32_t is_inside; /* the device's thread is; W: it */
    uint32_t is_shut;   /* not 0: closing is done; R: who frees it, rel/acq */
    bool is_biased;     /* one thread of a device goes in and out by that word: js_qp.c */
    /* What the engine thread writes. */
    js_turn_look thread JS_ALIGNED(JS_CACHE_LINE); /* when it should next go in; W: it */
    uint32_t is_left; /* not 0: it should soon; W: who leaves work behind, and it (relaxed) */
    bool is_raised;   /* it has raised its doorbell here; W: it */
};

/* --- js_turn.c --- */
/* Waits outside for an operation; who is inside leaves. JS_OK: it is complete, *out has the
 * completion; JS_ERR_INVALID: another thread has that; JS_ERR_AGAIN, JS_ERR_TIMEOUT as
 * js_comm_wait. Then the caller is outside, and must not use the communicator any more. */
int32_t js_turn_wait(js_turn *turn, js_cqe *out);
#define JS_TURN_TAKEN 1 /* it is inside again */
/* The completion of an operation, for a thread outside: JS_ERR_AGAIN: there is none yet;
 * JS_ERR_INVALID. */
int32_t js_turn_collect(js_comm_slot *slot, uint64_t wr_id, js_cqe *out);
/* Has nobody else been inside for a while? Asked by a thread that would rather not disturb. */
bool js_turn_is_free(const js_comm *comm, js_turn_look *look, uint64_t now_ticks);
/* For a thread that only looks at an operation, again and again: now and then looks after the
 * peers as a wait does; nobody else may. True: it has, and the caller should look once more. */
bool js_turn_look_after(const js_turn *turn);
/* Comes out for whoever wants in, and goes in again: JS_TURN_TAKEN. Where it cannot, the caller
 * stays outside, with what js_turn_collect returns. Nobody closes the communicator meanwhile. */
int32_t js_turn_yield(js_turn *turn, js_cqe *out);
/* A completion has been written for which threads wait outside. */
void js_turn_wake(js_comm *comm, js_comm_slot *slot);
/* What js_comm_leave does where others want in, or sleep and will not be woken by peers. */
void js_turn_pass(js_comm *comm);
/* For the thread inside: nobody gets in any more, JS_ERR_CLOSED, nor is anybody in the middle of a
 * call. Waits for those who are, if that cannot last; enters and leaves on the way. With another
 * status the caller is outside, and the communicator is as it was. */
int32_t js_turn_close(js_comm *comm);
/* The same, for whom there is no way back; waits for all, but those who wait in the queue pair. */
void js_turn_close_queue(js_comm *comm);
/* For a thread outside: with JS_OK nobody closes the communicator before js_turn_let_go.
 * JS_ERR_CLOSED: somebody has. */
int32_t js_turn_hold(js_comm *comm);
void js_turn_let_go(js_comm *comm);

/* --- js_help.c --- */
/* What js_comm_enter does where somebody is inside: waits for a turn. JS_ERR_BUSY if nobody comes
 * out for long, or in a function of a graph; JS_ERR_FORKED in a child. */
int32_t js_comm_enter_slow(js_comm *comm);
/* The same, with little patience. */
int32_t js_comm_enter_soon(js_comm *comm);
/* Remembers whether operations are left in flight, for waits in other communicators. */
void js_comm_note_work(js_comm *comm, bool has_work);

/* The plan of an id; NULL: it is not loaded any more. */
JS_INLINE js_exec_plan *js_comm_find_plan(const js_comm *comm, uint32_t plan_id)
{
    js_exec_plan *plan = comm->plans[plan_id % JS_COMM_PLANS_MAX];
    return JS_LIKELY(plan != NULL && plan->id == plan_id) ? plan : NULL;
}

/* Goes in, if nobody is, for a short look: others need not think that it makes rounds. */
JS_INLINE bool js_comm_try_look(js_comm *comm)
{
    return JS_LIKELY(!comm->is_biased &&
                     js_cas_seq_u32(&comm->busy, JS_COMM_FREE, JS_COMM_ENTERED));
}

/* Goes in, if nobody is. */
JS_INLINE bool js_comm_try_enter(js_comm *comm)
{
    if (JS_UNLIKELY(!js_comm_try_look(comm))) {
        return false;
    }
    js_store_rlx_u32(&comm->turns, comm->turns + 1);
    return true;
}

/* One thread at a time. */
JS_INLINE int32_t js_comm_enter(js_comm *comm)
{
    return JS_LIKELY(js_comm_try_enter(comm)) ? JS_OK : js_comm_enter_slow(comm);
}

JS_INLINE int32_t js_comm_leave(js_comm *comm, int32_t result)
{
    if (JS_UNLIKELY(comm->is_biased)) { /* nobody but its device makes rounds for it */
        js_store_rel_u32(&comm->busy, JS_COMM_FREE);
        js_add_seq_u32(&comm->wanted, UINT32_MAX); /* it was raised on the way in */
        return result;
    }
    bool has_work = comm->exec.plan != NULL || comm->launch_head != comm->launch_tail ||
                    comm->message.outstanding != 0 || comm->run.graph != NULL ||
                    (comm->mirror != NULL && comm->mirror->has_backlog);
    if (JS_UNLIKELY(has_work != (js_load_rlx_u32(&comm->has_work) != 0))) {
        js_comm_note_work(comm, has_work);
    }
    if (JS_UNLIKELY((js_load_rlx_u32(&comm->wanted) | comm->dozers) != 0)) {
        js_turn_pass(comm);
        return result;
    }
    js_store_rel_u32(&comm->busy, JS_COMM_FREE);
    return result;
}

/* One round for each other communicator of this process that has operations in flight and nobody
 * inside, so that ranks waiting for those get on. Returns the amount of progress. */
uint32_t js_help_others(js_comm *comm);
/* One round for a communicator that this thread has entered as a helper. */
uint32_t js_help_round(js_comm *comm);

/* Is there anything to help? Asked by the thread inside `comm`. */
JS_INLINE bool js_help_is_wanted(const js_comm *comm)
{
    return js_load_rlx_u32(&comm->engine->working_count) > comm->has_work;
}

/* --- js_duty.c --- */
/* One round of everything; returns the amount of progress, or a failure of the communicator. */
int32_t js_duty_round(js_comm *comm);
/* Ends everything outstanding with `status`. */
void js_duty_flush(js_comm *comm, int32_t status);
/* A send or receive is done; context is the js_comm. */
void js_duty_message_done(void *context, const js_message_done *done);
/* Begins a collective; none is running. */
void js_duty_start(js_comm *comm, js_exec_plan *plan, uint64_t input, uint64_t output);
/* Takes a launch on; false: too many wait. */
bool js_duty_launch(js_comm *comm, const js_comm_pending *launch);
/* Tells whoever posted an operation how it ended. */
void js_duty_complete(js_comm *comm, const js_comm_done *done);

/* --- js_account.c --- */
/* The books are kept while the next operation waits for its peers, not between the two: these write
 * the record and the counters of the collective that ended last. */
void js_account_write(js_comm *comm);

JS_INLINE void js_account_settle(js_comm *comm)
{
    if (comm->account.plan != NULL) {
        js_account_write(comm);
    }
}

/* --- js_wait.c --- */
/* After a round without progress: waits a little. JS_OK, or why the communicator failed. */
int32_t js_wait_idle(js_comm *comm);
/* What js_wait_idle does besides waiting, for a thread that is going to sleep outside, and how long
 * it may. */
int32_t js_wait_before_door(js_comm *comm, uint64_t *out_slice_ns);
/* Forgets the wait that was left unfinished here: the one that begins is another one's. */
void js_wait_forget(js_comm *comm);
/* Now and then, asks how the peers are, those that are awaited. Returns JS_OK or a fault. */
int32_t js_wait_check(js_comm *comm, uint64_t now_ticks);
/* After progress. */
void js_wait_reset(js_comm *comm);
/* The same, where the time at which the wait ended is known. */
void js_wait_reset_at(js_comm *comm, uint64_t now_ticks);
/* Wakes the thread of this rank that sleeps inside; from any other thread. */
void js_wait_wake_self(js_comm *comm);
/* Wakes peers that sleep; cheap when none does. */
void js_wait_wake_all(js_comm *comm);

/* --- js_fault.c --- */
/* Looks whether a peer that is awaited has died, left, or called something else. */
int32_t js_fault_check_peers(js_comm *comm);
/* Looks whether any rank has died. */
int32_t js_fault_check_dead(js_comm *comm);
/* A frame of `peer` does not belong to the running plan. */
int32_t js_fault_foreign_frame(js_comm *comm, uint32_t peer);
/* Fails the communicator on all ranks; the first reporter's fault is the one all see. */
int32_t js_fault_raise(js_comm *comm, const js_fault *fault);
/* Tells all ranks, this one too, without touching anything private: for a thread that is not
 * inside. False if another rank was first. */
bool js_fault_publish(js_comm *comm, const js_fault *fault);
/* Takes over the fault that another rank has raised. */
int32_t js_fault_adopt(js_comm *comm);
/* Fills in what this rank does and waits for at this moment. */
void js_fault_describe(js_comm *comm, js_fault *out);

#endif
