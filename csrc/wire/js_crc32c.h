/* CRC32C: the ways to compute it. js_crc32c (js_wire_api.h) takes the best that there is. */
#ifndef JS_CRC32C_H
#define JS_CRC32C_H

#include "js_base.h"

/* Eight bytes a step by tables; any machine. */
uint32_t js_crc32c_by_table(uint32_t crc, const void *bytes, size_t count);
/* By the instruction of x86-64, three lanes at once; by tables where there is none. */
uint32_t js_crc32c_by_instruction(uint32_t crc, const void *bytes, size_t count);
/* js_crc32c, and copies the bytes in the same pass. */
uint32_t js_crc32c_copy(uint32_t crc, void *to, const void *from, size_t count);

#endif
