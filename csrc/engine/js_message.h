/* Point-to-point messages: tags, posted receives, messages nobody asked for yet.
 *
 * A message is a run of frames on the message stream of its pair, the first flagged SOM, the last
 * EOM, each carrying the tag. Messages from one rank with one tag are received in the order in
 * which they were sent. A message whose tag no posted receive wants stays in the stream, and so
 * holds its sender back; only when it stands in the way of a receive that is posted is it moved
 * to a buffer. That is the one place where the data plane allocates after opening. */
#ifndef JS_MESSAGE_H
#define JS_MESSAGE_H

#include "js_link_shm.h"

#include <jetstream/js_api.h>

#define JS_MESSAGE_NONE UINT32_MAX
#define JS_MESSAGE_CHUNK_BYTES 16384u

typedef struct js_message_send {
    uint64_t wr_id;
    const uint8_t *at; /* next to send */
    uint64_t bytes;
    uint64_t sent;
    uint32_t tag;
    uint32_t fragment;
    uint32_t next;
} js_message_send;

typedef struct js_message_receive {
    uint64_t wr_id;
    uint8_t *at;
    uint64_t room;
    uint64_t got; /* may exceed room: the message is too long */
    uint32_t tag;
    uint32_t next;
} js_message_receive;

/* A message received before anybody asked for it. */
typedef struct js_message_early {
    struct js_message_early *next;
    uint8_t *data;
    uint64_t bytes;
    uint64_t capacity;
    uint32_t tag;
    bool is_complete;
} js_message_early;

typedef struct js_message_peer {
    uint32_t send_head; /* indices into the pools */
    uint32_t send_tail;
    uint32_t receive_head;
    uint32_t receive_tail;
    uint32_t active;            /* receive that the message in progress goes to */
    js_message_early *arriving; /* or the buffer it goes to */
    js_message_early *early_head;
    js_message_early *early_tail;
} js_message_peer;

typedef struct js_message {
    js_link_shm *link;
    uint32_t world;
    uint32_t rank;
    uint32_t send_free;
    uint32_t receive_free;
    uint32_t outstanding;   /* sends and receives not complete */
    js_message_send *sends; /* pools of queue_slots */
    js_message_receive *receives;
    js_message_peer *peers; /* [world] */
    uint64_t bytes_sent;    /* since the caller last looked */
    uint64_t bytes_received;
    uint32_t published;
    uint32_t consumed;
    uint32_t unexpected;
} js_message;

/* What to do with a finished send or receive. */
typedef struct js_message_done {
    uint64_t wr_id;
    uint64_t bytes;
    int32_t status;
    uint32_t peer;
    bool is_send;
} js_message_done;
typedef void (*js_message_on_done)(void *context, const js_message_done *done);

int32_t js_message_init(js_message *m, js_link_shm *link, uint32_t rank, uint32_t world,
                        uint32_t slots);
void js_message_fini(js_message *m);
/* Both return false when their pool is empty: nothing was taken. */
bool js_message_post_send(js_message *m, const js_sqe *entry);
bool js_message_post_receive(js_message *m, const js_rqe *entry);
/* Removes a posted receive that no message has begun to fill. */
bool js_message_cancel(js_message *m, uint64_t wr_id);
/* Moves what can be moved; returns the number of frames handled, or JS_ERR_NO_MEMORY. */
int32_t js_message_progress(js_message *m, js_message_on_done on_done, void *context);
/* Which peer an outstanding wr_id waits for; JS_MESSAGE_NONE if it is not outstanding here. */
uint32_t js_message_find_peer(const js_message *m, uint64_t wr_id);
/* Reports every outstanding send and receive as failed. */
void js_message_flush(js_message *m, int32_t status, js_message_on_done on_done, void *context);

#endif
