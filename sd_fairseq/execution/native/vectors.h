// Sixteen lanes of AVX-512: numbers in two precisions, and the functions of them that a decoder needs.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

using bf16 = uint16_t;
constexpr int LANES = 16;

inline __mmask16 lanes(long count) { return count >= LANES ? 0xffff : (__mmask16)((1u << count) - 1); }

inline __m512 bf16_to_float(__m256i bits) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

inline __m256i float_to_bf16(__m512 x) {
#ifdef __AVX512BF16__
    return (__m256i)_mm512_cvtneps_pbh(x);
#else
    const __m512i bits = _mm512_castps_si512(x);  // rounds to the nearest, to even between two
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
#endif
}

// What differs between the precisions. A chunk is one register of numbers; PAIR of them go into one lane of a sum.
template <class T>
struct Numbers;

template <>
struct Numbers<float> {
    using Chunk = __m512;
    static constexpr int PAIR = 1;
    static Chunk load(const float* p) { return _mm512_loadu_ps(p); }
    static Chunk repeat(const float* p) { return _mm512_set1_ps(*p); }
    static __m512 multiply_add(__m512 sum, Chunk a, Chunk b) { return _mm512_fmadd_ps(a, b, sum); }
    static __m512 widen(const float* p) { return _mm512_loadu_ps(p); }
    static void store(float* p, __m512 x, __mmask16 mask) { _mm512_mask_storeu_ps(p, mask, x); }
};

template <>
struct Numbers<bf16> {
    using Chunk = __m512i;
    static constexpr int PAIR = 2;
    static Chunk load(const bf16* p) { return _mm512_loadu_si512(p); }
    static Chunk repeat(const bf16* p) {
        int32_t pair;
        std::memcpy(&pair, p, sizeof pair);
        return _mm512_set1_epi32(pair);
    }
    static __m512 multiply_add(__m512 sum, Chunk a, Chunk b) {
#ifdef __AVX512BF16__
        return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
#else
        const __m512i high = _mm512_set1_epi32((int)0xffff0000);
        const __m512 even_a = _mm512_castsi512_ps(_mm512_slli_epi32(a, 16));
        const __m512 even_b = _mm512_castsi512_ps(_mm512_slli_epi32(b, 16));
        const __m512 odd_a = _mm512_castsi512_ps(_mm512_and_si512(a, high));
        const __m512 odd_b = _mm512_castsi512_ps(_mm512_and_si512(b, high));
        return _mm512_fmadd_ps(odd_a, odd_b, _mm512_fmadd_ps(even_a, even_b, sum));
#endif
    }
    static __m512 widen(const bf16* p) { return bf16_to_float(_mm256_loadu_si256((const __m256i*)p)); }
    static void store(bf16* p, __m512 x, __mmask16 mask) { _mm256_mask_storeu_epi16(p, mask, float_to_bf16(x)); }
};

inline __m512 exponential(__m512 x) {
    x = _mm512_min_ps(_mm512_max_ps(x, _mm512_set1_ps(-104.0f)), _mm512_set1_ps(88.7f));  // also of -inf
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504088896f)), _MM_FROUND_TO_NEAREST_INT);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 y = _mm512_set1_ps(1.9875691500e-4f);
    for (const float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
        y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(c));
    y = _mm512_fmadd_ps(y, _mm512_mul_ps(r, r), _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
    return _mm512_scalef_ps(y, n);
}

// x * Phi(x), with erf by formula 7.1.26 of Abramowitz and Stegun (off by 1.5e-7 at most), as oneDNN has it.
inline __m512 gelu(__m512 x) {
    const __m512 one = _mm512_set1_ps(1.0f);
    const __m512 z = _mm512_mul_ps(_mm512_abs_ps(x), _mm512_set1_ps(0.70710678118654752f));
    const __m512 t = _mm512_div_ps(one, _mm512_fmadd_ps(z, _mm512_set1_ps(0.3275911f), one));
    __m512 y = _mm512_set1_ps(1.061405429f);
    for (const float c : {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f})
        y = _mm512_fmadd_ps(y, t, _mm512_set1_ps(c));
    y = _mm512_mul_ps(_mm512_mul_ps(y, t), exponential(_mm512_sub_ps(_mm512_setzero_ps(), _mm512_mul_ps(z, z))));
    // Phi is 1 - y / 2 above 0 and y / 2 below
    const __m512 half = _mm512_mul_ps(y, _mm512_set1_ps(0.5f));
    const __mmask16 below = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ);
    return _mm512_mul_ps(x, _mm512_mask_blend_ps(below, _mm512_sub_ps(one, half), half));
}

// Turns scores into exp(score - largest) in place and returns their sum; the lanes after ``count`` become 0.
inline float exponentials(float* scores, long count) {
    const __m512 lowest = _mm512_set1_ps(-__builtin_inff());
    __m512 largest = lowest;
    for (long i = 0; i < count; i += LANES)
        largest = _mm512_max_ps(largest, _mm512_mask_loadu_ps(lowest, lanes(count - i), scores + i));
    const __m512 shift = _mm512_set1_ps(_mm512_reduce_max_ps(largest));
    __m512 sum = _mm512_setzero_ps();
    for (long i = 0; i < count; i += LANES) {
        const __m512 e = _mm512_maskz_mov_ps(
            lanes(count - i), exponential(_mm512_sub_ps(_mm512_loadu_ps(scores + i), shift)));
        sum = _mm512_add_ps(sum, e);
        _mm512_storeu_ps(scores + i, e);
    }
    return _mm512_reduce_add_ps(sum);
}
