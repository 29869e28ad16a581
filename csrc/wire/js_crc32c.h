/* CRC32C: the ways to compute it. js_crc32c (js_wire_api.h) takes the best that there is. */
#ifndef JS_CRC32C_H
#define JS_CRC32C_H

#include "js_base.h"

/* Eight bytes a step by tables; any machine. */
uint32_t js_crc32c_by_table(uint32_t crc, const void *bytes, size_t count);

#endif
