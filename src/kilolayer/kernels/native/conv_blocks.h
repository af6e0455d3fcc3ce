// Register blocks of convolutions over activations in the cache, written through a store: y[p][o] = Σ a[p'][i]·w[o][i][p' − p].
#pragma once
#include "epilogues.h"

namespace kilolayer {

// Memory for fp16 sums that are converted to fp32 before they grow too long. It is rarely used, so the address is hidden from the
// compiler: otherwise the compiler would spend registers on it.
template <int P, int K>
struct Fp32Block {
  vec sums[P][K];
  vec* in_memory() {
    vec* first = sums[0];
    asm volatile("" : "+r"(first) : : "memory");
    return first;
  }
};

// The sums of P pixels by K vectors of output channels, held in registers while the loop runs over the inputs.
template <int P, int K>
struct Block {
  acc_t acc[P][K] = {};
  vec* fp32;
  bool spilled = false;
  int terms = 0;
  explicit Block(Fp32Block<P, K>& buffer) : fp32(SCALED ? buffer.in_memory() : nullptr) {}

  // Call this before adding `more` terms: it moves the fp16 sums to fp32 when they would grow too long.
  [[gnu::always_inline]] void reserve(int more) {
    if constexpr (!SCALED) return;
    if (__builtin_expect((terms += more) <= MAX_FP16_TERMS, 1)) return;
    terms = more;
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 2
      for (int k = 0; k < K; ++k) {
        fp32[p * K + k] = spilled ? _mm512_add_ps(fp32[p * K + k], to_fp32(acc[p][k])) : to_fp32(acc[p][k]);
        acc[p][k] = acc_t{};
      }
    spilled = true;
  }

  template <class Store>
  [[gnu::always_inline]] void write(float unscale, const Store& out, int64_t pixel, int c) {
    if constexpr (!SCALED) return out.template write<P, K>(acc, pixel, c);
    else {
      vec y[P][K];
      const vec scale = _mm512_set1_ps(unscale);
#pragma GCC unroll 16
      for (int p = 0; p < P; ++p)
#pragma GCC unroll 2
        for (int k = 0; k < K; ++k) y[p][k] = to_fp32(acc[p][k]);
      if (spilled) {
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p)
#pragma GCC unroll 2
          for (int k = 0; k < K; ++k) y[p][k] = _mm512_add_ps(fp32[p * K + k], y[p][k]);
      }
#pragma GCC unroll 16
      for (int p = 0; p < P; ++p)
#pragma GCC unroll 2
        for (int k = 0; k < K; ++k) y[p][k] = _mm512_mul_ps(y[p][k], scale);
      out.template write<P, K>(y, pixel, c);
    }
  }
};

// The sums are multiplied by `unscale` when they are stored.
template <int P, int K, class Store>
inline void conv_1x1_block(const mul_t* a, int inputs, const mul_t* w, float unscale, const Store& out, int64_t pixel, int c) {
  Fp32Block<P, K> buffer;
  Block<P, K> sum(buffer);
  for (int i = 0; i < inputs; i += TERMS, w += MUL_LANES * K) {
    sum.reserve(1);
    mul_vec weight[K];
    for (int k = 0; k < K; ++k) weight[k] = load_mul_vec(w + MUL_LANES * k);
#pragma GCC unroll 32
    for (int p = 0; p < P; ++p) {
      const mul_vec input = broadcast(a + p * inputs + i);
#pragma GCC unroll 2
      for (int k = 0; k < K; ++k) sum.acc[p][k] = multiply_add(weight[k], input, sum.acc[p][k]);
    }
  }
  sum.write(unscale, out, pixel, c);
}

// The outputs from `first` to `last`.
template <int P, int K, class Store>
void conv_1x1_blocks(const mul_t* a, int inputs, int first, int last, const mul_t* packed, float unscale, const Store& out,
                     int64_t pixel) {
  for (int c = first; c < last; c += K * LANES) conv_1x1_block<P, K>(a, inputs, packed + inputs * c, unscale, out, pixel, c);
}

// Whether the weights of a 1×1 convolution are too large to stay in the cache from one block of pixels to the next.
inline bool exceeds_cache(const Weights& w) { return w.size() * sizeof(mul_t) > 1 << 19; }

// Calls prefetch(p, count) before the pixels from p on, if the weights leave room in the cache for them.
template <int K, class Store, class Prefetch>
void conv_1x1_by(const Weights& w, const mul_t* a, const mul_t* packed, float unscale, int count, const Store& out,
                 int64_t pixel, const Prefetch& prefetch) {
  constexpr int P = K == 1 ? 16 : 8;
  const int inputs = w.inputs, outputs = w.outputs, group = exceeds_cache(w) ? K * LANES : outputs;
  for (int c = 0; c < outputs; c += group) {
    int p = 0;
    for (; p + P <= count; p += P) {
      if (group == outputs) prefetch(pixel + p, P);
      conv_1x1_blocks<P, K>(a + p * inputs, inputs, c, c + group, packed, unscale, out, pixel + p);
    }
    for (; p < count; ++p) conv_1x1_blocks<1, K>(a + p * inputs, inputs, c, c + group, packed, unscale, out, pixel + p);
  }
}

