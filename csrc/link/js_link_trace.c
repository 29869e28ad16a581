/* A link that writes every frame which passes to a pcapng file (draft-ietf-opsawg-pcapng), for
 * Wireshark and tshark; docs/wire.md says how to look at it.
 *
 * Frames are written as they would be found on the cable: of udp links as IP packets
 * (LINKTYPE_RAW), of others as Ethernet frames; the headers are made up here, as the link itself
 * never sees them. Where a frame has come from the link does not know either, unless it has one
 * peer only: the source is zero then. The time is that of the call which takes or hands out the
 * frame, in nanoseconds; the direction is in the flags of each packet.
 *
 * Blocks are collected and written whole, when there are 64 KiB of them or the oldest has waited
 * for a millisecond at the next look at the link. So a process that is killed leaves a file that
 * can be read, without its last millisecond.
 *
 * The path may end in "?limit_mib=N": the file does not grow beyond that (1024); what is left out
 * then, or when the disk is full, is counted in the last block. A file that another trace is
 * writing, as those of other communicators of the rank may be, is left alone: ".2" is appended to
 * the path then, or a higher number. */
#include "js_clock.h"
#include "js_link_decorators.h"
#include "js_status.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

enum {
    TRACE_BUFFER_BYTES = 256 << 10,
    TRACE_WRITE_BYTES = 64 << 10,
    TRACE_WRITE_NS = 1000000,
    TRACE_LIMIT_MIB = 1024,
    TRACE_LIMIT_MIB_MAX = 1 << 20,
    TRACE_FILES_MAX = 1000,       /* beside each other */
    TRACE_HEADERS_BYTES_MAX = 48, /* IPv6 and UDP */
    TRACE_FRAME_BYTES_MAX = 65536,
    TRACE_END_BYTES = 64, /* more than the last block needs */

    TRACE_BLOCK_SECTION = 0x0a0d0d0a,
    TRACE_BLOCK_INTERFACE = 1,
    TRACE_BLOCK_STATISTICS = 5,
    TRACE_BLOCK_PACKET = 6,
    TRACE_MAGIC = 0x1a2b3c4d,
    TRACE_ETHERNET = 1, /* link types */
    TRACE_RAW_IP = 101,
    TRACE_OPTION_END = 0,
    TRACE_OPTION_APPLICATION = 4, /* of a section */
    TRACE_OPTION_NAME = 2,        /* of an interface */
    TRACE_OPTION_DESCRIPTION = 3,
    TRACE_OPTION_RESOLUTION = 9,
    TRACE_OPTION_FLAGS = 2,    /* of a packet */
    TRACE_OPTION_RECEIVED = 4, /* of statistics */
    TRACE_OPTION_LEFT_OUT = 5,
    TRACE_INBOUND = 1,
    TRACE_OUTBOUND = 2,
};

typedef struct trace_link {
    js_link link;
    int fd;
    bool is_full;            /* nothing more is written */
    uint8_t *begun;          /* what js_link_begin has given last */
    uint64_t wall_offset_ns; /* to add to js_clock_ns */
    uint64_t oldest_ns;      /* of what is in the buffer */
    uint64_t frame_count;
    uint64_t left_out_count;
    uint64_t limit_bytes;
    uint64_t written_bytes;
    uint32_t buffered_bytes;
    uint32_t block; /* where the block that is being put together begins */
    uint32_t peer_count;
    js_link_address peers[JS_LINK_PEERS_MAX];
    uint8_t buffer[TRACE_BUFFER_BYTES];
} trace_link;

static trace_link *trace_of(js_link *link)
{
    return (trace_link *)(void *)link;
}

/* --- the file ------------------------------------------------------------------------------- */

