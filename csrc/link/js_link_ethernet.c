/* What the links that send raw Ethernet frames have in common. */
#include "js_link_kinds.h"
#include "js_status.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>

enum {
    ETHERNET_TYPE = 0x88b5,      /* IEEE 802, for local experiments */
    ETHERNET_TYPE_LEAST = 0x600, /* below it is a length */
    ETHERNET_FRAME_BYTES_MAX = 65507,
};

int32_t js_link_ethernet_address(const js_link_config *config, js_link_interface *out_interface,
                                 js_link_address *address, uint32_t *out_mtu_bytes)
{
    const char *kind = js_link_kind_name(config->kind);
    uint16_t ethertype = config->ethertype != 0 ? config->ethertype : ETHERNET_TYPE;
    JS_TRY(js_link_interface_find(config->interface, out_interface));
    if (!out_interface->is_up) {
        return JS_FAIL(JS_ERR_INVALID, "link %s: network interface '%s' is down", kind,
                       out_interface->name);
    }
    if (!out_interface->is_ethernet && !out_interface->is_loopback) {
        return JS_FAIL(JS_ERR_UNSUPPORTED, "link %s: network interface '%s' is not Ethernet", kind,
                       out_interface->name);
    }
    if (ethertype < ETHERNET_TYPE_LEAST) {
        return JS_FAIL(JS_ERR_INVALID, "link %s: 0x%04x is no EtherType", kind, ethertype);
    }
    uint32_t most = (uint32_t)js_min_u64(out_interface->mtu_bytes, ETHERNET_FRAME_BYTES_MAX);
    uint32_t usual =
        out_interface->is_loopback ? (uint32_t)js_min_u64(most, JS_LINK_LOOPBACK_BYTES) : most;
    JS_TRY(js_link_choose_mtu(config, usual, most, out_interface->name, out_mtu_bytes));
    address->ethertype = ethertype;
    address->mtu_bytes = *out_mtu_bytes;
    memcpy(address->mac, out_interface->mac, sizeof(address->mac));
    memcpy(address->interface, out_interface->name, sizeof(address->interface));
    return JS_OK;
}

int32_t js_link_ethernet_header(const js_link *link, const js_link_address *address, uint32_t count,
                                struct ethhdr *headers)
{
    if (address->kind != JS_LINK_PACKET && address->kind != JS_LINK_XDP) {
        return JS_FAIL(JS_ERR_INVALID, "%s cannot send to a link of kind %u", link->name,
                       address->kind);
    }
    if (address->ethertype != link->address.ethertype) {
        return JS_FAIL(JS_ERR_INVALID, "%s: the peer on its interface %.15s uses EtherType 0x%04x",
                       link->name, address->interface, address->ethertype);
    }
    if (count == JS_LINK_PEERS_MAX) {
        return JS_FAIL(JS_ERR_INVALID, "%s has its %u peers", link->name, JS_LINK_PEERS_MAX);
    }
    memcpy(headers[count].h_dest, address->mac, sizeof(headers[count].h_dest));
    memcpy(headers[count].h_source, link->address.mac, sizeof(headers[count].h_source));
    headers[count].h_proto = htons(address->ethertype);
    return JS_OK;
}

void js_link_ethernet_name(js_link *link)
{
    const uint8_t *mac = link->address.mac;
    snprintf(link->name, sizeof(link->name), "%s %02x:%02x:%02x:%02x:%02x:%02x on %s",
             link->ops->name, mac[0], mac[1], mac[2], mac[3], mac[4], mac[5],
             link->address.interface);
}
