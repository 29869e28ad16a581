/* The kinds of link, as js_link_open sees them. */
#ifndef JS_LINK_KINDS_H
#define JS_LINK_KINDS_H

#include "js_link_interface.h"

#include <linux/if_ether.h>

/* Loopback carries 64 KiB, but a frame is what is lost, acknowledged and checked at once. This
 * makes 8 KiB of payload, and segments of equal size fill one call. */
#define JS_LINK_LOOPBACK_BYTES (8192u + 36u)

/* Each takes a configuration that js_link_open has checked, and dcid, epoch and key from
 * `identity`; returns what js_link_open returns. */
int32_t js_link_udp_open(const js_link_config *config, const js_link_address *identity,
                         js_link **out);
int32_t js_link_packet_open(const js_link_config *config, const js_link_address *identity,
                            js_link **out);
int32_t js_link_xdp_open(const js_link_config *config, const js_link_address *identity,
                         js_link **out);

/* What every endpoint draws at random: dcid, epoch, key. */
int32_t js_link_draw_identity(js_link_address *out);
/* js_link_open with dcid, epoch and key given. */
int32_t js_link_open_as(const js_link_config *config, const js_link_address *identity,
                        js_link **out);

/* The MTU of a link: what the configuration wants, else `usual`; never more than `most`. `where`
 * names the interface in the text of the error, JS_ERR_INVALID. */
int32_t js_link_choose_mtu(const js_link_config *config, uint32_t usual, uint32_t most,
                           const char *where, uint32_t *out);
/* Asks for socket buffers (SO_RCVBUF, SO_SNDBUF) of so many bytes, beyond the system's limits where
 * that is allowed; returns what the kernel gives, in its own count, which includes its overhead. */
uint32_t js_link_set_buffer(int fd, int option, uint32_t bytes);

/* For links of raw Ethernet frames: finds and checks the interface, fills in EtherType, MAC
 * address, MTU and interface of `address`. JS_ERR_INVALID, JS_ERR_UNSUPPORTED: not Ethernet. */
int32_t js_link_ethernet_address(const js_link_config *config, js_link_interface *out_interface,
                                 js_link_address *address, uint32_t *out_mtu_bytes);
/* Fills in headers[count] for frames to a peer at this address. JS_ERR_INVALID: no way to reach it
 * so, or there are JS_LINK_PEERS_MAX headers already. */
int32_t js_link_ethernet_header(const js_link *link, const js_link_address *address, uint32_t count,
                                struct ethhdr *headers);
/* Sets the name of such a link. */
void js_link_ethernet_name(js_link *link);

#endif
