/* Frames as UDP datagrams: works wherever IP does.
 *
 * One socket receives from everyone; each peer has a connected socket to send from, which spares
 * the look-up of the route per datagram (a fifth of the cost of a small frame). These send from
 * ports of their own: peers tell each other apart by dcid, not by port. Committed frames lie one
 * behind the other, and those of equal size to one peer become one system call and one pass through
 * the stack (UDP_SEGMENT); the receiver gets them in one piece as well (UDP_GRO) and splits it.
 *
 * Datagrams are never fragmented. What ICMP says about the path is not believed
 * (IP_PMTUDISC_PROBE), as anyone could forge it; whether frames of full size get through is seen by
 * the handshake. */
#include "js_link_kinds.h"
#include "js_status.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/sock_diag.h>
#include <netdb.h>
#include <netinet/udp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    UDP_DATAGRAM_BYTES = 65507, /* the largest, for both */
    UDP_FRAMES_MAX = 128,       /* between flushes: a window of one connection */
    UDP_PADDING_SHARE = 4,      /* at most this part of a frame is padding */
    UDP_SEGMENTS_MAX = 64,      /* in a call: the kernel takes at least so many */
    UDP_SEND_BYTES = 512 << 10,
    UDP_SLOTS = 16,               /* received datagrams, or runs of them */
    UDP_SLOT_BYTES = 65536 + 192, /* not a power of two: slots share no cache set */
    UDP_EAGER_SLOTS = 8,
    UDP_BUFFER_BYTES = 8 << 20,
    /* What the kernel counts for a frame in a socket's buffer beyond its bytes, at most. */
    UDP_OVERHEAD_BYTES = 1280,
};

/* Frames to one peer that leave in one call: all of segment_bytes but the last, which may be
 * shorter. */
typedef struct udp_batch {
    uint32_t peer;
    uint32_t offset; /* in send_buffer */
    uint32_t bytes;
    uint32_t segment_bytes;
    uint32_t frames;
    bool is_closed;
} udp_batch;

typedef union udp_sockaddr {
    struct sockaddr any;
    struct sockaddr_in ipv4;
    struct sockaddr_in6 ipv6;
} udp_sockaddr;

typedef struct udp_control {
    uint8_t bytes[CMSG_SPACE(sizeof(int))] JS_ALIGNED(8);
} udp_control;

typedef struct udp_link {
    js_link link;
    int receive_fd;
    uint32_t scope; /* IPv6 link-local: the interface */
    bool is_bound;  /* to the interface that the configuration names */
    bool segments;  /* the kernel takes several frames in a call */
    uint32_t peer_count;
    int peer_fds[JS_LINK_PEERS_MAX];

    uint8_t *send_buffer;
    uint32_t send_capacity;
    uint32_t send_used;
    uint32_t frame_count;
    uint32_t batch_count;
    udp_batch batches[UDP_FRAMES_MAX];

    /* Slots, free-running: released <= split <= filled. `split_offset` in slot `split` begins the
     * frame that is handed out next. */
    uint8_t *slots;
    uint32_t released;
    uint32_t split;
    uint32_t filled;
    uint32_t split_offset;
    bool is_eager; /* something came just now: look for more at once */
    uint32_t slot_bytes[UDP_SLOTS];
    uint32_t slot_segment_bytes[UDP_SLOTS];
    struct mmsghdr messages[UDP_SLOTS];
    struct iovec vectors[UDP_SLOTS];
    udp_control controls[UDP_SLOTS];
} udp_link;

static udp_link *udp_of(js_link *link)
{
    return (udp_link *)(void *)link;
}

/* --- addresses ------------------------------------------------------------------------------ */

static socklen_t udp_sockaddr_of(const js_link_address *address, uint32_t scope, udp_sockaddr *out)
{
    memset(out, 0, sizeof(*out));
    if (address->is_ipv6) {
        out->ipv6.sin6_family = AF_INET6;
        out->ipv6.sin6_port = htons(address->port);
        bool is_link_local = address->ip[0] == 0xfe && (address->ip[1] & 0xc0) == 0x80;
        out->ipv6.sin6_scope_id = is_link_local ? scope : 0;
        memcpy(&out->ipv6.sin6_addr, address->ip, 16);
        return sizeof(out->ipv6);
    }
    out->ipv4.sin_family = AF_INET;
    out->ipv4.sin_port = htons(address->port);
    memcpy(&out->ipv4.sin_addr, address->ip, 4);
    return sizeof(out->ipv4);
}

