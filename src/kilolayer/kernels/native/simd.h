// bf16 vectors of 16 channels, their loads and stores, and weights packed for the dot product.
//
// _mm512_dpbf16_ps adds two products to each of 16 fp32 lanes, so a factor is stored in pairs along the
// dimension that is summed: "packed" weights pair input channels, "paired" activations pair pixels.
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

inline vec load(const bf16* p) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

inline void store(bf16* p, vec v) {  // rounds to nearest, ties to even
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh(v));
}

inline __m512bh load_pairs(const bf16* p) { return (__m512bh)_mm512_loadu_si512(p); }

inline __m512bh broadcast_pair(const bf16* p) {
  int32_t pair;
  std::memcpy(&pair, p, sizeof pair);
  return (__m512bh)_mm512_set1_epi32(pair);
}

// 16 numbers of one pixel, then 16 of its neighbour → neighbours side by side.
inline __m512i interleave(__m512i halves) {
  static const __m512i order = [] {
    alignas(64) uint16_t index[32];
    for (int i = 0; i < 32; ++i) index[i] = static_cast<uint16_t>(i / 2 + LANES * (i % 2));
    return _mm512_load_si512(index);
  }();
  return _mm512_permutexvar_epi16(order, halves);
}

inline __m512i join(vec first, vec second) { return (__m512i)_mm512_cvtne2ps_pbh(second, first); }

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

// → [block of outputs][row][pair of inputs][column][output][2]
inline void pack(const Weights& w, bf16* packed) {
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i step = _mm512_mullo_epi32(lane, _mm512_set1_epi32(static_cast<int>(w.out)));
  const int width = w.vectors() * LANES;
  for (int block = 0; block < w.outputs; block += width)
    for (int y = 0; y < w.kernel; ++y)
      for (int i = 0; i < w.inputs; i += 2)
        for (int x = 0; x < w.kernel; ++x)
          for (int o = block; o < block + width; o += LANES, packed += 2 * LANES) {
            const float* first = w.data + o * w.out + i * w.in + y * w.row + x * w.column;
            const vec even = _mm512_i32gather_ps(step, first, 4);
            const vec odd = _mm512_i32gather_ps(step, first + w.in, 4);
            _mm512_storeu_si512(packed, interleave(join(even, odd)));
          }
}

}  // namespace kilolayer
