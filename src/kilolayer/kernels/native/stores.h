// What happens to a convolution's fp32 sums while they are written: a register block of P pixels by K
// vectors of channels, the first at (pixel, c).
#pragma once
#include <cmath>

#include "simd.h"

namespace kilolayer {

// Two sums per channel in fp32, over few enough pixels; the caller adds them up in fp64.
struct Sums {
  float *first, *second;
};

// Adds a block's two sums up; pixel(p, k, first, second) adds one vector. Two pixels at a time, so that no sum waits
// for the one before it.
template <int P, int K, class Pixel>
inline void accumulate(const Sums& sums, int c, const Pixel& pixel) {
  constexpr int CHAINS = P < 2 ? 1 : 2;
  vec first[CHAINS][K] = {}, second[CHAINS][K] = {};
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p)
#pragma GCC unroll 2
    for (int k = 0; k < K; ++k) pixel(p, k, first[p % CHAINS][k], second[p % CHAINS][k]);
#pragma GCC unroll 2
  for (int k = 0; k < K; ++k) {
    float *one = sums.first + c + k * LANES, *two = sums.second + c + k * LANES;
    for (int i = 1; i < CHAINS; ++i) {
      first[0][k] = _mm512_add_ps(first[0][k], first[i][k]);
      second[0][k] = _mm512_add_ps(second[0][k], second[i][k]);
    }
    _mm512_storeu_ps(one, _mm512_add_ps(_mm512_loadu_ps(one), first[0][k]));
    _mm512_storeu_ps(two, _mm512_add_ps(_mm512_loadu_ps(two), second[0][k]));
  }
}

// A block, as bf16: its K vectors of a pixel lie side by side.
template <int P, int K>
[[gnu::always_inline]] inline void store_block(bf16* out, int channels, const vec (&y)[P][K]) {
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p) {
    bf16* to = out + int64_t{p} * channels;
    if constexpr (K == 2) store_two(to, y[p][0], y[p][1]);
    else store(to, y[p][0]);
  }
}

struct Written {  // the numbers themselves
  bf16* out;
  int channels;
  template <int P, int K>
  [[gnu::always_inline]] void write(vec (&y)[P][K], int64_t pixel, int c) const {
    store_block(out + pixel * channels + c, channels, y);
  }
};

// What ReLU lets through at least, or what no ReLU does: the first operand of a maximum, as in relu().
inline vec least(bool rectified) { return _mm512_set1_ps(rectified ? 0.0f : -INFINITY); }

struct Biased {  // y + bias, or ReLU of that
  bf16* out;
  int channels;
  const float* bias;
  vec least;
  template <int P, int K>
  [[gnu::always_inline]] void write(vec (&y)[P][K], int64_t pixel, int c) const {
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 2
      for (int k = 0; k < K; ++k) {
        y[p][k] = _mm512_max_ps(least, _mm512_add_ps(y[p][k], _mm512_loadu_ps(bias + c + k * LANES)));
      }
    store_block(out + pixel * channels + c, channels, y);
  }
};

struct WithStatistics {  // the numbers themselves; Σ y and Σ y² for the BN that follows
  bf16* out;
  int channels;
  Sums sums;
  template <int P, int K>
  [[gnu::always_inline]] void write(vec (&y)[P][K], int64_t pixel, int c) const {
    accumulate<P, K>(sums, c, [&](int p, int k, vec& sum, vec& squares) {
      sum = _mm512_add_ps(sum, y[p][k]);
      squares = _mm512_fmadd_ps(y[p][k], y[p][k], squares);
    });
    store_block(out + pixel * channels + c, channels, y);
  }
};

struct Added {  // h(x) + F(x), with its statistics
  const bf16* shortcut;
  bf16* out;
  int channels;
  Sums sums;
  template <int P, int K>
  [[gnu::always_inline]] void write(vec (&F)[P][K], int64_t pixel, int c) const {
    accumulate<P, K>(sums, c, [&](int p, int k, vec& sum, vec& squares) {
      const int64_t here = (pixel + p) * channels + c + k * LANES;
      vec& y = F[p][k];
      y = _mm512_add_ps(load(shortcut + here), y);
      sum = _mm512_add_ps(sum, y);
      squares = _mm512_fmadd_ps(y, y, squares);
    });
    store_block(out + pixel * channels + c, channels, F);
  }
};

struct Masked {  // the gradient where ReLU(scale·t + shift) let t through; Σ g and Σ g·t for BN
  const bf16* t;
  bf16* out;
  int channels;
  const float *scale, *shift;
  Sums sums;
  template <int P, int K>
  [[gnu::always_inline]] void write(vec (&y)[P][K], int64_t pixel, int c) const {
    vec a[K], b[K];
    for (int k = 0; k < K; ++k) a[k] = _mm512_loadu_ps(scale + c + k * LANES), b[k] = _mm512_loadu_ps(shift + c + k * LANES);
    accumulate<P, K>(sums, c, [&](int p, int k, vec& sum, vec& products) {
      const int64_t here = (pixel + p) * channels + c + k * LANES;
      const vec before = load(t + here);
      const __mmask16 open = _mm512_cmp_ps_mask(_mm512_fmadd_ps(before, a[k], b[k]), _mm512_setzero_ps(), _CMP_GT_OQ);
      sum = _mm512_mask_add_ps(sum, open, sum, y[p][k]);
      products = _mm512_mask3_fmadd_ps(y[p][k], before, products, open);
      y[p][k] = _mm512_maskz_mov_ps(open, y[p][k]);
    });
    store_block(out + pixel * channels + c, channels, y);
  }
};

}  // namespace kilolayer
