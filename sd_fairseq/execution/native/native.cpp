// What Python calls: a plain C interface of pointers and numbers.

#include "decoder_step.h"
#include "within.h"

extern "C" {

// The sizes of all structures in bytes, in the order of structures.py: the loader compares them with its own.
void structure_sizes(int64_t* sizes) {
    sizes[0] = sizeof(Product);
    sizes[1] = sizeof(Norm);
    sizes[2] = sizeof(Sublayer);
    sizes[3] = sizeof(Layer);
    sizes[4] = sizeof(Decoder);
}

// Runs all layers on x [sentences * beam, dim] in place.
//   ancestors: [sentences, beam, ancestors_stride], the hypothesis that each one continues at every step until now
void decoder_step(const Decoder* decoder, int is_bf16, float* x, int64_t step, const int32_t* ancestors,
                  int64_t ancestors_stride) {
    if (is_bf16)
        run_step<bf16>(*decoder, x, step, ancestors, ancestors_stride);
    else
        run_step<float>(*decoder, x, step, ancestors, ancestors_stride);
}

// x [rows, inputs] @ weight.T + bias into out [rows, outputs]; ``input`` has room for x in the weights' precision.
void multiply_head(const Product* product, int is_bf16, const float* x, int64_t rows, void* input, float* out,
                   int64_t threads) {
    auto store = [=](long row, long column, __m512 values, __mmask16 mask) {
        _mm512_mask_storeu_ps(out + row * product->outputs + column, mask, values);
    };
    if (is_bf16) convert(x, rows * product->inputs, (bf16*)input);
#pragma omp parallel num_threads((int)threads)
    if (is_bf16)
        multiply_rows<bf16>((const bf16*)input, rows, *product, store);
    else
        multiply_rows<float>(x, rows, *product, store);
}

// Lays out both [tokens, 2, heads, size], keys and values of all sentences' tokens, as cross-attention reads them:
// keys [sentences, heads, padded / 16, size / pair, 16, pair], values [sentences, heads, padded, width].
void pack_source(int is_bf16, const void* both, const int64_t* lengths, int64_t sentences, int64_t heads, int64_t size,
                 int64_t padded, void* keys, void* values, int64_t threads) {
    if (is_bf16)
        pack((const bf16*)both, lengths, sentences, heads, size, padded, (bf16*)keys, (bf16*)values, threads);
    else
        pack((const float*)both, lengths, sentences, heads, size, padded, (float*)keys, (float*)values, threads);
}

// Attention of sentences over themselves: qkv [tokens, 3, heads, size] into out [tokens, heads, size], both bfloat16.
void attend_within(const bf16* qkv, const int64_t* lengths, int64_t sentences, int64_t heads, int64_t size, bf16* out,
                   int64_t threads) {
    attend_sentences(qkv, lengths, sentences, heads, size, out, threads);
}
}
