/* The ranks of other hosts: mirrors of their streams here, and of ours there.
 *
 * What this rank publishes for a rank of another host it writes into its own host's copy of the
 * stream, as for a local one. js_mirror takes it from there, gives it to the connection with that
 * rank (js_rel.h) and so to the link (js_link.h); on the other side js_mirror writes it into that
 * host's copy, at the same places of the ring, where it is read as if its sender were local. How
 * much has been read there comes back and is written to the reader's word of our copy. So the
 * executor, messages and graphs know nothing of hosts, the ring of the stream is the buffer for
 * repeats, and its flow control is that of the path.
 *
 * All of it runs in rounds of the communicator, in the thread that is inside. */
#ifndef JS_MIRROR_H
#define JS_MIRROR_H

#include "js_link.h"
#include "js_link_shm.h"
#include "js_rel.h"

#include <jetstream/js_api.h>

#define JS_MIRROR_CHANNELS JS_WIRE_CHANNELS

typedef struct js_mirror_channel {
    js_stream_rx tap;                 /* what this rank publishes, as the link reads it */
    uint32_t *credit;                 /* reader's word of that stream; W: here */
    js_stream_line *lines;            /* copy of what the peer publishes */
    uint8_t *payload;                 /* its ring of bytes */
    uint64_t payload_bytes;           /* size of both rings */
    const js_stream_reader *consumed; /* how much of it has been read here */
    uint64_t route;                   /* of its frames */
    uint32_t psn;                     /* of its next frame */
    uint32_t told;                    /* what js_rel was last told of `consumed` */
} js_mirror_channel;

typedef struct js_mirror_peer {
    js_mirror_channel channels[JS_MIRROR_CHANNELS];
    js_rel *rel;
    struct js_comm *comm;
    uint32_t rank; /* in the communicator */
    uint32_t link_peer;
    uint64_t deadline_ns; /* when to look at the connection though nothing has happened */
    bool is_touched;      /* something has, since it was last asked what to send */
    bool is_over;         /* its end has been dealt with */
    bool is_overrun;      /* it has sent more than it may */
    bool was_told;        /* that this communicator has failed */
    js_link_address address;
} js_mirror_peer;

typedef struct js_mirror {
    js_link *link;
    uint32_t mask; /* of the streams' slots */
    uint32_t sequence_start;
    uint32_t peer_count;
    uint32_t delivered;                /* frames, since the caller last looked */
    bool has_backlog;                  /* something published has not been sent once */
    uint64_t looked_ns;                /* when this rank was last here */
    uint64_t asked_ns;                 /* when peers were last asked for their boards */
    uint64_t refused[JS_WIRE_REASONS]; /* frames of nobody, by reason */
    uint16_t index[JS_RANKS_MAX];      /* 1 + place among the peers, by rank; 0: a local rank */
    js_mirror_peer peers[];
} js_mirror;

/* Takes in what has come; returns the number of frames delivered. */
uint32_t js_mirror_receive(struct js_comm *comm);
/* Sends what has been published, and what the connections want to send. */
void js_mirror_send(struct js_comm *comm);
/* Asks all peers for their boards and tells them that of this rank; not too often. */
void js_mirror_ask(struct js_comm *comm, uint64_t now_ns);
/* Tells all peers that the communicator has failed. Idempotent. */
void js_mirror_abort(struct js_comm *comm);
/* Leaves: what is published still gets there, in bounded time. */
void js_mirror_close(struct js_comm *comm);
/* Sleeps until something comes, at most `slice_ns`. */
void js_mirror_sleep(struct js_comm *comm, uint64_t slice_ns);
bool js_mirror_is_remote(const struct js_comm *comm, uint32_t rank);
void js_mirror_free(js_mirror *mirror);
/* js_rel's sink. */
bool js_mirror_place(void *context, uint32_t channel, uint32_t offset, const uint8_t *payload,
                     uint32_t bytes);
void js_mirror_deliver(void *context, const js_rel_chunk *chunk);

/* --- js_mirror_note.c --- */
/* Brings what the next PROBE or its answer tells of this rank up to date. */
void js_mirror_write_note(js_mirror_peer *peer, bool is_closed);
/* The same of a fault, for RESET; returns its size. */
uint32_t js_mirror_fault_note(const struct js_comm *comm, uint8_t *note);
/* A note has come; js_rel's sink. */
void js_mirror_read_note(void *context, uint8_t opcode, const uint8_t *note, uint32_t bytes);

#endif
