/* Point-to-point messages. */
#include "js_message.h"

#include "js_assert.h"
#include "js_frame.h"
#include "js_status.h"

#include <stdlib.h>
#include <string.h>

static const js_message_list message_no_list = { JS_MESSAGE_NONE, JS_MESSAGE_NONE };

int32_t js_message_init(js_message *m, js_link_shm *link, uint32_t rank, uint32_t world,
                        uint32_t slots, js_message_sink sink)
{
    *m = (js_message){
        .link = link, .sink = sink, .rank = rank, .world = world, .any = message_no_list
    };
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
            .sends = message_no_list,
            .sending = JS_MESSAGE_NONE,
            .receives = message_no_list,
            .active = JS_MESSAGE_NONE,
        };
    }
    return JS_OK;
}

void js_message_fini(js_message *m)
{
    for (uint32_t i = 0; m->peers != NULL && i < m->world; i++) {
        js_message_early *early = m->peers[i].early_head;
        while (early != NULL) {
            js_message_early *next = early->next;
            free(early);
            early = next;
        }
    }
    free(m->sends);
    free(m->receives);
    free(m->peers);
    *m = (js_message){ 0 };
}

/* --- posted receives ---------------------------------------------------------------------- */

static void message_append_receive(js_message *m, js_message_list *list, uint32_t index)
{
    if (list->tail == JS_MESSAGE_NONE) {
        list->head = index;
    } else {
        m->receives[list->tail].next = index;
    }
    list->tail = index;
}

static void message_unlink_receive(js_message *m, js_message_list *list, uint32_t index)
{
    uint32_t before = JS_MESSAGE_NONE;
    uint32_t at = list->head;
    while (at != index) {
        before = at;
        at = m->receives[at].next;
    }
    if (before == JS_MESSAGE_NONE) {
        list->head = m->receives[index].next;
    } else {
        m->receives[before].next = m->receives[index].next;
    }
    if (list->tail == index) {
        list->tail = before;
    }
    m->receives[index].next = JS_MESSAGE_NONE;
}

static bool message_fits(const js_message_receive *receive, uint32_t tag)
{
    return receive->tag == tag || receive->is_tag_any;
}

static uint32_t message_find_tag(const js_message *m, const js_message_list *list, uint32_t tag)
{
    uint32_t at = list->head;
    while (at != JS_MESSAGE_NONE && !message_fits(&m->receives[at], tag)) {
        at = m->receives[at].next;
    }
    return at;
}

/* Takes the oldest receive that fits out of its list; JS_MESSAGE_NONE if there is none. */
static uint32_t message_match(js_message *m, uint32_t rank, uint32_t tag)
{
    js_message_list *list = &m->peers[rank].receives;
    uint32_t index = message_find_tag(m, list, tag);
    if (JS_UNLIKELY(m->any.head != JS_MESSAGE_NONE)) {
        uint32_t other = message_find_tag(m, &m->any, tag);
        if (other != JS_MESSAGE_NONE &&
            (index == JS_MESSAGE_NONE || m->receives[other].number < m->receives[index].number)) {
            index = other;
            list = &m->any;
            m->turn = rank + 1 < m->world ? rank + 1 : 0;
        }
    }
    if (index != JS_MESSAGE_NONE) {
        message_unlink_receive(m, list, index);
    }
    return index;
}

/* Frees a receive that is in no list and reports it. */
static void message_complete_receive(js_message *m, uint32_t rank, uint32_t index, int32_t status)
{
    js_message_receive *receive = &m->receives[index];
    js_message_done done = {
        .wr_id = receive->wr_id,
        .bytes = receive->total,
        .status = status,
        .peer = rank,
        .tag = receive->tag,
        .was_referred = receive->was_referred,
    };
    receive->next = m->receive_free;
    m->receive_free = index;
    m->outstanding--;
    m->sink.on_done(m->sink.context, &done);
}

static void message_finish_receive(js_message *m, uint32_t rank, uint32_t index)
{
    const js_message_receive *receive = &m->receives[index];
    bool is_short = receive->total > receive->room && !receive->is_probe;
    message_complete_receive(m, rank, index, is_short ? JS_ERR_TRUNCATED : JS_OK);
}

