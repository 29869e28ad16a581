/* Mirroring streams between hosts. */
#include "js_mirror.h"

#include "js_comm.h"
#include "js_frame.h"
#include "js_status.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MIRROR_BATCH 64u
#define MIRROR_ASK_NS_MIN 1000000u /* between two questions for the peers' boards, at first */
#define MIRROR_ASK_NS_MAX 64000000u
#define MIRROR_LOOK_NS 100000u        /* whoever did not look for longer was absent, */
#define MIRROR_SKIP_NS 4000u          /* whoever looked then may send before looking again */
#define MIRROR_FEW 2u                 /* frames that are no stream */
#define MIRROR_STOPPED_NS 1000000000u /* or was stopped */
#define MIRROR_CLOSE_NS 2000000000u   /* for what is on its way when a communicator is closed */
#define MIRROR_LAST_WORDS 3u
/* Neither ranks of the own host nor threads of a device can wake who sleeps at a link. */
#define MIRROR_LOCAL_SLICE_NS 500000u

static uint64_t mirror_now_ns(const js_comm *comm)
{
    return js_clock_to_ns(&comm->engine->clock, js_clock_ticks());
}

bool js_mirror_is_remote(const js_comm *comm, uint32_t rank)
{
    return comm->mirror != NULL && comm->mirror->index[rank] != 0;
}

const js_mirror_peer *js_mirror_find(const js_comm *comm, uint32_t rank)
{
    return js_mirror_is_remote(comm, rank) ? &comm->mirror->peers[comm->mirror->index[rank] - 1]
                                           : NULL;
}

/* --- what comes --------------------------------------------------------------------------- */

bool js_mirror_place(void *context, uint32_t channel, uint32_t offset, const uint8_t *payload,
                     uint32_t bytes)
{
    js_mirror_channel *c = &((js_mirror_peer *)context)->channels[channel];
    if (offset > c->payload_bytes || bytes > c->payload_bytes - offset) {
        return false;
    }
    memcpy(c->payload + offset, payload, bytes);
    return true;
}

/* A frame of the peer is here: publishes it, as the peer has in its own copy. A peer that keeps to
 * its credit finds the line free. */
void js_mirror_deliver(void *context, const js_rel_chunk *chunk)
{
    js_mirror_peer *peer = context;
    js_mirror *mirror = peer->comm->mirror;
    js_mirror_channel *c = &peer->channels[chunk->channel];
    uint32_t sent = c->psn - c->sequence_start;
    if (sent - js_load_rlx_u32(&c->consumed->consumed) > c->mask) {
        peer->is_overrun = true;
        return;
    }
    js_stream_line *line = &c->lines[c->psn & c->mask];
    line->route = js_frame_with_flags(c->route, chunk->flags);
    line->body = js_frame_body(chunk->bytes, chunk->fragment, chunk->imm);
    if (chunk->payload != NULL) {
        js_copy_short(line->payload.bytes, chunk->payload, chunk->bytes);
    } else {
        line->payload.offset = chunk->offset;
    }
    js_store_rel_u64(&line->order, c->psn);
    c->psn++;
    mirror->delivered++;
}

static void mirror_take_frame(js_comm *comm, uint64_t now_ns, const js_link_packet *packet)
{
    js_mirror *mirror = comm->mirror;
    js_wire_frame frame;
    js_wire_reason reason = js_wire_decode(packet->frame, packet->bytes, &frame);
    if (JS_UNLIKELY(reason != JS_WIRE_OK)) {
        mirror->refused[reason]++;
        return;
    }
    uint32_t rank = frame.dcid & 0xffu;
    if (JS_UNLIKELY(rank >= comm->world || mirror->index[rank] == 0)) {
        mirror->refused[JS_WIRE_STALE]++;
        return;
    }
    js_mirror_peer *peer = &mirror->peers[mirror->index[rank] - 1];
    if (JS_UNLIKELY(frame.opcode == JS_WIRE_PROBE) && !peer->was_told) {
        js_mirror_write_note(peer); /* the answer tells what this rank is in now */
    }
    (void)js_rel_rx(peer->rel, now_ns, &frame);
    peer->is_touched = true;
}

static void mirror_take_credit(js_mirror_peer *peer)
{
    for (uint32_t i = 0; i < JS_MIRROR_CHANNELS; i++) {
        js_mirror_channel *c = &peer->channels[i];
        js_store_rlx_u32(c->credit, js_rel_consumed(peer->rel, i));
    }
}