/* For messages, as 127.0.0.1:4711. */
static void udp_text_of(const js_link_address *address, char *out, size_t out_bytes)
{
    char ip[INET6_ADDRSTRLEN] = "?";
    inet_ntop(address->is_ipv6 ? AF_INET6 : AF_INET, address->ip, ip, sizeof(ip));
    snprintf(out, out_bytes, address->is_ipv6 ? "[%s]:%u" : "%s:%u", ip, address->port);
}

/* Reads the IP address of the configuration, with the interface of a link-local one. */
static int32_t udp_parse_ip(const char *text, js_link_address *address, uint32_t *out_scope)
{
    struct addrinfo hints = { .ai_flags = AI_NUMERICHOST, .ai_socktype = SOCK_DGRAM };
    struct addrinfo *found = NULL;
    udp_sockaddr parsed;
    int error = getaddrinfo(text, NULL, &hints, &found);
    if (error != 0) {
        return JS_FAIL(JS_ERR_INVALID, "link udp: '%s' is not an IP address: %s", text,
                       gai_strerror(error));
    }
    memset(&parsed, 0, sizeof(parsed));
    memcpy(&parsed, found->ai_addr, found->ai_addrlen);
    freeaddrinfo(found);
    if (parsed.any.sa_family == AF_INET6) {
        address->is_ipv6 = 1;
        memcpy(address->ip, &parsed.ipv6.sin6_addr, 16);
        *out_scope = parsed.ipv6.sin6_scope_id;
    } else {
        memcpy(address->ip, &parsed.ipv4.sin_addr, 4);
    }
    static const uint8_t wildcard[16];
    if (memcmp(address->ip, wildcard, sizeof(wildcard)) == 0) {
        return JS_FAIL(JS_ERR_INVALID,
                       "link udp: peers cannot send to %s; give the address of an "
                       "interface",
                       text);
    }
    return JS_OK;
}

/* The address of this end but for its port, and the interface that it belongs to. */
static int32_t udp_find_address(const js_link_config *config, js_link_address *address,
                                uint32_t *out_scope, js_link_interface *out_interface)
{
    *out_scope = 0;
    if (config->ip[0] == '\0' && config->interface[0] != '\0') {
        JS_TRY(js_link_interface_find(config->interface, out_interface));
        JS_TRY(js_link_interface_ip(config->interface, address->ip, &address->is_ipv6));
        *out_scope = (uint32_t)out_interface->index;
    } else {
        const char *text = config->ip[0] != '\0' ? config->ip : "127.0.0.1";
        JS_TRY(udp_parse_ip(text, address, out_scope));
        JS_TRY(js_link_interface_with_ip(address->ip, address->is_ipv6, out_interface));
        if (config->interface[0] != '\0' && strcmp(config->interface, out_interface->name) != 0) {
            return JS_FAIL(JS_ERR_INVALID, "link udp: the address %s is on interface %s, not on %s",
                           text, out_interface->name, config->interface);
        }
        if (*out_scope == 0) {
            *out_scope = (uint32_t)out_interface->index;
        }
    }
    if (!out_interface->is_up) {
        return JS_FAIL(JS_ERR_INVALID, "link udp: network interface '%s' is down",
                       out_interface->name);
    }
    memcpy(address->interface, out_interface->name, sizeof(address->interface));
    return JS_OK;
}

/* --- sending -------------------------------------------------------------------------------- */

static uint8_t *udp_begin(js_link *link, uint32_t peer)
{
    udp_link *udp = udp_of(link);
    (void)peer;
    bool is_full =
        udp->frame_count == UDP_FRAMES_MAX || udp->send_capacity - udp->send_used < link->mtu_bytes;
    return is_full ? NULL : udp->send_buffer + udp->send_used;
}

/* Fills a frame up that is a little shorter than those before it, so that more can follow in the
 * same call; the receiver ignores what is behind a frame. Returns its size. */
