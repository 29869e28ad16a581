/* Network interfaces of this host: what a link has to know before it uses one. */
#ifndef JS_LINK_INTERFACE_H
#define JS_LINK_INTERFACE_H

#include "js_link.h"

typedef struct js_link_interface {
    char name[16];
    int32_t index;
    uint32_t mtu_bytes;
    uint8_t mac[6];
    bool is_up;
    bool is_loopback;
    bool is_ethernet;
    bool is_adapter; /* hardware, or what a hypervisor shows as such */
    char driver[32]; /* of the kernel; "" if it is not told */
} js_link_interface;

/* Looks an interface up by its name. JS_ERR_INVALID: there is none; JS_ERR_SYSTEM. */
int32_t js_link_interface_find(const char *name, js_link_interface *out);
/* The interface that has the IP address (IPv4: the first four bytes). JS_ERR_INVALID: none. */
int32_t js_link_interface_with_ip(const uint8_t *ip, bool is_ipv6, js_link_interface *out);
/* An address of the interface, IPv4 rather than IPv6. JS_ERR_INVALID: it has none. */
int32_t js_link_interface_ip(const char *name, uint8_t *out_ip, uint8_t *out_is_ipv6);

#endif