// `count` pixels through a 1×1 convolution.
template <class Store, class Prefetch>
void conv_1x1(const Weights& w, const mul_t* packed, float unscale, const mul_t* a, int count, const Store& out, int64_t pixel,
                  const Prefetch& prefetch) {
  const auto run = w.vectors() == 2 ? conv_1x1_by<2, Store, Prefetch> : conv_1x1_by<1, Store, Prefetch>;
  run(w, a, packed, unscale, count, out, pixel, prefetch);
}

// Images stacked vertically in a frame of zeros: one column on the left and two on the right. Pixel (y, x) lies at column x + 1.
struct FramedImages {
  int height, width, channels, images = 1;
  int rows() const { return images * height; }
  int row() const { return (width + 3) * channels; }
  int64_t size() const { return int64_t{1} * rows() * row(); }
};

// The three columns of one row of a 3×3 kernel, for one group of inputs.
template <int K>
[[gnu::always_inline]] inline void load_columns(const mul_t* packed, mul_vec (&weight)[3][K]) {
#pragma GCC unroll 3
  for (int kx = 0; kx < 3; ++kx)
#pragma GCC unroll 2
    for (int k = 0; k < K; ++k) weight[kx][k] = load_mul_vec(packed + (kx * K + k) * MUL_LANES);
}

// One broadcast input serves the three kernel columns that reach it. `Left` and `Right` say that the block touches that edge; the
// zeros there are skipped.
template <int P, int K, bool Left, bool Right, class Store>
inline void conv_3x3_block(const FramedImages& f, const mul_t* image, const mul_t* w, float unscale, int y, int x,
                           const Store& out, int64_t pixel, int c) {
  Fp32Block<P, K> buffer;
  Block<P, K> sum(buffer);
  const int groups = f.channels / TERMS;
  const bool top = y % f.height == 0, bottom = (y + 1) % f.height == 0;
  for (int ky = top ? 1 : 0; ky < (bottom ? 2 : 3); ++ky) {
    const mul_t* a = image + (y + ky - 1) * f.row() + x * f.channels;
    const mul_t* weights = w + int64_t{ky} * groups * 3 * K * MUL_LANES;
    for (int i = 0; i < groups; ++i, weights += 3 * K * MUL_LANES) {
      sum.reserve(3);
      mul_vec weight[3][K];
      load_columns(weights, weight);
#pragma GCC unroll 32
      for (int j = Left; j < P + 2 - Right; ++j) {
        const mul_vec input = broadcast(a + j * f.channels + TERMS * i);
#pragma GCC unroll 3
        for (int kx = 0; kx < 3; ++kx) {
          const int p = j - kx;
          if (p < 0 || p >= P) continue;
#pragma GCC unroll 2
          for (int k = 0; k < K; ++k) sum.acc[p][k] = multiply_add(weight[kx][k], input, sum.acc[p][k]);
        }
      }
    }
  }
  sum.write(unscale, out, pixel + int64_t{y} * f.width + x, c);
}

// The block for a position in its row. Narrow blocks always multiply the zeros of the frame: skipping them saves little, and every
// variant costs compile time.
template <int P, int K, class Store>
auto conv_3x3_block_at(bool left, bool right) {
  if constexpr (P <= 4) return &conv_3x3_block<P, K, false, false, Store>;
  else return left ? (right ? &conv_3x3_block<P, K, true, true, Store> : &conv_3x3_block<P, K, true, false, Store>)
                   : (right ? &conv_3x3_block<P, K, false, true, Store> : &conv_3x3_block<P, K, false, false, Store>);
}

template <int P, int K, class Store>
int conv_3x3_blocks(const FramedImages& f, const mul_t* image, const mul_t* w, float unscale, int y, int x, const Store& out,
                    int64_t pixel, int c) {
  for (; x + P <= f.width; x += P)
    conv_3x3_block_at<P, K, Store>(x == 0, x + P == f.width)(f, image, w, unscale, y, x, out, pixel, c);
  return x;
}

template <int K, class Store>
void conv_3x3_by(const FramedImages& f, const mul_t* image, const mul_t* packed, float unscale, int outputs, const Store& out,
                 int64_t pixel) {
  constexpr int P = K == 1 ? 16 : 8;
  for (int c = 0; c < outputs; c += K * LANES, packed += int64_t{9} * f.channels * K * LANES)
    for (int y = 0; y < f.rows(); ++y) {
      const bool sevens = f.width % P && f.width % 7 == 0;  // 14 = 7 + 7 needs fewer blocks than 8 + 4 + 1 + 1
      int x = sevens ? 0 : conv_3x3_blocks<P, K>(f, image, packed, unscale, y, 0, out, pixel, c);
      x = conv_3x3_blocks<7, K>(f, image, packed, unscale, y, x, out, pixel, c);
      x = conv_3x3_blocks<4, K>(f, image, packed, unscale, y, x, out, pixel, c);
      conv_3x3_blocks<1, K>(f, image, packed, unscale, y, x, out, pixel, c);
    }
}

// Whether the blocks read the zeros beside the rows.
inline bool reads_frame(const FramedImages& f) { return f.width % 16; }

// Framed images through a 3×3 convolution.
template <class Store>
void conv_3x3(const Weights& w, const mul_t* packed, float unscale, const FramedImages& f, const mul_t* image, const Store& out,
                  int64_t pixel) {
  const auto run = w.vectors() == 2 ? conv_3x3_by<2, Store> : conv_3x3_by<1, Store>;
  run(f, image, packed, unscale, w.outputs, out, pixel);
}

}  // namespace kilolayer
