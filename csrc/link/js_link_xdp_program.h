/* The XDP program of a link xdp. */
#ifndef JS_LINK_XDP_PROGRAM_H
#define JS_LINK_XDP_PROGRAM_H

#include "js_link_interface.h"

/* Descriptors; -1: not there. */
typedef struct js_link_xdp_program {
    int map_fd;
    int program_fd;
    int attach_fd;  /* as long as this is open frames are directed */
    bool is_native; /* in the driver, not behind it */
} js_link_xdp_program;

/* Loads the program, for frames to `own`, and attaches it to the interface. Returns JS_OK or
 * JS_ERR_SYSTEM; what has been opened by then is for js_link_xdp_unload. */
int32_t js_link_xdp_load(js_link_xdp_program *program, const js_link_interface *at,
                         const js_link_address *own);
/* Frames of the queue go to this socket. JS_ERR_SYSTEM. */
int32_t js_link_xdp_direct(const js_link_xdp_program *program, uint32_t queue, int socket_fd);
void js_link_xdp_unload(js_link_xdp_program *program);

#endif
