/* Element types and reduction operations: sizes and names. The enums are those of js_api.h. */
#ifndef JS_DTYPE_H
#define JS_DTYPE_H

#include <stdbool.h>
#include <stdint.h>

#include <jetstream/js_api.h>

/* Returns the size of one element in bytes, 0 if dtype is no enum js_dtype. */
uint32_t js_dtype_bytes(uint32_t dtype);

/* Whether the operation is defined for elements of the type; false if either is out of range.
 * docs/types.md has the table. */
bool js_dtype_has(uint32_t dtype, uint32_t redop);

/* Returns the size in bytes of a partial fold of one element (js_reduce_pick_partial), 0 if the
 * reduction has none or is not defined. */
uint32_t js_dtype_partial_bytes(uint32_t dtype, uint32_t redop);

/* Returns the name as NumPy and ml_dtypes spell it ("float32"), NULL if there is none. */
const char *js_dtype_name(uint32_t dtype);

/* Returns the name as the Python surface spells it ("sum"), NULL if there is none. */
const char *js_redop_name(uint32_t redop);

#endif