static void message_store_receive(js_message_receive *receive, const uint8_t *from, uint64_t bytes)
{
    if (receive->got < receive->room && bytes != 0) {
        memcpy(receive->at + receive->got, from, js_min_u64(bytes, receive->room - receive->got));
    }
    receive->got += bytes;
}

/* --- messages in buffers ------------------------------------------------------------------ */

static js_message_early *message_find_early(const js_message_peer *peer,
                                            const js_message_receive *receive,
                                            js_message_early **out_before)
{
    js_message_early *early = peer->early_head;
    *out_before = NULL;
    while (early != NULL && !message_fits(receive, early->tag)) {
        *out_before = early;
        early = early->next;
    }
    return early;
}

/* Gives a receive what is here of a buffered message; the rest of it will follow. */
static void message_take_early(js_message *m, uint32_t rank, js_message_early *before,
                               js_message_early *early, uint32_t index)
{
    js_message_peer *peer = &m->peers[rank];
    js_message_receive *receive = &m->receives[index];
    message_store_receive(receive, early->data, early->bytes);
    if (before == NULL) {
        peer->early_head = early->next;
    } else {
        before->next = early->next;
    }
    if (peer->early_tail == early) {
        peer->early_tail = before;
    }
    if (peer->arriving == early) {
        peer->active = index;
        peer->arriving = NULL;
    } else {
        message_finish_receive(m, rank, index);
    }
    free(early);
    m->early_count--;
}

/* Serves a new receive, in no list yet, from the buffers of one source: false if nothing fits. */
static bool message_serve_early(js_message *m, uint32_t rank, uint32_t index)
{
    js_message_receive *receive = &m->receives[index];
    js_message_early *before;
    js_message_early *early = message_find_early(&m->peers[rank], receive, &before);
    if (early == NULL) {
        return false;
    }
    receive->tag = early->tag;
    receive->total = early->total;
    receive->was_referred = early->was_referred;
    if (receive->is_probe) {
        message_finish_receive(m, rank, index);
    } else {
        message_take_early(m, rank, before, early, index);
    }
    return true;
}

static bool message_serve_any_early(js_message *m, uint32_t index)
{
    bool is_probe = m->receives[index].is_probe;
    for (uint32_t i = 0; i < m->world; i++) {
        uint32_t rank = (m->turn + i) % m->world;
        if (message_serve_early(m, rank, index)) {
            if (!is_probe) {
                m->turn = (rank + 1) % m->world;
            }
            return true;
        }
    }
    return false;
}

bool js_message_post_receive(js_message *m, const js_rqe *entry)
{
    uint32_t index = m->receive_free;
    if (index == JS_MESSAGE_NONE) {
        return false;
    }
    js_message_receive *receive = &m->receives[index];
    bool is_any = entry->peer == JS_PEER_ANY;
    m->receive_free = receive->next;
    *receive = (js_message_receive){
        .wr_id = entry->wr_id,
        .at = (uint8_t *)(uintptr_t)entry->target_addr,
        .room = entry->bytes & ~(JS_RQ_TAG_ANY | JS_RQ_PROBE),
        .number = m->receives_posted++,
        .tag = entry->tag,
        .next = JS_MESSAGE_NONE,
        .is_tag_any = (entry->bytes & JS_RQ_TAG_ANY) != 0,
        .is_probe = (entry->bytes & JS_RQ_PROBE) != 0,
    };
    m->outstanding++;
    if (JS_UNLIKELY(m->early_count != 0)) {
        if (is_any ? message_serve_any_early(m, index)
                   : message_serve_early(m, entry->peer, index)) {
            return true;
        }
    }
    message_append_receive(m, is_any ? &m->any : &m->peers[entry->peer].receives, index);
    return true;
}

/* --- arriving frames ---------------------------------------------------------------------- */

static int32_t message_begin_early(js_message *m, js_message_peer *peer, uint32_t tag,
                                   uint64_t total)
{
    js_message_early *early =
        total < SIZE_MAX - sizeof(*early) ? malloc(sizeof(*early) + total) : NULL;
    if (early == NULL) {
        return JS_FAIL(JS_ERR_NO_MEMORY, "no memory for an unexpected message of %llu bytes",
                       (unsigned long long)total);
    }
    *early = (js_message_early){ .tag = tag, .total = total };
    if (peer->early_tail == NULL) {
        peer->early_head = early;
    } else {
        peer->early_tail->next = early;
    }
    peer->early_tail = early;
    peer->arriving = early;
    m->early_count++;
    m->unexpected++;
    return JS_OK;
}

