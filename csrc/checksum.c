/* SPDX-License-Identifier: MIT
 * checksum.c: XXH64 with seed 0, https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md.
 * Level 1.  Four 64-bit lanes take a stripe of 32 bytes together; scalar, so that every machine
 * computes the same, and still at more than twice the speed of zlib's CRC-32. */
#include "lens.h"

#include <string.h>

#define P1 0x9e3779b185ebca87u
#define P2 0xc2b2ae3d27d4eb4fu
#define P3 0x165667b19e3779f9u
#define P4 0x85ebca77c2b2ae63u
#define P5 0x27d4eb2f165667c5u
#define STRIPE 32u

static inline uint64_t turn(uint64_t x, int bits) {
    return x << bits | x >> (64 - bits);
}

/* The next 8 or 4 bytes as a number; its lowest byte is the first. */
static inline uint64_t take8(const unsigned char *x) {
    uint64_t value;
    memcpy(&value, x, sizeof value);
    return value;
}

static inline uint64_t take4(const unsigned char *x) {
    uint32_t value;
    memcpy(&value, x, sizeof value);
    return value;
}

static inline uint64_t mix(uint64_t lane, uint64_t input) {
    return turn(lane + input * P2, 31) * P1;
}

static inline uint64_t merge(uint64_t hash, uint64_t lane) {
    return (hash ^ mix(0, lane)) * P1 + P4;
}

uint64_t lens_checksum(const void *x_, size_t n) {
    const unsigned char *x = x_;
    uint64_t a = P1 + P2, b = P2, c = 0, d = 0u - P1, hash = P5;
    size_t i = 0;
    for (; n - i >= STRIPE; i += STRIPE) {
        a = mix(a, take8(x + i));
        b = mix(b, take8(x + i + 8));
        c = mix(c, take8(x + i + 16));
        d = mix(d, take8(x + i + 24));
    }
    if (n >= STRIPE) {
        hash = turn(a, 1) + turn(b, 7) + turn(c, 12) + turn(d, 18);
        hash = merge(merge(merge(merge(hash, a), b), c), d);
    }
    hash += n;
    for (; n - i >= 8; i += 8)
        hash = turn(hash ^ mix(0, take8(x + i)), 27) * P1 + P4;
    if (n - i >= 4) {
        hash = turn(hash ^ take4(x + i) * P1, 23) * P2 + P3;
        i += 4;
    }
    for (; i < n; i++)
        hash = turn(hash ^ x[i] * P5, 11) * P1;
    hash = (hash ^ hash >> 33) * P2;
    hash = (hash ^ hash >> 29) * P3;
    return hash ^ hash >> 32;
}
