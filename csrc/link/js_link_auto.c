/* Which link reaches a peer best: raw Ethernet frames where both ends are on one segment that takes
 * long ones, and this process may send them, else UDP. */
#include "js_link_interface.h"
#include "js_status.h"

#include <arpa/inet.h>
#include <errno.h>
#include <ifaddrs.h>
#include <netinet/in.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* Shorter frames carry what is long faster as segments of UDP, of which one system call sends many.
 * A page fits into one that is longer. */
#define AUTO_JUMBO_BYTES 4200u

typedef struct auto_ip {
    uint8_t bytes[16];
    bool is_ipv6;
} auto_ip;

/* Drivers of adapters in clouds whose network forwards by IP address: it drops frames of other
 * types, though both ends seem to be on one segment. virtio_net may be such a one. */
static const char *const auto_routed_drivers[] = { "ena",  "efa",       "gve",
                                                   "mana", "hv_netvsc", "virtio_net" };

static bool auto_parse(const char *text, auto_ip *out)
{
    memset(out, 0, sizeof(*out));
    if (inet_pton(AF_INET, text, out->bytes) == 1) {
        return true;
    }
    out->is_ipv6 = true;
    return inet_pton(AF_INET6, text, out->bytes) == 1;
}

static bool auto_equal_under(const uint8_t *a, const uint8_t *b, const uint8_t *mask, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++) {
        if (((a[i] ^ b[i]) & mask[i]) != 0) {
            return false;
        }
    }
    return true;
}

static const uint8_t *auto_bytes_of(const struct sockaddr *address, bool is_ipv6)
{
    if (address == NULL || address->sa_family != (is_ipv6 ? AF_INET6 : AF_INET)) {
        return NULL;
    }
    return is_ipv6
               ? (const uint8_t *)&((const struct sockaddr_in6 *)(const void *)address)->sin6_addr
               : (const uint8_t *)&((const struct sockaddr_in *)(const void *)address)->sin_addr;
}

/* Does the peer belong to the network of the interface's own address? */
static bool auto_is_neighbour(const auto_ip *own, const auto_ip *peer)
{
    struct ifaddrs *list = NULL;
    bool found = false;
    size_t bytes = own->is_ipv6 ? 16 : 4;
    if (getifaddrs(&list) != 0) {
        return false;
    }
    for (const struct ifaddrs *at = list; at != NULL && !found; at = at->ifa_next) {
        const uint8_t *address = auto_bytes_of(at->ifa_addr, own->is_ipv6);
        const uint8_t *mask = auto_bytes_of(at->ifa_netmask, own->is_ipv6);
        found = address != NULL && mask != NULL && memcmp(address, own->bytes, bytes) == 0 &&
                auto_equal_under(own->bytes, peer->bytes, mask, bytes);
    }
    freeifaddrs(list);
    return found;
}

/* The name of the adapter's driver, if it is one whose network cannot be trusted; else NULL. */
static const char *auto_routed_driver(const js_link_interface *interface)
{
    for (size_t i = 0; i < JS_ARRAY_LEN(auto_routed_drivers); i++) {
        if (strcmp(interface->driver, auto_routed_drivers[i]) == 0) {
            return auto_routed_drivers[i];
        }
    }
    return NULL;
}

static int32_t auto_say(js_link_choice *out, uint32_t kind, const char *format, ...)
    JS_PRINTF(3, 4);

static int32_t auto_say(js_link_choice *out, uint32_t kind, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(out->why, sizeof(out->why), format, args);
    va_end(args);
    out->kind = kind;
    return JS_OK;
}

/* The peer is a neighbour on this interface: may and can raw frames be sent to it? */
static int32_t auto_choose_raw(const js_link_interface *interface, const char *peer_ip,
                               js_link_choice *out)
{
    if (!interface->is_ethernet) {
        return auto_say(out, JS_LINK_UDP, "udp: %s is not Ethernet", interface->name);
    }
    const char *driver = auto_routed_driver(interface);
    if (driver != NULL) {
        return auto_say(out, JS_LINK_UDP,
                        "udp: networks behind the driver %s of %s may drop raw frames "
                        "(if yours does not, ask for packet)",
                        driver, interface->name);
    }
    int fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        return auto_say(out, JS_LINK_UDP, "udp: raw frames on %s are not permitted: %s",
                        interface->name, strerror(errno));
    }
    close(fd);
    if (interface->mtu_bytes < AUTO_JUMBO_BYTES) {
        return auto_say(out, JS_LINK_UDP,
                        "udp: %s takes %u bytes, and raw frames go one by one "
                        "(if messages are short, ask for packet)",
                        interface->name, interface->mtu_bytes);
    }
    return auto_say(out, JS_LINK_PACKET, "packet: %s is on the segment of %s", peer_ip,
                    interface->name);
}

int32_t js_link_choose(const char *own_ip, const char *peer_ip, js_link_choice *out)
{
    auto_ip own;
    auto_ip peer;
    js_link_interface interface;
    memset(out, 0, sizeof(*out));
    if (!auto_parse(own_ip, &own) || !auto_parse(peer_ip, &peer)) {
        return JS_FAIL(JS_ERR_INVALID, "'%s' or '%s' is not an IP address", own_ip, peer_ip);
    }
    JS_TRY(js_link_interface_with_ip(own.bytes, own.is_ipv6, &interface));
    memcpy(out->interface, interface.name, sizeof(out->interface));
    if (own.is_ipv6 != peer.is_ipv6) {
        return JS_FAIL(JS_ERR_INVALID, "%s and %s are not of one family", own_ip, peer_ip);
    }
    if (interface.is_loopback) {
        return auto_say(out, JS_LINK_UDP, "udp: %s is on the loopback interface", own_ip);
    }
    if (!auto_is_neighbour(&own, &peer)) {
        return auto_say(out, JS_LINK_UDP, "udp: %s is beyond a router, seen from %s on %s", peer_ip,
                        own_ip, interface.name);
    }
    return auto_choose_raw(&interface, peer_ip, out);
}
