/* A communicator as one rank sees it, and the duty cycle that moves everything in it.
 *
 * js_comm.c      opening, closing, plans
 * js_comm_post.c descriptors in, completions out
 * js_duty.c      one round: queues, the running plan, messages
 * js_wait.c      spin, yield, sleep; waking others
 * js_fault.c     what went wrong: mismatch, death, abort
 * All of it runs in the thread that calls; there is no thread of the library. */
#ifndef JS_COMM_H
#define JS_COMM_H

#include "js_engine.h"
#include "js_exec.h"
#include "js_link_shm.h"
#include "js_message.h"

#include <jetstream/js_api.h>
#include <sys/types.h>

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

/* State of the wait in progress. */
typedef struct js_waiter {
    uint64_t since_ticks;   /* when nothing moved any more; 0: it moves */
    uint64_t checked_ticks; /* when the peers' boards were last looked at */
    uint64_t spin_ticks;    /* learned: how long spinning has paid off */
    uint32_t spins;
    uint32_t suspect; /* 1 + peer that looked wrong at the last check */
    bool is_armed;    /* the doorbell is up: the next idle round sleeps */
} js_waiter;

struct js_comm {
    js_engine *engine;
    uint32_t rank;
    uint32_t world;
    js_area area;
    js_control *control;
    js_board *board; /* of this rank */
    uint64_t *counters;
    js_record *records;
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
    uint64_t record_count;

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
    pid_t pid;
    uint32_t busy; /* non-zero while a thread is inside */
};

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
/* Takes over the fault that another rank has raised. */
int32_t js_fault_adopt(js_comm *comm);
/* Fills in what this rank does and waits for at this moment. */
void js_fault_describe(js_comm *comm, js_fault *out);

#endif
