// What happens to a tensor while it is read: nothing, BN and ReLU, or BN's backward pass.
//
// A source gives for 16 channels a lane; a lane gives for a pixel its 16 numbers in fp32.
#pragma once
#include <algorithm>

#include "products.h"

namespace kilolayer {

// Asks for `count` numbers from `first` on, so that they are in the cache when they are needed. In assembly, for
// GCC takes a function that does nothing but __builtin_prefetch for one without effect, and drops it.
inline void fetch(const bf16* first, int count) {
  for (int i = 0; i < count; i += 32) asm volatile("prefetcht0 %0" : : "m"(first[i]));
}

struct Plain {  // t
  const bf16* t;
  int channels;
  struct Lane {
    const bf16* t;
    int channels;
    vec operator()(int64_t pixel) const { return load(t + pixel * channels); }
  };
  Lane lane(int c) const { return {t + c, channels}; }
  void expect(int64_t pixel, int count) const { fetch(t + pixel * channels, count * channels); }
};

struct Nothing {  // zeros
  struct Lane {
    vec operator()(int64_t) const { return _mm512_setzero_ps(); }
  };
  Lane lane(int) const { return {}; }
};

struct Affine {  // scale·t + shift
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
  void expect(int64_t pixel, int count) const { fetch(t + pixel * channels, count * channels); }
};

struct Activated : Affine {  // ReLU(scale·t + shift)
  struct Lane {
    Affine::Lane affine;
    vec operator()(int64_t pixel) const { return relu(affine(pixel)); }
  };
  Lane lane(int c) const { return {Affine::lane(c)}; }
};

struct Normalised {  // alpha·g + beta·t + gamma, with the batch's own coefficients: the gradient before BN
  const bf16 *g, *t;
  int channels;
  const float *alpha, *beta, *gamma;
  struct Lane {
    const bf16 *g, *t;
    int channels;
    vec alpha, beta, gamma;
    vec operator()(int64_t pixel) const {
      const vec rest = _mm512_fmadd_ps(load(t + pixel * channels), beta, gamma);
      return _mm512_fmadd_ps(load(g + pixel * channels), alpha, rest);
    }
  };
  Lane lane(int c) const {
    return {g + c, t + c, channels, _mm512_loadu_ps(alpha + c), _mm512_loadu_ps(beta + c), _mm512_loadu_ps(gamma + c)};
  }
  void expect(int64_t pixel, int count) const {
    fetch(g + pixel * channels, count * channels);
    fetch(t + pixel * channels, count * channels);
  }
};

// Calls visit(lanes, c) for the channels from c on, by 64, 32 or 16 of them: so many lie side by side in memory. A visitor
// takes what it needs by value: what may lie where it writes would be read again for every number.
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

// act(pixel, count) for as many pixels at a time as stay in the cache while their channels are gone through.
template <class Act>
void by_pixels(int64_t first, int64_t last, int channels, const Act& act) {
  const int size = std::max(8, 8192 / channels / 2 * 2);
  for (int64_t p = first; p < last; p += size) act(p, int(std::min<int64_t>(size, last - p)));
}

struct Unchanged {
  vec operator()(vec v, int) const { return v; }
};

// `count` pixels from `pixel` on → [pixel][channel]; change(vec, g) is what happens to each number before it is written.
template <class Source, class Number, class Change>
void fill(const Source& source, int64_t pixel, int count, Number* out, Change& change) {
  by_pixels(0, count, source.channels, [&](int first, int some) {
    by_lanes(source, [=, channels = source.channels, &change](const auto& lanes, int c) {
      auto own = change;
      Number* to = out + first * channels + c;
      for (int p = first; p < first + some; ++p, to += channels) {
        int g = 0;
        for (const auto& lane : lanes) {
          store(to + g * LANES, own(lane(pixel + p), g));
          ++g;
        }
      }
      change = own;
    });
  });
}

#ifndef KILOLAYER_FP32
// → [pair of pixels][channel][2]; a last pixel without a neighbour gets zeros beside it.
template <class Source>
void fill_grouped(const Source& source, int64_t pixel, int count, num* out, Scaling& scaled) {
  by_pixels(0, count, source.channels, [&](int first, int some) {
    by_lanes(source, [=, channels = source.channels, &scaled](const auto& lanes, int c) {
      auto own = scaled;
      num* to = out + first * channels + 2 * c;
      for (int p = first; p < first + some; p += 2, to += 2 * channels) {
        int g = 0;
        for (const auto& lane : lanes) {
          const vec second = p + 1 < count ? own(lane(pixel + p + 1), g + 1) : _mm512_setzero_ps();
          store_pairs(to + g * FACTOR, own(lane(pixel + p), g), second);
          ++g;
        }
      }
      scaled = own;
    });
  });
}

// 16 channels of two neighbouring pixels, or of one and zeros, interleaved.
inline void group(const num* pixel, int channels, num* out, bool last = false) {
  const __m256i first = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(pixel));
  const __m256i second = last ? _mm256_setzero_si256() : _mm256_loadu_si256(reinterpret_cast<const __m256i*>(pixel + channels));
  const __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(first), second, 1);
  _mm512_storeu_si512(out, interleave(both));
}

// [pixel][channel] → [pair of pixels][channel][2], in `room`.
inline const num* grouped(const num* in, int channels, int count, num* room) {
  for (int p = 0; p < count; p += 2)
    for (int c = 0; c < channels; c += LANES)
      group(in + p * channels + c, channels, room + p * channels + 2 * c, p + 1 == count);
  return room;
}
#else  // a group is one pixel
template <class Source>
void fill_grouped(const Source& source, int64_t pixel, int count, num* out, Scaling& scaled) {
  fill(source, pixel, count, out, scaled);
}

inline void group(const num* pixel, int, num* out) { store(out, load_factor(pixel)); }

inline const num* grouped(const num* in, int, int, num*) { return in; }
#endif

}  // namespace kilolayer