static uint32_t udp_pad(uint8_t *frame, uint32_t bytes, uint32_t segment_bytes)
{
    uint32_t missing = bytes < segment_bytes ? segment_bytes - bytes : 0;
    if (missing == 0 || missing > segment_bytes / UDP_PADDING_SHARE) {
        return bytes;
    }
    memset(frame + bytes, 0, missing);
    return segment_bytes;
}

static void udp_commit(js_link *link, uint32_t peer, uint32_t bytes)
{
    udp_link *udp = udp_of(link);
    udp_batch *last = udp->batch_count > 0 ? &udp->batches[udp->batch_count - 1] : NULL;
    if (last != NULL && last->peer == peer && !last->is_closed) {
        bytes = udp_pad(udp->send_buffer + udp->send_used, bytes, last->segment_bytes);
    }
    if (last != NULL && last->peer == peer && !last->is_closed && last->frames < UDP_SEGMENTS_MAX &&
        bytes <= last->segment_bytes && last->bytes + bytes <= UDP_DATAGRAM_BYTES - 20) {
        last->bytes += bytes;
        last->frames++;
        last->is_closed = bytes < last->segment_bytes;
    } else {
        udp->batches[udp->batch_count++] = (udp_batch){ .peer = peer,
                                                        .offset = udp->send_used,
                                                        .bytes = bytes,
                                                        .segment_bytes = bytes,
                                                        .frames = 1,
                                                        .is_closed = !udp->segments };
    }
    udp->send_used += bytes;
    udp->frame_count++;
    link->stats.frames_sent++;
    link->stats.bytes_sent += bytes;
}

/* One datagram. An error that an earlier datagram has left on the socket (nobody listened there)
 * says nothing about this one: it is tried again, once. */
static void udp_send_frame(udp_link *udp, uint32_t peer, const uint8_t *frame, uint32_t bytes)
{
    for (uint32_t attempt = 0; attempt < 2; attempt++) {
        udp->link.stats.system_calls++;
        if (JS_LIKELY(send(udp->peer_fds[peer], frame, bytes, MSG_DONTWAIT) >= 0)) {
            return;
        }
        if (errno == EAGAIN || errno == ENOBUFS || errno == EMSGSIZE) {
            break;
        }
    }
    udp->link.stats.send_drops++;
}

static void udp_send_one_by_one(udp_link *udp, const udp_batch *batch)
{
    for (uint32_t at = 0; at < batch->bytes; at += batch->segment_bytes) {
        uint32_t left = batch->bytes - at;
        udp_send_frame(udp, batch->peer, udp->send_buffer + batch->offset + at,
                       left < batch->segment_bytes ? left : batch->segment_bytes);
    }
}

/* Several frames in one call. Interfaces without checksums of their own refuse them: never again
 * then. */
static void udp_send_batch(udp_link *udp, const udp_batch *batch)
{
    uint16_t segment_bytes = (uint16_t)batch->segment_bytes;
    udp_control control = { { 0 } };
    struct iovec vector = { .iov_base = udp->send_buffer + batch->offset, .iov_len = batch->bytes };
    struct msghdr message = { .msg_iov = &vector,
                              .msg_iovlen = 1,
                              .msg_control = control.bytes,
                              .msg_controllen = CMSG_SPACE(sizeof(segment_bytes)) };
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = IPPROTO_UDP;
    header->cmsg_type = UDP_SEGMENT;
    header->cmsg_len = CMSG_LEN(sizeof(segment_bytes));
    memcpy(CMSG_DATA(header), &segment_bytes, sizeof(segment_bytes));
    for (uint32_t attempt = 0; attempt < 2; attempt++) {
        udp->link.stats.system_calls++;
        if (JS_LIKELY(sendmsg(udp->peer_fds[batch->peer], &message, MSG_DONTWAIT) >= 0)) {
            return;
        }
        if (errno == EAGAIN || errno == ENOBUFS || errno == EMSGSIZE) {
            udp->link.stats.send_drops += batch->frames;
            return;
        }
        if (errno == EIO || errno == EINVAL || errno == EOPNOTSUPP) {
            udp->segments = false;
            break;
        }
    }
    udp_send_one_by_one(udp, batch);
}

