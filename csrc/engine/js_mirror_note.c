/* What ranks of different hosts tell each other of themselves: what they are in (js_board), and
 * why they have failed (js_fault). A host keeps it where it keeps the same of its own ranks. */
#include "js_comm.h"
#include "js_mirror.h"
#include "js_status.h"

#include <string.h>
#include <unistd.h>

#define MIRROR_NOTE_BOARD 1u
#define MIRROR_NOTE_FAULT 2u

typedef struct mirror_board_note {
    uint32_t kind;
    uint32_t pid;
    uint64_t sequence;
    uint64_t call[4];
    uint32_t is_active;
    uint32_t is_closed;
    uint64_t asked_sequence; /* what this rank called then: the one the peer is in, as known here */
    js_call asked_call;      /* without what records do not hold; kind 0: not known */
} mirror_board_note;

typedef struct mirror_fault_note {
    uint32_t kind;
    uint32_t reserved;
    js_fault fault;
} mirror_fault_note;

JS_STATIC_ASSERT(sizeof(mirror_board_note) <= JS_WIRE_NOTE_BYTES_MAX, "fits a note");
JS_STATIC_ASSERT(sizeof(mirror_fault_note) <= JS_WIRE_NOTE_BYTES_MAX, "fits a note");

void js_mirror_write_note(js_mirror_peer *peer)
{
    js_comm *comm = peer->comm;
    mirror_board_note note = {
        .kind = MIRROR_NOTE_BOARD,
        .pid = (uint32_t)getpid(),
        .sequence = comm->sequence,
        .is_active = js_load_rlx_u32(&comm->board->active),
        .is_closed = comm->mirror->is_closing,
        .asked_sequence = peer->sequence,
    };
    for (uint32_t i = 0; i < JS_ARRAY_LEN(note.call); i++) {
        note.call[i] = js_load_rlx_u64(&comm->board->call[i]);
    }
    js_account_settle(comm);
    const js_record *record = &comm->records[note.asked_sequence & comm->record_mask];
    if (note.asked_sequence != 0 && js_load_rlx_u64(&record->commit) == note.asked_sequence) {
        note.asked_call = (js_call){
            .kind = record->kind,
            .redop = record->redop,
            .dtype = record->dtype,
            .algo = record->algo,
            .count = record->count,
            .root = record->root,
            .world = record->world,
        };
    }
    js_rel_set_note(peer->rel, &note, sizeof(note));
}

uint32_t js_mirror_fault_note(const js_comm *comm, uint8_t *note)
{
    mirror_fault_note fault = { .kind = MIRROR_NOTE_FAULT, .fault = comm->fault };
    memcpy(note, &fault, sizeof(fault));
    return sizeof(fault);
}

static void mirror_take_board(js_mirror_peer *peer, const mirror_board_note *note, bool is_bye)
{
    js_comm *comm = peer->comm;
    js_seg_rank *rank = js_seg_get_rank(comm->engine->seg, comm->members[peer->rank]);
    js_store_rel_u32(&rank->pid, note->pid);
    if (note->sequence >= peer->sequence) { /* notes may overtake each other */
        peer->sequence = note->sequence;
        memcpy(&peer->call, note->call, sizeof(peer->call));
        peer->is_active = note->is_active != 0;
    }
    peer->has_left = peer->has_left || (note->is_closed != 0 && is_bye);
    if (note->asked_call.kind != JS_KIND_NONE) {
        peer->asked_sequence = note->asked_sequence;
        peer->asked_call = note->asked_call;
    }
}

/* Only what can be true is believed: the text of the error is made of it. */
static bool mirror_fault_is_sound(const js_comm *comm, const js_fault *fault)
{
    bool is_known = strcmp(js_status_name(fault->status), "JS_ERR_UNKNOWN") != 0;
    return fault->status < 0 && is_known && fault->reporter >= 0 &&
           (uint32_t)fault->reporter < comm->world && fault->culprit >= -1 &&
           fault->culprit < (int32_t)comm->world;
}

void js_mirror_read_note(void *context, uint8_t opcode, const uint8_t *bytes, uint32_t size)
{
    js_mirror_peer *peer = context;
    js_comm *comm = peer->comm;
    uint32_t kind = 0;
    if (size >= sizeof(kind)) {
        memcpy(&kind, bytes, sizeof(kind));
    }
    if (kind == MIRROR_NOTE_BOARD && size == sizeof(mirror_board_note)) {
        mirror_board_note note;
        memcpy(&note, bytes, sizeof(note));
        mirror_take_board(peer, &note, opcode == JS_WIRE_BYE);
    } else if (kind == MIRROR_NOTE_FAULT && size == sizeof(mirror_fault_note) &&
               opcode == JS_WIRE_RESET) {
        mirror_fault_note note;
        memcpy(&note, bytes, sizeof(note));
        if (mirror_fault_is_sound(comm, &note.fault)) {
            (void)js_fault_publish(comm, &note.fault);
        }
    }
}
