/* What one communicator owns in the segment, and where: control words, boards, counters, records,
 * ports and streams. The layout is a pure function of the configuration, so every rank
 * computes the same offsets and the segment stores only the configuration. */
#ifndef JS_AREA_H
#define JS_AREA_H

#include "js_stream.h"

#include <jetstream/js_api.h>

#define JS_AREA_COUNTER_SLOTS 32u
#define JS_AREA_REGIONS 64u

/* What an area holds, if it is not that of the world: its members check it before they believe
 * where it is said to lie. W: the rank that made the area, before it tells the others. */
typedef struct js_area_card {
    uint64_t id; /* never zero, unique in the job; written last */
    js_seg_config config;
    uint16_t members[JS_RANKS_MAX]; /* ranks in the job */
} js_area_card;

/* Written by whoever fails first, or goes to sleep; read in every wait loop. */
typedef struct js_control {
    uint32_t abort;       /* 0, or 1 + the rank that aborted; W: first to fail (cas) */
    uint32_t fault_ready; /* non-zero once fault is complete; W: that rank, rel/acq */
    uint32_t reserved[14];
    uint32_t sleepers JS_ALIGNED(JS_CACHE_LINE); /* ranks asleep or about to be; W: all (add) */
    js_fault fault JS_ALIGNED(JS_CACHE_LINE);
    js_area_card card JS_ALIGNED(JS_CACHE_LINE);
} js_control;

/* What a rank is doing. Its peers read it only when they have waited long or see a mismatch. */
typedef struct js_board {
    uint64_t sequence; /* collective last entered, from 1; W: owner, rel/acq */
    uint64_t call[4];  /* js_call of it */
    uint32_t active;   /* non-zero while inside it */
    uint32_t closed;   /* non-zero once the rank has left */
    uint32_t gone;     /* non-zero once it will not touch the area again; W: owner, rel/acq */
    uint32_t opened;   /* non-zero once the rank has opened a group's area; W: owner */
    uint32_t reserved[2];
    /* 1: a thread of the owner sleeps (futex), inside a call or the engine's; W: it, waker */
    uint32_t doorbell JS_ALIGNED(JS_CACHE_LINE);
    uint32_t engine_doorbell;
} JS_ALIGNED(2 * JS_CACHE_LINE) js_board;

/* Memory that peers may write to. */
typedef struct js_area_region {
    uint32_t key; /* 0: none; W: owner, rel/acq */
    uint32_t last_key;
    uint64_t offset; /* in the segment */
    uint64_t bytes;
    uint64_t reserved[5];
} JS_ALIGNED(JS_CACHE_LINE) js_area_region;

/* What a rank shows its peers for one-sided operations. */
typedef struct js_area_port {
    js_signal signals[JS_SIGNALS];
    js_area_region regions[JS_AREA_REGIONS];    /* W: owner */
    uint32_t putting JS_ALIGNED(JS_CACHE_LINE); /* 1 + the rank being written to; W: owner, swap */
} JS_ALIGNED(JS_CACHE_LINE) js_area_port;

typedef struct js_area {
    uint8_t *base;          /* of the segment */
    uint64_t segment_bytes; /* that are mapped at base */
    js_seg_config config;
    uint64_t control_offset;
    uint64_t boards_offset;
    uint64_t counters_offset;
    uint64_t records_offset;
    uint64_t ports_offset;
    uint64_t all_offset;  /* streams: rank to all */
    uint64_t peer_offset; /* rank to rank, collectives */
    uint64_t message_offset;
    uint64_t end_offset;
    js_stream_layout all_layout;
    js_stream_layout peer_layout;
    js_stream_layout message_layout;
} js_area;

/* Fills in defaults and checks ranges; returns JS_ERR_INVALID with a text. */
int32_t js_area_config_check(js_seg_config *config);
/* Sizes for a communicator of `count` of the ranks of a world: as deep as that of the world where
 * it is small, shallower where its rings would take more than a part of a heap. */
void js_area_group_config(const js_seg_config *world, uint32_t count, js_seg_config *out);
/* Computes the layout of a communicator that begins at start_offset. */
void js_area_init(js_area *area, uint8_t *base, const js_seg_config *config, uint64_t start_offset);
/* Touches the pages that `rank` writes in every operation: board, counters, records. Best effort:
 * what fails is touched by use. */
void js_area_prefault(const js_area *area, uint32_t rank);

js_control *js_area_control(const js_area *area);
js_area_card *js_area_get_card(const js_area *area);
js_board *js_area_board(const js_area *area, uint32_t rank);
uint64_t *js_area_counters(const js_area *area, uint32_t rank);
js_record *js_area_records(const js_area *area, uint32_t rank);
js_area_port *js_area_get_port(const js_area *area, uint32_t rank);
void *js_area_all_stream(const js_area *area, uint32_t source);
void *js_area_peer_stream(const js_area *area, uint32_t source, uint32_t target);
void *js_area_message_stream(const js_area *area, uint32_t source, uint32_t target);

#endif
