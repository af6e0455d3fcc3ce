// Gradients of the weights: dw[i][o] = Σ a[p]·g[p'] over the pixels of a chunk or an image, added to fp32 sums.
//
// Both factors are grouped over pixels. The longer side lies in vectors, the other is broadcast.
#pragma once
#include <algorithm>

#include "convolve.h"

namespace kilolayer {

constexpr int CHUNK = 128;  // pixels of a 1×1 convolution in the cache at once

// Of one whose weights and their gradients do not stay there from chunk to chunk.
inline int chunk_of(const Weights& w) { return wide(w) ? 2 * CHUNK : CHUNK; }

// Whether sums in memory are added to, or begin.
enum class Sum : __mmask16 { BEGINS = 0, GOES_ON = 0xffff };

// sums += back·sum, or = where they begin; the sum begins again.
[[gnu::always_inline]] inline void add_to(float* sums, total& sum, vec back, Sum so_far) {
  const vec before = _mm512_maskz_loadu_ps(static_cast<__mmask16>(so_far), sums);
  _mm512_storeu_ps(sums, SCALED ? _mm512_fmadd_ps(widened(sum), back, before) : _mm512_add_ps(widened(sum), before));
  sum = total{};
}

template <int V, int B>
void weigh_block(const num* vectors, int nv, const num* broadcasts, int nb, int groups, float back, Sum so_far, float* sums) {
  static_assert(2 * CHUNK / TERMS <= LONGEST || !SCALED);
  total sum[B][V] = {};
  for (int p = 0; p < groups; ++p, vectors += TERMS * nv, broadcasts += TERMS * nb) {
    factor vector[V];
    for (int v = 0; v < V; ++v) vector[v] = load_factor(vectors + v * FACTOR);
#pragma GCC unroll 16
    for (int b = 0; b < B; ++b) {
      const factor one = broadcast(broadcasts + TERMS * b);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[b][v] = multiply_add(vector[v], one, sum[b][v]);
    }
  }
#pragma GCC unroll 16
  for (int b = 0; b < B; ++b)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) add_to(sums + b * nv + v * LANES, sum[b][v], _mm512_set1_ps(back), so_far);
}

template <int V, int B>
void weigh_blocks(const num* vectors, int nv, const num* broadcasts, int nb, int groups, float back, Sum so_far, float* sums) {
  for (int v = 0; v < nv; v += V * LANES)
    for (int b = 0; b < nb; b += B)
      weigh_block<V, B>(vectors + TERMS * v, nv, broadcasts + TERMS * b, nb, groups, back, so_far, sums + b * nv + v);
}

// sums[broadcast][vector] of a 1×1 convolution, of at most a chunk.
inline void weigh_1x1(const num* vectors, int nv, const num* broadcasts, int nb, int groups, float back, Sum so_far, float* sums) {
  const auto run = nv % 64 == 0 ? weigh_blocks<4, 4> : nv % 32 == 0 ? weigh_blocks<2, 8> : weigh_blocks<1, 16>;
  run(vectors, nv, broadcasts, nb, groups, back, so_far, sums);
}

// The gradient of a 3×3 convolution's output, for every row its groups that begin at −1, 0, 1 … in turn, so that a
// group of inputs meets all three columns of the kernel: of pairs (−1, 0), (0, 1), (1, 2) …
struct Shifted {
  int height, width, channels, images = 1;
  int rows() const { return images * height; }
  int groups() const { return (width + TERMS - 1) / TERMS; }
  int starts() const { return TERMS * groups() + 3 - TERMS; }
  int64_t row() const { return int64_t{starts()} * FACTOR; }
  int64_t vector() const { return rows() * row(); }
  int64_t size() const { return vector() * (channels / LANES); }
};

inline void shift(const Framed& f, const num* image, const Shifted& s, num* out) {
  for (int c = 0; c < f.channels; c += LANES)
    for (int y = 0; y < f.rows(); ++y)
      for (int j = 0; j < s.starts(); ++j, out += FACTOR)
        group(image + y * f.row() + j * f.channels + c, f.channels, out);
}

constexpr int TALL = 8;  // inputs in a register block, by three columns

// The block, added to sums that lie `column` apart from column to column and `outputs` from input to input.
[[gnu::always_inline]] inline void add_rows_to(float* sums, int64_t column, int outputs, total (&sum)[3][TALL], float back, Sum& so_far) {
#pragma GCC unroll 3
  for (int x = 0; x < 3; ++x)
#pragma GCC unroll 16
    for (int i = 0; i < TALL; ++i) add_to(sums + x * column + i * outputs, sum[x][i], _mm512_set1_ps(back), so_far);
  so_far = Sum::GOES_ON;
}

inline void weigh_rows(const Shifted& s, const num* g, const num* a, int inputs, int ky, float back, Sum so_far,
                       float* sums, int64_t column) {
  total sum[3][TALL] = {};
  const auto settle = [&]() __attribute__((always_inline)) { add_rows_to(sums, column, s.channels, sum, back, so_far); };
  int terms = 0;
  const int outside = ky == 2 ? 0 : ky == 0 ? s.height - 1 : -1;  // the row of an image that meets none
  for (int y = 0, inside = 0; y < s.rows(); ++y, inside = inside + 1 == s.height ? 0 : inside + 1) {
    if (inside == outside) continue;
    if (SCALED && (terms += s.groups()) > LONGEST) settle(), terms = s.groups();
    // Input row y meets output row y − ky + 1.
    const num* to = g + (y - ky + 1) * s.row();
    const num* from = a + int64_t{y} * s.groups() * TERMS * inputs;
    for (int j = 0; j < s.groups(); ++j, to += TERMS * FACTOR, from += TERMS * inputs) {
      const factor left = load_factor(to), middle = load_factor(to + FACTOR), right = load_factor(to + 2 * FACTOR);
#pragma GCC unroll 16
      for (int i = 0; i < TALL; ++i) {
        const factor one = broadcast(from + TERMS * i);
        sum[0][i] = multiply_add(right, one, sum[0][i]);
        sum[1][i] = multiply_add(middle, one, sum[1][i]);
        sum[2][i] = multiply_add(left, one, sum[2][i]);
      }
    }
  }
  settle();
}

// sums[row][column][input][output] of a 3×3 convolution; `a` is grouped row by row.
inline void weigh_3x3(const Shifted& s, const num* g, const num* a, int inputs, float back, Sum so_far, float* sums) {
  const int64_t column = int64_t{1} * inputs * s.channels;
  for (int o = 0; o < s.channels; o += LANES)
    for (int ky = 0; ky < 3; ++ky)
      for (int i = 0; i < inputs; i += TALL)
        weigh_rows(s, g + o / LANES * s.vector(), a + TERMS * i, inputs, ky, back, so_far, sums + 3 * ky * column + i * s.channels + o, column);
}

}  // namespace kilolayer
