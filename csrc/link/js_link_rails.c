/* Several links as one: rails. Each is a link of its own, by another interface or from another
 * port; they share dcid, epoch and key, so to those above they are one endpoint that is reached in
 * several ways. A peer has an address on one of the rails, the others are zero: each takes a socket
 * of its own with some kinds. Peer p of rail r is peer p * rails + r. */
#include "js_link_kinds.h"
#include "js_status.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

typedef struct rails_link {
    js_link link;
    js_link *rails[JS_LINK_RAILS_MAX];
    int epoll_fd;
    uint32_t first; /* rail that is looked at first: each in turn */
} rails_link;

static rails_link *rails_of(js_link *link)
{
    return (rails_link *)(void *)link;
}

static js_link *rails_pick(js_link *link, uint32_t *peer)
{
    uint32_t rail = *peer % link->rails;
    *peer /= link->rails;
    return rails_of(link)->rails[rail];
}

static int32_t rails_add_peer(js_link *link, const js_link_address *addresses, uint32_t *out_peer)
{
    uint32_t rail = 0;
    uint32_t peer = 0;
    while (rail < link->rails && addresses[rail].kind == 0) {
        rail++;
    }
    if (rail == link->rails) {
        return JS_FAIL(JS_ERR_INVALID, "%s: a peer without an address", link->name);
    }
    JS_TRY(js_link_add_peer(rails_of(link)->rails[rail], &addresses[rail], &peer));
    *out_peer = peer * link->rails + rail;
    return JS_OK;
}

static uint8_t *rails_begin(js_link *link, uint32_t peer)
{
    js_link *rail = rails_pick(link, &peer);
    return js_link_begin(rail, peer);
}

static void rails_commit(js_link *link, uint32_t peer, uint32_t bytes)
{
    js_link *rail = rails_pick(link, &peer);
    js_link_commit(rail, peer, bytes);
}

static void rails_flush(js_link *link)
{
    for (uint32_t i = 0; i < link->rails; i++) {
        js_link_flush(rails_of(link)->rails[i]);
    }
}

static uint32_t rails_receive(js_link *link, js_link_packet *packets, uint32_t max)
{
    rails_link *rails = rails_of(link);
    uint32_t count = 0;
    for (uint32_t i = 0; i < link->rails && count < max; i++) {
        uint32_t rail = (rails->first + i) % link->rails;
        count += js_link_receive(rails->rails[rail], packets + count, max - count);
    }
    rails->first = (rails->first + 1) % link->rails;
    return count;
}

static void rails_release(js_link *link)
{
    for (uint32_t i = 0; i < link->rails; i++) {
        js_link_release(rails_of(link)->rails[i]);
    }
}

static int32_t rails_wait_fd(js_link *link)
{
    for (uint32_t i = 0; i < link->rails; i++) {
        (void)js_link_wait_fd(rails_of(link)->rails[i]); /* sets its timer */
    }
    return rails_of(link)->epoll_fd;
}

static void rails_update(js_link *link)
{
    memset(&link->stats, 0, sizeof(link->stats));
    for (uint32_t i = 0; i < link->rails; i++) {
        js_link_stats stats;
        js_link_get_stats(rails_of(link)->rails[i], &stats);
        link->stats.frames_sent += stats.frames_sent;
        link->stats.frames_received += stats.frames_received;
        link->stats.bytes_sent += stats.bytes_sent;
        link->stats.bytes_received += stats.bytes_received;
        link->stats.send_drops += stats.send_drops;
        link->stats.receive_drops += stats.receive_drops;
        link->stats.system_calls += stats.system_calls;
        link->stats.faults += stats.faults;
    }
}

static void rails_close(js_link *link)
{
    rails_link *rails = rails_of(link);
    for (uint32_t i = 0; i < link->rails; i++) {
        js_link_close(rails->rails[i]);
    }
    if (rails->epoll_fd >= 0) {
        close(rails->epoll_fd);
    }
    free(rails);
}

