/* Point-to-point messages: tags, posted receives, probes, messages nobody asked for yet.
 *
 * A message of one frame (flags SOM and EOM) is as long as that frame. A longer one begins with a
 * frame (SOM) that holds its length, 8 bytes, followed by its bytes, the last flagged EOM. Every
 * frame carries the tag. So the length is known before anything is stored.
 *
 * Matching is MPI's: a message goes to the oldest posted receive that fits its source and tag, and
 * a receive gets the oldest message of a source that fits. Receives of one source stand in a list
 * of that source, those of any source in a list of their own; where both have one that fits, their
 * numbers tell which is older. Sources are served in turns. A probe is a receive that completes
 * without taking the message.
 *
 * A long message that lies in the segment is published by reference, and its send is complete when
 * it has been received.
 *
 * A message that no posted receive wants stays in its stream, and so holds its sender back; only
 * when it stands in the way of a receive that is posted is it moved to a buffer. That is the one
 * place where the data plane allocates after opening. No buffered message fits a posted receive:
 * both are compared when the later of the two comes. */
#ifndef JS_MESSAGE_H
#define JS_MESSAGE_H

#include "js_link_shm.h"

#include <jetstream/js_api.h>

#define JS_MESSAGE_NONE UINT32_MAX
#define JS_MESSAGE_CHUNK_BYTES 16384u
#define JS_MESSAGE_LENGTH_BYTES 8u /* the first frame of a long message */

typedef struct js_message_send {
    uint64_t wr_id;
    const uint8_t *at; /* next to send */
    uint64_t bytes;
    uint64_t sent;
    uint32_t tag;
    uint32_t fragment;
    uint32_t next;
    uint32_t refer_psn; /* number of the frame after its last by reference */
    bool refers;        /* its bytes are published by reference */
} js_message_send;

typedef struct js_message_receive {
    uint64_t wr_id;
    uint8_t *at;
    uint64_t room;
    uint64_t got;
    uint64_t total;  /* length of the message, once matched; may exceed room */
    uint64_t number; /* in the order of posting */
    uint32_t tag;    /* wanted; once matched, the message's */
    uint32_t next;
    bool is_tag_any;
    bool is_probe;
    bool was_referred; /* some of it was read in the sender's memory */
} js_message_receive;

/* A message received before anybody asked for it; incomplete while it is arriving. */
typedef struct js_message_early {
    struct js_message_early *next;
    uint64_t total;
    uint64_t bytes; /* that are here */
    uint32_t tag;
    bool was_referred;
    uint8_t data[];
} js_message_early;

typedef struct js_message_list {
    uint32_t head; /* index into the pool */
    uint32_t tail;
} js_message_list;

typedef struct js_message_peer {
    js_message_list sends; /* not complete, in order, */
    uint32_t sending;      /* and the first of them that is not all published */
    js_message_list receives;
    uint32_t active;            /* receive that the message in progress goes to */
    js_message_early *arriving; /* or the buffer it goes to */
    js_message_early *early_head;
    js_message_early *early_tail;
} js_message_peer;

/* A finished send, receive or probe. */
typedef struct js_message_done {
    uint64_t wr_id;
    uint64_t bytes; /* sent; of a receive: length of the message */
    int32_t status;
    uint32_t peer; /* JS_PEER_ANY: a receive that no message has matched */
    uint32_t tag;
    bool is_send;
    bool was_referred; /* receive: wrong if the sender has failed in the meantime */
} js_message_done;

/* Who is told. */
typedef struct js_message_sink {
    void (*on_done)(void *context, const js_message_done *done);
    void *context;
} js_message_sink;

typedef struct js_message {
    js_link_shm *link;
    js_message_sink sink;
    uint32_t world;
    uint32_t rank;
    uint32_t send_free;
    uint32_t receive_free;
    uint32_t outstanding;     /* sends and receives not complete */
    uint32_t turn;            /* source that a receive from any source looks at first */
    uint32_t early_count;     /* messages in buffers, of all sources */
    js_message_list any;      /* receives from any source */
    uint64_t receives_posted; /* numbers them */
    js_message_send *sends;   /* pools of queue_slots */
    js_message_receive *receives;
    js_message_peer *peers; /* [world] */
    uint64_t bytes_sent;    /* since the caller last looked */
    uint64_t bytes_received;
    uint32_t published;
    uint32_t referred;
    uint32_t streamed;
    uint32_t consumed;
    uint32_t unexpected;
} js_message;

int32_t js_message_init(js_message *m, js_link_shm *link, uint32_t rank, uint32_t world,
                        uint32_t slots, js_message_sink sink);
void js_message_fini(js_message *m);
/* Both return false when their pool is empty: nothing was taken. The peer has been checked. A
 * receive that a buffered message fits may complete at once. */
bool js_message_post_send(js_message *m, const js_sqe *entry);
bool js_message_post_receive(js_message *m, const js_rqe *entry);
/* Removes a posted receive that no message has begun to fill. */
bool js_message_cancel(js_message *m, uint64_t wr_id);
/* Moves what can be moved; returns the number of frames handled, or JS_ERR_NO_MEMORY or
 * JS_ERR_PROTOCOL. */
int32_t js_message_progress(js_message *m);
/* --- js_message_send.c --- */
/* Publishes the next part of what is sent to a rank, and completes what has gone out; returns how
 * much there was to do. */
int32_t js_message_send_step(js_message *m, uint32_t rank);
/* Ends all sends to a rank with `status`. */
void js_message_send_flush(js_message *m, uint32_t rank, int32_t status);
/* May a peer be reading the memory of a send that is not complete? */
bool js_message_send_is_referring(const js_message *m);

/* --- js_message.c --- */
/* Which peer an outstanding wr_id waits for, or JS_PEER_ANY; JS_MESSAGE_NONE if it is not
 * outstanding here. */
uint32_t js_message_find_peer(const js_message *m, uint64_t wr_id);
/* Is there a send to a rank, or a receive from it, that is not complete? JS_PEER_ANY: a receive
 * from any source. */
bool js_message_awaits(const js_message *m, uint32_t peer);
/* Reports every outstanding send and receive as failed. */
void js_message_flush(js_message *m, int32_t status);

#endif