/* A message begins: finds where it goes. A probe that fits completes; then nothing has begun, and
 * the message stays where it is for the next look. */
static int32_t message_begin(js_message *m, uint32_t rank, uint32_t tag, uint64_t total)
{
    js_message_peer *peer = &m->peers[rank];
    uint32_t turn = m->turn;
    uint32_t index = message_match(m, rank, tag);
    if (index == JS_MESSAGE_NONE) {
        return message_begin_early(m, peer, tag, total);
    }
    js_message_receive *receive = &m->receives[index];
    receive->tag = tag;
    receive->total = total;
    if (receive->is_probe) {
        m->turn = turn; /* whoever probes wants to receive from this source next */
        message_finish_receive(m, rank, index);
    } else {
        peer->active = index;
    }
    return JS_OK;
}

/* Stores a frame's bytes and ends the message with its last one. */
static int32_t message_store(js_message *m, uint32_t rank, const js_stream_line *line,
                             const uint8_t *from)
{
    js_message_peer *peer = &m->peers[rank];
    js_message_early *early = peer->arriving;
    uint32_t bytes = js_frame_length_bytes(line->body);
    bool is_referred = (line->route & JS_STREAM_BY_REF) != 0;
    if (early != NULL) {
        early->was_referred |= is_referred;
        if (bytes != 0) {
            memcpy(early->data + early->bytes, from, bytes);
        }
        early->bytes += bytes;
        peer->arriving = early->bytes == early->total ? NULL : early;
    } else {
        m->receives[peer->active].was_referred |= is_referred;
        message_store_receive(&m->receives[peer->active], from, bytes);
    }
    js_stream_release(&m->link->message_rx[rank]);
    m->consumed++;
    m->bytes_received += bytes;
    if (early == NULL && m->receives[peer->active].got == m->receives[peer->active].total) {
        uint32_t index = peer->active;
        peer->active = JS_MESSAGE_NONE;
        message_finish_receive(m, rank, index);
    }
    return 1;
}

static bool message_is_begun(const js_message_peer *peer)
{
    return peer->active != JS_MESSAGE_NONE || peer->arriving != NULL;
}

/* Is this a frame that a sender makes at this place of a message? */
static bool message_is_sound(const js_message *m, const js_message_peer *peer, uint32_t flags,
                             uint64_t bytes)
{
    if (!message_is_begun(peer)) {
        bool is_whole = (flags & JS_FRAME_FLAG_EOM) != 0;
        return (flags & JS_FRAME_FLAG_SOM) != 0 && (is_whole || bytes == JS_MESSAGE_LENGTH_BYTES);
    }
    const js_message_receive *receive = peer->arriving == NULL ? &m->receives[peer->active] : NULL;
    uint64_t left =
        receive ? receive->total - receive->got : peer->arriving->total - peer->arriving->bytes;
    bool is_last = (flags & JS_FRAME_FLAG_EOM) != 0;
    return (flags & JS_FRAME_FLAG_SOM) == 0 && (is_last ? bytes == left : bytes < left);
}

/* Consumes one frame of a peer: 1, 0 if there is none, or an error. */
static int32_t message_receive_frame(js_message *m, uint32_t rank)
{
    js_message_peer *peer = &m->peers[rank];
    js_stream_rx *rx = &m->link->message_rx[rank];
    js_stream_line *line = js_stream_peek(rx);
    if (line == NULL) {
        return 0;
    }
    uint32_t bytes = js_frame_length_bytes(line->body);
    uint32_t flags = js_frame_flags(line->route);
    const uint8_t *from = js_stream_payload(rx, line, bytes);
    if (from == NULL || !message_is_sound(m, peer, flags, bytes)) {
        return JS_FAIL(JS_ERR_PROTOCOL, "malformed message frame from rank %u", rank);
    }
    if (message_is_begun(peer)) {
        return message_store(m, rank, line, from);
    }
    uint64_t total = bytes;
    bool is_length = (flags & JS_FRAME_FLAG_EOM) == 0;
    if (is_length) {
        memcpy(&total, from, sizeof(total));
    }
    if (total == 0 && is_length) {
        return JS_FAIL(JS_ERR_PROTOCOL, "long message of no length from rank %u", rank);
    }
    JS_TRY(message_begin(m, rank, js_frame_imm(line->body), total));
    if (!message_is_begun(peer)) {
        return 1; /* a probe has seen it */
    }
    if (!is_length) {
        return message_store(m, rank, line, from);
    }
    js_stream_release(rx);
    m->consumed++;
    return 1;
}

