/* The sending side of messages. */
#include "js_message.h"

#include "js_frame.h"

#include <string.h>

/* From here on what lies in the segment is published by reference; so the sender waits until it
 * has been received. It does so for private memory when its ring is full. */
#define SEND_REFER_BYTES (64u << 10)
#define SEND_REFER_CHUNK_BYTES 32768u

bool js_message_post_send(js_message *m, const js_sqe *entry)
{
    uint32_t index = m->send_free;
    if (index == JS_MESSAGE_NONE) {
        return false;
    }
    js_message_send *send = &m->sends[index];
    js_message_peer *peer = &m->peers[entry->peer];
    const void *at = (const void *)(uintptr_t)entry->source_addr;
    const js_stream_tx *tx = &m->link->message_tx[entry->peer];
    m->send_free = send->next;
    *send = (js_message_send){
        .wr_id = entry->wr_id,
        .at = at,
        .bytes = entry->bytes,
        .tag = entry->tag,
        .next = JS_MESSAGE_NONE,
        .refers = entry->bytes >= SEND_REFER_BYTES && entry->peer != m->rank &&
                  js_stream_can_refer(tx, at, entry->bytes),
    };
    if (peer->sends.tail == JS_MESSAGE_NONE) {
        peer->sends.head = index;
    } else {
        m->sends[peer->sends.tail].next = index;
    }
    peer->sends.tail = index;
    peer->sending = peer->sending == JS_MESSAGE_NONE ? index : peer->sending;
    m->outstanding++;
    return true;
}

static bool send_inline(js_message *m, js_stream_tx *tx, js_message_send *send, uint32_t flags)
{
    bool is_length = (flags & JS_FRAME_FLAG_EOM) == 0;
    uint32_t bytes = is_length ? JS_MESSAGE_LENGTH_BYTES : (uint32_t)(send->bytes - send->sent);
    const void *from = is_length ? (const void *)&send->bytes : send->at;
    if (!js_stream_has_slot(tx)) {
        return false;
    }
    js_stream_publish_inline(tx, from, bytes, js_frame_with_flags(tx->route, flags),
                             js_frame_body(bytes, send->fragment, send->tag));
    send->fragment++;
    m->published++;
    if (!is_length) {
        send->sent += bytes;
        m->bytes_sent += bytes;
    }
    return true;
}

/* Publishes a frame of more bytes than fit a line. */
static bool send_frame(js_message *m, js_stream_tx *tx, js_message_send *send, uint32_t flags,
                       uint32_t bytes)
{
    uint64_t route = js_frame_with_flags(tx->route, flags);
    uint64_t body = js_frame_body(bytes, send->fragment, send->tag);
    if (send->refers) {
        if (!js_stream_has_slot(tx)) {
            return false;
        }
        js_stream_publish_ref(tx, send->at, route, body);
        send->refer_psn = tx->psn;
        m->referred++;
    } else {
        uint8_t *to = js_stream_reserve(tx, bytes);
        if (to == NULL) {
            return false;
        }
        m->streamed += js_stream_fill(tx, to, send->at, bytes);
        js_stream_publish(tx, bytes, route, body);
    }
    send->at += bytes;
    send->sent += bytes;
    send->fragment++;
    m->published++;
    m->bytes_sent += bytes;
    return true;
}

/* Publishes the next part of a message: false if its stream is full. */
static bool send_part(js_message *m, js_stream_tx *tx, js_message_send *send)
{
    uint64_t left = send->bytes - send->sent;
    uint32_t most = send->refers ? SEND_REFER_CHUNK_BYTES : JS_MESSAGE_CHUNK_BYTES;
    uint32_t bytes = left < most ? (uint32_t)left : most;
    uint32_t flags = bytes == left ? JS_FRAME_FLAG_EOM : 0u;
    if (send->fragment == 0) {
        if (flags == 0 && !send_inline(m, tx, send, JS_FRAME_FLAG_SOM)) {
            return false;
        }
        flags |= flags != 0 ? JS_FRAME_FLAG_SOM : 0u;
    }
    if (bytes <= JS_STREAM_INLINE_BYTES) {
        return send_inline(m, tx, send, flags);
    }
    return send_frame(m, tx, send, flags, bytes);
}

/* Reports the oldest send to a rank as finished. */
static void send_complete(js_message *m, uint32_t rank, int32_t status)
{
    js_message_list *list = &m->peers[rank].sends;
    uint32_t index = list->head;
    js_message_send *send = &m->sends[index];
    js_message_done done = {
        .wr_id = send->wr_id,
        .bytes = send->sent,
        .status = status,
        .peer = rank,
        .tag = send->tag,
        .is_send = true,
    };
    list->head = send->next;
    if (list->head == JS_MESSAGE_NONE) {
        list->tail = JS_MESSAGE_NONE;
    }
    send->next = m->send_free;
    m->send_free = index;
    m->outstanding--;
    m->sink.on_done(m->sink.context, &done);
}

int32_t js_message_send_step(js_message *m, uint32_t rank)
{
    js_message_peer *peer = &m->peers[rank];
    js_stream_tx *tx = &m->link->message_tx[rank];
    int32_t progress = 0;
    if (peer->sending != JS_MESSAGE_NONE) {
        js_message_send *send = &m->sends[peer->sending];
        if (send_part(m, tx, send)) {
            progress++;
            peer->sending = send->sent == send->bytes ? send->next : peer->sending;
        }
    }
    /* In order, and what refers only once it has been read: then its memory is the caller's. */
    while (peer->sends.head != peer->sending) {
        const js_message_send *oldest = &m->sends[peer->sends.head];
        if (oldest->refers && !js_stream_is_consumed(tx, oldest->refer_psn)) {
            break;
        }
        send_complete(m, rank, JS_OK);
        progress++;
    }
    return progress;
}

bool js_message_send_is_referring(const js_message *m)
{
    for (uint32_t rank = 0; rank < m->world; rank++) {
        uint32_t at = m->peers[rank].sends.head;
        for (; at != JS_MESSAGE_NONE; at = m->sends[at].next) {
            if (m->sends[at].refers && m->sends[at].sent != 0) {
                return true;
            }
        }
    }
    return false;
}

void js_message_send_flush(js_message *m, uint32_t rank, int32_t status)
{
    js_message_peer *peer = &m->peers[rank];
    while (peer->sends.head != JS_MESSAGE_NONE) {
        send_complete(m, rank, status);
    }
    peer->sending = JS_MESSAGE_NONE;
}
