/* Point-to-point messages. */
#include "js_message.h"

#include "js_assert.h"
#include "js_frame.h"
#include "js_status.h"

#include <stdlib.h>
#include <string.h>

int32_t js_message_init(js_message *m, js_link_shm *link, uint32_t rank, uint32_t world,
                        uint32_t slots)
{
    *m = (js_message){ .link = link, .rank = rank, .world = world };
    m->sends = calloc(slots, sizeof(*m->sends));
    m->receives = calloc(slots, sizeof(*m->receives));
    m->peers = calloc(world, sizeof(*m->peers));
    if (!m->sends || !m->receives || !m->peers) {
        js_message_fini(m);
        return JS_FAIL(JS_ERR_NO_MEMORY, "no memory for messages with %u peers", world);
    }
    for (uint32_t i = 0; i < slots; i++) {
        m->sends[i].next = i + 1 < slots ? i + 1 : JS_MESSAGE_NONE;
        m->receives[i].next = m->sends[i].next;
    }
    for (uint32_t i = 0; i < world; i++) {
        m->peers[i] = (js_message_peer){
            .send_head = JS_MESSAGE_NONE,
            .send_tail = JS_MESSAGE_NONE,
            .receive_head = JS_MESSAGE_NONE,
            .receive_tail = JS_MESSAGE_NONE,
            .active = JS_MESSAGE_NONE,
        };
    }
    return JS_OK;
}

static void message_free_early(js_message_early *early)
{
    free(early->data);
    free(early);
}

void js_message_fini(js_message *m)
{
    for (uint32_t i = 0; m->peers != NULL && i < m->world; i++) {
        js_message_early *early = m->peers[i].early_head;
        while (early != NULL) {
            js_message_early *next = early->next;
            message_free_early(early);
            early = next;
        }
    }
    free(m->sends);
    free(m->receives);
    free(m->peers);
    *m = (js_message){ 0 };
}

bool js_message_post_send(js_message *m, const js_sqe *entry)
{
    uint32_t index = m->send_free;
    if (index == JS_MESSAGE_NONE) {
        return false;
    }
    js_message_send *send = &m->sends[index];
    js_message_peer *peer = &m->peers[entry->peer];
    m->send_free = send->next;
    *send = (js_message_send){
        .wr_id = entry->wr_id,
        .at = (const uint8_t *)(uintptr_t)entry->source_addr,
        .bytes = entry->bytes,
        .tag = entry->tag,
        .next = JS_MESSAGE_NONE,
    };
    if (peer->send_tail == JS_MESSAGE_NONE) {
        peer->send_head = index;
    } else {
        m->sends[peer->send_tail].next = index;
    }
    peer->send_tail = index;
    m->outstanding++;
    return true;
}

/* Gives a receive what an early message has collected so far. */
static void message_take_early(js_message_peer *peer, js_message_early *before,
                               js_message_early *early, js_message_receive *receive)
{
    uint64_t bytes = early->bytes < receive->room ? early->bytes : receive->room;
    if (bytes != 0) {
        memcpy(receive->at, early->data, bytes);
    }
    receive->got = early->bytes;
    if (before == NULL) {
        peer->early_head = early->next;
    } else {
        before->next = early->next;
    }
    if (peer->early_tail == early) {
        peer->early_tail = before;
    }
}

bool js_message_post_receive(js_message *m, const js_rqe *entry)
{
    uint32_t index = m->receive_free;
    if (index == JS_MESSAGE_NONE) {
        return false;
    }
    js_message_receive *receive = &m->receives[index];
    js_message_peer *peer = &m->peers[entry->peer];
    m->receive_free = receive->next;
    *receive = (js_message_receive){
        .wr_id = entry->wr_id,
        .at = (uint8_t *)(uintptr_t)entry->target_addr,
        .room = entry->bytes,
        .tag = entry->tag,
        .next = JS_MESSAGE_NONE,
    };
    if (peer->receive_tail == JS_MESSAGE_NONE) {
        peer->receive_head = index;
    } else {
        m->receives[peer->receive_tail].next = index;
    }
    peer->receive_tail = index;
    m->outstanding++;
    return true;
}

static void message_unlink_receive(js_message *m, js_message_peer *peer, uint32_t index)
{
    uint32_t before = JS_MESSAGE_NONE;
    uint32_t at = peer->receive_head;
    while (at != index) {
        before = at;
        at = m->receives[at].next;
    }
    if (before == JS_MESSAGE_NONE) {
        peer->receive_head = m->receives[index].next;
    } else {
        m->receives[before].next = m->receives[index].next;
    }
    if (peer->receive_tail == index) {
        peer->receive_tail = before;
    }
    m->receives[index].next = m->receive_free;
    m->receive_free = index;
    m->outstanding--;
}

static uint32_t message_find_receive(const js_message *m, const js_message_peer *peer, uint32_t tag)
{
    uint32_t at = peer->receive_head;
    while (at != JS_MESSAGE_NONE && m->receives[at].tag != tag) {
        at = m->receives[at].next;
    }
    return at;
}