int32_t js_message_progress(js_message *m)
{
    int32_t progress = 0;
    uint32_t rank = m->turn;
    for (uint32_t i = 0; i < m->world; i++, rank = rank + 1 < m->world ? rank + 1 : 0) {
        js_message_peer *peer = &m->peers[rank];
        if (peer->sends.head != JS_MESSAGE_NONE) {
            progress += js_message_send_step(m, rank);
        }
        if (peer->receives.head == JS_MESSAGE_NONE && m->any.head == JS_MESSAGE_NONE &&
            !message_is_begun(peer)) {
            continue; /* nobody asks: the message waits in its stream */
        }
        int32_t received = message_receive_frame(m, rank);
        if (received < 0) {
            return received;
        }
        progress += received;
    }
    return progress;
}

/* --- what is outstanding ------------------------------------------------------------------ */

static uint32_t message_find_wr_id(const js_message *m, const js_message_list *list, uint64_t wr_id)
{
    uint32_t at = list->head;
    while (at != JS_MESSAGE_NONE && m->receives[at].wr_id != wr_id) {
        at = m->receives[at].next;
    }
    return at;
}

bool js_message_cancel(js_message *m, uint64_t wr_id)
{
    for (uint32_t rank = 0; rank <= m->world; rank++) {
        js_message_list *list = rank < m->world ? &m->peers[rank].receives : &m->any;
        uint32_t index = message_find_wr_id(m, list, wr_id);
        if (index != JS_MESSAGE_NONE) {
            message_unlink_receive(m, list, index);
            m->receives[index].next = m->receive_free;
            m->receive_free = index;
            m->outstanding--;
            return true;
        }
    }
    return false;
}

uint32_t js_message_find_peer(const js_message *m, uint64_t wr_id)
{
    for (uint32_t rank = 0; rank < m->world; rank++) {
        const js_message_peer *peer = &m->peers[rank];
        for (uint32_t at = peer->sends.head; at != JS_MESSAGE_NONE; at = m->sends[at].next) {
            if (m->sends[at].wr_id == wr_id) {
                return rank;
            }
        }
        bool is_active =
            peer->active != JS_MESSAGE_NONE && m->receives[peer->active].wr_id == wr_id;
        if (is_active || message_find_wr_id(m, &peer->receives, wr_id) != JS_MESSAGE_NONE) {
            return rank;
        }
    }
    bool is_any = message_find_wr_id(m, &m->any, wr_id) != JS_MESSAGE_NONE;
    return is_any ? JS_PEER_ANY : JS_MESSAGE_NONE;
}

bool js_message_awaits(const js_message *m, uint32_t peer)
{
    if (peer == JS_PEER_ANY) {
        return m->any.head != JS_MESSAGE_NONE;
    }
    const js_message_peer *p = &m->peers[peer];
    return p->sends.head != JS_MESSAGE_NONE || p->receives.head != JS_MESSAGE_NONE ||
           p->active != JS_MESSAGE_NONE;
}

static void message_flush_list(js_message *m, js_message_list *list, uint32_t rank, int32_t status)
{
    while (list->head != JS_MESSAGE_NONE) {
        uint32_t index = list->head;
        message_unlink_receive(m, list, index);
        message_complete_receive(m, rank, index, status);
    }
}

void js_message_flush(js_message *m, int32_t status)
{
    for (uint32_t rank = 0; rank < m->world; rank++) {
        js_message_peer *peer = &m->peers[rank];
        js_message_send_flush(m, rank, status);
        if (peer->active != JS_MESSAGE_NONE) {
            uint32_t index = peer->active;
            peer->active = JS_MESSAGE_NONE;
            message_complete_receive(m, rank, index, status);
        }
        message_flush_list(m, &peer->receives, rank, status);
    }
    message_flush_list(m, &m->any, JS_PEER_ANY, status);
}
