/* One-sided writes to ranks of other hosts: a stream of its own per pair of ranks, of which each
 * side keeps its copy in private memory.
 *
 * A put is a frame that says where it goes (put_head), with its bytes behind that if all of them
 * fit, or else in further frames of at most PUT_CHUNK_BYTES. The owner's data plane writes them
 * into the region, as far as key and bounds allow, then its signal. The descriptor completes when
 * all of that has happened there, which the owner says at once: descriptors behind it wait for
 * that, whether it is signalled or not. Frames of puts and of messages arrive in the order in which
 * they were sent. */
#include "js_comm.h"
#include "js_counter.h"
#include "js_frame.h"
#include "js_region.h"
#include "js_status.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define PUT_SLOTS 64u
#define PUT_RING_BYTES (256u << 10)
#define PUT_CHUNK_BYTES 32768u
#define PUT_PENDING 64u /* puts under way to one peer */

typedef struct put_head {
    uint64_t offset; /* in the region */
    uint64_t bytes;
    uint64_t signal_value;
    uint32_t key;
    uint16_t signal;
    uint16_t signal_op;
} put_head;

JS_STATIC_ASSERT(sizeof(put_head) <= JS_STREAM_INLINE_BYTES, "a head is one line");

/* A put that has been published and not been carried out, as far as is known. */
typedef struct put_pending {
    uint32_t psn; /* after its last frame */
    uint32_t index;
    uint64_t bytes;
} put_pending;

struct js_mirror_put {
    js_stream_tx tx;
    js_stream_rx rx;
    put_head head; /* of the one that is coming in */
    uint64_t done_bytes;
    bool is_open;   /* there is one */
    uint32_t first; /* of the pending ones, free-running */
    uint32_t end;
    put_pending pending[PUT_PENDING];
    uint64_t ends[PUT_SLOTS];
    uint8_t *memory; /* both streams */
    uint64_t memory_bytes;
};

int32_t js_mirror_put_open(js_mirror_peer *peer)
{
    js_stream_layout layout = {
        .reader_count = 1,
        .slots = PUT_SLOTS,
        .payload_bytes = PUT_RING_BYTES,
        .sequence_start = PUT_SLOTS, /* zero is not a number of the first lap */
    };
    uint64_t bytes = js_stream_bytes(&layout);
    js_mirror_put *put = calloc(1, sizeof(*put));
    peer->put = put;
    if (put == NULL) {
        return JS_FAIL(JS_ERR_NO_MEMORY, "no memory for puts to rank %u", peer->rank);
    }
    /* Zeroed, and no page of it costs memory before the first put. */
    void *memory =
        mmap(NULL, 2 * bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        return JS_FAIL_SYS("no memory for puts to rank %u", peer->rank);
    }
    put->memory = memory;
    put->memory_bytes = 2 * bytes;
    uint64_t route = js_frame_route(JS_FRAME_CHANNEL_PUT, (uint16_t)peer->comm->rank, 0);
    js_stream_open_tx(&put->tx, put->memory, &layout, put->ends, route);
    js_stream_open_rx(&put->rx, put->memory + bytes, &layout, 0);
    js_mirror_ends ends = { put->memory, &layout, &put->rx };
    js_mirror_open_channel(peer, JS_FRAME_CHANNEL_PUT, &ends);
    return JS_OK;
}

void js_mirror_put_close(js_mirror_peer *peer)
{
    if (peer->put != NULL && peer->put->memory != NULL) {
        (void)munmap(peer->put->memory, peer->put->memory_bytes);
    }
    free(peer->put);
}

/* --- what goes ---------------------------------------------------------------------------- */

/* Is there room for a head and a frame more? */
static bool put_has_room(js_mirror_put *put)
{
    if (put->end - put->first != PUT_PENDING && put->tx.room_until - put->tx.psn >= 2) {
        return true;
    }
    js_stream_refresh(&put->tx);
    return put->end - put->first != PUT_PENDING && put->tx.room_until - put->tx.psn >= 2;
}

