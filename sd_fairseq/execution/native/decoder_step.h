// One step of a decoder for a few rows, at the speed at which memory gives the weights. structures.py mirrors the
// structures. Sums and the rows between the sub-layers are float32; the rows that products and cross-attention read are
// in the precision of the weights (T).
#pragma once

#include "attention.h"

struct Norm {
    const float *weight, *bias;  // [dim]
    double eps;
};

struct Sublayer {
    Product in, out;  // q/k/v, cross-attention's queries or the first of the feed-forward products; what comes last
    Norm norm;
    int64_t kept, skipped;                // sentences
    const int64_t *kept_slots, *skipped_slots;  // their slots, in the order of the caches
};

struct Layer {
    Sublayer self, cross, ffn;
    float *self_keys, *self_values;  // [kept, heads, steps, beam, head_dim]
    int64_t self_stride;             // from sentence to sentence
    const void *cross_keys, *cross_values;  // see attend_source; [kept, heads, ...]
    const int64_t* source_lengths;          // [kept]
    int64_t source_padded;                  // keys that every sentence has room for
};

enum Activation { GELU = 0, RELU = 1 };

struct Decoder {
    Layer* layers;
    int64_t layer_count, dim, heads, beam, sentences, activation, norm_before, skip_keeps_norm, threads;
    Norm embedding_norm, final_norm;  // weight null = none
    // room for [rows, .]: a product's input, the last product's input, and what lies between
    void *input, *inner;
    float* projected;
};

static void normalise(const float* x, const Norm& norm, long dim, float* out) {
    __m512 total = _mm512_setzero_ps(), squares = _mm512_setzero_ps();
    for (long i = 0; i < dim; i += LANES) total = _mm512_add_ps(total, _mm512_loadu_ps(x + i));
    const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(total) / dim);
    for (long i = 0; i < dim; i += LANES) {
        const __m512 off = _mm512_sub_ps(_mm512_loadu_ps(x + i), mean);
        squares = _mm512_fmadd_ps(off, off, squares);
    }
    const float scale = 1.0f / __builtin_sqrtf(_mm512_reduce_add_ps(squares) / dim + (float)norm.eps);
    for (long i = 0; i < dim; i += LANES) {
        const __m512 off = _mm512_sub_ps(_mm512_loadu_ps(x + i), mean);
        const __m512 weight = _mm512_mul_ps(_mm512_set1_ps(scale), _mm512_loadu_ps(norm.weight + i));
        _mm512_storeu_ps(out + i, _mm512_fmadd_ps(off, weight, _mm512_loadu_ps(norm.bias + i)));
    }
}

template <class T>
static void convert(const float* x, long count, T* out) {
    for (long i = 0; i < count; i += LANES)
        Numbers<T>::store(out + i, _mm512_loadu_ps(x + i), lanes(count - i));
}

// The functions below are run by all threads of a team; each ends with a barrier.

static void normalise_rows(const Decoder& d, const Norm& norm, float* x, const int64_t* slots, long sentences) {
    const Slice mine = share(sentences * d.beam);
    for (long row = mine.begin; row < mine.end; row++) {
        float* one = x + ((slots ? slots[row / d.beam] : row / d.beam) * d.beam + row % d.beam) * d.dim;
        normalise(one, norm, d.dim, one);
    }
#pragma omp barrier
}

// Runs a residual sub-layer for the rows x [., dim] that keep it: ``first`` makes [rows, out.inputs] of type T in
// ``inner`` from the product's input [rows, dim].
template <class T, class First>
static void run_sublayer(const Decoder& d, const Sublayer& layer, float* x, First first) {
    const long rows = layer.kept * d.beam, dim = d.dim;
    if (d.skip_keeps_norm && layer.skipped) normalise_rows(d, layer.norm, x, layer.skipped_slots, layer.skipped);
    if (!rows) return;
    T* input = (T*)d.input;
    auto row_of = [&](long row) {
        return x + ((layer.kept_slots ? layer.kept_slots[row / d.beam] : row / d.beam) * d.beam + row % d.beam) * dim;
    };
    const Slice mine = share(rows);
    for (long row = mine.begin; row < mine.end; row++) {
        const float* from = row_of(row);
        if (d.norm_before) normalise(from, layer.norm, dim, d.projected + row * dim);
        convert(d.norm_before ? d.projected + row * dim : from, dim, input + row * dim);
    }
#pragma omp barrier
    first(input, rows);
#pragma omp barrier
    multiply_rows<T>((const T*)d.inner, rows, layer.out, [&](long row, long column, __m512 values, __mmask16 mask) {
        float* to = row_of(row) + column;
        _mm512_mask_storeu_ps(to, mask, _mm512_add_ps(values, _mm512_maskz_loadu_ps(mask, to)));
    });
#pragma omp barrier
    if (!d.norm_before) normalise_rows(d, layer.norm, x, layer.kept_slots, layer.kept);
}

