/* Fuzzes js_wire_decode: whatever comes is refused, or is a frame that encodes to the same bytes.
 *
 * The first byte of an input says what is done with the rest: bit 0, the right CRC is put behind
 * it, as random bytes never get that far; bits 1 to 7, so many bytes of link padding follow then.
 * tests/fuzz/corpus/wire is what libFuzzer begins with; the plain test runs it as well. */
#include "js_fuzz.h"
#include "js_wire.h"

#define FRAME_BYTES_MAX 2048u

static uint64_t fuzz_reasons[JS_WIRE_REASONS];

/* Bytes that the CRC covers, if the headers are to be believed. */
static uint32_t fuzz_covered(const uint8_t *frame, uint32_t bytes)
{
    uint32_t header_bytes = bytes > 3 ? frame[3] * 4u : 0;
    uint32_t length = 0;
    if (header_bytes < 20 || header_bytes > bytes) {
        return bytes;
    }
    if (header_bytes != JS_WIRE_ACK_BYTES) {
        length = frame[16] | (uint32_t)frame[17] << 8;
    }
    if (frame[1] > JS_WIRE_ACK) {
        length += frame[18] | (uint32_t)frame[19] << 8;
    }
    return header_bytes + length < bytes ? header_bytes + length : bytes;
}

/* What was accepted is within the input, within its limits, and comes back from the encoder. */
static void fuzz_check(const uint8_t *frame, uint32_t bytes, const js_wire_frame *got)
{
    static uint8_t again[JS_WIRE_FRAME_BYTES_MAX];
    uint32_t size = js_wire_size(got);
    JS_TEST_REQUIRE(size <= bytes);
    JS_TEST_REQUIRE(got->bytes == 0 ||
                    (got->payload > frame && got->payload + got->bytes + 4 <= frame + bytes));
    JS_TEST_REQUIRE(got->channel < JS_WIRE_CHANNELS);
    JS_TEST_REQUIRE(got->opcode != JS_WIRE_SEND || got->bytes <= JS_WIRE_INLINE_BYTES);
    JS_TEST_REQUIRE(got->opcode != JS_WIRE_PUT ||
                    (got->bytes > 0 && got->bytes <= got->total_bytes));
    uint32_t padding = got->opcode > JS_WIRE_ACK ? frame[18] | (uint32_t)frame[19] << 8 : 0;
    JS_TEST_REQUIRE(size + padding <= bytes);
    bool is_zero = true;
    for (uint32_t i = size - 4; i < size - 4 + padding; i++) {
        is_zero = is_zero && frame[i] == 0;
    }
    uint32_t encoded = js_wire_encode(got, size + padding, again);
    JS_TEST_REQUIRE(encoded == size + padding);
    JS_TEST_REQUIRE(!is_zero || memcmp(again, frame, encoded) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0 || size > FRAME_BYTES_MAX) {
        return 0;
    }
    /* Of exactly this size, so that a sanitizer sees a look beyond. */
    uint32_t bytes = (uint32_t)size - 1;
    uint32_t slack = (data[0] & 1) != 0 ? (data[0] >> 1) + 4u : 0;
    uint8_t *frame = malloc(bytes + slack + 1);
    JS_TEST_REQUIRE(frame != NULL);
    memcpy(frame, data + 1, bytes);
    memset(frame + bytes, 0xa5, slack);
    if (slack != 0) {
        uint32_t covered = fuzz_covered(frame, bytes);
        uint32_t crc = js_crc32c(0, frame, covered);
        for (uint32_t i = 0; i < 4; i++) {
            frame[covered + i] = (uint8_t)(crc >> 8 * i);
        }
    }
    js_wire_frame got;
    js_wire_reason reason = js_wire_decode(frame, bytes + slack, &got);
    JS_TEST_REQUIRE((uint32_t)reason <= JS_WIRE_CRC);
    fuzz_reasons[reason]++;
    if (reason == JS_WIRE_OK) {
        fuzz_check(frame, bytes + slack, &got);
    }
    free(frame);
    return 0;
}

#if !defined(JS_FUZZ)
/* A sound frame, preceded by the byte that says to seal it or not. */
static size_t fuzz_make(uint8_t *out, uint64_t *random)
{
    static const uint8_t opcodes[] = { JS_WIRE_SEND,      JS_WIRE_PUT,       JS_WIRE_ACK,
                                       JS_WIRE_PROBE,     JS_WIRE_PROBE_ACK, JS_WIRE_HELLO,
                                       JS_WIRE_HELLO_ACK, JS_WIRE_BYE,       JS_WIRE_BYE_ACK,
                                       JS_WIRE_RESET };
    static const uint8_t payload[300] = "anything";
    js_wire_frame frame = { .payload = payload };
    frame.opcode = opcodes[js_fuzz_random(random) % JS_ARRAY_LEN(opcodes)];
    frame.dcid = (uint16_t)js_fuzz_random(random);
    frame.psn = (uint32_t)js_fuzz_random(random);
    frame.ack = (uint16_t)js_fuzz_random(random);
    if (frame.opcode == JS_WIRE_ACK) {
        frame.sack[0] = js_fuzz_random(random);
        frame.trigger = (uint32_t)js_fuzz_random(random);
    } else if (frame.opcode == JS_WIRE_PUT) {
        frame.bytes = (uint16_t)(js_fuzz_random(random) % 300 + 1);
        frame.total_bytes = (uint32_t)(js_fuzz_random(random) % 5000 + 41);
    } else {
        frame.bytes = (uint16_t)(js_fuzz_random(random) % 41);
    }
    out[0] = (uint8_t)js_fuzz_random(random);
    return 1 + js_wire_encode(&frame, (uint32_t)(js_fuzz_random(random) % 400), out + 1);
}

int main(int argc, char **argv)
{
    static uint8_t input[FRAME_BYTES_MAX];
    uint64_t kept = js_fuzz_corpus("wire");
    js_fuzz_arguments arguments = js_fuzz_parse(argc, argv, 300000);
    uint64_t random = arguments.seed;
    for (uint64_t i = 0; i < arguments.count; i++) {
        size_t size = fuzz_make(input, &random);
        if (i % 8 != 0) {
            size = js_fuzz_mutate(input, size, &random);
        }
        js_fuzz_input(&arguments, i, input, size);
    }
    printf("%" PRIu64 " inputs, %" PRIu64 " of the corpus:", arguments.count, kept);
    bool has_all = true;
    for (uint32_t i = JS_WIRE_OK; i <= JS_WIRE_CRC; i++) {
        printf(" %s %" PRIu64, js_wire_reason_name((js_wire_reason)i), fuzz_reasons[i]);
        has_all = has_all && fuzz_reasons[i] != 0;
    }
    printf("\n");
    return arguments.count >= 1000 && !has_all;
}
#endif
