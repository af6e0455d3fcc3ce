// The type that convolutions multiply, `mul_t`, and the packed weights of a convolution.
//
// Feature maps are bf16 in memory. mul_t is one of three types, chosen by timing (probe.cpp):
//   fp16  one instruction adds one product to each of 32 fp16 lanes, two lanes per output channel
//   bf16  one instruction adds two products to each of 16 fp32 lanes
//   fp32  one instruction adds one product to each of 16 fp32 lanes
// TERMS numbers lie side by side along the dimension that is summed: packed weights group input channels, grouped activations
// group pixels.
#pragma once
#include <cmath>

#include "simd.h"

namespace kilolayer {

#ifdef KILOLAYER_FP32
constexpr int TERMS = 1;
using mul_t = float;
using mul_vec = __m512;
using acc_t = vec;
inline mul_vec load_mul_vec(const mul_t* p) { return _mm512_loadu_ps(p); }
inline mul_vec broadcast(const mul_t* p) { return _mm512_set1_ps(*p); }
inline acc_t multiply_add(mul_vec a, mul_vec b, acc_t sum) { return _mm512_fmadd_ps(a, b, sum); }
#else
constexpr int TERMS = 2;
#ifdef KILOLAYER_BF16
using mul_t = bf16;
using mul_vec = __m512bh;
using acc_t = vec;
#else
struct half {
  uint16_t bits;
};
using mul_t = half;
using mul_vec = __m512h;
using acc_t = __m512h;
#endif

inline mul_vec load_mul_vec(const mul_t* p) { return (mul_vec)_mm512_loadu_si512(p); }
inline mul_vec broadcast(const mul_t* p) {
  int32_t pair;
  std::memcpy(&pair, p, sizeof pair);
  return (mul_vec)_mm512_set1_epi32(pair);
}

// Interleaves 16 numbers of one pixel with the 16 numbers of its neighbour.
inline __m512i interleave(__m512i halves) {
  return _mm512_permutexvar_epi16(INTERLEAVED.index(), halves);
}
#endif

#ifdef KILOLAYER_BF16
inline acc_t multiply_add(mul_vec a, mul_vec b, acc_t sum) { return _mm512_dpbf16_ps(sum, a, b); }
inline void store_pairs(mul_t* p, vec first, vec second) {
  _mm512_storeu_si512(p, interleave((__m512i)_mm512_cvtne2ps_pbh(second, first)));
}
#endif

#ifdef KILOLAYER_FP16
inline acc_t multiply_add(mul_vec a, mul_vec b, acc_t sum) { return _mm512_fmadd_ph(a, b, sum); }

constexpr int NEAREST = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
inline void store(mul_t* p, vec v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, NEAREST)); }
inline void store_pairs(mul_t* p, vec first, vec second) {
  const __m512i halves = _mm512_castsi256_si512(_mm512_cvtps_ph(first, NEAREST));
  _mm512_storeu_si512(p, interleave(_mm512_inserti64x4(halves, _mm512_cvtps_ph(second, NEAREST), 1)));
}

inline constexpr Permutation EVEN([](int i) { return 2 * i % 32; });

// Adds the two lanes of every channel.
inline vec to_fp32(acc_t sum) {
  const __m512h both = _mm512_add_ph(sum, (__m512h)_mm512_srli_epi32((__m512i)sum, 16));
  return _mm512_cvtph_ps(_mm512_castsi512_si256(_mm512_permutexvar_epi16(EVEN.index(), (__m512i)both)));
}
constexpr bool SCALED = true;
#else
inline vec to_fp32(acc_t sum) { return sum; }
constexpr bool SCALED = false;
#endif

constexpr int MUL_LANES = TERMS * LANES;  // numbers in one register of mul_t

