/* Connecting a communicator with its ranks on other hosts. */
#include "js_comm.h"
#include "js_frame.h"
#include "js_mirror.h"
#include "js_status.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MIRROR_RTO_MIN_NS 5000000u /* how long a rank may lose its core, and more */
#define MIRROR_RTO_MAX_NS 100000000u
#define MIRROR_ACK_DELAY_NS 20000u
#define MIRROR_CHUNK_BYTES 32768u /* of the longest frames that are common */
#define MIRROR_SLICE_NS 200000u
#define MIRROR_KEY_STEP 0x9e3779b97f4a7c15ull

/* MTUs that paths have whose interfaces take more, falling: without jumbo frames, of tunnels, the
 * least of IPv6, what any IPv4 host takes. */
static const uint16_t mirror_path_mtus[] = { 9000, 4096, 1500, 1450, 1400, 1280, 576 };

JS_STATIC_ASSERT(JS_ARRAY_LEN(mirror_path_mtus) < JS_REL_SIZES_MAX, "fits a connection");

/* Of all frames to one rank, those of each sender are numbered from another start. */
static uint32_t mirror_first_psn(const js_link_address *to, uint32_t from)
{
    return (uint32_t)((to->key >> 16) + from * 0x10001u);
}

void js_mirror_open_channel(js_mirror_peer *peer, uint32_t channel, const js_mirror_ends *ends)
{
    js_mirror_channel *c = &peer->channels[channel];
    js_stream_open_rx(&c->tap, ends->ours, ends->layout, 0);
    c->credit = &c->tap.self->consumed;
    c->lines = ends->theirs->lines;
    c->payload = ends->theirs->payload;
    c->payload_bytes = ends->theirs->payload_bytes;
    c->consumed = ends->theirs->self;
    c->route = js_frame_route(channel, (uint16_t)peer->rank, 0);
    c->mask = ends->layout->slots - 1;
    /* What has been read makes room, which can wait; a put is complete when it has been read. */
    uint64_t quarter = js_min_u64(ends->layout->slots, c->payload_bytes / MIRROR_CHUNK_BYTES) / 4;
    c->urge = channel == JS_FRAME_CHANNEL_PUT ? 1 : (uint32_t)js_max_u64(quarter, 1);
    c->sequence_start = ends->layout->sequence_start;
    c->psn = c->sequence_start;
}

static int32_t mirror_open_channels(js_comm *comm, js_mirror_peer *peer)
{
    const js_area *area = &comm->area;
    uint32_t rank = peer->rank;
    js_mirror_ends collective = { js_area_peer_stream(area, comm->rank, rank), &area->peer_layout,
                                  &comm->link.peer_rx[rank] };
    js_mirror_ends message = { js_area_message_stream(area, comm->rank, rank),
                               &area->message_layout, &comm->link.message_rx[rank] };
    js_mirror_open_channel(peer, JS_FRAME_CHANNEL_COLLECTIVE, &collective);
    js_mirror_open_channel(peer, JS_FRAME_CHANNEL_MESSAGE, &message);
    return js_mirror_put_open(peer);
}

/* A rank's place among those of its host. */
static uint32_t mirror_place_on_host(const js_comm *comm, uint32_t rank)
{
    const uint16_t *hosts = comm->engine->hosts;
    uint32_t place = 0;
    for (uint32_t i = 0; i < rank; i++) {
        place += hosts[comm->members[i]] == hosts[comm->members[rank]];
    }
    return place;
}

/* The rail of a pair of ranks, by the place on the one host and how far the other host is: both
 * sides compute the same. Between two hosts the pairs of equal places, which exchange the slices
 * of hierarchical plans, are spread evenly, and so are all pairs; with one rank on each host, those
 * peers of a rank are whose hosts are at different distances. */
static uint32_t mirror_rail(const js_comm *comm, uint32_t rank)
{
    const uint16_t *hosts = comm->engine->hosts;
    uint32_t own = hosts[comm->members[comm->rank]];
    uint32_t other = hosts[comm->members[rank]];
    uint32_t place = mirror_place_on_host(comm, own < other ? comm->rank : rank);
    uint32_t apart = own < other ? other - own : own - other;
    return (place + apart - 1) % comm->mirror->link->rails;
}

/* The address of this end for a peer. */
static void mirror_own_address(const js_comm *comm, uint32_t rank, js_link_address *out)
{
    js_link_address own[JS_LINK_RAILS_MAX];
    js_link_get_addresses(comm->mirror->link, own);
    *out = own[mirror_rail(comm, rank)];
}

