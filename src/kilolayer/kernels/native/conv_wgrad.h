// Weight gradients (wgrad): dw[i][o] = Σ a[p]·g[p'] over the pixels of a chunk or an image, added to fp32 sums.
//
// Both operands are grouped over pixels. The side with more channels lies in vectors; the other is broadcast.
#pragma once
#include <algorithm>

#include "conv_blocks.h"

namespace kilolayer {

constexpr int CHUNK = 128;  // pixels of a 1×1 convolution that are in the cache at once

// Larger chunks when weights and gradients do not fit in cache: they are then read less often.
inline int chunk_size(const Weights& w) { return exceeds_cache(w) ? 2 * CHUNK : CHUNK; }

// Whether a result overwrites the sums in memory or is added to them.
enum class Accumulate : __mmask16 { OVERWRITE = 0, ADD = 0xffff };

// sums += unscale·sum, or sums = unscale·sum for OVERWRITE; then `sum` is reset to zero.
[[gnu::always_inline]] inline void add_to(float* sums, acc_t& sum, vec unscale, Accumulate accumulate) {
  const vec previous = _mm512_maskz_loadu_ps(static_cast<__mmask16>(accumulate), sums);
  _mm512_storeu_ps(sums, SCALED ? _mm512_fmadd_ps(to_fp32(sum), unscale, previous) : _mm512_add_ps(to_fp32(sum), previous));
  sum = acc_t{};
}

template <int V, int B>
void wgrad_1x1_block(const mul_t* vectors, int nv, const mul_t* broadcasts, int nb, int groups, float unscale,
                     Accumulate accumulate, float* sums) {
  static_assert(2 * CHUNK / TERMS <= MAX_FP16_TERMS || !SCALED);
  acc_t sum[B][V] = {};
  for (int p = 0; p < groups; ++p, vectors += TERMS * nv, broadcasts += TERMS * nb) {
    mul_vec vector[V];
    for (int v = 0; v < V; ++v) vector[v] = load_mul_vec(vectors + v * MUL_LANES);
#pragma GCC unroll 16
    for (int b = 0; b < B; ++b) {
      const mul_vec input = broadcast(broadcasts + TERMS * b);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[b][v] = multiply_add(vector[v], input, sum[b][v]);
    }
  }
#pragma GCC unroll 16
  for (int b = 0; b < B; ++b)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) add_to(sums + b * nv + v * LANES, sum[b][v], _mm512_set1_ps(unscale), accumulate);
}

template <int V, int B>
void wgrad_1x1_blocks(const mul_t* vectors, int nv, const mul_t* broadcasts, int nb, int groups, float unscale,
                      Accumulate accumulate, float* sums) {
  for (int v = 0; v < nv; v += V * LANES)
    for (int b = 0; b < nb; b += B)
      wgrad_1x1_block<V, B>(vectors + TERMS * v, nv, broadcasts + TERMS * b, nb, groups, unscale, accumulate,
                            sums + b * nv + v);
}

// sums[broadcast][vector] of a 1×1 convolution, over at most one chunk.
inline void wgrad_1x1(const mul_t* vectors, int nv, const mul_t* broadcasts, int nb, int groups, float unscale,
                      Accumulate accumulate, float* sums) {
  const auto run = nv % 64 == 0 ? wgrad_1x1_blocks<4, 4> : nv % 32 == 0 ? wgrad_1x1_blocks<2, 8> : wgrad_1x1_blocks<1, 16>;
  run(vectors, nv, broadcasts, nb, groups, unscale, accumulate, sums);
}

// The gradient of a 3×3 convolution's output. Every row holds the groups that start at column −1, 0, 1, …, so that one group of
// inputs meets all three kernel columns: pairs (−1, 0), (0, 1), (1, 2), …
struct ShiftedGradient {
  int height, width, channels, images = 1;
  int rows() const { return images * height; }
  int groups() const { return (width + TERMS - 1) / TERMS; }
  int starts() const { return TERMS * groups() + 3 - TERMS; }
  int64_t row() const { return int64_t{starts()} * MUL_LANES; }
  int64_t vector() const { return rows() * row(); }
  int64_t size() const { return vector() * (channels / LANES); }
};

