// Communicators of the software HCCL, and messages between their ranks.
#pragma once
#include "emu.h"

enum { MAX_RANKS = 64 };
// HCCL's own error codes.
enum { BAD_ARGUMENT = 1, UNSUPPORTED = 5, SYSTEM_CALL = 8, TIMEOUT = 9 };

typedef struct {
    char folder[256], name[128];
    int rank, size;
    uint64_t sent[MAX_RANKS], received[MAX_RANKS];
    Status error;
} Communicator;

// Bytes of an element of an HCCL data type; 0 for one that is unknown.
size_t element_size(int type);
// Returns at once: the message waits in a file.
Status send_bytes(Communicator* c, int to, const void* data, size_t size);
// Waits for the next message from `from`; fails where its size is another, or after EMU_HCCL_TIMEOUT seconds.
Status receive_bytes(Communicator* c, int from, void* data, size_t size);
// a[i] = a[i] op b[i]; op: 0 sum, 1 product, 2 maximum, 3 minimum.
Status reduce_into(void* a, const void* b, uint64_t count, int type, int op);

#define TRY(call)                    \
    do {                             \
        Status status_ = (call);     \
        if (status_) return status_; \
    } while (0)
