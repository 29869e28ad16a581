/* js_wire, js_crc32c: frames written out by hand, every kind there and back, everything that is to
 * be refused, and no look beyond the end. */
#include "js_crc32c.h"
#include "js_test.h"
#include "js_wire.h"

#include <sys/mman.h>
#include <unistd.h>

#define ROOM 512

static const uint8_t kinds[] = {
    JS_WIRE_SEND,  JS_WIRE_PUT,       JS_WIRE_ACK, JS_WIRE_PROBE,   JS_WIRE_PROBE_ACK,
    JS_WIRE_HELLO, JS_WIRE_HELLO_ACK, JS_WIRE_BYE, JS_WIRE_BYE_ACK, JS_WIRE_RESET,
};

static const uint8_t *pattern(void)
{
    static uint8_t bytes[ROOM];
    for (uint32_t i = 0; i < ROOM; i++) {
        bytes[i] = (uint8_t)(i * 7 + 3);
    }
    return bytes;
}

/* A frame of a kind with another value in every field that it has. */
static js_wire_frame sample(uint8_t opcode)
{
    js_wire_frame frame = { .opcode = opcode, .dcid = 0x1122, .epoch = 0x3344, .psn = 0x55667788 };
    frame.ack = 0x99aa;
    frame.credit = 0xbbcc;
    if (opcode == JS_WIRE_ACK) {
        frame.flags = JS_WIRE_FLAG_RETX;
        frame.sack[0] = 0x0123456789abcdef;
        frame.sack[1] = 0xfedcba9876543210;
        frame.trigger = 0xa1a2a3a4;
        frame.delay = 0xb1b2;
        frame.consumed[0] = 0xc1c2;
        frame.consumed[1] = 0xd1d2;
        return frame;
    }
    frame.bytes = 5;
    frame.payload = pattern();
    if (js_wire_is_data(opcode)) {
        frame.channel = 1;
        frame.flags = JS_WIRE_FLAG_SOM | JS_WIRE_FLAG_EOM;
        frame.fragment = 0xddee;
        frame.imm = 0xf1f2f3f4;
        if (opcode == JS_WIRE_PUT) {
            frame.flags |= JS_WIRE_FLAG_MORE;
            frame.offset = 0x01020304;
            frame.total_bytes = 0x05060708;
        }
        return frame;
    }
    frame.key = 0x0807060504030201;
    frame.mtu = 1472;
    return frame;
}

static void check_same(const js_wire_frame *got, const js_wire_frame *want)
{
    js_wire_frame copy = *got;
    JS_TEST_CHECK(got->bytes == 0 || memcmp(got->payload, want->payload, got->bytes) == 0);
    copy.payload = want->payload;
    JS_TEST_EQ_U64(copy.opcode, want->opcode);
    JS_TEST_EQ_U64(copy.channel, want->channel);
    JS_TEST_EQ_U64(copy.flags, want->flags);
    JS_TEST_EQ_U64(copy.dcid, want->dcid);
    JS_TEST_EQ_U64(copy.epoch, want->epoch);
    JS_TEST_EQ_U64(copy.psn, want->psn);
    JS_TEST_EQ_U64(copy.ack, want->ack);
    JS_TEST_EQ_U64(copy.credit, want->credit);
    JS_TEST_EQ_U64(copy.bytes, want->bytes);
    JS_TEST_EQ_U64(copy.fragment, want->fragment);
    JS_TEST_EQ_U64(copy.imm, want->imm);
    JS_TEST_EQ_U64(copy.offset, want->offset);
    JS_TEST_EQ_U64(copy.total_bytes, want->total_bytes);
    JS_TEST_EQ_U64(copy.sack[0], want->sack[0]);
    JS_TEST_EQ_U64(copy.sack[1], want->sack[1]);
    JS_TEST_EQ_U64(copy.trigger, want->trigger);
    JS_TEST_EQ_U64(copy.delay, want->delay);
    JS_TEST_EQ_U64(copy.consumed[0], want->consumed[0]);
    JS_TEST_EQ_U64(copy.consumed[1], want->consumed[1]);
    JS_TEST_EQ_U64(copy.key, want->key);
    JS_TEST_EQ_U64(copy.mtu, want->mtu);
}