static const js_link_ops rails_ops = {
    .name = "rails",
    .add_peer = rails_add_peer,
    .begin = rails_begin,
    .commit = rails_commit,
    .flush = rails_flush,
    .receive = rails_receive,
    .release = rails_release,
    .wait_fd = rails_wait_fd,
    .update = rails_update,
    .close = rails_close,
};

/* Raw frames to one interface come to all sockets there that want them: to two rails, twice. */
static int32_t rails_check(const js_link_config *configs, uint32_t count)
{
    if (count == 0 || count > JS_LINK_RAILS_MAX) {
        return JS_FAIL(JS_ERR_INVALID, "%u links at once: 1 to %u are possible", count,
                       JS_LINK_RAILS_MAX);
    }
    for (uint32_t i = 0; i < count; i++) {
        for (uint32_t k = 0; k < i; k++) {
            if (configs[i].kind != configs[k].kind ||
                (configs[i].kind != JS_LINK_UDP &&
                 strncmp(configs[i].interface, configs[k].interface, 16) == 0)) {
                return JS_FAIL(JS_ERR_INVALID, "link %s: %.15s is there twice, or kinds differ",
                               js_link_kind_name(configs[i].kind), configs[i].interface);
            }
        }
    }
    return JS_OK;
}

static int32_t rails_add(rails_link *rails, const js_link_config *config)
{
    js_link *link = &rails->link;
    js_link *rail = NULL;
    JS_TRY(js_link_open_as(config, &link->address, &rail));
    rails->rails[link->rails++] = rail;
    struct epoll_event event = { .events = EPOLLIN };
    if (epoll_ctl(rails->epoll_fd, EPOLL_CTL_ADD, js_link_wait_fd(rail), &event) != 0) {
        return JS_FAIL_SYS("epoll, for %s", rail->name);
    }
    bool is_first = link->rails == 1;
    if (is_first || rail->mtu_bytes < link->mtu_bytes) {
        link->mtu_bytes = rail->mtu_bytes;
    }
    if (is_first || rail->buffer_frames < link->buffer_frames) {
        link->buffer_frames = rail->buffer_frames;
    }
    size_t used = strlen(link->name);
    (void)snprintf(link->name + used, sizeof(link->name) - used, "%s%s", is_first ? "" : " and ",
                   rail->name);
    return JS_OK;
}

int32_t js_link_open_rails(const js_link_config *configs, uint32_t count, js_link **out)
{
    JS_TRY(rails_check(configs, count));
    if (count == 1) {
        return js_link_open(configs, out);
    }
    rails_link *rails = calloc(1, sizeof(*rails));
    if (rails == NULL) {
        return JS_FAIL(JS_ERR_NO_MEMORY, "no memory for %u links", count);
    }
    rails->link.ops = &rails_ops;
    rails->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    int32_t result = rails->epoll_fd < 0 ? JS_FAIL_SYS("epoll for %u links", count)
                                         : js_link_draw_identity(&rails->link.address);
    for (uint32_t i = 0; i < count && result == JS_OK; i++) {
        result = rails_add(rails, &configs[i]);
    }
    if (result != JS_OK) {
        rails_close(&rails->link);
        return result;
    }
    rails->link.address.kind = (uint8_t)configs[0].kind;
    *out = &rails->link;
    return JS_OK;
}

js_link *js_link_get_rail(js_link *link, uint32_t rail)
{
    if (rail >= link->rails) {
        return NULL;
    }
    return link->ops == &rails_ops ? rails_of(link)->rails[rail] : link;
}

void js_link_get_addresses(js_link *link, js_link_address *out)
{
    for (uint32_t i = 0; i < link->rails; i++) {
        out[i] = link->ops == &rails_ops ? rails_of(link)->rails[i]->address : link->address;
        out[i].mtu_bytes = link->mtu_bytes;
    }
}

uint32_t js_link_rails(const js_link *link)
{
    return link->rails;
}