/* The connection is at its end: what that means for the communicator. */
static void mirror_end(js_mirror_peer *peer)
{
    js_comm *comm = peer->comm;
    js_rel_error error = js_rel_get_error(peer->rel);
    js_seg_rank *rank = js_seg_get_rank(comm->engine->seg, comm->members[peer->rank]);
    peer->is_over = true;
    if (error == JS_REL_LOST) {
        if (!peer->has_left && comm->has_mirror != 0) { /* else: it was never there, or is done */
            js_store_rel_u32(&rank->state, JS_PEER_LOST);
        }
    } else if (error == JS_REL_BROKEN || peer->is_overrun) {
        js_fault fault;
        js_fault_describe(comm, &fault);
        fault.status = JS_ERR_PROTOCOL;
        fault.culprit = (int32_t)peer->rank;
        fault.culprit_job = comm->members[peer->rank];
        (void)js_fault_publish(comm, &fault);
    } else if (js_load_rlx_u32(&comm->control->abort) == 0) { /* RESET whose note did not fit */
        js_fault fault = { .status = JS_ERR_ABORTED, .culprit = -1 };
        fault.reporter = (int32_t)peer->rank;
        fault.reporter_job = comm->members[peer->rank];
        (void)js_fault_publish(comm, &fault);
    }
}

static void mirror_follow(js_mirror_peer *peer)
{
    mirror_take_credit(peer);
    bool has_failed = js_rel_get_state(peer->rel) == JS_REL_FAILED || peer->is_overrun;
    if (JS_UNLIKELY(has_failed && !peer->is_over && !peer->was_told)) {
        mirror_end(peer);
    }
}

/* Answers that came while nobody was here are late by no fault of the peer. And whoever has stopped
 * for long cannot know whether the peer has stopped as well: it is not silent since then. */
static void mirror_look(js_mirror *mirror, uint64_t now_ns)
{
    uint64_t absent_ns = now_ns - mirror->looked_ns;
    for (uint32_t i = 0; i < mirror->peer_count && absent_ns > MIRROR_LOOK_NS; i++) {
        if (absent_ns > MIRROR_STOPPED_NS) {
            js_rel_resume(mirror->peers[i].rel, now_ns);
            mirror->peers[i].deadline_ns = 0;
        } else {
            js_rel_note_absence(mirror->peers[i].rel, now_ns);
        }
    }
    mirror->looked_ns = now_ns;
}

/* A look costs a system call with some links: what has just been posted goes before it. */
static bool mirror_skips(js_comm *comm)
{
    js_mirror *mirror = comm->mirror;
    uint64_t now_ns = mirror_now_ns(comm);
    if (mirror->has_skipped || now_ns - mirror->looked_ns > MIRROR_SKIP_NS) {
        return false;
    }
    mirror->has_skipped = true;
    mirror->is_answering = true;
    mirror->looked_ns = now_ns;
    return true;
}

uint32_t js_mirror_receive(js_comm *comm, bool has_posted)
{
    js_mirror *mirror = comm->mirror;
    js_link_packet packets[MIRROR_BATCH];
    if (has_posted && mirror_skips(comm)) {
        return 0;
    }
    mirror->has_skipped = false;
    uint32_t count = js_link_receive(mirror->link, packets, MIRROR_BATCH);
    if (count == 0 && comm->waiter.since_ticks != 0) { /* nothing but to wait for it */
        for (uint32_t i = 1; i < mirror->link->looks && count == 0; i++) {
            count = js_link_receive(mirror->link, packets, MIRROR_BATCH);
        }
    }
    uint64_t now_ns = mirror_now_ns(comm);
    mirror_look(mirror, now_ns);
    mirror->is_behind = count == MIRROR_BATCH;
    mirror->is_answering = count != 0 && count <= MIRROR_FEW;
    if (count == 0) {
        return 0;
    }
    for (uint32_t i = 0; i < count; i++) {
        mirror_take_frame(comm, now_ns, &packets[i]);
    }
    js_link_release(mirror->link);
    for (uint32_t i = 0; i < mirror->peer_count; i++) {
        if (mirror->peers[i].is_touched) {
            mirror_follow(&mirror->peers[i]);
            mirror->delivered += js_mirror_put_progress(&mirror->peers[i]);
        }
    }
    uint32_t delivered = mirror->delivered;
    mirror->delivered = 0;
    return delivered;
}

/* --- what goes ---------------------------------------------------------------------------- */

/* Hands over what this rank has published, as far as the connection takes it. True: all. */
static bool mirror_post(js_mirror_peer *peer, uint32_t channel)
{
    js_mirror_channel *c = &peer->channels[channel];
    js_stream_line *line;
    while ((line = js_stream_look(&c->tap)) != NULL) {
        uint32_t bytes = js_frame_length_bytes(line->body);
        js_rel_chunk chunk = {
            .payload = js_stream_payload(&c->tap, line, bytes),
            .bytes = bytes,
            .offset = bytes > JS_STREAM_INLINE_BYTES ? (uint32_t)line->payload.offset : 0,
            .imm = js_frame_imm(line->body),
            .fragment = (uint16_t)js_frame_fragment(line->body),
            .channel = (uint8_t)channel,
            .flags = (uint8_t)(js_frame_flags(line->route) & (JS_WIRE_FLAG_SOM | JS_WIRE_FLAG_EOM)),
        };
        if (!js_rel_post(peer->rel, &chunk)) {
            return js_rel_get_state(peer->rel) == JS_REL_FAILED; /* nobody wants it any more */
        }
        c->tap.psn++;
        peer->is_touched = true;
    }
    return true;
}

