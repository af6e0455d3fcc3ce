// The numbers that convolutions multiply, in the cache, and a convolution's weights as such numbers.
//
// Maps lie in memory in bf16. What is multiplied is `num`, one of three, chosen by timing (probe.cpp):
//   fp16  one instruction adds one product to each of 32 fp16 lanes, two of them to each output channel
//   bf16  one instruction adds two products to each of 16 fp32 lanes
//   fp32  one instruction adds one product to each of 16 fp32 lanes
// TERMS numbers lie side by side along the dimension that is summed: "packed" weights group input channels, "grouped"
// activations group pixels.
#pragma once
#include <cmath>

#include "simd.h"

namespace kilolayer {

#ifdef KILOLAYER_FP32
constexpr int TERMS = 1;
using num = float;
using factor = __m512;
using total = vec;
inline factor load_factor(const num* p) { return _mm512_loadu_ps(p); }
inline factor broadcast(const num* p) { return _mm512_set1_ps(*p); }
inline total multiply_add(factor a, factor b, total sum) { return _mm512_fmadd_ps(a, b, sum); }
#else
constexpr int TERMS = 2;
#ifdef KILOLAYER_BF16
using num = bf16;
using factor = __m512bh;
using total = vec;
#else
struct half {
  uint16_t bits;
};
using num = half;
using factor = __m512h;
using total = __m512h;
#endif

inline factor load_factor(const num* p) { return (factor)_mm512_loadu_si512(p); }
inline factor broadcast(const num* p) {
  int32_t pair;
  std::memcpy(&pair, p, sizeof pair);
  return (factor)_mm512_set1_epi32(pair);
}

// 16 numbers of one pixel, then 16 of its neighbour → neighbours side by side.
inline __m512i interleave(__m512i halves) {
  return _mm512_permutexvar_epi16(INTERLEAVED.index(), halves);
}
#endif

#ifdef KILOLAYER_BF16
inline total multiply_add(factor a, factor b, total sum) { return _mm512_dpbf16_ps(sum, a, b); }
inline void store_pairs(num* p, vec first, vec second) {
  _mm512_storeu_si512(p, interleave((__m512i)_mm512_cvtne2ps_pbh(second, first)));
}
#endif

#ifdef KILOLAYER_FP16
inline total multiply_add(factor a, factor b, total sum) { return _mm512_fmadd_ph(a, b, sum); }

constexpr int NEAREST = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
inline void store(num* p, vec v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, NEAREST)); }
inline void store_pairs(num* p, vec first, vec second) {
  const __m512i halves = _mm512_castsi256_si512(_mm512_cvtps_ph(first, NEAREST));
  _mm512_storeu_si512(p, interleave(_mm512_inserti64x4(halves, _mm512_cvtps_ph(second, NEAREST), 1)));
}

inline constexpr Order EVEN([](int i) { return 2 * i % 32; });

// The two lanes of every channel, added.
inline vec widened(total sum) {
  const __m512h both = _mm512_add_ph(sum, (__m512h)_mm512_srli_epi32((__m512i)sum, 16));
  return _mm512_cvtph_ps(_mm512_castsi512_si256(_mm512_permutexvar_epi16(EVEN.index(), (__m512i)both)));
}
constexpr bool SCALED = true;
#else
inline vec widened(total sum) { return sum; }
constexpr bool SCALED = false;
#endif

constexpr int FACTOR = TERMS * LANES;  // numbers in a register that is multiplied

// fp16 reaches from 6·10⁻⁸ to 65504, and a sum of it loses as much as bf16 factors do by rounding when it has some 256
// terms a lane. So a sum is taken to fp32 after LONGEST terms, and what is multiplied is scaled by a power of two: the
// largest numbers are brought below these, whose longest sums do not overflow.
constexpr int LONGEST = 144;
constexpr float ACTIVATIONS = 32, GRADIENTS = 1, WEIGHTS = 1;

// What numbers are scaled by on their way into the cache, and the largest magnitude that came of it.
class Scaling {
 public:
  explicit Scaling(float by) : by_(_mm512_set1_ps(by)) {}
  // Neighbours in a loop differ in `g`, so that none waits for the one before it.
  vec operator()(vec v, int g = 0) {
    if constexpr (!SCALED) return v;
    v = _mm512_mul_ps(v, by_);
    vec& largest = largest_[g % 2];
    largest = _mm512_range_ps(largest, v, 0b1011);  // of the two magnitudes the larger
    return v;
  }
  float largest() const { return _mm512_reduce_max_ps(_mm512_max_ps(largest_[0], largest_[1])); }

 private:
  vec by_, largest_[2] = {};
};

// Numbers scaled alike: an image or a chunk of it, or a convolution's weights.
class Range {
 public:
  explicit Range(float limit) : limit_(limit) {}
  // write(scaling) writes all of them; once more where they did not fit.
  template <class Write>
  void fit(const Write& write) {
    Scaling scaling(scale_);
    write(scaling);
    if constexpr (!SCALED) return;
    const float most = scaling.largest();
    if (!(most > 0) || !std::isfinite(most) || (most <= limit_ && most > limit_ / 1024)) return;
    const int exponent = std::ilogb(scale_) + std::ilogb(limit_) - std::ilogb(most) - 1;  // below a limit that is a power of two
    scale_ = std::ldexp(1.0f, std::max(-126, std::min(126, exponent)));
    Scaling other(scale_);
    write(other);
  }
  float back() const { return 1 / scale_; }

 private:
  float limit_, scale_ = 1;
};

// A convolution's weights in fp32 as they lie in memory: w[o·out + i·in + y·row + x·column].
struct Weights {
  const float* data;
  int64_t out, in, row, column;
  int outputs, inputs, kernel;

  // The convolution that takes an output's gradient to the input's: transposed, and turned by 180°.
  Weights transposed() const {
    const float* last = data + (kernel - 1) * (row + column);
    return {last, in, out, -row, -column, inputs, outputs, kernel};
  }
  int vectors() const { return outputs % (2 * LANES) ? 1 : 2; }  // of outputs in a register block
  int64_t size() const { return int64_t{1} * outputs * inputs * kernel * kernel; }
};

// → [block of outputs][row][group of inputs][column][output][TERMS]; what a sum of products of them is multiplied by.
inline float pack(const Weights& w, num* packed) {
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i step = _mm512_mullo_epi32(lane, _mm512_set1_epi32(static_cast<int>(w.out)));
  const int width = w.vectors() * LANES;
  Range range(WEIGHTS);
  range.fit([&](Scaling& scaled) {
    num* to = packed;
    for (int block = 0; block < w.outputs; block += width)
      for (int y = 0; y < w.kernel; ++y)
        for (int i = 0; i < w.inputs; i += TERMS)
          for (int x = 0; x < w.kernel; ++x)
            for (int o = block; o < block + width; o += LANES, to += FACTOR) {
              const float* first = w.data + o * w.out + i * w.in + y * w.row + x * w.column;
              const vec weights = scaled(_mm512_i32gather_ps(step, first, 4));
#ifdef KILOLAYER_FP32
              store(to, weights);
#else
              store_pairs(to, weights, scaled(_mm512_i32gather_ps(step, first + w.in, 4)));
#endif
            }
  });
  return range.back();
}

}  // namespace kilolayer
