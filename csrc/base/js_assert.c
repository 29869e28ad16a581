/* What happens when an assertion is broken. */
#include "js_assert.h"

#include <stdio.h>
#include <stdlib.h>

void js_assert_fail(const char *expr, const char *file, int line)
{
    fprintf(stderr, "jetstream: assertion failed: %s (%s:%d)\n", expr, file, line);
    abort();
}
