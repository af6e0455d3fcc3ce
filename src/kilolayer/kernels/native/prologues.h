// What is computed on a tensor while a convolution reads it: nothing, BN-ReLU, or BN's backward pass.
//
// A load gives a lane for 16 channels; a lane gives the 16 fp32 numbers of a pixel.
#pragma once
#include <algorithm>

#include "mul_types.h"

namespace kilolayer {

// Prefetches `count` numbers from `first` on. This is assembly because GCC treats a function that only calls __builtin_prefetch
// as one without effects and removes it.
inline void prefetch_range(const bf16* first, int count) {
  for (int i = 0; i < count; i += 32) asm volatile("prefetcht0 %0" : : "m"(first[i]));
}

struct IdentityLoad {  // t
  const bf16* t;
  int channels;
  struct Lane {
    const bf16* t;
    int channels;
    vec operator()(int64_t pixel) const { return load(t + pixel * channels); }
  };
  Lane lane(int c) const { return {t + c, channels}; }
  void prefetch(int64_t pixel, int count) const { prefetch_range(t + pixel * channels, count * channels); }
};

struct ZeroLoad {  // zeros
  struct Lane {
    vec operator()(int64_t) const { return _mm512_setzero_ps(); }
  };
  Lane lane(int) const { return {}; }
};

struct AffineLoad {  // scale·t + shift
  const bf16* t;
  int channels;
  const float *scale, *shift;
  struct Lane {
    const bf16* t;
    int channels;
    vec scale, shift;
    vec operator()(int64_t pixel) const { return _mm512_fmadd_ps(load(t + pixel * channels), scale, shift); }
  };
  Lane lane(int c) const { return {t + c, channels, _mm512_loadu_ps(scale + c), _mm512_loadu_ps(shift + c)}; }
  void prefetch(int64_t pixel, int count) const { prefetch_range(t + pixel * channels, count * channels); }
};

struct BnReluLoad : AffineLoad {  // ReLU(scale·t + shift)
  struct Lane {
    AffineLoad::Lane affine;
    vec operator()(int64_t pixel) const { return relu(affine(pixel)); }
  };
  Lane lane(int c) const { return {AffineLoad::lane(c)}; }
};

struct BnBackwardLoad {  // alpha·g + beta·t + gamma, with coefficients of the batch: the gradient of BN's input
  const bf16 *g, *t;
  int channels;
  const float *alpha, *beta, *gamma;
  struct Lane {
    const bf16 *g, *t;
    int channels;
    vec alpha, beta, gamma;
    vec operator()(int64_t pixel) const {
      const vec constant = _mm512_fmadd_ps(load(t + pixel * channels), beta, gamma);
      return _mm512_fmadd_ps(load(g + pixel * channels), alpha, constant);
    }
  };
  Lane lane(int c) const {
    return {g + c, t + c, channels, _mm512_loadu_ps(alpha + c), _mm512_loadu_ps(beta + c), _mm512_loadu_ps(gamma + c)};
  }
  void prefetch(int64_t pixel, int count) const {
    prefetch_range(g + pixel * channels, count * channels);
    prefetch_range(t + pixel * channels, count * channels);
  }
};

// Calls visit(lanes, c) for groups of 64, 32 or 16 channels, which lie side by side in memory. Visitors capture by value: the
// compiler would reload a reference after every store, since the store could alias it.
template <int G, class Source, class Visit>
void by_group(const Source& source, const Visit& visit) {
  for (int c = 0; c < source.channels; c += G * LANES) {
    typename Source::Lane lanes[G];
    for (int g = 0; g < G; ++g) lanes[g] = source.lane(c + g * LANES);
    visit(lanes, c);
  }
}

template <class Source, class Visit>
void by_lanes(const Source& source, const Visit& visit) {
  if (source.channels % (4 * LANES) == 0) by_group<4>(source, visit);
  else if (source.channels % (2 * LANES) == 0) by_group<2>(source, visit);
  else by_group<1>(source, visit);
}

// Calls act(pixel, count) for as many pixels at a time as stay in the cache while all their channels are visited.
template <class Act>
void by_pixels(int64_t first, int64_t last, int channels, const Act& act) {
  const int size = std::max(8, 8192 / channels / 2 * 2);
  for (int64_t p = first; p < last; p += size) act(p, int(std::min<int64_t>(size, last - p)));
}

struct Unscaled {
  vec operator()(vec v, int) const { return v; }
};

// Writes `count` pixels from `pixel` on as [pixel][channel]; change(vec, g) is applied to every vector before it is written.
template <class Source, class Number, class Change>
void fill(const Source& source, int64_t pixel, int count, Number* out, Change& change) {
  by_pixels(0, count, source.channels, [&](int first, int size) {
    by_lanes(source, [=, channels = source.channels, &change](const auto& lanes, int c) {
      auto copy = change;
      Number* to = out + first * channels + c;
      for (int p = first; p < first + size; ++p, to += channels) {
        int g = 0;
        for (const auto& lane : lanes) {
          store(to + g * LANES, copy(lane(pixel + p), g));
          ++g;
        }
      }
      change = copy;
    });
  });
}

#ifndef KILOLAYER_FP32
// Writes [pair of pixels][channel][2]; the last pixel is paired with zeros if it has no neighbour.
template <class Source>
void fill_grouped(const Source& source, int64_t pixel, int count, mul_t* out, Scaling& scaled) {
  by_pixels(0, count, source.channels, [&](int first, int size) {
    by_lanes(source, [=, channels = source.channels, &scaled](const auto& lanes, int c) {
      auto copy = scaled;
      mul_t* to = out + first * channels + 2 * c;
      for (int p = first; p < first + size; p += 2, to += 2 * channels) {
        int g = 0;
        for (const auto& lane : lanes) {
          const vec second = p + 1 < count ? copy(lane(pixel + p + 1), g + 1) : _mm512_setzero_ps();
          store_pairs(to + g * MUL_LANES, copy(lane(pixel + p), g), second);
          ++g;
        }
      }
      scaled = copy;
    });
  });
}

// Interleaves 16 channels of two neighbouring pixels, or of one pixel with zeros.
inline void pair_pixels(const mul_t* pixel, int channels, mul_t* out, bool last = false) {
  const __m256i first = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(pixel));
  const __m256i second = last ? _mm256_setzero_si256() : _mm256_loadu_si256(reinterpret_cast<const __m256i*>(pixel + channels));
  const __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(first), second, 1);
  _mm512_storeu_si512(out, interleave(both));
}

// Rearranges [pixel][channel] to [pair of pixels][channel][2] in `buffer`.
inline const mul_t* pair_all_pixels(const mul_t* in, int channels, int count, mul_t* buffer) {
  for (int p = 0; p < count; p += 2)
    for (int c = 0; c < channels; c += LANES)
      pair_pixels(in + p * channels + c, channels, buffer + p * channels + 2 * c, p + 1 == count);
  return buffer;
}
#else  // a group is one pixel
template <class Source>
void fill_grouped(const Source& source, int64_t pixel, int count, mul_t* out, Scaling& scaled) {
  fill(source, pixel, count, out, scaled);
}

inline void pair_pixels(const mul_t* pixel, int, mul_t* out) { store(out, load_mul_vec(pixel)); }

inline const mul_t* pair_all_pixels(const mul_t* in, int, int, mul_t*) { return in; }
#endif

}  // namespace kilolayer
