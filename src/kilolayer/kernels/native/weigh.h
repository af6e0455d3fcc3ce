// Gradients of the weights: dw[i][o] = Σ a[p]·g[p'] over the pixels of a chunk or an image, added to fp32 sums.
//
// Both factors are paired over pixels. The longer side lies in vectors, the other is broadcast.
#pragma once
#include <algorithm>

#include "convolve.h"

namespace kilolayer {

template <int V, int B>
void weigh_block(const bf16* vectors, int nv, const bf16* broadcasts, int nb, int pairs, float* sums) {
  vec sum[B][V];
  for (int b = 0; b < B; ++b)
    for (int v = 0; v < V; ++v) sum[b][v] = _mm512_loadu_ps(sums + b * nv + v * LANES);
  for (int p = 0; p < pairs; ++p, vectors += 2 * nv, broadcasts += 2 * nb) {
    __m512bh vector[V];
    for (int v = 0; v < V; ++v) vector[v] = load_pairs(vectors + v * 2 * LANES);
#pragma GCC unroll 16
    for (int b = 0; b < B; ++b) {
      const __m512bh one = broadcast_pair(broadcasts + 2 * b);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[b][v] = _mm512_dpbf16_ps(sum[b][v], vector[v], one);
    }
  }
  for (int b = 0; b < B; ++b)
    for (int v = 0; v < V; ++v) _mm512_storeu_ps(sums + b * nv + v * LANES, sum[b][v]);
}

template <int V, int B>
void weigh_blocks(const bf16* vectors, int nv, const bf16* broadcasts, int nb, int pairs, float* sums) {
  for (int b = 0; b < nb; b += B)
    for (int v = 0; v < nv; v += V * LANES)
      weigh_block<V, B>(vectors + 2 * v, nv, broadcasts + 2 * b, nb, pairs, sums + b * nv + v);
}

// sums[broadcast][vector] of a 1×1 convolution.
inline void weigh_1x1(const bf16* vectors, int nv, const bf16* broadcasts, int nb, int pairs, float* sums) {
  const auto run = nv % 64 == 0 ? weigh_blocks<4, 4> : nv % 32 == 0 ? weigh_blocks<2, 8> : weigh_blocks<1, 16>;
  run(vectors, nv, broadcasts, nb, pairs, sums);
}

// The gradient of a 3×3 convolution's output, for every row its pairs at odd and at even columns in turn:
// (−1, 0), (0, 1), (1, 2) … so that a pair of inputs meets all three columns of the kernel.
struct Shifted {
  int height, width, channels;
  int pairs() const { return (width + 1) / 2; }
  int64_t row() const { return int64_t{2 * pairs() + 1} * 2 * LANES; }
  int64_t vector() const { return height * row(); }
  int64_t size() const { return vector() * (channels / LANES); }
};

inline void shift(const Framed& f, const bf16* image, const Shifted& s, bf16* out) {
  for (int c = 0; c < f.channels; c += LANES)
    for (int y = 0; y < f.height; ++y)
      for (int j = 0; j <= 2 * s.pairs(); ++j, out += 2 * LANES)
        pair(image + y * f.row() + j * f.channels + c, f.channels, out);
}

constexpr int TALL = 8;  // inputs in a register block, by three columns

inline void weigh_rows(const Shifted& s, const bf16* g, const bf16* a, int inputs, int ky, float* sums, int64_t column) {
  vec sum[3][TALL];
  for (int x = 0; x < 3; ++x)
    for (int i = 0; i < TALL; ++i) sum[x][i] = _mm512_loadu_ps(sums + x * column + i * s.channels);
  const int first = ky == 2 ? 1 : 0, last = ky == 0 ? s.height - 1 : s.height;
  for (int y = first; y < last; ++y) {
    // Input row y meets output row y − ky + 1.
    const bf16* to = g + (y - ky + 1) * s.row();
    const bf16* from = a + int64_t{y} * s.pairs() * 2 * inputs;
    for (int j = 0; j < s.pairs(); ++j, to += 4 * LANES, from += 2 * inputs) {
      const __m512bh left = load_pairs(to), middle = load_pairs(to + 2 * LANES), right = load_pairs(to + 4 * LANES);
#pragma GCC unroll 16
      for (int i = 0; i < TALL; ++i) {
        const __m512bh one = broadcast_pair(from + 2 * i);
        sum[0][i] = _mm512_dpbf16_ps(sum[0][i], right, one);
        sum[1][i] = _mm512_dpbf16_ps(sum[1][i], middle, one);
        sum[2][i] = _mm512_dpbf16_ps(sum[2][i], left, one);
      }
    }
  }
  for (int x = 0; x < 3; ++x)
    for (int i = 0; i < TALL; ++i) _mm512_storeu_ps(sums + x * column + i * s.channels, sum[x][i]);
}

// sums[row][column][input][output] of a 3×3 convolution; `a` is paired row by row.
inline void weigh_3x3(const Shifted& s, const bf16* g, const bf16* a, int inputs, float* sums) {
  const int64_t column = int64_t{1} * inputs * s.channels;
  for (int o = 0; o < s.channels; o += LANES)
    for (int ky = 0; ky < 3; ++ky)
      for (int i = 0; i < inputs; i += TALL)
        weigh_rows(s, g + o / LANES * s.vector(), a + 2 * i, inputs, ky, sums + 3 * ky * column + i * s.channels + o, column);
}

}  // namespace kilolayer
