/* Network interfaces of this host: by name, by address. */
#include "js_link_interface.h"

#include "js_status.h"

#include <arpa/inet.h>
#include <errno.h>
#include <ifaddrs.h>
#include <linux/ethtool.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

/* One question about the interface that `request` names. */
static int interface_ask(int fd, unsigned long what, struct ifreq *request)
{
    return ioctl(fd, what, request);
}

/* Asks the kernel for driver and place on a bus (ETHTOOL_GDRVINFO). Not sysfs: it shows the devices
 * of the network namespace in which it was mounted, which need not be this one. The place of a
 * device on a bus has a number in it; virtual interfaces have none, or a word like "tap". */
static void interface_read_driver(int fd, struct ifreq *request, js_link_interface *out)
{
    struct ethtool_drvinfo info = { .cmd = ETHTOOL_GDRVINFO };
    request->ifr_data = (char *)&info;
    if (interface_ask(fd, SIOCETHTOOL, request) != 0) {
        return; /* the loopback interface, for one, has no answer */
    }
    memcpy(out->driver, info.driver, sizeof(out->driver) - 1);
    info.bus_info[sizeof(info.bus_info) - 1] = '\0';
    out->is_adapter = strpbrk(info.bus_info, "0123456789") != NULL;
}

static int32_t interface_read(int fd, const char *name, js_link_interface *out)
{
    struct ifreq request = { 0 };
    snprintf(request.ifr_name, sizeof(request.ifr_name), "%s", name);
    if (interface_ask(fd, SIOCGIFINDEX, &request) != 0) {
        if (errno == ENODEV) {
            return JS_FAIL(JS_ERR_INVALID, "there is no network interface '%s' here", name);
        }
        return JS_FAIL_SYS("network interface '%s'", name);
    }
    memset(out, 0, sizeof(*out));
    memcpy(out->name, request.ifr_name, sizeof(out->name));
    out->index = request.ifr_ifindex;
    if (interface_ask(fd, SIOCGIFMTU, &request) != 0) {
        return JS_FAIL_SYS("MTU of network interface '%s'", name);
    }
    out->mtu_bytes = request.ifr_mtu > 0 ? (uint32_t)request.ifr_mtu : 0;
    if (interface_ask(fd, SIOCGIFFLAGS, &request) != 0) {
        return JS_FAIL_SYS("flags of network interface '%s'", name);
    }
    out->is_up = (request.ifr_flags & IFF_UP) != 0;
    out->is_loopback = (request.ifr_flags & IFF_LOOPBACK) != 0;
    if (interface_ask(fd, SIOCGIFHWADDR, &request) != 0) {
        return JS_FAIL_SYS("hardware address of network interface '%s'", name);
    }
    out->is_ethernet = request.ifr_hwaddr.sa_family == ARPHRD_ETHER;
    memcpy(out->mac, request.ifr_hwaddr.sa_data, sizeof(out->mac));
    interface_read_driver(fd, &request, out);
    return JS_OK;
}

int32_t js_link_interface_find(const char *name, js_link_interface *out)
{
    if (name[0] == '\0' || strlen(name) >= sizeof(out->name)) {
        return JS_FAIL(JS_ERR_INVALID, "'%s' cannot be the name of a network interface", name);
    }
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        return JS_FAIL_SYS("socket to ask for network interface '%s'", name);
    }
    int32_t result = interface_read(fd, name, out);
    close(fd);
    return result;
}

/* The bytes of an IP address, NULL if it is none; tells the family. */
static const uint8_t *interface_ip_of(const struct sockaddr *address, bool *out_is_ipv6)
{
    if (address != NULL && address->sa_family == AF_INET) {
        *out_is_ipv6 = false;
        return (const uint8_t *)&((const struct sockaddr_in *)(const void *)address)->sin_addr;
    }
    if (address != NULL && address->sa_family == AF_INET6) {
        *out_is_ipv6 = true;
        return (const uint8_t *)&((const struct sockaddr_in6 *)(const void *)address)->sin6_addr;
    }
    return NULL;
}

/* Has the address the same network, all of 127.0.0.0/8, which is the host's own though only
 * 127.0.0.1 is listed? */
static bool interface_is_loopback_ip(const uint8_t *ip, bool is_ipv6)
{
    return !is_ipv6 && ip[0] == 127;
}

int32_t js_link_interface_with_ip(const uint8_t *ip, bool is_ipv6, js_link_interface *out)
{
    char text[INET6_ADDRSTRLEN] = "?";
    struct ifaddrs *list = NULL;
    char name[sizeof(out->name)] = "";
    inet_ntop(is_ipv6 ? AF_INET6 : AF_INET, ip, text, sizeof(text));
    if (getifaddrs(&list) != 0) {
        return JS_FAIL_SYS("addresses of the network interfaces");
    }
    for (const struct ifaddrs *at = list; at != NULL && name[0] == '\0'; at = at->ifa_next) {
        bool other_is_ipv6 = false;
        const uint8_t *other = interface_ip_of(at->ifa_addr, &other_is_ipv6);
        if (other == NULL || other_is_ipv6 != is_ipv6) {
            continue;
        }
        if (memcmp(other, ip, is_ipv6 ? 16 : 4) == 0 ||
            (interface_is_loopback_ip(ip, is_ipv6) && interface_is_loopback_ip(other, is_ipv6))) {
            snprintf(name, sizeof(name), "%s", at->ifa_name);
        }
    }
    freeifaddrs(list);
    if (name[0] == '\0') {
        return JS_FAIL(JS_ERR_INVALID, "no network interface of this host has the address %s",
                       text);
    }
    return js_link_interface_find(name, out);
}

int32_t js_link_interface_ip(const char *name, uint8_t *out_ip, uint8_t *out_is_ipv6)
{
    struct ifaddrs *list = NULL;
    bool found = false;
    if (getifaddrs(&list) != 0) {
        return JS_FAIL_SYS("addresses of network interface '%s'", name);
    }
    for (const struct ifaddrs *at = list; at != NULL; at = at->ifa_next) {
        bool is_ipv6 = false;
        const uint8_t *ip = interface_ip_of(at->ifa_addr, &is_ipv6);
        if (ip == NULL || strcmp(at->ifa_name, name) != 0 || (found && is_ipv6)) {
            continue;
        }
        memcpy(out_ip, ip, is_ipv6 ? 16 : 4);
        *out_is_ipv6 = is_ipv6;
        found = true;
        if (!is_ipv6) {
            break;
        }
    }
    freeifaddrs(list);
    return found ? JS_OK
                 : JS_FAIL(JS_ERR_INVALID, "network interface '%s' has no IP address", name);
}

int32_t js_link_interface_mtu(const char *interface)
{
    js_link_interface found;
    JS_TRY(js_link_interface_find(interface, &found));
    return (int32_t)found.mtu_bytes;
}