/* Writes the buffer. A disk that is full ends the trace, after the last whole block. */
static void trace_write(trace_link *trace)
{
    uint32_t done = 0;
    while (done < trace->buffered_bytes && !trace->is_full) {
        ssize_t count = write(trace->fd, trace->buffer + done, trace->buffered_bytes - done);
        if (count < 0 && errno != EINTR) {
            int error = errno;
            trace->is_full = true;
            (void)!ftruncate(trace->fd, (off_t)trace->written_bytes);
            errno = error;
        }
        done += count > 0 ? (uint32_t)count : 0;
    }
    trace->written_bytes += trace->is_full ? 0 : done;
    trace->buffered_bytes = 0;
}

/* --- blocks: in the byte order of this machine, which the first one tells ------------------- */

static void trace_put(trace_link *trace, const void *bytes, uint32_t count)
{
    memcpy(trace->buffer + trace->buffered_bytes, bytes, count);
    trace->buffered_bytes += count;
    uint32_t padding = -count & 3;
    memset(trace->buffer + trace->buffered_bytes, 0, padding);
    trace->buffered_bytes += padding;
}

static void trace_put_u32(trace_link *trace, uint32_t value)
{
    memcpy(trace->buffer + trace->buffered_bytes, &value, sizeof(value));
    trace->buffered_bytes += (uint32_t)sizeof(value);
}

static void trace_put_option(trace_link *trace, uint16_t code, const void *value, uint32_t bytes)
{
    uint16_t head[2] = { code, (uint16_t)bytes };
    trace_put(trace, head, sizeof(head));
    trace_put(trace, value, bytes);
}

static void trace_begin_block(trace_link *trace, uint32_t type)
{
    trace->block = trace->buffered_bytes;
    trace_put_u32(trace, type);
    trace_put_u32(trace, 0);
}

/* Ends the options and the block, whose length stands at both of its ends. */
static void trace_end_block(trace_link *trace)
{
    trace_put_u32(trace, TRACE_OPTION_END);
    uint32_t bytes = trace->buffered_bytes + 4 - trace->block;
    memcpy(trace->buffer + trace->block + 4, &bytes, sizeof(bytes));
    trace_put_u32(trace, bytes);
}

static void trace_put_time(trace_link *trace, uint64_t ns)
{
    uint64_t wall_ns = ns + trace->wall_offset_ns;
    trace_put_u32(trace, (uint32_t)(wall_ns >> 32));
    trace_put_u32(trace, (uint32_t)wall_ns);
}

static void trace_put_head(trace_link *trace)
{
    static const char application[] = "jetstream";
    static const uint8_t nanoseconds = 9;
    const js_link *link = &trace->link;
    trace_begin_block(trace, TRACE_BLOCK_SECTION);
    trace_put_u32(trace, TRACE_MAGIC);
    uint16_t version[2] = { 1, 0 };
    trace_put(trace, version, sizeof(version));
    trace_put_u32(trace, UINT32_MAX); /* 64 bits: the section is as long as the file */
    trace_put_u32(trace, UINT32_MAX);
    trace_put_option(trace, TRACE_OPTION_APPLICATION, application, sizeof(application) - 1);
    trace_end_block(trace);

    trace_begin_block(trace, TRACE_BLOCK_INTERFACE);
    uint16_t type[2] = { link->address.kind == JS_LINK_UDP ? TRACE_RAW_IP : TRACE_ETHERNET, 0 };
    trace_put(trace, type, sizeof(type));
    trace_put_u32(trace, 0); /* whole packets */
    uint32_t name_bytes = (uint32_t)strnlen(link->address.interface, 16);
    trace_put_option(trace, TRACE_OPTION_NAME, link->address.interface, name_bytes);
    trace_put_option(trace, TRACE_OPTION_DESCRIPTION, link->name, (uint32_t)strlen(link->name));
    trace_put_option(trace, TRACE_OPTION_RESOLUTION, &nanoseconds, sizeof(nanoseconds));
    trace_end_block(trace);
}