/* Publishes `head`, if it is not NULL, and `bytes` behind it, as one frame. */
static bool put_publish(js_mirror_put *put, const put_head *head, const uint8_t *from,
                        uint32_t bytes, uint32_t flags)
{
    uint32_t head_bytes = head != NULL ? sizeof(*head) : 0;
    uint64_t route = js_frame_with_flags(put->tx.route, flags);
    uint64_t body = js_frame_body(head_bytes + bytes, 0, 0);
    uint8_t inlined[JS_STREAM_INLINE_BYTES];
    bool is_inline = head_bytes + bytes <= sizeof(inlined);
    if (!js_stream_has_slot(&put->tx)) {
        return false;
    }
    uint8_t *to = is_inline ? inlined : js_stream_reserve(&put->tx, head_bytes + bytes);
    if (to == NULL) {
        return false;
    }
    if (head != NULL) {
        memcpy(to, head, sizeof(*head));
    }
    if (bytes != 0) {
        memcpy(to + head_bytes, from, bytes);
    }
    if (is_inline) {
        js_stream_publish_inline(&put->tx, inlined, head_bytes + bytes, route, body);
    } else {
        js_stream_publish(&put->tx, head_bytes + bytes, route, body);
    }
    return true;
}

/* Publishes the head, with all bytes if they fit; returns how many, or -1 if there is no room. */
static int64_t put_begin(js_mirror_put *put, const js_sqe *entry, const uint8_t *from)
{
    put_head head = {
        .offset = entry->target_addr,
        .bytes = entry->bytes,
        .signal_value = entry->signal_value,
        .key = entry->key,
        .signal = entry->signal,
        .signal_op = entry->signal_op,
    };
    bool is_whole = entry->bytes <= PUT_CHUNK_BYTES - sizeof(head);
    uint32_t bytes = is_whole ? (uint32_t)entry->bytes : 0;
    uint32_t flags = JS_FRAME_FLAG_SOM | (is_whole ? JS_FRAME_FLAG_EOM : 0);
    bool is_out = put_has_room(put) && put_publish(put, &head, from, bytes, flags);
    return is_out ? (int64_t)bytes : -1;
}

bool js_mirror_put_post(js_comm *comm, const js_sqe *entry, const uint8_t *from, uint64_t *done)
{
    js_mirror_put *put = comm->mirror->peers[comm->mirror->index[entry->peer] - 1].put;
    uint64_t at = *done & ~JS_MIRROR_PUT_BEGUN;
    if ((*done & JS_MIRROR_PUT_BEGUN) == 0) {
        int64_t begun = put_begin(put, entry, from);
        if (begun < 0) {
            return false;
        }
        at = (uint64_t)begun;
        *done = at | JS_MIRROR_PUT_BEGUN;
        js_counter_add(comm->counters, JS_COUNTER_BYTES_SENT, at);
    }
    while (at != entry->bytes) {
        uint64_t part = js_min_u64(entry->bytes - at, PUT_CHUNK_BYTES);
        uint32_t flags = at + part == entry->bytes ? JS_FRAME_FLAG_EOM : 0;
        if (!put_publish(put, NULL, from + at, (uint32_t)part, flags)) {
            return false;
        }
        js_counter_add(comm->counters, JS_COUNTER_BYTES_SENT, part);
        at += part;
        *done = at | JS_MIRROR_PUT_BEGUN;
    }
    put->pending[put->end++ % PUT_PENDING] = (put_pending){
        .psn = put->tx.psn,
        .index = comm->queue->sq_consumed,
        .bytes = entry->bytes,
    };
    js_counter_add(comm->counters, JS_COUNTER_PUTS, 1);
    return true;
}

/* Completes what the peer has carried out. */
static uint32_t put_complete(js_comm *comm, js_mirror_put *put)
{
    uint32_t progress = 0;
    while (put->first != put->end) {
        const put_pending *pending = &put->pending[put->first % PUT_PENDING];
        if (!js_stream_is_consumed(&put->tx, pending->psn)) {
            break;
        }
        put->first++;
        progress++;
        js_comm_done done = {
            .id = (uint64_t)JS_COMM_ID_SENT << JS_COMM_ID_SHIFT | pending->index,
            .bytes = pending->bytes,
            .status = JS_OK,
            .opcode = JS_SQ_PUT,
        };
        js_duty_complete(comm, &done);
    }
    return progress;
}