/* Puts the right CRC behind `bytes` bytes. */
static uint32_t seal(uint8_t *frame, uint32_t bytes)
{
    uint32_t crc = js_crc32c(0, frame, bytes);
    for (uint32_t i = 0; i < 4; i++) {
        frame[bytes + i] = (uint8_t)(crc >> 8 * i);
    }
    return bytes + 4;
}

static void test_crc_of_known_texts(void)
{
    /* RFC 3720, B.4. */
    uint8_t bytes[32];
    JS_TEST_EQ_U64(js_crc32c(0, "123456789", 9), 0xe3069283);
    memset(bytes, 0, sizeof(bytes));
    JS_TEST_EQ_U64(js_crc32c(0, bytes, 32), 0x8a9136aa);
    memset(bytes, 0xff, sizeof(bytes));
    JS_TEST_EQ_U64(js_crc32c(0, bytes, 32), 0x62a8ab43);
    for (uint8_t i = 0; i < 32; i++) {
        bytes[i] = i;
    }
    JS_TEST_EQ_U64(js_crc32c(0, bytes, 32), 0x46dd794e);
    JS_TEST_EQ_U64(js_crc32c_by_table(0, bytes, 32), 0x46dd794e);
    JS_TEST_EQ_U64(js_crc32c(0, bytes, 0), 0);
}

/* Bit by bit: what the word means. */
static uint32_t slow_crc(const uint8_t *bytes, size_t count)
{
    uint32_t crc = UINT32_MAX;
    for (size_t i = 0; i < count; i++) {
        crc ^= bytes[i];
        for (uint32_t bit = 0; bit < 8; bit++) {
            crc = (crc & 1) != 0 ? crc >> 1 ^ 0x82f63b78u : crc >> 1;
        }
    }
    return ~crc;
}

static void test_crc_of_all_lengths(void)
{
    static uint8_t bytes[2100];
    for (uint32_t i = 0; i < sizeof(bytes); i++) {
        bytes[i] = (uint8_t)(i * i + i / 3);
    }
    for (size_t count = 0; count + 8 <= sizeof(bytes); count += count < 600 ? 1 : 13) {
        const uint8_t *begin = bytes + count % 8; /* unaligned, too */
        uint32_t want = slow_crc(begin, count);
        JS_TEST_EQ_U64(js_crc32c(0, begin, count), want);
        JS_TEST_EQ_U64(js_crc32c_by_table(0, begin, count), want);
        JS_TEST_EQ_U64(js_crc32c_by_instruction(0, begin, count), want);
        uint8_t copy[sizeof(bytes)] = { 0 };
        JS_TEST_EQ_U64(js_crc32c_copy(0, copy + 1, begin, count), want);
        JS_TEST_CHECK(memcmp(copy + 1, begin, count) == 0 && copy[0] == 0 && copy[1 + count] == 0);
        size_t half = count / 3;
        uint32_t crc = js_crc32c(0, begin, half);
        JS_TEST_EQ_U64(js_crc32c(crc, begin + half, count - half), want);
    }
}

static void test_bytes_of_a_send(void)
{
    static const uint8_t want[] = {
        0x11, 0x01, 0x03, 0x06, 0x22, 0x11, 0x44, 0x33, /* version, opcode, flags, dcid, epoch */
        0x88, 0x77, 0x66, 0x55, 0xaa, 0x99, 0xcc, 0xbb, /* psn, ack, credit */
        0x05, 0x00, 0xee, 0xdd, 0xf4, 0xf3, 0xf2, 0xf1, /* length, fragment, imm */
        0x03, 0x0a, 0x11, 0x18, 0x1f,
    };
    uint8_t out[ROOM];
    js_wire_frame frame = sample(JS_WIRE_SEND);
    JS_TEST_EQ_U64(js_wire_encode(&frame, 0, out), sizeof(want) + 4);
    JS_TEST_CHECK(memcmp(out, want, sizeof(want)) == 0);
}