inline void shift_columns(const FramedImages& f, const mul_t* image, const ShiftedGradient& s, mul_t* out) {
  for (int c = 0; c < f.channels; c += LANES)
    for (int y = 0; y < f.rows(); ++y)
      for (int j = 0; j < s.starts(); ++j, out += MUL_LANES)
        pair_pixels(image + y * f.row() + j * f.channels + c, f.channels, out);
}

constexpr int WGRAD_INPUTS = 8;  // inputs in a register block, times three kernel columns

// Adds a block to the sums: kernel columns lie `column` apart, inputs lie `outputs` apart.
[[gnu::always_inline]] inline void add_wgrad_block(float* sums, int64_t column, int outputs, acc_t (&sum)[3][WGRAD_INPUTS],
                                                   float unscale, Accumulate& accumulate) {
#pragma GCC unroll 3
  for (int x = 0; x < 3; ++x)
#pragma GCC unroll 16
    for (int i = 0; i < WGRAD_INPUTS; ++i)
      add_to(sums + x * column + i * outputs, sum[x][i], _mm512_set1_ps(unscale), accumulate);
  accumulate = Accumulate::ADD;
}

inline void wgrad_3x3_rows(const ShiftedGradient& s, const mul_t* g, const mul_t* a, int inputs, int ky, float unscale,
                           Accumulate accumulate, float* sums, int64_t column) {
  acc_t sum[3][WGRAD_INPUTS] = {};
  const auto flush = [&]() __attribute__((always_inline)) {
    add_wgrad_block(sums, column, s.channels, sum, unscale, accumulate);
  };
  int terms = 0;
  const int outside = ky == 2 ? 0 : ky == 0 ? s.height - 1 : -1;  // the image row that this kernel row does not meet
  for (int y = 0, inside = 0; y < s.rows(); ++y, inside = inside + 1 == s.height ? 0 : inside + 1) {
    if (inside == outside) continue;
    if (SCALED && (terms += s.groups()) > MAX_FP16_TERMS) flush(), terms = s.groups();
    // Input row y meets output row y − ky + 1.
    const mul_t* to = g + (y - ky + 1) * s.row();
    const mul_t* from = a + int64_t{y} * s.groups() * TERMS * inputs;
    for (int j = 0; j < s.groups(); ++j, to += TERMS * MUL_LANES, from += TERMS * inputs) {
      const mul_vec left = load_mul_vec(to), middle = load_mul_vec(to + MUL_LANES), right = load_mul_vec(to + 2 * MUL_LANES);
#pragma GCC unroll 16
      for (int i = 0; i < WGRAD_INPUTS; ++i) {
        const mul_vec input = broadcast(from + TERMS * i);
        sum[0][i] = multiply_add(right, input, sum[0][i]);
        sum[1][i] = multiply_add(middle, input, sum[1][i]);
        sum[2][i] = multiply_add(left, input, sum[2][i]);
      }
    }
  }
  flush();
}

// sums[row][column][input][output] of a 3×3 convolution; `a` is grouped row by row.
inline void wgrad_3x3(const ShiftedGradient& s, const mul_t* g, const mul_t* a, int inputs, float unscale,
                      Accumulate accumulate, float* sums) {
  const int64_t column = int64_t{1} * inputs * s.channels;
  for (int o = 0; o < s.channels; o += LANES)
    for (int ky = 0; ky < 3; ++ky)
      for (int i = 0; i < inputs; i += WGRAD_INPUTS)
        wgrad_3x3_rows(s, g + o / LANES * s.vector(), a + TERMS * i, inputs, ky, unscale, accumulate,
                       sums + 3 * ky * column + i * s.channels + o, column);
}

}  // namespace kilolayer