void js_mirror_put_flush(js_comm *comm, int32_t status)
{
    for (uint32_t i = 0; i < comm->mirror->peer_count; i++) {
        js_mirror_put *put = comm->mirror->peers[i].put;
        while (put != NULL && put->first != put->end) {
            const put_pending *pending = &put->pending[put->first++ % PUT_PENDING];
            js_duty_complete(
                comm, &(js_comm_done){
                          .id = (uint64_t)JS_COMM_ID_SENT << JS_COMM_ID_SHIFT | pending->index,
                          .status = status,
                          .opcode = JS_SQ_PUT,
                      });
        }
    }
}

/* --- what comes --------------------------------------------------------------------------- */

/* The bytes of the region that a part goes to are valid until js_region_end; NULL: *out_status. */
static uint8_t *put_region(const js_comm *comm, const put_head *head, uint64_t at, uint64_t bytes,
                           int32_t *out_status)
{
    js_region_target target = { comm->rank, head->key, head->offset + at, bytes };
    *out_status = JS_ERR_BOUNDS;
    return head->offset + at < at ? NULL
                                  : js_region_begin(&comm->area, comm->rank, &target, out_status);
}

static int32_t put_take_head(js_comm *comm, js_mirror_put *put, const uint8_t *from)
{
    memcpy(&put->head, from, sizeof(put->head));
    put->done_bytes = 0;
    put->is_open = put->head.bytes != 0;
    if (put->head.signal >= JS_SIGNALS || put->head.signal_op > JS_SIGNAL_SET) {
        return JS_ERR_PROTOCOL;
    }
    if (put->head.bytes == 0) {
        return JS_OK;
    }
    int32_t status = JS_OK; /* nothing is written unless all of it fits */
    if (put_region(comm, &put->head, 0, put->head.bytes, &status) == NULL) {
        return status;
    }
    js_region_end(&comm->area, comm->rank);
    return JS_OK;
}

static int32_t put_take_bytes(js_comm *comm, js_mirror_put *put, const uint8_t *from,
                              uint32_t bytes)
{
    int32_t status = JS_OK;
    uint8_t *to = put_region(comm, &put->head, put->done_bytes, bytes, &status);
    if (to == NULL) {
        return status; /* it was taken back in the meantime */
    }
    memcpy(to, from, bytes);
    js_region_end(&comm->area, comm->rank);
    put->done_bytes += bytes;
    put->is_open = put->done_bytes != put->head.bytes;
    return JS_OK;
}

/* Carries out a frame; a status if it must not be. */
static int32_t put_take(js_mirror_peer *peer, js_stream_line *line)
{
    js_comm *comm = peer->comm;
    js_mirror_put *put = peer->put;
    uint32_t bytes = js_frame_length_bytes(line->body);
    bool is_head = (js_frame_flags(line->route) & JS_FRAME_FLAG_SOM) != 0;
    const uint8_t *from = js_stream_payload(&put->rx, line, bytes);
    if (from == NULL || is_head == put->is_open || (is_head && bytes < sizeof(put_head))) {
        return JS_ERR_PROTOCOL;
    }
    if (is_head) {
        JS_TRY(put_take_head(comm, put, from));
        from += sizeof(put_head);
        bytes -= (uint32_t)sizeof(put_head);
    }
    if (bytes > put->head.bytes - put->done_bytes || (bytes == 0 && !is_head)) {
        return JS_ERR_PROTOCOL;
    }
    if (bytes != 0) {
        JS_TRY(put_take_bytes(comm, put, from, bytes));
    }
    if (!put->is_open) {
        js_queue_signal signal = { put->head.signal_value, put->head.signal, put->head.signal_op };
        js_queue_raise(comm, comm->rank, &signal);
    }
    return JS_OK;
}

static void put_fail(js_mirror_peer *peer, int32_t status)
{
    js_comm *comm = peer->comm;
    js_fault fault;
    js_fault_describe(comm, &fault);
    fault.status = status;
    fault.culprit = (int32_t)peer->rank;
    fault.culprit_job = comm->members[peer->rank];
    (void)js_fault_publish(comm, &fault);
}

uint32_t js_mirror_put_progress(js_mirror_peer *peer)
{
    js_comm *comm = peer->comm;
    js_mirror_put *put = peer->put;
    uint32_t progress = put_complete(comm, put);
    js_stream_line *line;
    while ((line = js_stream_look(&put->rx)) != NULL) {
        int32_t status = put_take(peer, line);
        if (status != JS_OK) {
            put_fail(peer, status);
            return progress + 1;
        }
        js_stream_release(&put->rx);
        progress++;
    }
    return progress;
}