static void test_there_and_back(void)
{
    for (uint32_t i = 0; i < JS_ARRAY_LEN(kinds); i++) {
        uint8_t out[ROOM];
        js_wire_frame got;
        js_wire_frame frame = sample(kinds[i]);
        uint32_t size = js_wire_encode(&frame, 0, out);
        JS_TEST_EQ_U64(size, js_wire_size(&frame));
        JS_TEST_EQ_U64(js_wire_decode(out, size, &got), JS_WIRE_OK);
        check_same(&got, &frame);
        memset(out + size, 0xee, ROOM - size); /* padding of the link */
        JS_TEST_EQ_U64(js_wire_decode(out, ROOM, &got), JS_WIRE_OK);
        check_same(&got, &frame);
        frame.bytes = 0;
        frame.payload = NULL;
        if (frame.opcode != JS_WIRE_PUT) {
            size = js_wire_encode(&frame, 0, out);
            JS_TEST_EQ_U64(js_wire_decode(out, size, &got), JS_WIRE_OK);
            check_same(&got, &frame);
        }
    }
}

/* Each end of the frame is once at the end of the memory that may be read. */
static void test_no_look_beyond_the_end(void)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    uint8_t *memory =
        mmap(NULL, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    JS_TEST_REQUIRE(memory != MAP_FAILED);
    JS_TEST_REQUIRE(mprotect(memory + page, page, PROT_NONE) == 0);
    for (uint32_t i = 0; i < JS_ARRAY_LEN(kinds); i++) {
        uint8_t out[ROOM];
        js_wire_frame got;
        js_wire_frame frame = sample(kinds[i]);
        uint32_t size = js_wire_encode(&frame, 0, out);
        for (uint32_t bytes = 0; bytes < size; bytes++) {
            uint8_t *at = memory + page - bytes;
            memcpy(at, out, bytes);
            JS_TEST_EQ_U64(js_wire_decode(at, bytes, &got), JS_WIRE_SHORT);
        }
    }
    munmap(memory, 2 * page);
}

static void test_every_wrong_bit_is_found(void)
{
    for (uint32_t i = 0; i < JS_ARRAY_LEN(kinds); i++) {
        uint8_t out[ROOM] = { 0 };
        js_wire_frame got;
        js_wire_frame frame = sample(kinds[i]);
        uint32_t size = js_wire_encode(&frame, 0, out);
        for (uint32_t bit = 0; bit < 8 * size; bit++) {
            out[bit / 8] ^= (uint8_t)(1u << bit % 8);
            JS_TEST_CHECK(js_wire_decode(out, ROOM, &got) != JS_WIRE_OK);
            out[bit / 8] ^= (uint8_t)(1u << bit % 8);
        }
        JS_TEST_EQ_U64(js_wire_decode(out, size, &got), JS_WIRE_OK);
    }
}

/* Sets one byte of a frame, gives it the right CRC, and says what becomes of it. */
static js_wire_reason with_byte(uint8_t opcode, uint32_t at, uint8_t value)
{
    uint8_t out[ROOM] = { 0 };
    js_wire_frame got;
    js_wire_frame frame = sample(opcode);
    uint32_t size = js_wire_encode(&frame, 0, out);
    out[at] = value;
    seal(out, size - 4);
    return js_wire_decode(out, size, &got);
}

