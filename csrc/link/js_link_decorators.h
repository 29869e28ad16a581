/* Links around links: each takes an open one and passes on everything, but for what it adds.
 *
 * Both own `inner` from then on and close it with themselves; if they fail it stays the caller's.
 * Wrapped around each other, the trace is the inner one to show what is on the wire, the outer one
 * to show what the protocol sees. */
#ifndef JS_LINK_DECORATORS_H
#define JS_LINK_DECORATORS_H

#include "js_link.h"

/* Drops, repeats, reorders, corrupts and delays frames; js_link_fault.c has the grammar of `spec`.
 * Returns JS_OK, JS_ERR_INVALID or JS_ERR_NO_MEMORY. */
int32_t js_link_fault_wrap(js_link *inner, const char *spec, js_link **out);

/* Writes every frame that passes, with its time and direction, to a pcapng file, which is created
 * or emptied; js_link_trace.c says what is in it. `path` may be followed by options (see there).
 * Returns JS_OK, JS_ERR_INVALID (options, or the file cannot be written) or JS_ERR_NO_MEMORY. */
int32_t js_link_trace_wrap(js_link *inner, const char *path, js_link **out);

#endif
