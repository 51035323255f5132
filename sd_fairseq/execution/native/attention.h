// Attention of the hypotheses of one sentence, one head at a time.
#pragma once

#include <vector>

#include "products.h"

constexpr int QUERIES = 4;  // whose sums stand in registers together

inline std::vector<float>& scratch(size_t size) {
    static thread_local std::vector<float> values;
    if (values.size() < size) values.resize(size);
    return values;
}

// Sums weights[q][s] * values[s] over s < length into out [QUERIES][.]; values [length][width], V registers from each.
template <class T, int Q, int V>
inline void mix(const float* weights, long stride, const T* values, long width, long length, __m512 (*out)[V]) {
    for (int q = 0; q < Q; q++)
        for (int v = 0; v < V; v++) out[q][v] = _mm512_setzero_ps();
    for (long s = 0; s < length; s++) {
        __m512 value[V];
        for (int v = 0; v < V; v++) value[v] = Numbers<T>::widen(values + s * width + v * LANES);
        for (int q = 0; q < Q; q++) {
            const __m512 weight = _mm512_set1_ps(weights[q * stride + s]);
            for (int v = 0; v < V; v++) out[q][v] = _mm512_fmadd_ps(weight, value[v], out[q][v]);
        }
    }
}

template <class T, int Q, int V>
inline void mix_and_store(
    const float* weights, const float* sums, long stride, const T* values, long width, long length, T* out,
    long out_stride, long dim) {
    __m512 mixed[Q][V];
    mix<T, Q, V>(weights, stride, values, width, length, mixed);
    for (int q = 0; q < Q; q++)
        for (int v = 0; v < V; v++)
            Numbers<T>::store(
                out + q * out_stride + v * LANES, _mm512_div_ps(mixed[q][v], _mm512_set1_ps(sums[q])),
                lanes(std::max(0L, dim - v * LANES)));
}

// Q queries over a sentence's source.
//   queries, out: [Q, stride], this head's part
//   keys: [blocks][dim / PAIR][LANES][PAIR], so that sixteen scores grow in the lanes of one register
//   values: [length][width], width = dim rounded up to whole registers
template <class T, int Q>
inline void attend_source(
    const T* queries, long stride, const T* keys, const T* values, long length, long dim, long width, T* out) {
    using Number = Numbers<T>;
    constexpr int PAIR = Number::PAIR;
    const long padded = (length + LANES - 1) / LANES * LANES;
    float* scores = scratch(QUERIES * padded).data();
    for (long block = 0; block < padded; block += LANES) {
        const T* key = keys + block * dim;
        __m512 even[Q], odd[Q];  // two chains of sums each, or their latency would be waited for
        for (int q = 0; q < Q; q++) even[q] = odd[q] = _mm512_setzero_ps();
        long d = 0;
        for (; d + 2 * PAIR <= dim; d += 2 * PAIR) {
            const typename Number::Chunk first = Number::load(key + d * LANES);
            const typename Number::Chunk second = Number::load(key + (d + PAIR) * LANES);
            for (int q = 0; q < Q; q++) {
                even[q] = Number::multiply_add(even[q], first, Number::repeat(queries + q * stride + d));
                odd[q] = Number::multiply_add(odd[q], second, Number::repeat(queries + q * stride + d + PAIR));
            }
        }
        for (; d < dim; d += PAIR)
            for (int q = 0; q < Q; q++)
                even[q] = Number::multiply_add(
                    even[q], Number::load(key + d * LANES), Number::repeat(queries + q * stride + d));
        for (int q = 0; q < Q; q++) _mm512_storeu_ps(scores + q * padded + block, _mm512_add_ps(even[q], odd[q]));
    }
    float sums[Q];
    for (int q = 0; q < Q; q++) sums[q] = exponentials(scores + q * padded, length);
    long v = 0;
    for (; v + 4 * LANES <= width; v += 4 * LANES)
        mix_and_store<T, Q, 4>(scores, sums, padded, values + v, width, length, out + v, stride, dim - v);
    for (; v < width; v += LANES)
        mix_and_store<T, Q, 1>(scores, sums, padded, values + v, width, length, out + v, stride, dim - v);
}

template <class T>
inline void attend_source_any(
    long count, const T* queries, long stride, const T* keys, const T* values, long length, long dim, long width,
    T* out) {
    for (long q = 0; q < count; q += QUERIES) {
        const T* some = queries + q * stride;
        T* to = out + q * stride;
        switch (std::min<long>(QUERIES, count - q)) {
            case 1: attend_source<T, 1>(some, stride, keys, values, length, dim, width, to); break;
            case 2: attend_source<T, 2>(some, stride, keys, values, length, dim, width, to); break;
            case 3: attend_source<T, 3>(some, stride, keys, values, length, dim, width, to); break;
            default: attend_source<T, 4>(some, stride, keys, values, length, dim, width, to); break;
        }
    }
}

// One hypothesis over its own ancestors.
//   query: [dim]; keys, values: [step][beam][dim]; ancestors: [count], the hypothesis of every step
template <class T>
inline void attend_ancestors(
    const float* query, const float* keys, const float* values, const int32_t* ancestors, long count, long beam,
    long dim, T* out) {
    float* scores = scratch(count + LANES).data();
    for (long t = 0; t < count; t++) {
        const float* key = keys + (t * beam + ancestors[t]) * dim;
        __m512 sum = _mm512_setzero_ps();
        for (long d = 0; d < dim; d += LANES) {
            const __mmask16 mask = lanes(dim - d);
            sum = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(mask, query + d), _mm512_maskz_loadu_ps(mask, key + d), sum);
        }
        scores[t] = _mm512_reduce_add_ps(sum);
    }
    const __m512 total = _mm512_set1_ps(exponentials(scores, count));
    for (long d = 0; d < dim; d += LANES) {
        const __mmask16 mask = lanes(dim - d);
        __m512 mixed = _mm512_setzero_ps();
        for (long t = 0; t < count; t++) {
            const float* value = values + (t * beam + ancestors[t]) * dim + d;
            mixed = _mm512_fmadd_ps(_mm512_set1_ps(scores[t]), _mm512_maskz_loadu_ps(mask, value), mixed);
        }
        Numbers<T>::store(out + d, _mm512_div_ps(mixed, total), mask);
    }
}