static void test_refused_though_the_crc_is_right(void)
{
    JS_TEST_EQ_U64(with_byte(JS_WIRE_SEND, 0, 0x12), JS_WIRE_FOREIGN);
    JS_TEST_EQ_U64(with_byte(JS_WIRE_SEND, 0, 0x10), JS_WIRE_FOREIGN);
    JS_TEST_EQ_U64(with_byte(JS_WIRE_SEND, 0, 0x31), JS_WIRE_RESERVED);
    JS_TEST_EQ_U64(with_byte(JS_WIRE_ACK, 0, 0x11), JS_WIRE_RESERVED);
    JS_TEST_EQ_U64(with_byte(JS_WIRE_HELLO, 0, 0x11), JS_WIRE_RESERVED);
    JS_TEST_EQ_U64(with_byte(JS_WIRE_SEND, 1, 0), JS_WIRE_OPCODE);
    JS_TEST_EQ_U64(with_byte(JS_WIRE_SEND, 1, 3), JS_WIRE_OPCODE);
    JS_TEST_EQ_U64(with_byte(JS_WIRE_ACK, 1, 0x81), JS_WIRE_OPCODE);
    JS_TEST_EQ_U64(with_byte(JS_WIRE_SEND, 1, 2), JS_WIRE_HEADER);
    JS_TEST_EQ_U64(with_byte(JS_WIRE_SEND, 2, 0x04), JS_WIRE_RESERVED); /* MORE */
    JS_TEST_EQ_U64(with_byte(JS_WIRE_PUT, 2, 0x20), JS_WIRE_RESERVED);
    JS_TEST_EQ_U64(with_byte(JS_WIRE_ACK, 2, 0x08), JS_WIRE_RESERVED);
    JS_TEST_EQ_U64(with_byte(JS_WIRE_PROBE, 2, 0x10), JS_WIRE_RESERVED);
    JS_TEST_EQ_U64(with_byte(JS_WIRE_SEND, 3, 5), JS_WIRE_HEADER);
    JS_TEST_EQ_U64(with_byte(JS_WIRE_RESET, 31, 1), JS_WIRE_RESERVED);
    JS_TEST_EQ_U64(with_byte(JS_WIRE_SEND, 16, 6), JS_WIRE_SHORT);
    JS_TEST_EQ_U64(with_byte(JS_WIRE_SEND, 16, 41), JS_WIRE_HEADER);
    JS_TEST_EQ_U64(with_byte(JS_WIRE_PUT, 16, 0), JS_WIRE_HEADER);
    JS_TEST_EQ_U64(with_byte(JS_WIRE_PUT, 17, 0x10), JS_WIRE_SHORT);
    JS_TEST_EQ_U64(with_byte(JS_WIRE_BYE, 17, 1), JS_WIRE_HEADER); /* a note of 261 bytes */
    JS_TEST_EQ_U64(with_byte(JS_WIRE_BYE, 18, 1), JS_WIRE_SHORT);
}

static void test_parts_of_a_chunk(void)
{
    uint8_t out[ROOM];
    js_wire_frame got;
    js_wire_frame frame = sample(JS_WIRE_PUT);
    frame.bytes = 41;
    frame.total_bytes = 41;
    uint32_t size = js_wire_encode(&frame, 0, out);
    JS_TEST_EQ_U64(js_wire_decode(out, size, &got), JS_WIRE_OK);
    frame.bytes = 42; /* more than the whole */
    size = js_wire_encode(&frame, 0, out);
    JS_TEST_EQ_U64(js_wire_decode(out, size, &got), JS_WIRE_HEADER);
    frame.bytes = 40; /* would have been a SEND */
    frame.total_bytes = 40;
    size = js_wire_encode(&frame, 0, out);
    JS_TEST_EQ_U64(js_wire_decode(out, size, &got), JS_WIRE_HEADER);
}

