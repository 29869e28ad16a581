/* What the files of the simulator share.
 *
 *   js_sim.c          the run: virtual time goes from event to event
 *   js_sim_network.c  what happens to a frame between the two sides
 *   js_sim_side.c     a process: its clock, what it sends and reads
 *   js_sim_check.c    what must hold after every event
 *   js_sim_draw.c     configurations by seed */
#ifndef JS_SIM_H
#define JS_SIM_H

#include "js_rel_state.h"

#define JS_SIM_NEVER UINT64_MAX
#define JS_SIM_FRAMES 4096u  /* in the network and in the buffers of both sides */
#define JS_SIM_HISTORY 64u   /* frames kept for replays, per way */
#define JS_SIM_PATTERN 4096u /* payload repeats after so many bytes */
#define JS_SIM_CORRUPT 1u
#define JS_SIM_FORGED 2u
#define JS_SIM_REPLAYED 4u

/* A frame on its way, or waiting to be looked at. */
typedef struct js_sim_frame {
    uint64_t arrival_ns;
    uint64_t order; /* among frames of the same time */
    uint32_t bytes;
    uint8_t side; /* that it goes to */
    uint8_t marks;
} js_sim_frame;

typedef struct js_sim js_sim;

/* A chunk between posting (or delivery) and consumption. */
typedef struct js_sim_piece {
    uint32_t offset;
    uint32_t bytes;
    uint32_t span; /* of the sender's ring, with what was skipped at its end */
    uint8_t inline_bytes[JS_WIRE_INLINE_BYTES];
} js_sim_piece;

typedef struct js_sim_side {
    js_sim *sim;
    js_rel *rel;
    js_rel *before;       /* copy, to see what a refused frame changes */
    uint8_t *source;      /* ring of payload of what is sent, */
    uint8_t *ring;        /* and of what is received */
    js_sim_piece *posted; /* by number mod ring_slots */
    js_sim_piece *delivered;
    uint64_t *wanted_ns; /* when each message was */
    uint64_t *took_ns;   /* from then until this side had read it */
    uint32_t index;
    uint32_t posted_count; /* chunks */
    uint32_t freed_count;
    uint32_t delivered_count;
    uint32_t read_count;
    uint32_t read_told;
    uint64_t source_head; /* free-running */
    uint64_t source_tail;
    uint64_t wake_ns;
    uint64_t stalled_until_ns;
    uint64_t next_stall_ns;
    uint64_t partition_ns; /* begin of the next, of what this side sends */
    uint64_t free_ns;      /* the line is, for what this side sends */
    uint64_t last_arrival_ns;
    uint32_t promised; /* last seen */
    uint32_t inbox[JS_SIM_FRAMES];
    uint32_t inbox_count;
    uint8_t *history;
    uint32_t history_bytes[JS_SIM_HISTORY];
    uint32_t history_count;
    bool resumes; /* tells the connection after a stall */
} js_sim_side;

struct js_sim {
    js_sim_config config;
    js_sim_result *result;
    js_sim_side sides[2];
    uint64_t random;
    uint64_t now_ns;
    uint64_t order;
    uint32_t chunks; /* each way */
    js_sim_frame *frames;
    uint8_t *frame_bytes;         /* of frame i: from i * mtu_bytes on */
    uint32_t heap[JS_SIM_FRAMES]; /* frames on their way, the earliest first */
    uint32_t heap_count;
    uint32_t spare[JS_SIM_FRAMES];
    uint32_t spare_count;
    uint8_t *scratch;  /* a frame */
    uint64_t *took_ns; /* messages of both ways */
    uint8_t pattern[JS_SIM_PATTERN + JS_REL_CHUNK_BYTES_MAX];
};

/* --- js_sim.c */
/* splitmix64. */
uint64_t js_sim_random(uint64_t *state);
/* True `ppm` times in a million. */
bool js_sim_chance(js_sim *sim, uint32_t ppm);
/* A number below `below`; 0 if that is 0. */
uint64_t js_sim_below(js_sim *sim, uint64_t below);
bool js_sim_is_healed(const js_sim *sim);
void js_sim_fail(js_sim *sim, const js_sim_side *side, int32_t verdict);

/* --- js_sim_network.c */
/* Sends scratch, with everything that may happen to it. */
void js_sim_send(js_sim *sim, js_sim_side *from, uint32_t bytes);
/* Takes the earliest frame out of the network; there is one. */
uint32_t js_sim_arrive(js_sim *sim);
void js_sim_give_back(js_sim *sim, uint32_t frame);
uint8_t *js_sim_bytes_of(js_sim *sim, uint32_t frame);

/* --- js_sim_side.c */
/* What the clock of a process shows now. */
uint64_t js_sim_clock(const js_sim *sim, const js_sim_side *side);
/* Lets a process run once. */
void js_sim_run_side(js_sim *sim, js_sim_side *side);
bool js_sim_has_all(const js_sim *sim);
bool js_sim_on_place(void *context, uint32_t channel, uint32_t offset, const uint8_t *payload,
                     uint32_t bytes);
void js_sim_on_deliver(void *context, const js_rel_chunk *chunk);

/* --- js_sim_check.c */
void js_sim_check(js_sim *sim);
/* Hands a frame to a connection and checks what becomes of it. */
void js_sim_hand_over(js_sim *sim, js_sim_side *side, uint32_t frame);

#endif
