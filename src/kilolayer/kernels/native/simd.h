// bf16 vectors of 16 channels: loads, stores and buffers.
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

struct Permutation {  // the source index of each of 32 numbers in a register
  alignas(64) uint16_t from[32] = {};
  template <class From>
  constexpr explicit Permutation(From of) {
    for (int i = 0; i < 32; ++i) from[i] = static_cast<uint16_t>(of(i));
  }
  __m512i index() const { return _mm512_load_si512(from); }
};
inline constexpr Permutation INTERLEAVED([](int i) { return i / 2 + i % 2 * LANES; });  // interleaves 16 numbers with 16 others
inline constexpr Permutation DUPLICATED([](int i) { return i / 2; });  // repeats each of the first 16 numbers in both halves of 32 bits

// Loads bf16 as fp32: one instruction moves every number to the upper half of its lane and clears the lower half.
inline vec load(const bf16* p) {
  const __m512i numbers = _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return _mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(0xaaaaaaaa, DUPLICATED.index(), numbers));
}

// A NaN stays a NaN, as in PyTorch: _mm512_max_ps returns its second operand if either is NaN.
inline vec relu(vec v) { return _mm512_max_ps(_mm512_setzero_ps(), v); }

inline __m256i to_bf16(vec v) {  // rounds to nearest, ties to even
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

inline void store(bf16* p, vec v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), to_bf16(v)); }

inline void store_two(bf16* p, vec first, vec second) {
#ifdef __AVX512BF16__
  _mm512_storeu_si512(p, (__m512i)_mm512_cvtne2ps_pbh(second, first));
#else
  store(p, first);
  store(p + LANES, second);
#endif
}

inline void store(float* p, vec v) { _mm512_storeu_ps(p, v); }

// A buffer that grows and is kept from call to call, one per thread, aligned to a cache line.
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

}  // namespace kilolayer
