/* Assertions: JS_ASSERT guards what only a programming error can break and stays in release builds;
 * JS_DASSERT guards invariants on the hot path and is compiled out of them. */
#ifndef JS_ASSERT_H
#define JS_ASSERT_H

#include "js_base.h"

/* Prints the broken assertion and aborts the process. */
void js_assert_fail(const char *expr, const char *file, int line)
    __attribute__((noreturn, noinline, cold));

#define JS_ASSERT(expr) (JS_LIKELY(expr) ? (void)0 : js_assert_fail(#expr, __FILE__, __LINE__))

#ifdef NDEBUG
#define JS_DASSERT(expr) ((void)sizeof(expr))
#else
#define JS_DASSERT(expr) JS_ASSERT(expr)
#endif

#endif
