/* Which build this is: a hash of all sources, given by the build system. */
#include <jetstream/js_api.h>

#ifndef JS_BUILD_ID
#define JS_BUILD_ID "unknown"
#endif

_Static_assert(sizeof(JS_BUILD_ID) <= JS_BUILD_ID_BYTES, "the build id fits the segment header");

const char *js_build_id(void)
{
    return JS_BUILD_ID;
}
