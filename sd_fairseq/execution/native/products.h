// Products of a few rows with weights as PyTorch stores them, [N, K]: every weight is read once, in the order it lies
// in memory, and meets all rows while it is in a register.
#pragma once

#include <omp.h>

#include <algorithm>

#include "vectors.h"

struct Product {
    const void* weight;  // [outputs, inputs]
    const float* bias;   // [outputs] or null
    int64_t outputs, inputs;  // inputs: a multiple of 32
};

constexpr int GROUP = 6;  // rows whose sums fit the registers, four outputs each
constexpr int TILE = 4;   // outputs at once

struct Slice {
    long begin, end;
};

// The calling thread's share of ``count`` things. Static, so that a thread's weights lie one after the other.
inline Slice share(long count) {
    const long threads = omp_get_num_threads(), thread = omp_get_thread_num();
    return {count * thread / threads, count * (thread + 1) / threads};
}

// Sums of four registers, in the four lanes of one.
inline __m128 sums_of(__m512 a, __m512 b, __m512 c, __m512 d) {
    const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    const __m512 all = _mm512_add_ps(
        _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd))),
        _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd))));
    const __m256 halves = _mm256_add_ps(
        _mm512_castps512_ps256(all), _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(all), 1)));
    return _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1));
}

// ROWS rows of x [., K] times four rows of weights; ``out`` [ROWS, LANES].
template <class T, int ROWS>
inline void multiply(const T* x, const T* const* weights, long K, float* out) {
    using Number = Numbers<T>;
    constexpr int STEP = LANES * Number::PAIR;
    __m512 sums[ROWS][TILE];
    for (int r = 0; r < ROWS; r++)
        for (int n = 0; n < TILE; n++) sums[r][n] = _mm512_setzero_ps();
    const T *w0 = weights[0], *w1 = weights[1], *w2 = weights[2], *w3 = weights[3];
    const char* next = (const char*)(w0 + TILE * K);
    for (long k = 0; k < K; k += STEP) {
        const typename Number::Chunk c0 = Number::load(w0 + k), c1 = Number::load(w1 + k);
        const typename Number::Chunk c2 = Number::load(w2 + k), c3 = Number::load(w3 + k);
        // The next four rows, in the order of memory: four streams at once are read at two thirds of one's speed
        for (int n = 0; n < TILE; n++) _mm_prefetch(next + TILE * k * sizeof(T) + n * 64, _MM_HINT_T1);
        for (int r = 0; r < ROWS; r++) {
            const typename Number::Chunk one = Number::load(x + r * K + k);
            sums[r][0] = Number::multiply_add(sums[r][0], one, c0);
            sums[r][1] = Number::multiply_add(sums[r][1], one, c1);
            sums[r][2] = Number::multiply_add(sums[r][2], one, c2);
            sums[r][3] = Number::multiply_add(sums[r][3], one, c3);
        }
    }
    for (int r = 0; r < ROWS; r++)
        _mm_storeu_ps(out + r * LANES, sums_of(sums[r][0], sums[r][1], sums[r][2], sums[r][3]));
}

template <class T>
inline void multiply_group(int rows, const T* x, const T* const* weights, long K, float* out) {
    switch (rows) {
        case 1: return multiply<T, 1>(x, weights, K, out);
        case 2: return multiply<T, 2>(x, weights, K, out);
        case 3: return multiply<T, 3>(x, weights, K, out);
        case 4: return multiply<T, 4>(x, weights, K, out);
        case 5: return multiply<T, 5>(x, weights, K, out);
        default: return multiply<T, GROUP>(x, weights, K, out);
    }
}

// The calling thread's outputs of x [rows, inputs] @ weight.T + bias, sixteen at a time, handed to
// ``store(row, column, values, mask)``. Every output is summed by one thread in one order: neither the number of
// threads nor the other rows change it.
template <class T, class Store>
inline void multiply_rows(const T* x, long rows, const Product& product, Store store) {
    const T* weight = (const T*)product.weight;
    const long K = product.inputs, N = product.outputs;
    const Slice mine = share((N + LANES - 1) / LANES);
    float out[GROUP * LANES];
    for (long column = mine.begin * LANES; column < std::min(N, mine.end * LANES); column += LANES) {
        const __mmask16 mask = lanes(N - column);
        const __m512 bias = product.bias ? _mm512_maskz_loadu_ps(mask, product.bias + column) : _mm512_setzero_ps();
        for (long first = 0; first < rows; first += GROUP) {
            const int count = (int)std::min<long>(GROUP, rows - first);
            for (long n = column; n < std::min(N, column + LANES); n += TILE) {
                const T* tile[TILE];  // after the last output its weights stand in
                for (long i = 0; i < TILE; i++) tile[i] = weight + std::min(n + i, N - 1) * K;
                multiply_group<T>(count, x + first * K, tile, K, out + (n - column));
            }
            for (int r = 0; r < count; r++)
                store(first + r, column, _mm512_add_ps(_mm512_loadu_ps(out + r * LANES), bias), mask);
        }
    }
}