static void trace_put_end(trace_link *trace)
{
    trace_begin_block(trace, TRACE_BLOCK_STATISTICS);
    trace_put_u32(trace, 0); /* interface */
    trace_put_time(trace, js_clock_ns());
    trace_put_option(trace, TRACE_OPTION_RECEIVED, &trace->frame_count, 8);
    trace_put_option(trace, TRACE_OPTION_LEFT_OUT, &trace->left_out_count, 8);
    trace_end_block(trace);
}

/* --- headers: in the byte order of networks ------------------------------------------------- */

static uint8_t *trace_be16(uint8_t *at, uint32_t value)
{
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
    return at + 2;
}

/* The Internet checksum (RFC 1071), continued; not folded. */
static uint64_t trace_sum(uint64_t sum, const uint8_t *bytes, uint32_t count)
{
    for (uint32_t i = 0; i + 1 < count; i += 2) {
        sum += (uint32_t)bytes[i] << 8 | bytes[i + 1];
    }
    return (count & 1) != 0 ? sum + ((uint32_t)bytes[count - 1] << 8) : sum;
}

static uint32_t trace_fold(uint64_t sum)
{
    while (sum >> 16 != 0) {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    return (uint32_t)~sum & 0xffff;
}

static uint8_t *trace_put_udp(uint8_t *at, const js_link_address *const ends[2], uint32_t bytes)
{
    at = trace_be16(at, ends[0]->port);
    at = trace_be16(at, ends[1]->port);
    at = trace_be16(at, 8 + bytes);
    return trace_be16(at, 0); /* no checksum */
}

static uint32_t trace_put_ipv4(uint8_t *out, const js_link_address *const ends[2], uint32_t bytes)
{
    static const uint8_t start[] = { 0x45, 0 };
    static const uint8_t rest[] = { 0, 0, 0x40, 0, 64, 17, 0, 0 }; /* not fragmented; UDP */
    memcpy(out, start, sizeof(start));
    trace_be16(out + 2, 28 + bytes);
    memcpy(out + 4, rest, sizeof(rest));
    memcpy(out + 12, ends[0]->ip, 4);
    memcpy(out + 16, ends[1]->ip, 4);
    trace_be16(out + 10, trace_fold(trace_sum(0, out, 20)));
    return (uint32_t)(trace_put_udp(out + 20, ends, bytes) - out);
}

/* Without a checksum, a datagram over IPv6 is taken for broken. */
static uint32_t trace_put_ipv6(uint8_t *out, const js_link_address *const ends[2],
                               const uint8_t *frame, uint32_t bytes)
{
    static const uint8_t start[] = { 0x60, 0, 0, 0 };
    memcpy(out, start, sizeof(start));
    trace_be16(out + 4, 8 + bytes);
    out[6] = 17;
    out[7] = 64;
    memcpy(out + 8, ends[0]->ip, 16);
    memcpy(out + 24, ends[1]->ip, 16);
    uint8_t *end = trace_put_udp(out + 40, ends, bytes);
    uint64_t sum = trace_sum(8 + bytes + 17, out + 8, 40);
    uint32_t checksum = trace_fold(trace_sum(sum, frame, bytes));
    trace_be16(end - 2, checksum != 0 ? checksum : 0xffff);
    return (uint32_t)(end - out);
}

/* ends: where the frame comes from and goes to. Returns the bytes of the headers. */
static uint32_t trace_put_headers(const trace_link *trace, uint8_t *out,
                                  const js_link_address *const ends[2], const uint8_t *frame,
                                  uint32_t bytes)
{
    const js_link_address *own = &trace->link.address;
    if (own->kind != JS_LINK_UDP) {
        memcpy(out, ends[1]->mac, 6);
        memcpy(out + 6, ends[0]->mac, 6);
        trace_be16(out + 12, own->ethertype);
        return 14;
    }
    return own->is_ipv6 ? trace_put_ipv6(out, ends, frame, bytes)
                        : trace_put_ipv4(out, ends, bytes);
}

/* --- frames --------------------------------------------------------------------------------- */

static void trace_frame(trace_link *trace, uint32_t direction, const js_link_address *const ends[2],
                        const uint8_t *frame, uint32_t bytes)
{
    uint32_t room = TRACE_HEADERS_BYTES_MAX + bytes + 64; /* more than the block needs */
    uint64_t after = trace->written_bytes + trace->buffered_bytes + room + TRACE_END_BYTES;
    trace->frame_count++;
    if (trace->is_full || bytes > TRACE_FRAME_BYTES_MAX || after > trace->limit_bytes) {
        trace->left_out_count++;
        return;
    }
    uint64_t now_ns = js_clock_ns();
    trace->oldest_ns = trace->buffered_bytes == 0 ? now_ns : trace->oldest_ns;
    uint8_t headers[TRACE_HEADERS_BYTES_MAX];
    uint32_t header_bytes = trace_put_headers(trace, headers, ends, frame, bytes);
    trace_begin_block(trace, TRACE_BLOCK_PACKET);
    trace_put_u32(trace, 0); /* interface */
    trace_put_time(trace, now_ns);
    trace_put_u32(trace, header_bytes + bytes);
    trace_put_u32(trace, header_bytes + bytes);
    memcpy(trace->buffer + trace->buffered_bytes, headers, header_bytes);
    trace->buffered_bytes += header_bytes;
    memcpy(trace->buffer + trace->buffered_bytes, frame, bytes);
    trace->buffered_bytes += bytes;
    uint32_t padding = -(header_bytes + bytes) & 3;
    memset(trace->buffer + trace->buffered_bytes, 0, padding);
    trace->buffered_bytes += padding;
    trace_put_option(trace, TRACE_OPTION_FLAGS, &direction, sizeof(direction));
    trace_end_block(trace);
    if (trace->buffered_bytes >= TRACE_WRITE_BYTES) {
        trace_write(trace);
    }
}

static int32_t trace_add_peer(js_link *link, const js_link_address *address, uint32_t *out_peer)
{
    trace_link *trace = trace_of(link);
    JS_TRY(js_link_add_peer(link->inner, address, out_peer));
    if (*out_peer < JS_LINK_PEERS_MAX) {
        trace->peers[*out_peer] = *address;
        trace->peer_count++;
    }
    return JS_OK;
}

static uint8_t *trace_begin(js_link *link, uint32_t peer)
{
    trace_link *trace = trace_of(link);
    trace->begun = js_link_begin(link->inner, peer);
    return trace->begun;
}

static void trace_commit(js_link *link, uint32_t peer, uint32_t bytes)
{
    trace_link *trace = trace_of(link);
    const js_link_address *ends[2] = { &link->address, &trace->peers[peer % JS_LINK_PEERS_MAX] };
    trace_frame(trace, TRACE_OUTBOUND, ends, trace->begun, bytes);
    js_link_commit(link->inner, peer, bytes);
}

static void trace_flush(js_link *link)
{
    js_link_flush(link->inner);
}

static uint32_t trace_receive(js_link *link, js_link_packet *packets, uint32_t max)
{
    static const js_link_address unknown;
    trace_link *trace = trace_of(link);
    uint32_t count = js_link_receive(link->inner, packets, max);
    const js_link_address *ends[2] = { trace->peer_count == 1 ? &trace->peers[0] : &unknown,
                                       &link->address };
    for (uint32_t i = 0; i < count; i++) {
        trace_frame(trace, TRACE_INBOUND, ends, packets[i].frame, packets[i].bytes);
    }
    if (count == 0 && trace->buffered_bytes != 0 &&
        js_clock_ns() - trace->oldest_ns > TRACE_WRITE_NS) {
        trace_write(trace);
    }
    return count;
}

static void trace_release(js_link *link)
{
    js_link_release(link->inner);
}

static int32_t trace_wait_fd(js_link *link)
{
    return js_link_wait_fd(link->inner);
}

static void trace_close(js_link *link)
{
    trace_link *trace = trace_of(link);
    trace_write(trace);
    trace_put_end(trace);
    trace_write(trace);
    close(trace->fd);
    link->inner->ops->close(link->inner);
    free(trace);
}

static const js_link_ops trace_ops = {
    .name = "trace",
    .add_peer = trace_add_peer,
    .begin = trace_begin,
    .commit = trace_commit,
    .flush = trace_flush,
    .receive = trace_receive,
    .release = trace_release,
    .wait_fd = trace_wait_fd,
    .close = trace_close,
};

/* --- opening -------------------------------------------------------------------------------- */

/* Splits "FILE?limit_mib=N". */
static int32_t trace_parse(const char *text, char path[PATH_MAX], uint64_t *out_limit_bytes)
{
    static const char option[] = "?limit_mib=";
    const char *found = strstr(text, option);
    size_t path_bytes = found != NULL ? (size_t)(found - text) : strlen(text);
    unsigned long limit_mib = TRACE_LIMIT_MIB;
    if (found != NULL) {
        char *end = NULL;
        const char *number = found + sizeof(option) - 1;
        limit_mib = strtoul(number, &end, 10);
        if (*number < '0' || *number > '9' || *end != '\0') {
            limit_mib = 0;
        }
    }
    if (path_bytes == 0 || path_bytes >= PATH_MAX || limit_mib == 0 ||
        limit_mib > TRACE_LIMIT_MIB_MAX) {
        return JS_FAIL(JS_ERR_INVALID, "trace '%s': not FILE or FILE?limit_mib=1..%d", text,
                       TRACE_LIMIT_MIB_MAX);
    }
    memcpy(path, text, path_bytes);
    path[path_bytes] = '\0';
    *out_limit_bytes = (uint64_t)limit_mib << 20;
    return JS_OK;
}

/* Opens and empties the file, or the first one of its numbered siblings that is nobody's. */
static int32_t trace_open(const char *path, int *out_fd)
{
    char name[PATH_MAX + 16];
    for (uint32_t number = 1; number <= TRACE_FILES_MAX; number++) {
        snprintf(name, sizeof(name), number == 1 ? "%s" : "%s.%u", path, number);
        /* What passes is the user's data: for nobody else to read. */
        int fd = open(name, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
        if (fd < 0) {
            return JS_FAIL_SYS("trace '%s' cannot be written", name);
        }
        if (flock(fd, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK) {
            (void)!ftruncate(fd, 0); /* a device or pipe is not emptied */
            *out_fd = fd;
            return JS_OK;
        }
        close(fd);
    }
    return JS_FAIL(JS_ERR_INVALID, "trace '%s': %d traces are being written there", path,
                   TRACE_FILES_MAX);
}

int32_t js_link_trace_wrap(js_link *inner, const char *path, js_link **out)
{
    char file[PATH_MAX];
    uint64_t limit_bytes = 0;
    JS_TRY(trace_parse(path, file, &limit_bytes));
    trace_link *trace = calloc(1, sizeof(*trace));
    if (trace == NULL) {
        return JS_FAIL(JS_ERR_NO_MEMORY, "trace '%s': no memory", file);
    }
    int32_t result = trace_open(file, &trace->fd);
    if (result != JS_OK) {
        free(trace);
        return result;
    }
    trace->link = *inner;
    trace->link.ops = &trace_ops;
    trace->link.inner = inner;
    memset(&trace->link.stats, 0, sizeof(trace->link.stats));
    trace->limit_bytes = limit_bytes;
    trace->wall_offset_ns = js_clock_wall_ns() - js_clock_ns();
    trace_put_head(trace);
    trace_write(trace);
    if (trace->is_full) {
        result = JS_FAIL_SYS("trace '%s' cannot be written", file);
        close(trace->fd);
        free(trace);
        return result;
    }
    *out = &trace->link;
    return JS_OK;
}
