/* js_frame: the bits of the header, against bytes written out by hand. */
#include "js_frame.h"
#include "js_test.h"

static void test_header_bytes(void)
{
    /* version 1, channel 1, SEND, SOM|EOM, 24 bytes, dcid 0x1234, epoch 0xabcd; psn 0x01020304;
     * length 0x8000, fragment 0xfffe, imm 0xdeadbeef. */
    static const uint8_t want[JS_FRAME_HEADER_BYTES] = {
        0x11, 0x01, 0x03, 0x06, 0x34, 0x12, 0xcd, 0xab, /* route */
        0x04, 0x03, 0x02, 0x01, 0x00, 0x00, 0x00, 0x00, /* order */
        0x00, 0x80, 0xfe, 0xff, 0xef, 0xbe, 0xad, 0xde, /* body */
    };
    uint64_t route = js_frame_route(JS_FRAME_CHANNEL_MESSAGE, 0x1234, 0xabcd);
    js_frame_header header = {
        .route = js_frame_with_flags(route, JS_FRAME_FLAG_SOM | JS_FRAME_FLAG_EOM),
        .order = 0x01020304,
        .body = js_frame_body(0x8000, 0xfffe, 0xdeadbeef),
    };
    for (size_t i = 0; i < sizeof(want); i++) {
        JS_TEST_EQ_U64(((const uint8_t *)&header)[i], want[i]);
    }
}

static void test_collective_channel_bytes(void)
{
    static const uint8_t want[8] = { 0x01, 0x01, 0x00, 0x06, 0xff, 0x00, 0x00, 0x00 };
    uint64_t route = js_frame_route(JS_FRAME_CHANNEL_COLLECTIVE, 255, 0);
    JS_TEST_CHECK(memcmp(&route, want, sizeof(want)) == 0);
}

static void test_fields_come_back(void)
{
    for (uint32_t flags = 0; flags < 256; flags++) {
        uint64_t route = js_frame_route(15, 0xffff, 0xffff);
        JS_TEST_EQ_U64(js_frame_flags(js_frame_with_flags(route, flags)), flags);
        JS_TEST_EQ_U64(js_frame_with_flags(route, flags) & ~(0xffull << 16), route);
    }
    for (uint32_t bit = 0; bit < 16; bit++) {
        uint64_t body = js_frame_body(1u << bit, 0, 0);
        JS_TEST_EQ_U64(js_frame_length_bytes(body), 1u << bit);
        JS_TEST_EQ_U64(js_frame_fragment(body), 0);
        body = js_frame_body(0, 1u << bit, 1u << bit);
        JS_TEST_EQ_U64(js_frame_fragment(body), 1u << bit);
        JS_TEST_EQ_U64(js_frame_imm(body), 1u << bit);
        JS_TEST_EQ_U64(js_frame_length_bytes(body), 0);
    }
}

static void test_wide_values_do_not_spill(void)
{
    uint64_t body = js_frame_body(0x1ffff, 0x10000, 0);
    JS_TEST_EQ_U64(js_frame_length_bytes(body), 0xffff);
    JS_TEST_EQ_U64(js_frame_fragment(body), 0);
    JS_TEST_EQ_U64(js_frame_imm(body), 0);
}

JS_TEST_MAIN(JS_TEST(test_header_bytes), JS_TEST(test_collective_channel_bytes),
             JS_TEST(test_fields_come_back), JS_TEST(test_wide_values_do_not_spill))
