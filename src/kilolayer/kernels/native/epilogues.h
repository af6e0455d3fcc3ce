// What is computed on a convolution's fp32 sums before they are stored. A store receives a register block: P pixels by K vectors
// of channels, the first at (pixel, c).
#pragma once
#include <cmath>

#include "simd.h"

namespace kilolayer {

// Two fp32 sums per channel, over few enough pixels; the caller adds them up in fp64.
struct Sums {
  float *first, *second;
};

// Adds the two sums of a block. pixel(p, k, first, second) adds one vector. Two chains of sums alternate, so that an addition does
// not wait for the previous one.
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
    float *first_total = sums.first + c + k * LANES, *second_total = sums.second + c + k * LANES;
    for (int i = 1; i < CHAINS; ++i) {
      first[0][k] = _mm512_add_ps(first[0][k], first[i][k]);
      second[0][k] = _mm512_add_ps(second[0][k], second[i][k]);
    }
    _mm512_storeu_ps(first_total, _mm512_add_ps(_mm512_loadu_ps(first_total), first[0][k]));
    _mm512_storeu_ps(second_total, _mm512_add_ps(_mm512_loadu_ps(second_total), second[0][k]));
  }
}

// Stores a block as bf16; the K vectors of a pixel lie side by side.
template <int P, int K>
[[gnu::always_inline]] inline void store_block(bf16* out, int channels, const vec (&y)[P][K]) {
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p) {
    bf16* to = out + int64_t{p} * channels;
    if constexpr (K == 2) store_two(to, y[p][0], y[p][1]);
    else store(to, y[p][0]);
  }
}

struct PlainStore {  // y
  bf16* out;
  int channels;
  template <int P, int K>
  [[gnu::always_inline]] void write(vec (&y)[P][K], int64_t pixel, int c) const {
    store_block(out + pixel * channels + c, channels, y);
  }
};

// The lower bound that relu() applies, or −∞ without a ReLU. It must be the first operand of the maximum, as in relu().
inline vec relu_floor(bool has_relu) { return _mm512_set1_ps(has_relu ? 0.0f : -INFINITY); }

struct BiasStore {  // y + bias, or ReLU(y + bias)
  bf16* out;
  int channels;
  const float* bias;
  vec floor;
  template <int P, int K>
  [[gnu::always_inline]] void write(vec (&y)[P][K], int64_t pixel, int c) const {
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 2
      for (int k = 0; k < K; ++k) {
        y[p][k] = _mm512_max_ps(floor, _mm512_add_ps(y[p][k], _mm512_loadu_ps(bias + c + k * LANES)));
      }
    store_block(out + pixel * channels + c, channels, y);
  }
};

struct StatisticsStore {  // y; with Σ y and Σ y² for the BN that follows
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

struct ResidualStore {  // y = h(x) + F(x); with Σ y and Σ y²
  const bf16* shortcut;
  bf16* out;
  int channels;
  Sums sums;
  template <int P, int K>
  [[gnu::always_inline]] void write(vec (&F)[P][K], int64_t pixel, int c) const {
    accumulate<P, K>(sums, c, [&](int p, int k, vec& sum, vec& squares) {
      const int64_t index = (pixel + p) * channels + c + k * LANES;
      vec& y = F[p][k];
      y = _mm512_add_ps(load(shortcut + index), y);
      sum = _mm512_add_ps(sum, y);
      squares = _mm512_fmadd_ps(y, y, squares);
    });
    store_block(out + pixel * channels + c, channels, F);
  }
};

struct ReluBackwardStore {  // the gradient g where ReLU(scale·t + shift) is open, else 0; with Σ g and Σ g·t for BN's backward pass
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
      const int64_t index = (pixel + p) * channels + c + k * LANES;
      const vec t_value = load(t + index);
      const __mmask16 open = _mm512_cmp_ps_mask(_mm512_fmadd_ps(t_value, a[k], b[k]), _mm512_setzero_ps(), _CMP_GT_OQ);
      sum = _mm512_mask_add_ps(sum, open, sum, y[p][k]);
      products = _mm512_mask3_fmadd_ps(y[p][k], t_value, products, open);
      y[p][k] = _mm512_maskz_mov_ps(open, y[p][k]);
    });
    store_block(out + pixel * channels + c, channels, y);
  }
};

}  // namespace kilolayer
