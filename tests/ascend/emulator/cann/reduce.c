// Element-wise reductions of HCCL's data types.
#include <math.h>
#include <string.h>

#include "hccl.h"

static float from_half(uint16_t h) {
    _Float16 value;
    memcpy(&value, &h, 2);
    return value;
}

static uint16_t to_half(float f) {
    _Float16 h = (_Float16)f;
    uint16_t bits;
    memcpy(&bits, &h, 2);
    return bits;
}

static float from_bfloat(uint16_t b) {
    uint32_t bits = (uint32_t)b << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

static uint16_t to_bfloat(float f) {
    uint32_t bits;
    memcpy(&bits, &f, 4);
    if (isnan(f)) return (bits >> 16) | 64;
    return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // to nearest, ties to even
}

#define COMBINE(a, b) \
    (op == 0 ? (a) + (b) : op == 1 ? (a) * (b) : op == 2 ? ((b) > (a) ? (b) : (a)) : ((b) < (a) ? (b) : (a)))

#define REDUCE(T)                                                           \
    {                                                                       \
        T* x = a;                                                           \
        const T* y = b;                                                     \
        for (uint64_t i = 0; i < count; i++) x[i] = (T)COMBINE(x[i], y[i]); \
        return OK;                                                          \
    }

#define REDUCE_NARROW(widen, narrow)                                                           \
    {                                                                                          \
        uint16_t* x = a;                                                                       \
        const uint16_t* y = b;                                                                 \
        for (uint64_t i = 0; i < count; i++) x[i] = narrow(COMBINE(widen(x[i]), widen(y[i]))); \
        return OK;                                                                             \
    }

Status reduce_into(void* a, const void* b, uint64_t count, int type, int op) {
    if (op < 0 || op > 3) return UNSUPPORTED;
    switch (type) {
        case 0:
            REDUCE(int8_t)
        case 1:
            REDUCE(int16_t)
        case 2:
            REDUCE(int32_t)
        case 3:
            REDUCE_NARROW(from_half, to_half)
        case 4:
            REDUCE(float)
        case 5:
            REDUCE(int64_t)
        case 6:
            REDUCE(uint64_t)
        case 7:
            REDUCE(uint8_t)
        case 8:
            REDUCE(uint16_t)
        case 9:
            REDUCE(uint32_t)
        case 10:
            REDUCE(double)
        case 11:
            REDUCE_NARROW(from_bfloat, to_bfloat)
        default:
            return UNSUPPORTED;
    }
}