static void message_complete_receive(js_message *m, uint32_t peer_rank, uint32_t index,
                                     js_message_on_done on_done, void *context)
{
    const js_message_receive *receive = &m->receives[index];
    js_message_done done = {
        .wr_id = receive->wr_id,
        .bytes = receive->got,
        .status = receive->got > receive->room ? JS_ERR_TRUNCATED : JS_OK,
        .peer = peer_rank,
    };
    message_unlink_receive(m, &m->peers[peer_rank], index);
    on_done(context, &done);
}

/* Hands early messages to the receives posted for them, oldest first. */
static int32_t message_match_early(js_message *m, uint32_t peer_rank, js_message_on_done on_done,
                                   void *context)
{
    js_message_peer *peer = &m->peers[peer_rank];
    js_message_early *before = NULL;
    js_message_early *early = peer->early_head;
    int32_t matched = 0;
    while (early != NULL) {
        js_message_early *next = early->next;
        uint32_t index = message_find_receive(m, peer, early->tag);
        if (index == JS_MESSAGE_NONE) {
            before = early;
            early = next;
            continue;
        }
        message_take_early(peer, before, early, &m->receives[index]);
        matched++;
        if (early->is_complete) {
            message_complete_receive(m, peer_rank, index, on_done, context);
        } else {
            peer->active = index;
            peer->arriving = NULL;
        }
        message_free_early(early);
        early = next;
    }
    return matched;
}

static int32_t message_store_early(js_message_early *early, const uint8_t *from, uint32_t bytes)
{
    if (early->bytes + bytes > early->capacity) {
        uint64_t capacity = js_max_u64(2 * early->capacity, early->bytes + bytes);
        uint8_t *data = realloc(early->data, capacity);
        if (data == NULL) {
            return JS_FAIL(JS_ERR_NO_MEMORY, "no memory for an unexpected message of %llu bytes",
                           (unsigned long long)capacity);
        }
        early->data = data;
        early->capacity = capacity;
    }
    if (bytes != 0) {
        memcpy(early->data + early->bytes, from, bytes);
    }
    early->bytes += bytes;
    return JS_OK;
}

/* A message begins: finds where it goes. Returns 0 to leave it in the stream for now. */
static int32_t message_begin(js_message *m, js_message_peer *peer, uint32_t tag)
{
    peer->active = message_find_receive(m, peer, tag);
    if (peer->active != JS_MESSAGE_NONE) {
        return 1;
    }
    if (peer->receive_head == JS_MESSAGE_NONE) {
        return 0;
    }
    js_message_early *early = calloc(1, sizeof(*early));
    if (early == NULL) {
        return JS_FAIL(JS_ERR_NO_MEMORY, "no memory for an unexpected message");
    }
    early->tag = tag;
    if (peer->early_tail == NULL) {
        peer->early_head = early;
    } else {
        peer->early_tail->next = early;
    }
    peer->early_tail = early;
    peer->arriving = early;
    m->unexpected++;
    return 1;
}

static int32_t message_store(js_message *m, js_message_peer *peer, const uint8_t *from,
                             uint32_t bytes)
{
    if (peer->arriving != NULL) {
        return message_store_early(peer->arriving, from, bytes);
    }
    js_message_receive *receive = &m->receives[peer->active];
    if (receive->got < receive->room && bytes != 0) {
        uint64_t room = receive->room - receive->got;
        memcpy(receive->at + receive->got, from, bytes < room ? bytes : room);
    }
    receive->got += bytes;
    return JS_OK;
}

/* Consumes one frame of a peer: 1, 0 if there is none or it must wait, or an error. */
static int32_t message_receive_frame(js_message *m, uint32_t peer_rank, js_message_on_done on_done,
                                     void *context)
{
    js_message_peer *peer = &m->peers[peer_rank];
    js_stream_rx *rx = &m->link->message_rx[peer_rank];
    const js_stream_line *line = js_stream_peek(rx);
    if (line == NULL) {
        return 0;
    }
    uint32_t bytes = js_frame_length_bytes(line->body);
    uint32_t flags = js_frame_flags(line->route);
    const uint8_t *from = js_stream_payload(rx, line, bytes);
    bool is_begun = peer->active != JS_MESSAGE_NONE || peer->arriving != NULL;
    if (from == NULL || is_begun == ((flags & JS_FRAME_FLAG_SOM) != 0)) {
        return JS_FAIL(JS_ERR_PROTOCOL, "malformed message frame from rank %u", peer_rank);
    }
    if (!is_begun) {
        int32_t begun = message_begin(m, peer, js_frame_imm(line->body));
        if (begun <= 0) {
            return begun;
        }
    }
    JS_TRY(message_store(m, peer, from, bytes));
    js_stream_release(rx);
    m->consumed++;
    m->bytes_received += bytes;
    if ((flags & JS_FRAME_FLAG_EOM) == 0) {
        return 1;
    }
    if (peer->arriving != NULL) {
        peer->arriving->is_complete = true;
        peer->arriving = NULL;
    } else {
        uint32_t index = peer->active;
        peer->active = JS_MESSAGE_NONE;
        message_complete_receive(m, peer_rank, index, on_done, context);
    }
    return 1;
}

