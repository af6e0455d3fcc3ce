// bf16 vectors of 16 channels, their loads and stores, and the arithmetic that multiplies them.
//
// In memory activations are bf16. In the cache, where they are multiplied, they are `num`: bf16, of which one
// instruction adds two products to each of 16 fp32 lanes, or fp32, of which it adds one, but on some processors four
// times as often (KILOLAYER_TERMS, chosen by timing: probe.cpp). TERMS numbers lie side by side along the dimension
// that is summed: "packed" weights group input channels, "grouped" activations group pixels.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

namespace kilolayer {

using bf16 = uint16_t;
using vec = __m512;
constexpr int LANES = 16;
constexpr int TERMS = KILOLAYER_TERMS;  // products that one instruction adds to a lane
constexpr int FACTOR = TERMS * LANES;   // numbers in a register that is multiplied

inline vec load(const bf16* p) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

inline __m256i rounded(vec v) {  // to nearest, ties to even
#ifdef __AVX512BF16__
  return (__m256i)_mm512_cvtneps_pbh(v);
#else
  const __m512i bits = _mm512_castps_si512(v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(_mm512_srli_epi32(up, 16), nan, _mm512_set1_epi32(0x7fc0)));
#endif
}

inline void store(bf16* p, vec v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), rounded(v)); }

inline void store(float* p, vec v) { _mm512_storeu_ps(p, v); }

#if KILOLAYER_TERMS == 2
using num = bf16;
using factor = __m512bh;
inline factor load_factor(const num* p) { return (factor)_mm512_loadu_si512(p); }
inline factor broadcast(const num* p) {
  int32_t pair;
  std::memcpy(&pair, p, sizeof pair);
  return (factor)_mm512_set1_epi32(pair);
}
inline vec multiply_add(factor a, factor b, vec sum) { return _mm512_dpbf16_ps(sum, a, b); }

// 16 numbers of one pixel, then 16 of its neighbour → neighbours side by side.
inline __m512i interleave(__m512i halves) {
  static const __m512i order = [] {
    alignas(64) uint16_t index[32];
    for (int i = 0; i < 32; ++i) index[i] = static_cast<uint16_t>(i / 2 + LANES * (i % 2));
    return _mm512_load_si512(index);
  }();
  return _mm512_permutexvar_epi16(order, halves);
}

inline void store_pairs(num* p, vec first, vec second) {
  _mm512_storeu_si512(p, interleave((__m512i)_mm512_cvtne2ps_pbh(second, first)));
}
#else
using num = float;
using factor = __m512;
inline factor load_factor(const num* p) { return _mm512_loadu_ps(p); }
inline factor broadcast(const num* p) { return _mm512_set1_ps(*p); }
inline vec multiply_add(factor a, factor b, vec sum) { return _mm512_fmadd_ps(a, b, sum); }
#endif

// Memory that grows and is kept from call to call: a thread's own, aligned to a cache line.
class Scratch {
 public:
  ~Scratch() { std::free(data_); }
  template <class T>
  T* take(int64_t count) {
    const size_t bytes = (static_cast<size_t>(count) * sizeof(T) + 127) & ~size_t{63};
    if (bytes > size_) {
      std::free(data_);
      data_ = std::aligned_alloc(64, bytes);
      size_ = data_ ? bytes : 0;
      if (!data_) throw std::bad_alloc();
    }
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
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

// → [block of outputs][row][group of inputs][column][output][TERMS]
inline void pack(const Weights& w, num* packed) {
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i step = _mm512_mullo_epi32(lane, _mm512_set1_epi32(static_cast<int>(w.out)));
  const int width = w.vectors() * LANES;
  for (int block = 0; block < w.outputs; block += width)
    for (int y = 0; y < w.kernel; ++y)
      for (int i = 0; i < w.inputs; i += TERMS)
        for (int x = 0; x < w.kernel; ++x)
          for (int o = block; o < block + width; o += LANES, packed += FACTOR) {
            const float* first = w.data + o * w.out + i * w.in + y * w.row + x * w.column;
            const vec weights = _mm512_i32gather_ps(step, first, 4);
#if KILOLAYER_TERMS == 2
            store_pairs(packed, weights, _mm512_i32gather_ps(step, first + w.in, 4));
#else
            store(packed, weights);
#endif
          }
}

}  // namespace kilolayer