static void udp_flush(js_link *link)
{
    udp_link *udp = udp_of(link);
    for (uint32_t i = 0; i < udp->batch_count; i++) {
        const udp_batch *batch = &udp->batches[i];
        if (batch->frames == 1) {
            udp_send_frame(udp, batch->peer, udp->send_buffer + batch->offset, batch->bytes);
        } else {
            udp_send_batch(udp, batch);
        }
    }
    udp->batch_count = 0;
    udp->frame_count = 0;
    udp->send_used = 0;
}

/* --- receiving ------------------------------------------------------------------------------ */

/* The size of the frames that the kernel has put together, or of the only one. */
static uint32_t udp_segment_bytes(struct msghdr *message, uint32_t bytes)
{
    struct cmsghdr *header = CMSG_FIRSTHDR(message);
    if (header != NULL && header->cmsg_level == IPPROTO_UDP && header->cmsg_type == UDP_GRO) {
        int segment_bytes;
        memcpy(&segment_bytes, CMSG_DATA(header), sizeof(segment_bytes));
        if (segment_bytes > 0 && (uint32_t)segment_bytes < bytes) {
            return (uint32_t)segment_bytes;
        }
    }
    return bytes;
}

/* recvmmsg, which costs more than recvmsg where there is one message at most. */
static int udp_receive_messages(const udp_link *udp, struct mmsghdr *messages, uint32_t count)
{
    if (count != 1) {
        return recvmmsg(udp->receive_fd, messages, count, MSG_DONTWAIT, NULL);
    }
    ssize_t bytes = recvmsg(udp->receive_fd, &messages->msg_hdr, MSG_DONTWAIT);
    messages->msg_len = bytes > 0 ? (uint32_t)bytes : 0;
    return bytes >= 0 ? 1 : -1;
}

/* Receives into free slots with one call: one message when nothing came last time, as asking for
 * more costs a second look. */
static void udp_fill(udp_link *udp)
{
    uint32_t first = udp->filled % UDP_SLOTS;
    uint32_t room = UDP_SLOTS - (udp->filled - udp->released);
    uint32_t count = udp->is_eager ? UDP_EAGER_SLOTS : 1;
    count = count > room ? room : count;
    count = count > UDP_SLOTS - first ? UDP_SLOTS - first : count;
    if (count == 0) {
        return;
    }
    for (uint32_t i = first; i < first + count; i++) {
        udp->messages[i].msg_hdr.msg_controllen = sizeof(udp->controls[i]);
    }
    udp->link.stats.system_calls++;
    int got = udp_receive_messages(udp, udp->messages + first, count);
    udp->is_eager = got > 0;
    for (uint32_t i = first; got > 0 && i < first + (uint32_t)got; i++) {
        uint32_t bytes = udp->messages[i].msg_len;
        udp->slot_bytes[i] = bytes;
        udp->slot_segment_bytes[i] = udp_segment_bytes(&udp->messages[i].msg_hdr, bytes);
        udp->filled++;
    }
}

static uint32_t udp_receive(js_link *link, js_link_packet *packets, uint32_t max)
{
    udp_link *udp = udp_of(link);
    uint32_t count = 0;
    if (udp->split == udp->filled) {
        udp_fill(udp);
    }
    while (udp->split != udp->filled && count < max) {
        uint32_t slot = udp->split % UDP_SLOTS;
        uint32_t left = udp->slot_bytes[slot] - udp->split_offset;
        uint32_t bytes =
            left < udp->slot_segment_bytes[slot] ? left : udp->slot_segment_bytes[slot];
        const uint8_t *data = udp->slots + (size_t)slot * UDP_SLOT_BYTES;
        packets[count++] = (js_link_packet){ .frame = data + udp->split_offset, .bytes = bytes };
        link->stats.bytes_received += bytes;
        udp->split_offset += bytes;
        if (left == bytes) {
            udp->split++;
            udp->split_offset = 0;
        }
    }
    link->stats.frames_received += count;
    return count;
}

static void udp_release(js_link *link)
{
    udp_link *udp = udp_of(link);
    udp->released = udp->split;
    if (udp->released == udp->filled) { /* begin anew where the caches are warm */
        udp->released = 0;
        udp->split = 0;
        udp->filled = 0;
    }
}

static int32_t udp_wait_fd(js_link *link)
{
    return udp_of(link)->receive_fd;
}

