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
    uint32_t mask;                    /* of both rings of lines */
    uint32_t sequence_start;
    uint32_t urge; /* so many frames read are told at once */
    uint32_t psn;  /* of its next frame */
    uint32_t told; /* what js_rel was last told of `consumed` */
} js_mirror_channel;

typedef struct js_mirror_put js_mirror_put;

/* The two copies of a channel's streams here: the one that this rank publishes to, and the one that
 * it reads. */
typedef struct js_mirror_ends {
    void *ours;
    const js_stream_layout *layout;
    const js_stream_rx *theirs;
} js_mirror_ends;

typedef struct js_mirror_peer {
    js_mirror_channel channels[JS_MIRROR_CHANNELS];
    js_mirror_put *put;
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
    /* What it has said of itself: as js_board of a rank of this host. Not kept in the segment: what
     * another rank here has heard may be ahead of the frames that have come to this one. */
    uint64_t sequence;
    js_call call;
    bool is_active;
    bool has_left;           /* and all that it has sent is here */
    uint64_t asked_sequence; /* and what it called then */
    js_call asked_call;
} js_mirror_peer;

typedef struct js_mirror {
    js_link *link;
    uint32_t peer_count;
    uint32_t delivered;   /* frames, since the caller last looked */
    bool has_backlog;     /* something published has not been sent once */
    uint64_t looked_ns;   /* when this rank was last here */
    uint64_t asked_ns;    /* when peers were last asked for their boards, */
    uint64_t ask_ns;      /* and how long until the next time */
    uint64_t retransmits; /* that records tell of, */
    uint64_t repeated;    /* and that js_mirror_has_repeated has told of */
    bool has_aborted;
    bool has_skipped;  /* the last look at the link, for what was to be sent */
    bool is_answering; /* what has come or goes now is little, and somebody waits for it */
    bool is_behind;    /* the last look did not take all that had come */
    bool is_closing;   /* this rank is about to leave */
    uint64_t refused[JS_WIRE_REASONS]; /* frames of nobody, by reason */
    uint16_t index[JS_RANKS_MAX];      /* 1 + place among the peers, by rank; 0: a local rank */
    js_mirror_peer peers[];
} js_mirror;

/* Takes in what has come; returns the number of frames delivered. has_posted: something is about to
 * be sent, which then need not wait for a look at the link. */
uint32_t js_mirror_receive(struct js_comm *comm, bool has_posted);
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
/* Frames repeated since this was last asked, at most 65535. */
uint16_t js_mirror_take_retransmits(struct js_comm *comm);
/* Have frames been repeated since this was last asked? */
bool js_mirror_has_repeated(struct js_comm *comm);
bool js_mirror_is_remote(const struct js_comm *comm, uint32_t rank);
/* The peer that a rank of another host is; NULL: it is of this one. */
const js_mirror_peer *js_mirror_find(const struct js_comm *comm, uint32_t rank);
void js_mirror_free(js_mirror *mirror);
/* js_rel's sink. */
bool js_mirror_place(void *context, uint32_t channel, uint32_t offset, const uint8_t *payload,
                     uint32_t bytes);
void js_mirror_deliver(void *context, const js_rel_chunk *chunk);

/* --- js_mirror_open.c --- */
void js_mirror_open_channel(js_mirror_peer *peer, uint32_t channel, const js_mirror_ends *ends);

/* --- js_mirror_put.c --- */
#define JS_MIRROR_PUT_BEGUN (1ull << 63)
int32_t js_mirror_put_open(js_mirror_peer *peer);
void js_mirror_put_close(js_mirror_peer *peer);
/* Publishes what it can of a PUT from the send queue; *done, 0 at first, is how much that is, with
 * JS_MIRROR_PUT_BEGUN. True: all, and it will complete. */
bool js_mirror_put_post(struct js_comm *comm, const js_sqe *entry, const uint8_t *from,
                        uint64_t *done);
/* Carries out what has come, and completes what has been carried out; returns how much. */
uint32_t js_mirror_put_progress(js_mirror_peer *peer);
/* Ends all that is under way. */
void js_mirror_put_flush(struct js_comm *comm, int32_t status);

/* --- js_mirror_note.c --- */
/* Brings what the next PROBE or its answer tells of this rank up to date. */
void js_mirror_write_note(js_mirror_peer *peer);
/* The same of a fault, for RESET; returns its size. */
uint32_t js_mirror_fault_note(const struct js_comm *comm, uint8_t *note);
/* A note has come; js_rel's sink. */
void js_mirror_read_note(void *context, uint8_t opcode, const uint8_t *note, uint32_t bytes);

#endif
