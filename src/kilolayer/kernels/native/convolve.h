// Convolutions over activations in the cache, written through a store: y[p][o] = Σ a[p'][i]·w[o][i][p' − p].
#pragma once
#include "stores.h"

namespace kilolayer {

// Where fp16 sums are taken to fp32 before they get too long. In memory: nearly always there are none, and the
// compiler is kept from giving them registers.
template <int P, int K>
struct Kept {
  vec sums[P][K];
  vec* hidden() {
    vec* first = sums[0];
    asm volatile("" : "+r"(first) : : "memory");
    return first;
  }
};

// The sums of P pixels by K vectors of outputs, in registers while the inputs go by.
template <int P, int K>
struct Block {
  total now[P][K] = {};
  vec* kept;
  bool parts = false;
  int terms = 0;
  explicit Block(Kept<P, K>& room) : kept(SCALED ? room.hidden() : nullptr) {}

  // Ahead of `more` terms.
  [[gnu::always_inline]] void expect(int more) {
    if constexpr (!SCALED) return;
    if (__builtin_expect((terms += more) <= LONGEST, 1)) return;
    terms = more;
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 2
      for (int k = 0; k < K; ++k) {
        kept[p * K + k] = parts ? _mm512_add_ps(kept[p * K + k], widened(now[p][k])) : widened(now[p][k]);
        now[p][k] = total{};
      }
    parts = true;
  }

  template <class Store>
  [[gnu::always_inline]] void write(float back, const Store& out, int64_t pixel, int c) {
    if constexpr (!SCALED) return out.template write<P, K>(now, pixel, c);
    else {
      vec y[P][K];
      const vec factor = _mm512_set1_ps(back);
#pragma GCC unroll 16
      for (int p = 0; p < P; ++p)
#pragma GCC unroll 2
        for (int k = 0; k < K; ++k) y[p][k] = widened(now[p][k]);
      if (parts) {
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p)
#pragma GCC unroll 2
          for (int k = 0; k < K; ++k) y[p][k] = _mm512_add_ps(kept[p * K + k], y[p][k]);
      }
#pragma GCC unroll 16
      for (int p = 0; p < P; ++p)
#pragma GCC unroll 2
        for (int k = 0; k < K; ++k) y[p][k] = _mm512_mul_ps(y[p][k], factor);
      out.template write<P, K>(y, pixel, c);
    }
  }
};

// The sums are multiplied by `back` on their way out.
template <int P, int K, class Store>
inline void pointwise_block(const num* a, int inputs, const num* w, float back, const Store& out, int64_t pixel, int c) {
  Kept<P, K> room;
  Block<P, K> sum(room);
  for (int i = 0; i < inputs; i += TERMS, w += FACTOR * K) {
    sum.expect(1);
    factor weight[K];
    for (int k = 0; k < K; ++k) weight[k] = load_factor(w + FACTOR * k);
#pragma GCC unroll 32
    for (int p = 0; p < P; ++p) {
      const factor input = broadcast(a + p * inputs + i);
#pragma GCC unroll 2
      for (int k = 0; k < K; ++k) sum.now[p][k] = multiply_add(weight[k], input, sum.now[p][k]);
    }
  }
  sum.write(back, out, pixel, c);
}

// The outputs from `first` to `last`.
template <int P, int K, class Store>
void pointwise_blocks(const num* a, int inputs, int first, int last, const num* packed, float back, const Store& out, int64_t pixel) {
  for (int c = first; c < last; c += K * LANES) pointwise_block<P, K>(a, inputs, packed + inputs * c, back, out, pixel, c);
}

// Whether a 1×1 convolution's weights do not stay in the cache from one block of pixels to the next.
inline bool wide(const Weights& w) { return w.size() * sizeof(num) > 1 << 19; }

// `before(p, count)` is called ahead of the pixels from p on, where weights leave room for what it asks for.
template <int K, class Store, class Before>
void pointwise(const Weights& w, const num* a, const num* packed, float back, int count, const Store& out, int64_t pixel,
               const Before& before) {
  constexpr int P = K == 1 ? 16 : 8;
  const int inputs = w.inputs, outputs = w.outputs, together = wide(w) ? K * LANES : outputs;
  for (int c = 0; c < outputs; c += together) {
    int p = 0;
    for (; p + P <= count; p += P) {
      if (together == outputs) before(pixel + p, P);
      pointwise_blocks<P, K>(a + p * inputs, inputs, c, c + together, packed, back, out, pixel + p);
    }
    for (; p < count; ++p) pointwise_blocks<1, K>(a + p * inputs, inputs, c, c + together, packed, back, out, pixel + p);
  }
}

// `count` pixels through a 1×1 convolution.
template <class Store, class Before>
void convolve_1x1(const Weights& w, const num* packed, float back, const num* a, int count, const Store& out, int64_t pixel,
                  const Before& before) {
  const auto run = w.vectors() == 2 ? pointwise<2, Store, Before> : pointwise<1, Store, Before>;
  run(w, a, packed, back, count, out, pixel, before);
}