static void udp_update(js_link *link)
{
    uint32_t values[SK_MEMINFO_VARS] = { 0 };
    socklen_t length = sizeof(values);
    if (getsockopt(udp_of(link)->receive_fd, SOL_SOCKET, SO_MEMINFO, values, &length) == 0) {
        link->stats.receive_drops = values[SK_MEMINFO_DROPS];
    }
}

/* --- opening and closing -------------------------------------------------------------------- */

/* A non-blocking socket of the family, bound to the address of this end and to `port`. */
static int32_t udp_socket(const udp_link *udp, uint16_t port, int *out_fd)
{
    js_link_address own = udp->link.address;
    udp_sockaddr address;
    char text[80];
    int family = own.is_ipv6 ? AF_INET6 : AF_INET;
    own.port = port;
    udp_text_of(&own, text, sizeof(text));
    int fd = socket(family, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        return JS_FAIL_SYS("link udp: socket for %s on %s", text, own.interface);
    }
    int mode = IP_PMTUDISC_PROBE; /* the same number for IPv6 */
    int level = own.is_ipv6 ? IPPROTO_IPV6 : IPPROTO_IP;
    int option = own.is_ipv6 ? IPV6_MTU_DISCOVER : IP_MTU_DISCOVER;
    socklen_t length = udp_sockaddr_of(&own, udp->scope, &address);
    if (setsockopt(fd, level, option, &mode, sizeof(mode)) != 0 ||
        bind(fd, &address.any, length) != 0) {
        int32_t result = JS_FAIL_SYS("link udp: cannot bind %s on %s", text, own.interface);
        close(fd);
        return result;
    }
    *out_fd = fd;
    return JS_OK;
}

/* A socket to send to the address from; returns its number, or what went wrong. */
static int32_t udp_add_peer(js_link *link, const js_link_address *address, uint32_t *out_peer)
{
    udp_link *udp = udp_of(link);
    udp_sockaddr target;
    char text[80];
    int fd = -1;
    udp_text_of(address, text, sizeof(text));
    if (address->kind != JS_LINK_UDP || address->port == 0 ||
        (address->is_ipv6 != 0) != (link->address.is_ipv6 != 0)) {
        return JS_FAIL(JS_ERR_INVALID, "%s cannot send to %s (kind %u)", link->name, text,
                       address->kind);
    }
    if (udp->peer_count == JS_LINK_PEERS_MAX) {
        return JS_FAIL(JS_ERR_INVALID, "%s has its %u peers; no room for %s", link->name,
                       JS_LINK_PEERS_MAX, text);
    }
    JS_TRY(udp_socket(udp, 0, &fd));
    const char *interface = link->address.interface;
    if (udp->is_bound) { /* whatever the routes say; where not permitted, they have the last word */
        (void)setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, interface,
                         sizeof(link->address.interface));
    }
    socklen_t length = udp_sockaddr_of(address, udp->scope, &target);
    if (connect(fd, &target.any, length) != 0) {
        int32_t result = JS_FAIL_SYS("%s cannot reach %s", link->name, text);
        close(fd);
        return result;
    }
    (void)js_link_set_buffer(fd, SO_SNDBUF, UDP_BUFFER_BYTES / 2);
    (void)js_link_set_buffer(fd, SO_RCVBUF, 0); /* nobody reads it: the least there is */
    udp->peer_fds[udp->peer_count] = fd;
    *out_peer = udp->peer_count++;
    return JS_OK;
}

static void udp_close(js_link *link)
{
    udp_link *udp = udp_of(link);
    for (uint32_t i = 0; i < udp->peer_count; i++) {
        close(udp->peer_fds[i]);
    }
    if (udp->receive_fd >= 0) {
        close(udp->receive_fd);
    }
    free(udp->send_buffer);
    free(udp->slots);
    free(udp);
}

static const js_link_ops udp_ops = {
    .name = "udp",
    .add_peer = udp_add_peer,
    .begin = udp_begin,
    .commit = udp_commit,
    .flush = udp_flush,
    .receive = udp_receive,
    .release = udp_release,
    .wait_fd = udp_wait_fd,
    .update = udp_update,
    .close = udp_close,
};