// fp16 covers 6·10⁻⁸ to 65504. With about 256 terms per lane, an fp16 sum loses as much precision as bf16 operands lose by rounding.
// So a sum is converted to fp32 after MAX_FP16_TERMS terms, and operands are scaled by a power of two: the largest magnitude is
// brought below these limits, at which the longest sum cannot overflow.
constexpr int MAX_FP16_TERMS = 144;
constexpr float ACTIVATION_LIMIT = 32, GRADIENT_LIMIT = 1, WEIGHT_LIMIT = 1;

// Multiplies numbers by a scale on their way into the cache, and records the largest magnitude.
class Scaling {
 public:
  explicit Scaling(float factor) : factor_(_mm512_set1_ps(factor)) {}
  // Consecutive calls in a loop pass a different `g`, so that an update does not wait for the previous one.
  vec operator()(vec v, int g = 0) {
    if constexpr (!SCALED) return v;
    v = _mm512_mul_ps(v, factor_);
    vec& largest = largest_[g % 2];
    largest = _mm512_range_ps(largest, v, 0b1011);  // the larger of the two magnitudes
    return v;
  }
  float largest() const { return _mm512_reduce_max_ps(_mm512_max_ps(largest_[0], largest_[1])); }

 private:
  vec factor_, largest_[2] = {};
};

// A common scale for numbers: an image, a chunk of one, or the weights of a convolution.
class ScaleRange {
 public:
  explicit ScaleRange(float limit) : limit_(limit) {}
  // write(scaling) writes all of the numbers; it is called again with a better scale if they did not fit.
  template <class Write>
  void fit(const Write& write) {
    Scaling scaling(scale_);
    write(scaling);
    if constexpr (!SCALED) return;
    const float most = scaling.largest();
    if (!(most > 0) || !std::isfinite(most) || (most <= limit_ && most > limit_ / 1024)) return;
    // The limit is a power of two; stay below it.
    const int exponent = std::ilogb(scale_) + std::ilogb(limit_) - std::ilogb(most) - 1;
    scale_ = std::ldexp(1.0f, std::max(-126, std::min(126, exponent)));
    Scaling other(scale_);
    write(other);
  }
  float unscale() const { return 1 / scale_; }

 private:
  float limit_, scale_ = 1;
};

// The fp32 weights of a convolution in memory: w[o·out + i·in + y·row + x·column].
struct Weights {
  const float* data;
  int64_t out, in, row, column;
  int outputs, inputs, kernel;

  // The convolution of the backward pass (dgrad): inputs and outputs swapped, the kernel turned by 180°.
  Weights transposed() const {
    const float* last = data + (kernel - 1) * (row + column);
    return {last, in, out, -row, -column, inputs, outputs, kernel};
  }
  int vectors() const { return outputs % (2 * LANES) ? 1 : 2; }  // vectors of outputs in a register block
  int64_t size() const { return int64_t{1} * outputs * inputs * kernel * kernel; }
};

// Packs weights as [block of outputs][row][group of inputs][column][output][TERMS]. Returns the factor that removes their scale
// from a sum of products.
inline float pack(const Weights& w, mul_t* packed) {
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i step = _mm512_mullo_epi32(lane, _mm512_set1_epi32(static_cast<int>(w.out)));
  const int width = w.vectors() * LANES;
  ScaleRange range(WEIGHT_LIMIT);
  range.fit([&](Scaling& scaled) {
    mul_t* to = packed;
    for (int block = 0; block < w.outputs; block += width)
      for (int y = 0; y < w.kernel; ++y)
        for (int i = 0; i < w.inputs; i += TERMS)
          for (int x = 0; x < w.kernel; ++x)
            for (int o = block; o < block + width; o += LANES, to += MUL_LANES) {
              const float* first = w.data + o * w.out + i * w.in + y * w.row + x * w.column;
              const vec weights = scaled(_mm512_i32gather_ps(step, first, 4));
#ifdef KILOLAYER_FP32
              store(to, weights);
#else
              store_pairs(to, weights, scaled(_mm512_i32gather_ps(step, first + w.in, 4)));
#endif
            }
  });
  return range.unscale();
}

}  // namespace kilolayer