/* `addresses`: of the peer, by rail. */
static int32_t mirror_open_peer(js_comm *comm, js_mirror_peer *peer,
                                const js_link_address *addresses, uint64_t give_up_ns)
{
    js_mirror *mirror = comm->mirror;
    uint32_t rail = mirror_rail(comm, peer->rank);
    js_link_address own;
    mirror_own_address(comm, peer->rank, &own);
    peer->address = addresses[rail];
    js_link_address by_rail[JS_LINK_RAILS_MAX] = { 0 };
    by_rail[rail] = peer->address;
    JS_TRY(js_link_add_peer(mirror->link, by_rail, &peer->link_peer));
    size_t bytes = js_round_up(js_rel_bytes(), JS_CACHE_LINE);
    peer->rel = aligned_alloc(JS_CACHE_LINE, bytes);
    if (peer->rel == NULL) {
        return JS_FAIL(JS_ERR_NO_MEMORY, "no memory for the connection with rank %u", peer->rank);
    }
    memset(peer->rel, 0, bytes);
    JS_TRY(mirror_open_channels(comm, peer));
    uint32_t mtu =
        own.mtu_bytes < peer->address.mtu_bytes ? own.mtu_bytes : peer->address.mtu_bytes;
    js_rel_config config = {
        .local_dcid = (uint16_t)(own.dcid + peer->rank),
        .local_epoch = own.epoch,
        .remote_dcid = (uint16_t)(peer->address.dcid + comm->rank),
        .remote_epoch = peer->address.epoch,
        .local_key = own.key + (peer->rank + 1) * MIRROR_KEY_STEP,
        .remote_key = peer->address.key + (comm->rank + 1) * MIRROR_KEY_STEP,
        .send_psn = mirror_first_psn(&peer->address, comm->rank),
        .receive_psn = mirror_first_psn(&own, peer->rank),
        .mtu_bytes = mtu,
        .window = JS_REL_WINDOW_MAX,
        .ring_bytes = { (uint32_t)peer->channels[0].payload_bytes,
                        (uint32_t)peer->channels[1].payload_bytes,
                        (uint32_t)peer->channels[2].payload_bytes },
        .rto_min_ns = MIRROR_RTO_MIN_NS,
        .rto_max_ns = MIRROR_RTO_MAX_NS,
        .ack_delay_ns = MIRROR_ACK_DELAY_NS,
        .give_up_ns = give_up_ns,
    };
    for (uint32_t i = 0; i < JS_ARRAY_LEN(mirror_path_mtus); i++) {
        config.lesser_bytes[i] = (uint16_t)(mirror_path_mtus[i] - js_link_header_bytes(&own));
    }
    js_rel_sink sink = { js_mirror_place, js_mirror_deliver, js_mirror_read_note, peer };
    js_rel_init(peer->rel, &config, &sink);
    /* A quarter of the link's buffers is for control frames and repeats, which no credit holds. */
    js_rel_set_share(peer->rel, mirror->link->buffer_frames / 4 * 3 / mirror->peer_count);
    js_mirror_write_note(peer);
    js_rel_open(peer->rel, mirror->looked_ns, mtu);
    peer->is_touched = true;
    return JS_OK;
}

static int32_t mirror_new(js_comm *comm, js_link *link, js_mirror **out)
{
    uint32_t count = 0;
    for (uint32_t rank = 0; rank < comm->world; rank++) {
        count += !js_engine_is_local(comm->engine, comm->members[rank]);
    }
    size_t bytes = sizeof(js_mirror) + count * sizeof(js_mirror_peer);
    bytes = js_round_up(bytes, JS_CACHE_LINE);
    js_mirror *mirror = aligned_alloc(JS_CACHE_LINE, bytes);
    if (mirror == NULL) {
        return JS_FAIL(JS_ERR_NO_MEMORY, "no memory for connections with %u ranks", count);
    }
    memset(mirror, 0, bytes);
    mirror->link = link;
    for (uint32_t rank = 0; rank < comm->world; rank++) {
        if (!js_engine_is_local(comm->engine, comm->members[rank])) {
            js_mirror_peer *peer = &mirror->peers[mirror->peer_count++];
            mirror->index[rank] = (uint16_t)mirror->peer_count;
            peer->rank = rank;
            peer->comm = comm;
        }
    }
    *out = mirror;
    return JS_OK;
}

static void mirror_describe(const js_link_address *address, char *text, size_t room)
{
    char ip[INET6_ADDRSTRLEN] = "?";
    if (address->kind == JS_LINK_UDP) {
        (void)inet_ntop(address->is_ipv6 ? AF_INET6 : AF_INET, address->ip, ip, sizeof(ip));
        (void)snprintf(text, room, "udp %s port %u", ip, address->port);
        return;
    }
    const uint8_t *m = address->mac;
    (void)snprintf(text, room, "%s %02x:%02x:%02x:%02x:%02x:%02x",
                   address->kind == JS_LINK_XDP ? "xdp" : "packet", m[0], m[1], m[2], m[3], m[4],
                   m[5]);
}

/* The rank that is in the way: one whose connection has failed, else the first without one. */
static const js_mirror_peer *mirror_find_missing(const js_mirror *mirror)
{
    const js_mirror_peer *missing = NULL;
    for (uint32_t i = 0; i < mirror->peer_count; i++) {
        js_rel_state state = js_rel_get_state(mirror->peers[i].rel);
        if (state == JS_REL_FAILED) {
            return &mirror->peers[i];
        }
        if (state != JS_REL_OPEN && missing == NULL) {
            missing = &mirror->peers[i];
        }
    }
    return missing;
}