// Images, one below the other, whose rows have a column of zeros on the left and two on the right: pixel (y, x) at
// column x + 1.
struct Framed {
  int height, width, channels, images = 1;
  int rows() const { return images * height; }
  int row() const { return (width + 3) * channels; }
  int64_t size() const { return int64_t{1} * rows() * row(); }
};

// The three columns of a row of a 3×3 kernel, for a group of inputs.
template <int K>
[[gnu::always_inline]] inline void load_columns(const num* packed, factor (&weight)[3][K]) {
#pragma GCC unroll 3
  for (int kx = 0; kx < 3; ++kx)
#pragma GCC unroll 2
    for (int k = 0; k < K; ++k) weight[kx][k] = load_factor(packed + (kx * K + k) * FACTOR);
}

// A broadcast input serves the three columns of the kernel it meets; `Left`, `Right`: the block touches that edge,
// whose zeros need no product.
template <int P, int K, bool Left, bool Right, class Store>
inline void spatial_block(const Framed& f, const num* image, const num* w, float back, int y, int x, const Store& out,
                          int64_t pixel, int c) {
  Kept<P, K> room;
  Block<P, K> sum(room);
  const int groups = f.channels / TERMS;
  const bool top = y % f.height == 0, bottom = (y + 1) % f.height == 0;
  for (int ky = top ? 1 : 0; ky < (bottom ? 2 : 3); ++ky) {
    const num* a = image + (y + ky - 1) * f.row() + x * f.channels;
    const num* weights = w + int64_t{ky} * groups * 3 * K * FACTOR;
    for (int i = 0; i < groups; ++i, weights += 3 * K * FACTOR) {
      sum.expect(3);
      factor weight[3][K];
      load_columns(weights, weight);
#pragma GCC unroll 32
      for (int j = Left; j < P + 2 - Right; ++j) {
        const factor input = broadcast(a + j * f.channels + TERMS * i);
#pragma GCC unroll 3
        for (int kx = 0; kx < 3; ++kx) {
          const int p = j - kx;
          if (p < 0 || p >= P) continue;
#pragma GCC unroll 2
          for (int k = 0; k < K; ++k) sum.now[p][k] = multiply_add(weight[kx][k], input, sum.now[p][k]);
        }
      }
    }
  }
  sum.write(back, out, pixel + int64_t{y} * f.width + x, c);
}

// The block for a place in its row. Narrow ones have few products to spare at the edges, and each variant takes its time to
// compile: they multiply the frame's zeros.
template <int P, int K, class Store>
auto spatial_block_at(bool left, bool right) {
  if constexpr (P <= 4) return &spatial_block<P, K, false, false, Store>;
  else return left ? (right ? &spatial_block<P, K, true, true, Store> : &spatial_block<P, K, true, false, Store>)
                   : (right ? &spatial_block<P, K, false, true, Store> : &spatial_block<P, K, false, false, Store>);
}

template <int P, int K, class Store>
int spatial_blocks(const Framed& f, const num* image, const num* w, float back, int y, int x, const Store& out, int64_t pixel,
                   int c) {
  for (; x + P <= f.width; x += P)
    spatial_block_at<P, K, Store>(x == 0, x + P == f.width)(f, image, w, back, y, x, out, pixel, c);
  return x;
}

template <int K, class Store>
void spatial(const Framed& f, const num* image, const num* packed, float back, int outputs, const Store& out, int64_t pixel) {
  constexpr int P = K == 1 ? 16 : 8;
  for (int c = 0; c < outputs; c += K * LANES, packed += int64_t{9} * f.channels * K * LANES)
    for (int y = 0; y < f.rows(); ++y) {
      const bool sevens = f.width % P && f.width % 7 == 0;  // 14 = 7 + 7, not 8 + 4 + 1 + 1
      int x = sevens ? 0 : spatial_blocks<P, K>(f, image, packed, back, y, 0, out, pixel, c);
      x = spatial_blocks<7, K>(f, image, packed, back, y, x, out, pixel, c);
      x = spatial_blocks<4, K>(f, image, packed, back, y, x, out, pixel, c);
      spatial_blocks<1, K>(f, image, packed, back, y, x, out, pixel, c);
    }
}

// Whether the zeros beside the rows are read.
inline bool reads_frame(const Framed& f) { return f.width % 16; }

// Framed images through a 3×3 convolution.
template <class Store>
void convolve_3x3(const Weights& w, const num* packed, float back, const Framed& f, const num* image, const Store& out,
                  int64_t pixel) {
  const auto run = w.vectors() == 2 ? spatial<2, Store> : spatial<1, Store>;
  run(f, image, packed, back, w.outputs, out, pixel);
}

}  // namespace kilolayer