/* Memory for frames in both directions. Written once, so that no page is missing later. */
static int32_t udp_allocate(udp_link *udp)
{
    udp->send_capacity = UDP_SEND_BYTES + udp->link.mtu_bytes;
    udp->send_buffer = aligned_alloc(4096, js_round_up(udp->send_capacity, 4096));
    udp->slots = aligned_alloc(4096, js_round_up((size_t)UDP_SLOTS * UDP_SLOT_BYTES, 4096));
    if (udp->send_buffer == NULL || udp->slots == NULL) {
        return JS_FAIL(JS_ERR_NO_MEMORY, "link udp: no memory for its frames");
    }
    memset(udp->send_buffer, 0, udp->send_capacity);
    memset(udp->slots, 0, (size_t)UDP_SLOTS * UDP_SLOT_BYTES);
    for (uint32_t i = 0; i < UDP_SLOTS; i++) {
        udp->vectors[i].iov_base = udp->slots + (size_t)i * UDP_SLOT_BYTES;
        udp->vectors[i].iov_len = UDP_SLOT_BYTES;
        udp->messages[i].msg_hdr.msg_iov = &udp->vectors[i];
        udp->messages[i].msg_hdr.msg_iovlen = 1;
        udp->messages[i].msg_hdr.msg_control = udp->controls[i].bytes;
    }
    return JS_OK;
}

static int32_t udp_bind(udp_link *udp, const js_link_config *config)
{
    js_link *link = &udp->link;
    udp_sockaddr bound;
    socklen_t length = sizeof(bound);
    char text[80];
    int on = 1;
    JS_TRY(udp_socket(udp, config->port, &udp->receive_fd));
    if (getsockname(udp->receive_fd, &bound.any, &length) != 0) {
        return JS_FAIL_SYS("link udp: the port that was bound on %s", link->address.interface);
    }
    link->address.port = ntohs(link->address.is_ipv6 ? bound.ipv6.sin6_port : bound.ipv4.sin_port);
    /* Without it frames come one by one. */
    (void)setsockopt(udp->receive_fd, IPPROTO_UDP, UDP_GRO, &on, sizeof(on));
    uint32_t frame_bytes = 2 * link->mtu_bytes + UDP_OVERHEAD_BYTES;
    uint64_t wanted = (uint64_t)config->buffer_frames * frame_bytes / 2;
    uint32_t given =
        js_link_set_buffer(udp->receive_fd, SO_RCVBUF,
                           wanted == 0 ? UDP_BUFFER_BYTES : (uint32_t)js_min_u64(wanted, 1u << 30));
    link->buffer_frames = given / frame_bytes > 0 ? given / frame_bytes : 1;
    udp_text_of(&link->address, text, sizeof(text));
    snprintf(link->name, sizeof(link->name), "udp %s on %s", text, link->address.interface);
    return JS_OK;
}

static int32_t udp_setup(udp_link *udp, const js_link_config *config)
{
    js_link_interface interface;
    js_link *link = &udp->link;
    JS_TRY(udp_find_address(config, &link->address, &udp->scope, &interface));
    udp->is_bound = config->interface[0] != '\0' && !interface.is_loopback;
    uint32_t headers = js_link_header_bytes(&link->address);
    uint32_t most = interface.mtu_bytes > headers ? interface.mtu_bytes - headers : 0;
    most = most > UDP_DATAGRAM_BYTES ? UDP_DATAGRAM_BYTES : most;
    uint32_t usual =
        interface.is_loopback && most > JS_LINK_LOOPBACK_BYTES ? JS_LINK_LOOPBACK_BYTES : most;
    JS_TRY(js_link_choose_mtu(config, usual, most, interface.name, &link->mtu_bytes));
    link->address.mtu_bytes = link->mtu_bytes;
    JS_TRY(udp_allocate(udp));
    return udp_bind(udp, config);
}

int32_t js_link_udp_open(const js_link_config *config, const js_link_address *identity,
                         js_link **out)
{
    udp_link *udp = calloc(1, sizeof(*udp));
    if (udp == NULL) {
        return JS_FAIL(JS_ERR_NO_MEMORY, "link udp: no memory");
    }
    udp->link.ops = &udp_ops;
    udp->link.address = *identity;
    udp->receive_fd = -1;
    udp->segments = true;
    int32_t result = udp_setup(udp, config);
    if (result != JS_OK) {
        udp_close(&udp->link);
        return result;
    }
    *out = &udp->link;
    return JS_OK;
}