/* Names a rank that is not connected, and the direction in which frames are lost; tells those that
 * are, which would wait for this one. */
static int32_t mirror_fail_open(js_comm *comm, const js_mirror_peer *peer, uint64_t timeout_ns)
{
    bool hears = js_rel_get_stats(peer->rel)->frames_received != 0;
    js_fault fault;
    js_fault_describe(comm, &fault);
    fault.status = JS_ERR_UNREACHABLE;
    fault.culprit = (int32_t)peer->rank;
    fault.culprit_job = comm->members[peer->rank];
    (void)js_fault_raise(comm, &fault);
    js_link_address own;
    mirror_own_address(comm, peer->rank, &own);
    char here[80];
    char there[80];
    mirror_describe(&own, here, sizeof(here));
    mirror_describe(&peer->address, there, sizeof(there));
    uint32_t least = mirror_path_mtus[JS_ARRAY_LEN(mirror_path_mtus) - 1];
    return JS_FAIL(JS_ERR_UNREACHABLE,
                   "rank %u at %s cannot be reached from %s%s%.16s within %.1f s: %s, not even "
                   "frames of %u bytes",
                   comm->members[peer->rank], there, here, own.interface[0] ? " of " : "",
                   own.interface, (double)timeout_ns * 1e-9,
                   hears ? "its frames arrive here, ours do not arrive there"
                         : "nothing of it arrives here",
                   least - js_link_header_bytes(&own));
}

/* Another rank has failed before all were connected. */
static int32_t mirror_adopt(js_comm *comm)
{
    int32_t result = js_fault_adopt(comm);
    const js_fault *fault = &comm->fault;
    if (fault->status == JS_ERR_UNREACHABLE) {
        return JS_FAIL(JS_ERR_UNREACHABLE, "rank %d cannot reach rank %d, and has given up",
                       fault->reporter_job, fault->culprit_job);
    }
    return result;
}

static int32_t mirror_connect(js_comm *comm, const js_link_address *addresses, uint64_t timeout_ns,
                              uint64_t give_up_ns)
{
    js_mirror *mirror = comm->mirror;
    mirror->looked_ns = js_clock_to_ns(&comm->engine->clock, js_clock_ticks());
    uint64_t until_ns = mirror->looked_ns + timeout_ns;
    for (uint32_t i = 0; i < mirror->peer_count; i++) {
        js_mirror_peer *peer = &mirror->peers[i];
        const js_link_address *theirs = &addresses[peer->rank * mirror->link->rails];
        JS_TRY(mirror_open_peer(comm, peer, theirs, js_max_u64(timeout_ns, give_up_ns)));
    }
    const js_mirror_peer *missing;
    while ((missing = mirror_find_missing(mirror)) != NULL) {
        js_mirror_send(comm);
        js_mirror_sleep(comm, MIRROR_SLICE_NS);
        (void)js_mirror_receive(comm, false);
        if (js_load_rlx_u32(&comm->control->abort) != 0) {
            return mirror_adopt(comm);
        }
        bool has_failed = js_rel_get_state(missing->rel) == JS_REL_FAILED;
        if (has_failed || mirror->looked_ns > until_ns) {
            return mirror_fail_open(comm, missing, timeout_ns);
        }
    }
    js_mirror_send(comm);
    JS_TRY(js_thread_start_ticker(comm->engine));
    for (uint32_t i = 0; i < mirror->peer_count; i++) {
        uint16_t member = comm->members[mirror->peers[i].rank];
        js_seg_rank *rank = js_seg_get_rank(comm->engine->seg, member);
        (void)js_cas_seq_u32(&rank->state, JS_PEER_ABSENT, JS_PEER_ATTACHED);
        js_rel_set_patience(mirror->peers[i].rel, give_up_ns);
    }
    return JS_OK;
}

int32_t js_comm_connect(js_comm *comm, js_link *link, const js_link_address *addresses,
                        uint64_t timeout_ns, uint64_t give_up_ns)
{
    int32_t result = js_comm_enter(comm);
    if (result == JS_OK && comm->mirror != NULL) {
        result = js_comm_leave(comm, JS_FAIL(JS_ERR_INVALID, "it is connected already"));
    }
    js_mirror *mirror = NULL;
    if (result == JS_OK) {
        result = mirror_new(comm, link, &mirror);
        (void)(result == JS_OK ? JS_OK : js_comm_leave(comm, result));
    }
    if (result != JS_OK) {
        js_link_close(link);
        return result;
    }
    comm->mirror = mirror;
    result = mirror_connect(comm, addresses, timeout_ns, give_up_ns);
    if (result != JS_OK) {
        comm->mirror = NULL;
        js_mirror_free(mirror);
    }
    js_store_rel_u32(&comm->has_mirror, result == JS_OK);
    return js_comm_leave(comm, result);
}