/* Publishes one frame of a message: false if its stream is full. */
static bool message_send_frame(js_message *m, js_stream_tx *tx, js_message_send *send)
{
    uint64_t left = send->bytes - send->sent;
    uint32_t bytes = left < JS_MESSAGE_CHUNK_BYTES ? (uint32_t)left : JS_MESSAGE_CHUNK_BYTES;
    uint32_t flags =
        (send->sent == 0 ? JS_FRAME_FLAG_SOM : 0u) | (bytes == left ? JS_FRAME_FLAG_EOM : 0u);
    uint64_t route = js_frame_with_flags(tx->route, flags);
    uint64_t body = js_frame_body(bytes, send->fragment, send->tag);
    if (bytes <= JS_STREAM_INLINE_BYTES) {
        if (!js_stream_has_slot(tx)) {
            return false;
        }
        js_stream_publish_inline(tx, send->at, bytes, route, body);
    } else {
        uint8_t *to = js_stream_reserve(tx, bytes);
        if (to == NULL) {
            return false;
        }
        memcpy(to, send->at, bytes);
        js_stream_publish(tx, bytes, route, body);
    }
    send->at = bytes != 0 ? send->at + bytes : send->at; /* which is NULL in an empty message */
    send->sent += bytes;
    send->fragment++;
    m->published++;
    m->bytes_sent += bytes;
    return true;
}

static void message_complete_send(js_message *m, uint32_t peer_rank, int32_t status,
                                  js_message_on_done on_done, void *context)
{
    js_message_peer *peer = &m->peers[peer_rank];
    uint32_t index = peer->send_head;
    js_message_send *send = &m->sends[index];
    js_message_done done = {
        .wr_id = send->wr_id,
        .bytes = send->sent,
        .status = status,
        .peer = peer_rank,
        .is_send = true,
    };
    peer->send_head = send->next;
    if (peer->send_head == JS_MESSAGE_NONE) {
        peer->send_tail = JS_MESSAGE_NONE;
    }
    send->next = m->send_free;
    m->send_free = index;
    m->outstanding--;
    on_done(context, &done);
}

int32_t js_message_progress(js_message *m, js_message_on_done on_done, void *context)
{
    int32_t progress = 0;
    for (uint32_t rank = 0; rank < m->world; rank++) {
        js_message_peer *peer = &m->peers[rank];
        if (peer->send_head != JS_MESSAGE_NONE) {
            js_message_send *send = &m->sends[peer->send_head];
            if (message_send_frame(m, &m->link->message_tx[rank], send)) {
                progress++;
                if (send->sent == send->bytes) {
                    message_complete_send(m, rank, JS_OK, on_done, context);
                }
            }
        }
        if (peer->receive_head == JS_MESSAGE_NONE && peer->arriving == NULL) {
            continue; /* nobody asks: the message waits in its stream */
        }
        if (peer->early_head != NULL) {
            progress += message_match_early(m, rank, on_done, context);
        }
        int32_t received = message_receive_frame(m, rank, on_done, context);
        if (received < 0) {
            return received;
        }
        progress += received;
    }
    return progress;
}

bool js_message_cancel(js_message *m, uint64_t wr_id)
{
    for (uint32_t rank = 0; rank < m->world; rank++) {
        js_message_peer *peer = &m->peers[rank];
        for (uint32_t at = peer->receive_head; at != JS_MESSAGE_NONE; at = m->receives[at].next) {
            if (m->receives[at].wr_id == wr_id) {
                if (at == peer->active) {
                    return false;
                }
                message_unlink_receive(m, peer, at);
                return true;
            }
        }
    }
    return false;
}

uint32_t js_message_find_peer(const js_message *m, uint64_t wr_id)
{
    for (uint32_t rank = 0; rank < m->world; rank++) {
        const js_message_peer *peer = &m->peers[rank];
        for (uint32_t at = peer->send_head; at != JS_MESSAGE_NONE; at = m->sends[at].next) {
            if (m->sends[at].wr_id == wr_id) {
                return rank;
            }
        }
        for (uint32_t at = peer->receive_head; at != JS_MESSAGE_NONE; at = m->receives[at].next) {
            if (m->receives[at].wr_id == wr_id) {
                return rank;
            }
        }
    }
    return JS_MESSAGE_NONE;
}

void js_message_flush(js_message *m, int32_t status, js_message_on_done on_done, void *context)
{
    for (uint32_t rank = 0; rank < m->world; rank++) {
        js_message_peer *peer = &m->peers[rank];
        peer->active = JS_MESSAGE_NONE;
        while (peer->send_head != JS_MESSAGE_NONE) {
            message_complete_send(m, rank, status, on_done, context);
        }
        while (peer->receive_head != JS_MESSAGE_NONE) {
            uint32_t index = peer->receive_head;
            js_message_done done = { .wr_id = m->receives[index].wr_id,
                                     .status = status,
                                     .peer = rank };
            message_unlink_receive(m, peer, index);
            on_done(context, &done);
        }
    }
}