/* A length that no frame can have is no short frame. */
static void test_longer_than_any_frame(void)
{
    static uint8_t out[1u << 17];
    js_wire_frame got;
    js_wire_frame frame = sample(JS_WIRE_PUT);
    uint32_t room = JS_WIRE_FRAME_BYTES_MAX - JS_WIRE_CRC_BYTES - JS_WIRE_PUT_BYTES;
    js_wire_encode(&frame, 0, out);
    out[16] = (uint8_t)(room & 0xff);
    out[17] = (uint8_t)(room >> 8);
    JS_TEST_EQ_U64(seal(out, JS_WIRE_PUT_BYTES + room), JS_WIRE_FRAME_BYTES_MAX);
    JS_TEST_EQ_U64(js_wire_decode(out, JS_WIRE_FRAME_BYTES_MAX, &got), JS_WIRE_OK);
    JS_TEST_EQ_U64(got.bytes, room);
    JS_TEST_EQ_U64(js_wire_decode(out, JS_WIRE_FRAME_BYTES_MAX - 1, &got), JS_WIRE_SHORT);
    out[16]++;
    seal(out, JS_WIRE_PUT_BYTES + room + 1);
    JS_TEST_EQ_U64(js_wire_decode(out, sizeof(out), &got), JS_WIRE_HEADER);
    frame = sample(JS_WIRE_HELLO);
    js_wire_encode(&frame, JS_WIRE_FRAME_BYTES_MAX, out);
    out[18]++;
    JS_TEST_EQ_U64(js_wire_decode(out, sizeof(out), &got), JS_WIRE_HEADER);
}

static void test_padded_for_a_path(void)
{
    static uint8_t out[JS_WIRE_FRAME_BYTES_MAX];
    static const uint32_t sizes[] = { 0, 40, 41, 42, 43, 64, 1472, 9000, JS_WIRE_FRAME_BYTES_MAX };
    for (uint32_t i = 0; i < JS_ARRAY_LEN(sizes); i++) {
        js_wire_frame got;
        js_wire_frame frame = sample(JS_WIRE_HELLO);
        memset(out, 0xee, sizeof(out));
        uint32_t size = js_wire_encode(&frame, sizes[i], out);
        JS_TEST_EQ_U64(size, sizes[i] < 41 ? 41 : sizes[i]);
        JS_TEST_EQ_U64(js_wire_decode(out, size, &got), JS_WIRE_OK);
        check_same(&got, &frame);
        JS_TEST_EQ_U64(js_wire_decode(out, size - 1, &got), JS_WIRE_SHORT);
        for (uint32_t at = 37; at < size - 4; at++) {
            JS_TEST_EQ_U64(out[at], 0);
        }
    }
    js_wire_frame frame = sample(JS_WIRE_SEND);
    JS_TEST_EQ_U64(js_wire_encode(&frame, 300, out), 33);
    frame = sample(JS_WIRE_ACK);
    JS_TEST_EQ_U64(js_wire_encode(&frame, 300, out), 48);
}

static void test_reasons_have_names(void)
{
    for (uint32_t i = 0; i < JS_WIRE_REASONS; i++) {
        const char *name = js_wire_reason_name((js_wire_reason)i);
        JS_TEST_REQUIRE(name != NULL);
        for (uint32_t k = 0; k < i; k++) {
            JS_TEST_CHECK(strcmp(name, js_wire_reason_name((js_wire_reason)k)) != 0);
        }
    }
    JS_TEST_CHECK(js_wire_reason_name(JS_WIRE_REASONS) == NULL);
    JS_TEST_EQ_STR(js_wire_reason_name(JS_WIRE_CRC), "crc");
}

JS_TEST_MAIN(JS_TEST(test_crc_of_known_texts), JS_TEST(test_crc_of_all_lengths),
             JS_TEST(test_bytes_of_a_send), JS_TEST(test_there_and_back),
             JS_TEST(test_no_look_beyond_the_end), JS_TEST(test_every_wrong_bit_is_found),
             JS_TEST(test_refused_though_the_crc_is_right), JS_TEST(test_parts_of_a_chunk),
             JS_TEST(test_longer_than_any_frame), JS_TEST(test_padded_for_a_path),
             JS_TEST(test_reasons_have_names))