/* Tells the connection how much of the peer's frames has been read here. While somebody waits for
 * what has just come, or for the answer, telling the peer has time until the next round; but a put
 * is complete over there only when it is told. */
static void mirror_tell_consumed(js_mirror_peer *peer, bool is_answering)
{
    for (uint32_t i = 0; i < JS_MIRROR_CHANNELS; i++) {
        js_mirror_channel *c = &peer->channels[i];
        uint32_t consumed = js_load_rlx_u32(&c->consumed->consumed);
        if (consumed != c->told) {
            bool waits = is_answering && i != JS_FRAME_CHANNEL_PUT;
            c->told = waits ? c->told : consumed;
            js_rel_set_consumed(peer->rel, i, consumed, waits ? 2 * c->urge : c->urge);
            peer->is_touched = true;
        }
    }
}

/* Memory for a frame. A peer that finds the link's buffer full of others' frames gets its share;
 * one that has filled it goes on in the next round. */
static uint8_t *mirror_begin(js_mirror *mirror, js_mirror_peer *peer, bool has_sent)
{
    uint8_t *frame = js_link_begin(mirror->link, peer->link_peer);
    if (JS_LIKELY(frame != NULL)) {
        return frame;
    }
    js_link_flush(mirror->link);
    peer->is_touched = has_sent;
    return has_sent ? NULL : js_link_begin(mirror->link, peer->link_peer);
}

/* Returns whether there was something to send. */
static bool mirror_send_peer(js_mirror *mirror, js_mirror_peer *peer, uint64_t now_ns)
{
    bool has_sent = false;
    peer->is_touched = false;
    for (;;) {
        /* With nothing due there is no need to ask; a backlog has to be told that it waits. */
        peer->deadline_ns = js_rel_deadline(peer->rel);
        if (now_ns < peer->deadline_ns && !js_rel_has_backlog(peer->rel)) {
            break;
        }
        uint8_t *frame = mirror_begin(mirror, peer, has_sent);
        if (frame == NULL) {
            break;
        }
        uint32_t bytes = js_rel_tx(peer->rel, now_ns, frame);
        if (bytes == 0) {
            peer->deadline_ns = js_rel_deadline(peer->rel);
            break;
        }
        js_link_commit(mirror->link, peer->link_peer, bytes);
        has_sent = true;
    }
    return has_sent;
}

void js_mirror_send(js_comm *comm)
{
    js_mirror *mirror = comm->mirror;
    uint64_t now_ns = mirror->looked_ns;
    bool has_sent = false;
    bool has_backlog = false;
    for (uint32_t i = 0; i < mirror->peer_count; i++) {
        js_mirror_peer *peer = &mirror->peers[i];
        /* Puts first: whoever gets what was posted after one sees its bytes. */
        bool is_all_posted = mirror_post(peer, JS_FRAME_CHANNEL_PUT) &&
                             mirror_post(peer, JS_FRAME_CHANNEL_COLLECTIVE);
        is_all_posted = is_all_posted && mirror_post(peer, JS_FRAME_CHANNEL_MESSAGE);
        mirror_tell_consumed(peer, mirror->is_answering);
        if (peer->is_touched || now_ns >= peer->deadline_ns) {
            has_sent |= mirror_send_peer(mirror, peer, now_ns);
            if (JS_UNLIKELY(js_rel_get_state(peer->rel) == JS_REL_FAILED)) {
                mirror_follow(peer);
            }
        }
        has_backlog |= !is_all_posted || js_rel_has_backlog(peer->rel);
    }
    if (has_sent) {
        js_link_flush(mirror->link);
    }
    mirror->has_backlog = has_backlog;
}

/* --- now and then ------------------------------------------------------------------------- */

void js_mirror_ask(js_comm *comm, uint64_t now_ns)
{
    js_mirror *mirror = comm->mirror;
    uint64_t since_ns = now_ns - mirror->asked_ns;
    if (since_ns < mirror->ask_ns) {
        return;
    }
    bool is_first = since_ns > 4 * mirror->ask_ns; /* of this wait, or as good as that */
    mirror->ask_ns =
        is_first ? MIRROR_ASK_NS_MIN : js_min_u64(2 * mirror->ask_ns, MIRROR_ASK_NS_MAX);
    mirror->asked_ns = now_ns;
    for (uint32_t i = 0; i < mirror->peer_count; i++) {
        js_mirror_write_note(&mirror->peers[i]);
        js_rel_ask(mirror->peers[i].rel);
        mirror->peers[i].is_touched = true;
    }
    js_mirror_send(comm);
}

