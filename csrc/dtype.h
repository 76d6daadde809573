/* SPDX-License-Identifier: MIT
 * dtype.h: load and store of one element, and of a run of f16.  Level 0.
 * Stores round to nearest even.  NaN stays a quiet NaN with the top bits of its payload, exactly as
 * the F16C instructions do, so that every instruction set gives the same bits.  No step depends on
 * denormal arithmetic, so flush-to-zero in the caller's thread changes nothing. */
#ifndef LENS_DTYPE_H
#define LENS_DTYPE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

static inline float lens_bits_to_f32(uint32_t u) {
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static inline uint32_t lens_f32_to_bits(float f) {
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

static inline double lens_bits_to_f64(uint64_t u) {
    double d;
    memcpy(&d, &u, sizeof d);
    return d;
}

static inline uint64_t lens_f64_to_bits(double d) {
    uint64_t u;
    memcpy(&u, &d, sizeof u);
    return u;
}

/* x, or one fixed quiet NaN for any NaN; integer operations, so that loops have no branch */
static inline float lens_clean_f32(float x) {
    uint32_t u = lens_f32_to_bits(x);
    return lens_bits_to_f32((u & 0x7fffffffu) > 0x7f800000u ? 0x7fc00000u : u);
}

static inline double lens_clean_f64(double x) {
    uint64_t u = lens_f64_to_bits(x);
    return lens_bits_to_f64(u << 1 > 0xffe0000000000000u ? 0x7ff8000000000000u : u);
}

static inline float lens_load_f32(float x) {
    return x;
}
static inline float lens_store_f32(float x) {
    return x;
}
static inline double lens_load_f64(double x) {
    return x;
}
static inline double lens_store_f64(double x) {
    return x;
}

static inline float lens_load_bf16(uint16_t x) {
    return lens_bits_to_f32((uint32_t)x << 16);
}

static inline uint16_t lens_store_bf16(float x) {
    uint32_t u = lens_f32_to_bits(x);
    uint32_t rounded = u + 0x7fffu + ((u >> 16) & 1u);
    uint32_t nan = u | 0x400000u; /* truncation could turn a NaN into infinity: make it quiet */
    return (uint16_t)(((u & 0x7fffffffu) > 0x7f800000u ? nan : rounded) >> 16);
}

static inline float lens_load_f16(uint16_t x) {
    uint32_t sign = (uint32_t)(x & 0x8000u) << 16;
    uint32_t em = (uint32_t)(x & 0x7fffu) << 13;
    uint32_t normal = em + (112u << 23); /* rebias 15 -> 127 */
    uint32_t special = (em + (224u << 23)) | (em > 0x0f800000u ? 0x400000u : 0u);
    /* a subnormal m * 2^-24: put m below an implicit leading 1, then subtract that 1 */
    float tiny = lens_bits_to_f32(em + (113u << 23)) - lens_bits_to_f32(113u << 23);
    uint32_t finite = em < 0x00800000u ? lens_f32_to_bits(tiny) : normal;
    return lens_bits_to_f32(sign | (em >= 0x0f800000u ? special : finite));
}

static inline uint16_t lens_store_f16(float x) {
    uint32_t u = lens_f32_to_bits(x), sign = (u >> 16) & 0x8000u, a = u & 0x7fffffffu;
    /* Halves below 2^-14 are multiples of 2^-24: adding 0.5 leaves that multiple, rounded to even,
     * in the low bits.  The operand is clamped so that the sum is exact in every other respect. */
    float small = lens_bits_to_f32(a < 0x38800000u ? a : 0u) + 0.5f;
    uint32_t subnormal = lens_f32_to_bits(small) - 0x3f000000u;
    uint32_t normal = (a - (112u << 23) + 0xfffu + ((a >> 13) & 1u)) >> 13;
    uint32_t nan = 0x7e00u | ((a >> 13) & 0x3ffu);
    uint32_t half = a < 0x38800000u ? subnormal : normal;
    half = a >= 0x477ff000u ? 0x7c00u : half; /* 65520 and above round to infinity */
    half = a > 0x7f800000u ? nan : half;
    return (uint16_t)(sign | half);
}

/* Prefetch bytes that will be read soon, one cache line at a time. */
static inline void lens_prefetch(const void *x, size_t bytes) {
#if defined(__GNUC__)
    for (size_t i = 0; i < bytes; i += 64)
        __builtin_prefetch((const char *)x + i);
#else
    (void)x, (void)bytes;
#endif
}

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#include <immintrin.h>

__attribute__((target("avx2"))) static inline void
lens_loadn_bf16_avx2(float *out, const uint16_t *x, size_t n) {
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        __m128i half = _mm_loadu_si128((const __m128i *)(const void *)(x + i));
        __m256i wide = _mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16);
        _mm256_storeu_ps(out + i, _mm256_castsi256_ps(wide));
    }
    for (; i < n; i++)
        out[i] = lens_load_bf16(x[i]);
}

__attribute__((target("avx512f"))) static inline void
lens_loadn_bf16_avx512(float *out, const uint16_t *x, size_t n) {
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        __m256i half = _mm256_loadu_si256((const __m256i *)(const void *)(x + i));
        __m512i wide = _mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16);
        _mm512_storeu_ps(out + i, _mm512_castsi512_ps(wide));
    }
    for (; i < n; i++)
        out[i] = lens_load_bf16(x[i]);
}

__attribute__((target("avx512f"))) static inline void
lens_loadn_f16_avx512(float *out, const uint16_t *x, size_t n) {
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        __m256i half = _mm256_loadu_si256((const __m256i *)(const void *)(x + i));
        _mm512_storeu_ps(out + i, _mm512_cvtph_ps(half));
    }
    for (; i < n; i++)
        out[i] = lens_load_f16(x[i]);
}

__attribute__((target("avx,f16c"))) static inline void
lens_loadn_f16_avx2(float *out, const uint16_t *x, size_t n) {
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        __m128i half = _mm_loadu_si128((const __m128i *)(const void *)(x + i));
        _mm256_storeu_ps(out + i, _mm256_cvtph_ps(half));
    }
    for (; i < n; i++)
        out[i] = lens_load_f16(x[i]);
}

__attribute__((target("avx,f16c"))) static inline void lens_storen_f16c(uint16_t *out,
                                                                        const float *x, size_t n) {
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        __m128i half =
            _mm256_cvtps_ph(_mm256_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        _mm_storeu_si128((__m128i *)(void *)(out + i), half);
    }
    for (; i < n; i++)
        out[i] = lens_store_f16(x[i]);
}
#endif

#endif
