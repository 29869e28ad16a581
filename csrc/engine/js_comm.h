/* A communicator as one rank sees it, and the duty cycle that moves everything in it.
 *
 * js_comm.c      opening, closing, plans
 * js_comm_post.c descriptors in, completions out
 * js_duty.c      one round: queues, the running plan, messages
 * js_wait.c      spin, yield, sleep; waking others
 * js_help.c      rounds for the other communicators of this process
 * js_fault.c     what went wrong: mismatch, death, abort
 * js_group.c     the memory of communicators of some of the ranks
 * All of it runs in the thread that calls; there is no thread of the library. */
#ifndef JS_COMM_H
#define JS_COMM_H

#include "js_engine.h"
#include "js_exec.h"
#include "js_link_shm.h"
#include "js_message.h"

#include <jetstream/js_api.h>

#define JS_COMM_PLANS_MAX 4096u

/* What became of a descriptor that this process posted. */
typedef enum js_comm_slot_state {
    JS_COMM_SLOT_FREE,
    JS_COMM_SLOT_OUTSTANDING,
    JS_COMM_SLOT_DONE,
} js_comm_slot_state;

typedef struct js_comm_slot {
    uint64_t wr_id;
    uint64_t since_ticks; /* when somebody first waited for it */
    js_comm_slot_state state;
    js_cqe cqe;
} js_comm_slot;

typedef struct js_comm_pending {
    js_exec_plan *plan;
    uint64_t wr_id;
    uint64_t input;
    uint64_t output;
} js_comm_pending;

/* Who is inside a communicator: nothing private to it may be touched from outside. */
typedef enum js_comm_busy {
    JS_COMM_FREE,
    JS_COMM_ENTERED, /* a call */
    JS_COMM_HELPED,  /* a thread that waits in another communicator; leaves soon */
    JS_COMM_FORKED,  /* for good: this is a child of the process that opened it */
} js_comm_busy;

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
    uint32_t spins;
    uint32_t suspect; /* 1 + peer that looked wrong at the last check */
    bool is_armed;    /* the doorbell is up: the next idle round sleeps */
} js_waiter;

struct js_comm {
    js_engine *engine;
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

    js_qp qp;             /* the device's side: this process posts here */
    uint32_t sq_consumed; /* the engine's side */
    uint32_t rq_consumed;
    uint32_t cq_posted;

    js_exec exec;
    js_message message;
    js_comm_pending *launches; /* accepted, not started: FIFO */
    uint32_t launch_head;
    uint32_t launch_tail;
    js_comm_pending current;
    uint64_t sequence; /* collectives started */
    uint64_t enter_ticks;
    uint64_t exit_ticks; /* of the previous collective */
    uint64_t wait_ticks;
    uint64_t recorded; /* collective of the last complete record; R: any thread, rel/acq */

    js_exec_plan **plans; /* [JS_COMM_PLANS_MAX], by id */
    uint32_t plan_count;
    js_comm_slot *slots; /* by wr_id */
    uint32_t slot_mask;
    uint64_t wr_next;
    uint64_t wr_last_call; /* of js_comm_call */
    uint64_t wr_waited;    /* being waited for now */

    js_waiter waiter;
    int32_t failed; /* status that every further call returns */
    js_fault fault;
    js_comm *next;     /* in the engine's list (its lock) */
    uint32_t has_work; /* it was left with operations in flight; R: any thread, relaxed */
    uint32_t busy;     /* js_comm_busy; whoever enters (cas), the same when it leaves */
};

/* --- js_help.c --- */
/* What js_comm_enter does where somebody is inside: waits for a helper to leave, JS_ERR_BUSY for a
 * call, JS_ERR_FORKED in a child. */
int32_t js_comm_enter_slow(js_comm *comm);
/* Remembers whether operations are left in flight, for waits in other communicators. */
void js_comm_note_work(js_comm *comm, bool has_work);

/* One thread at a time. The word is also what makes a second thread's call an error instead of a
 * corrupted queue. */
JS_INLINE int32_t js_comm_enter(js_comm *comm)
{
    if (JS_LIKELY(js_cas_seq_u32(&comm->busy, JS_COMM_FREE, JS_COMM_ENTERED))) {
        return JS_OK;
    }
    return js_comm_enter_slow(comm);
}

JS_INLINE int32_t js_comm_leave(js_comm *comm, int32_t result)
{
    bool has_work = comm->exec.plan != NULL || comm->launch_head != comm->launch_tail ||
                    comm->message.outstanding != 0;
    if (JS_UNLIKELY(has_work != (js_load_rlx_u32(&comm->has_work) != 0))) {
        js_comm_note_work(comm, has_work);
    }
    js_store_rel_u32(&comm->busy, JS_COMM_FREE);
    return result;
}

/* One round for each other communicator of this process that has operations in flight and nobody
 * inside, so that ranks waiting for those get on. Returns the amount of progress. */
uint32_t js_help_others(js_comm *comm);

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

/* --- js_wait.c --- */
/* After a round without progress: waits a little. JS_OK, or why the communicator failed. */
int32_t js_wait_idle(js_comm *comm);
/* After progress. */
void js_wait_reset(js_comm *comm);
/* Wakes peers that sleep; cheap when none does. */
void js_wait_wake_all(js_comm *comm);

/* --- js_fault.c --- */
/* Looks whether a peer that is awaited has died, left, or called something else. */
int32_t js_fault_check_peers(js_comm *comm);
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
