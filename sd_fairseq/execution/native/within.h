// Attention of sentences over themselves in bfloat16: the scores of a few queries at a time stay in the first cache,
// the keys and values of a head, laid out anew, in the second.
#pragma once

#include "attention.h"

constexpr int WITHIN = 6;       // queries at once
constexpr int REGISTERS = 4;    // of keys, or of a value, at once
constexpr int WIDE = REGISTERS * LANES;

// One head of one sentence in the layout of the products below.
struct Packed {
    std::vector<bf16> keys;    // [padded / LANES][size / 2][LANES][2]
    std::vector<bf16> values;  // [padded / 2][width][2]
};

inline void pack_head(const bf16* qkv, long length, long dim, long size, long padded, long width, Packed& head) {
    head.keys.assign(padded * size, 0);
    head.values.assign(padded * width, 0);
    for (long s = 0; s < length; s++) {
        const bf16 *key = qkv + s * 3 * dim + dim, *value = key + dim;
        bf16* block = head.keys.data() + s / LANES * LANES * size + s % LANES * 2;
        for (long d = 0; d < size; d += 2) std::copy_n(key + d, 2, block + d * LANES);
        if (s % 2) continue;
        for (long d = 0; d < size; d += LANES) {  // two tokens' values side by side
            const __mmask16 mask = lanes(size - d), both = s + 1 < length ? mask : 0;
            const __m512i even = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, value + d));
            const __m512i odd = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(both, value + 3 * dim + d));
            _mm512_storeu_si512(
                head.values.data() + s * width + 2 * d, _mm512_or_si512(even, _mm512_slli_epi32(odd, 16)));
        }
    }
}

// Sums of left [WITHIN] rows with one wide column of right [steps][.], both by pairs: REGISTERS registers from ``right``
// at every step, ``stride`` numbers apart from register to register and ``next`` from step to step.
inline void multiply_pairs(const bf16* const* left, const bf16* right, long steps, long stride, long next,
                           __m512 (*sums)[REGISTERS]) {
    using Number = Numbers<bf16>;
    for (int q = 0; q < WITHIN; q++)
        for (int r = 0; r < REGISTERS; r++) sums[q][r] = _mm512_setzero_ps();
    for (long step = 0; step < steps; step++, right += next) {
        Number::Chunk some[REGISTERS];
        for (int r = 0; r < REGISTERS; r++) some[r] = Number::load(right + r * stride);
        for (int q = 0; q < WITHIN; q++) {
            const Number::Chunk one = Number::repeat(left[q] + 2 * step);
            for (int r = 0; r < REGISTERS; r++) sums[q][r] = Number::multiply_add(sums[q][r], one, some[r]);
        }
    }
}

// Attends from ``count`` queries, WITHIN at most, over a head: qkv and out begin at the first query's.
inline void attend_head(const bf16* qkv, long count, const Packed& head, long length, long padded, long dim, long size,
                        long width, float* scores, bf16* shares, bf16* out) {
    const bf16 *queries[WITHIN], *weights[WITHIN];
    float sums[WITHIN];
    __m512 made[WITHIN][REGISTERS];
    for (long q = 0; q < WITHIN; q++) {
        queries[q] = qkv + std::min(q, count - 1) * 3 * dim;  // after the last query it stands in
        weights[q] = shares + q * padded;
    }
    for (long s = 0; s < padded; s += WIDE) {
        multiply_pairs(queries, head.keys.data() + s * size, size / 2, LANES * size, LANES * 2, made);
        for (int q = 0; q < WITHIN; q++)
            for (int r = 0; r < REGISTERS; r++) _mm512_storeu_ps(scores + q * padded + s + r * LANES, made[q][r]);
    }
    const long whole = (length + LANES - 1) / LANES * LANES;
    for (int q = 0; q < WITHIN; q++) {
        sums[q] = exponentials(scores + q * padded, length);
        for (long s = 0; s < whole; s += LANES)
            Numbers<bf16>::store(shares + q * padded + s, _mm512_loadu_ps(scores + q * padded + s), lanes(LANES));
    }
    for (long d = 0; d < width; d += WIDE) {
        multiply_pairs(weights, head.values.data() + 2 * d, whole / 2, 2 * LANES, 2 * width, made);
        for (long q = 0; q < count; q++)
            for (long r = 0; r < REGISTERS; r++)
                Numbers<bf16>::store(
                    out + q * dim + d + r * LANES, _mm512_div_ps(made[q][r], _mm512_set1_ps(sums[q])),
                    lanes(std::max(0L, size - d - r * LANES)));
    }
}

inline void attend_sentences(const bf16* qkv, const int64_t* lengths, long sentences, long heads, long size, bf16* out,
                             long threads) {
    const long dim = heads * size, width = (size + WIDE - 1) / WIDE * WIDE;
#pragma omp parallel num_threads((int)threads)
    {
        Packed head;
        std::vector<bf16> shares;
        const Slice mine = share(sentences * heads);
        long first = 0, before = 0;  // the sentence's first token, and which sentence that is
        for (long task = mine.begin; task < mine.end; task++) {
            for (; before < task / heads; before++) first += lengths[before];
            const long length = lengths[before], padded = (length + WIDE - 1) / WIDE * WIDE;
            const bf16* from = qkv + first * 3 * dim + task % heads * size;
            pack_head(from, length, dim, size, padded, width, head);
            shares.resize(WITHIN * padded);
            float* scores = scratch(WITHIN * padded).data();
            for (long q = 0; q < length; q += WITHIN)
                attend_head(from + q * 3 * dim, std::min<long>(WITHIN, length - q), head, length, padded, dim, size,
                            width, scores, shares.data(), out + (first + q) * dim + task % heads * size);
        }
    }
}