/* Tells the peers why this communicator has failed. */
static void mirror_tell_fault(js_comm *comm)
{
    js_mirror *mirror = comm->mirror;
    uint8_t note[JS_WIRE_NOTE_BYTES_MAX];
    uint32_t bytes = js_mirror_fault_note(comm, note);
    for (uint32_t i = 0; i < mirror->peer_count; i++) {
        mirror->peers[i].was_told = true;
        mirror->peers[i].is_touched = true;
        js_rel_abort(mirror->peers[i].rel, note, bytes);
    }
    js_mirror_send(comm);
}

void js_mirror_abort(js_comm *comm)
{
    if (!comm->mirror->has_aborted) {
        comm->mirror->has_aborted = true;
        mirror_tell_fault(comm);
    }
}

void js_mirror_sleep(js_comm *comm, uint64_t slice_ns)
{
    js_mirror *mirror = comm->mirror;
    uint64_t now_ns = mirror_now_ns(comm);
    if (mirror->is_behind) {
        return; /* there is more, which poll does not know of */
    }
    if (comm->link.all_tx.reader_count != 0 || comm->queue != NULL) {
        slice_ns = js_min_u64(slice_ns, MIRROR_LOCAL_SLICE_NS);
    }
    for (uint32_t i = 0; i < mirror->peer_count; i++) {
        uint64_t deadline_ns = mirror->peers[i].deadline_ns;
        slice_ns = js_min_u64(slice_ns, deadline_ns > now_ns ? deadline_ns - now_ns : 0);
    }
    struct pollfd waited = { .fd = js_link_wait_fd(mirror->link), .events = POLLIN };
    struct timespec slice = { .tv_nsec = (long)slice_ns };
    (void)ppoll(&waited, 1, &slice, NULL);
    mirror->looked_ns = mirror_now_ns(comm); /* what comes wakes it */
}

/* --- the end ------------------------------------------------------------------------------ */

static bool mirror_is_closed(const js_mirror *mirror)
{
    for (uint32_t i = 0; i < mirror->peer_count; i++) {
        js_rel_state state = js_rel_get_state(mirror->peers[i].rel);
        if (state != JS_REL_CLOSED && state != JS_REL_FAILED) {
            return false;
        }
    }
    return true;
}

void js_mirror_free(js_mirror *mirror)
{
    for (uint32_t i = 0; i < mirror->peer_count; i++) {
        free(mirror->peers[i].rel);
        js_mirror_put_close(&mirror->peers[i]);
    }
    if (mirror->link != NULL) {
        js_link_close(mirror->link);
    }
    free(mirror);
}

/* Sleeps until something comes or is due, and deals with it; returns the time. */
static uint64_t mirror_wait_round(js_comm *comm)
{
    js_mirror_sleep(comm, MIRROR_LOCAL_SLICE_NS);
    (void)js_mirror_receive(comm, false);
    js_mirror_send(comm);
    return comm->mirror->looked_ns;
}

/* Leaves in good order: what is published gets there before BYE does. */
static void mirror_drain(js_comm *comm)
{
    js_mirror *mirror = comm->mirror;
    uint64_t now_ns = mirror_now_ns(comm);
    uint64_t until_ns = now_ns + MIRROR_CLOSE_NS;
    (void)js_mirror_receive(comm, false);
    js_mirror_send(comm);
    while (mirror->has_backlog && now_ns < until_ns) { /* what is published has to be handed over */
        now_ns = mirror_wait_round(comm);
    }
    mirror->is_closing = true;
    for (uint32_t i = 0; i < mirror->peer_count; i++) {
        js_mirror_write_note(&mirror->peers[i]);
        js_rel_close(mirror->peers[i].rel, now_ns);
        mirror->peers[i].is_touched = true;
    }
    js_mirror_send(comm);
    while (!mirror_is_closed(mirror) && now_ns < until_ns) {
        now_ns = mirror_wait_round(comm);
    }
}

void js_mirror_close(js_comm *comm)
{
    if (comm->failed == JS_OK) {
        mirror_drain(comm);
    }
    for (uint32_t i = 0; comm->failed != JS_OK && i < MIRROR_LAST_WORDS; i++) {
        mirror_tell_fault(comm); /* nobody will be here to answer whom it does not reach */
    }
    js_mirror_free(comm->mirror);
    comm->mirror = NULL;
}