template <class T>
static void self_attention(const Decoder& d, const Layer& layer, const T* input, long rows, long step,
                           const int32_t* ancestors, long ancestors_stride) {
    const long dim = d.dim, heads = d.heads, size = dim / heads, beam = d.beam;
    multiply_rows<T>(input, rows, layer.self.in, [&](long row, long column, __m512 values, __mmask16 mask) {
        _mm512_mask_storeu_ps(d.projected + row * 3 * dim + column, mask, values);
    });
#pragma omp barrier
    const Slice mine = share(layer.self.kept * heads);
    for (long task = mine.begin; task < mine.end; task++) {
        const long sentence = task / heads, head = task % heads;
        const long slot = layer.self.kept_slots ? layer.self.kept_slots[sentence] : sentence;
        const long place = sentence * layer.self_stride + head * (layer.self_stride / heads);
        float *keys = layer.self_keys + place, *values = layer.self_values + place;
        const float* made = d.projected + sentence * beam * 3 * dim + head * size;
        for (long b = 0; b < beam; b++) {
            std::copy_n(made + b * 3 * dim + dim, size, keys + (step * beam + b) * size);
            std::copy_n(made + b * 3 * dim + 2 * dim, size, values + (step * beam + b) * size);
        }
        for (long b = 0; b < beam; b++)
            attend_ancestors<T>(
                made + b * 3 * dim, keys, values, ancestors + (slot * beam + b) * ancestors_stride, step + 1, beam,
                size, (T*)d.inner + (sentence * beam + b) * dim + head * size);
    }
}

template <class T>
static void cross_attention(const Decoder& d, const Layer& layer, const T* input, long rows) {
    const long dim = d.dim, heads = d.heads, size = dim / heads, width = (size + LANES - 1) / LANES * LANES;
    T *queries = (T*)d.projected, *inner = (T*)d.inner;
    multiply_rows<T>(input, rows, layer.cross.in, [&](long row, long column, __m512 values, __mmask16 mask) {
        Numbers<T>::store(queries + row * dim + column, values, mask);
    });
#pragma omp barrier
    const Slice mine = share(layer.cross.kept * heads);
    for (long task = mine.begin; task < mine.end; task++) {
        const long sentence = task / heads, first = sentence * d.beam * dim + task % heads * size;
        attend_source_any<T>(
            d.beam, queries + first, dim, (const T*)layer.cross_keys + task * layer.source_padded * size,
            (const T*)layer.cross_values + task * layer.source_padded * width, layer.source_lengths[sentence], size,
            width, inner + first);
    }
}

template <class T>
static void run_step(const Decoder& d, float* x, long step, const int32_t* ancestors, long ancestors_stride) {
#pragma omp parallel num_threads((int)d.threads)
    {
        if (d.embedding_norm.weight) normalise_rows(d, d.embedding_norm, x, nullptr, d.sentences);
        for (long index = 0; index < d.layer_count; index++) {
            const Layer& layer = d.layers[index];
            run_sublayer<T>(d, layer.self, x, [&](const T* input, long rows) {
                self_attention<T>(d, layer, input, rows, step, ancestors, ancestors_stride);
            });
            run_sublayer<T>(d, layer.cross, x, [&](const T* input, long rows) {
                cross_attention<T>(d, layer, input, rows);
            });
            run_sublayer<T>(d, layer.ffn, x, [&](const T* input, long rows) {
                T* inner = (T*)d.inner;
                const long width = layer.ffn.in.outputs;
                multiply_rows<T>(input, rows, layer.ffn.in, [&](long row, long column, __m512 values, __mmask16 mask) {
                    const __m512 active =
                        d.activation == GELU ? gelu(values) : _mm512_max_ps(values, _mm512_setzero_ps());
                    Numbers<T>::store(inner + row * width + column, active, mask);
                });
            });
        }
        if (d.final_norm.weight) normalise_rows(d, d.final_norm, x, nullptr, d.sentences);
    }
}

// See pack_source.
template <class T>
static void pack(const T* both, const int64_t* lengths, long sentences, long heads, long size, long padded, T* keys,
                 T* values, long threads) {
    constexpr long PAIR = Numbers<T>::PAIR;
    const long dim = heads * size, width = (size + LANES - 1) / LANES * LANES;
#pragma omp parallel num_threads((int)threads)
    {
        const Slice mine = share(sentences * heads);
        for (long task = mine.begin; task < mine.end; task++) {
            const long sentence = task / heads;
            long first = 0;
            for (long i = 0; i < sentence; i++) first += lengths[i];
            T *key = keys + task * padded * size, *value = values + task * padded * width;
            for (long s = 0; s < lengths[sentence]; s++) {
                const T* from = both + (first + s) * 2 * dim + task % heads * size;
                T* block = key + s / LANES * LANES * size + s % LANES * PAIR;
                for (long d = 0; d < size; d += PAIR) std::copy_n(from + d, PAIR, block + d * LANES);
                std::copy_n(from + dim, size, value + s * width);
            }
        }
    }
}
