// 3×3 convolutions with a stride of 2: y[Y][X] = Σ W[ky][kx]·x[2Y + ky − 1][2X + kx − 1].
//
// Only every other kernel column connects a given pixel of x to y: an even column of x meets the middle kernel column, an odd
// column meets the two outer ones. The same holds for rows.
#pragma once
#include "batch.h"

namespace kilolayer {

// P pixels of y from (Y, X) on.
template <int P, int K, class Store>
void conv_3x3_s2_block(const FramedImages& f, const mul_t* image, const mul_t* w, float unscale, int Y, int X, const Store& out,
                       int64_t pixel, int c) {
  Fp32Block<P, K> buffer;
  Block<P, K> sum(buffer);
  const int groups = f.channels / TERMS;
  for (int ky = 0; ky < 3; ++ky) {
    const int y = 2 * Y + ky - 1;
    if (y < 0 || y >= f.height) continue;
    const mul_t* a = image + y * f.row() + 2 * X * f.channels;
    const mul_t* weights = w + int64_t{ky} * groups * 3 * K * MUL_LANES;
    for (int i = 0; i < groups; ++i, weights += 3 * K * MUL_LANES) {
      sum.reserve(3);
      mul_vec weight[3][K];
      load_columns(weights, weight);
#pragma GCC unroll 40
      for (int j = 0; j <= 2 * P; ++j) {
        const mul_vec input = broadcast(a + j * f.channels + TERMS * i);
#pragma GCC unroll 3
        for (int kx = j % 2; kx < 3; kx += 2) {
          const int p = (j - kx) / 2;
          if (j < kx || p >= P) continue;
#pragma GCC unroll 2
          for (int k = 0; k < K; ++k) sum.acc[p][k] = multiply_add(weight[kx][k], input, sum.acc[p][k]);
        }
      }
    }
  }
  sum.write(unscale, out, pixel, c);
}

// P pixels of the gradient of x from (y, x) on; x is even. `f` frames the gradient of y, and `w` is the flipped kernel.
template <int P, int K, class Store>
void dgrad_3x3_s2_block(const FramedImages& f, const mul_t* image, const mul_t* w, float unscale, int y, int x,
                        const Store& out, int64_t pixel, int c) {
  Fp32Block<P, K> buffer;
  Block<P, K> sum(buffer);
  const int groups = f.channels / TERMS;
  for (int ky = y % 2 ? 0 : 1; ky < 3; ky += 2) {
    const int Y = (y + ky - 1) / 2;
    if (Y >= f.height) continue;
    const mul_t* g = image + Y * f.row() + (x / 2 + 1) * f.channels;
    const mul_t* weights = w + int64_t{ky} * groups * 3 * K * MUL_LANES;
    for (int i = 0; i < groups; ++i, weights += 3 * K * MUL_LANES) {
      sum.reserve(2);
      mul_vec weight[3][K];
      load_columns(weights, weight);
#pragma GCC unroll 10
      for (int j = 0; j <= P / 2; ++j) {
        const mul_vec input = broadcast(g + j * f.channels + TERMS * i);
#pragma GCC unroll 3
        for (int kx = 0; kx < 3; ++kx) {
          const int p = 2 * j + (kx == 0 ? 1 : kx == 1 ? 0 : -1);
          if (p < 0 || p >= P) continue;
#pragma GCC unroll 2
          for (int k = 0; k < K; ++k) sum.acc[p][k] = multiply_add(weight[kx][k], input, sum.acc[p][k]);
        }
      }
    }
  }
  sum.write(unscale, out, pixel, c);
}

template <int K, class Store>
void conv_3x3_s2_by(const FramedImages& f, const mul_t* image, const mul_t* packed, float unscale, int outputs,
                    const Store& out, int64_t pixel) {
  constexpr int P = K == 1 ? 16 : 8;
  const int height = half_side(f.height), width = half_side(f.width);
  for (int c = 0; c < outputs; c += K * LANES, packed += int64_t{9} * f.channels * K * LANES)
    for (int y = 0; y < height; ++y) {
      const int64_t row = pixel + int64_t{y} * width;
      int x = 0;
      for (; x + P <= width; x += P) conv_3x3_s2_block<P, K>(f, image, packed, unscale, y, x, out, row + x, c);
      for (; x + 7 <= width; x += 7) conv_3x3_s2_block<7, K>(f, image, packed, unscale, y, x, out, row + x, c);
      for (; x < width; ++x) conv_3x3_s2_block<1, K>(f, image, packed, unscale, y, x, out, row + x, c);
    }
}

template <int K, class Store>
void dgrad_3x3_s2_by(const FramedImages& f, const mul_t* image, const mul_t* packed, float unscale, int outputs, int height,
                     int width, const Store& out, int64_t pixel) {
  constexpr int P = K == 1 ? 16 : 8;
  for (int c = 0; c < outputs; c += K * LANES, packed += int64_t{9} * f.channels * K * LANES)
    for (int y = 0; y < height; ++y) {
      const int64_t row = pixel + int64_t{y} * width;
      int x = 0;
      for (; x + P <= width; x += P) dgrad_3x3_s2_block<P, K>(f, image, packed, unscale, y, x, out, row + x, c);
      for (; x + 2 <= width; x += 2) dgrad_3x3_s2_block<2, K>(f, image, packed, unscale, y, x, out, row + x, c);
      if (x < width) dgrad_3x3_s2_block<1, K>(f, image, packed, unscale, y, x, out, row + x, c);
    }
}

// A framed image through a 3×3 convolution with a stride of 2.
template <class Store>
void conv_3x3_s2(const Weights& w, const mul_t* packed, float unscale, const FramedImages& f, const mul_t* image,
                 const Store& out, int64_t pixel) {
  const auto run = w.vectors() == 2 ? conv_3x3_s2_by<2, Store> : conv_3x3_s2_by<1, Store>;
  run(f, image, packed, unscale, w.outputs, out, pixel);
}

// Its backward pass: the gradient of the input, `height` rows of `width` pixels.
template <class Store>
void dgrad_3x3_s2(const Weights& flipped, const mul_t* packed, float unscale, const FramedImages& f, const mul_t* image,
                  int height, int width, const Store& out, int64_t pixel) {
  const auto run = flipped.vectors() == 2 ? dgrad_3x3_s2_by<2, Store> : dgrad_3x3_s2_by<1, Store>;
  run(f, image, packed, unscale, flipped.outputs, height, width, out, pixel);
}

template <class Source>
struct StridedLoad {  // the pixels first, first + 2, first + 4, …
  Source source;
  int64_t first;
  int channels = source.channels;
  struct Lane {
    typename Source::Lane lane;
    int64_t first;
    vec operator()(int64_t pixel) const { return lane(first + 2 * pixel); }
  };
  Lane lane(int c) const { return {source.lane(c), first}; }
};

// A row of x, split into its even columns and then its odd columns.
struct ColumnSplit {
  int width, channels;
  int groups() const { return (half_side(width) + TERMS - 1) / TERMS; }
  int64_t half() const { return int64_t{groups()} * TERMS * channels; }
};

template <class Source>
void split_columns(const Source& source, int64_t pixel, int rows, const ColumnSplit& split, mul_t* out, Scaling& scaled) {
  for (int y = 0; y < rows; ++y, pixel += split.width)
    for (int odd = 0; odd < 2; ++odd, out += split.half()) {
      // A row with an odd width has fewer odd columns than even ones: clear the last group, which fill_grouped may not reach.
      std::memset(out + split.half() - TERMS * split.channels, 0, TERMS * split.channels * sizeof(mul_t));
      fill_grouped(StridedLoad<Source>{source, pixel + odd}, 0, odd ? split.width / 2 : half_side(split.width), out, scaled);
    }
}

// Row ky of the gradient of W, for one vector of outputs and WGRAD_INPUTS inputs. An odd column of x meets two columns of W.
inline void wgrad_3x3_s2_rows(const ShiftedGradient& s, const mul_t* g, const ColumnSplit& split, const mul_t* a, int height,
                              int ky, float unscale, Accumulate accumulate, float* sums, int64_t column) {
  acc_t sum[3][WGRAD_INPUTS] = {};
  int terms = 0;
  const auto flush = [&]() __attribute__((always_inline)) {
    add_wgrad_block(sums, column, s.channels, sum, unscale, accumulate);
  };
  for (int Y = 0; Y < s.height; ++Y) {
    const int y = 2 * Y + ky - 1;
    if (y < 0 || y >= height) continue;
    if (SCALED && (terms += s.groups()) > MAX_FP16_TERMS) flush(), terms = s.groups();
    const mul_t* to = g + Y * s.row() + MUL_LANES;
    const mul_t *even = a + 2 * y * split.half(), *odd = even + split.half();
    for (int j = 0; j < s.groups(); ++j, to += TERMS * MUL_LANES, even += TERMS * split.channels,
         odd += TERMS * split.channels) {
      const mul_vec current = load_mul_vec(to), next = load_mul_vec(to + MUL_LANES);
#pragma GCC unroll 16
      for (int i = 0; i < WGRAD_INPUTS; ++i) {
        const mul_vec even_input = broadcast(even + TERMS * i), odd_input = broadcast(odd + TERMS * i);
        sum[0][i] = multiply_add(next, odd_input, sum[0][i]);
        sum[1][i] = multiply_add(current, even_input, sum[1][i]);
        sum[2][i] = multiply_add(current, odd_input, sum[2][i]);
      }
    }
  }
  flush();
}

// sums[row][column][input][output]; `a` holds rows as split_columns() writes them.
inline void wgrad_3x3_s2(const ShiftedGradient& s, const mul_t* g, const ColumnSplit& split, const mul_t* a, int height,
                         float unscale, Accumulate accumulate,
                         float* sums) {
  const int64_t column = int64_t{split.channels} * s.channels;
  for (int o = 0; o < s.channels; o += LANES)
    for (int ky = 0; ky < 3; ++ky)
      for (int i = 0; i < split.channels; i += WGRAD_INPUTS)
        wgrad_3x3_s2_rows(s, g + o / LANES * s.vector(), split, a + TERMS * i, height, ky, unscale, accumulate,
                          sums + 3 * ky * column + int64_t{i} * s.channels + o, column);
}

}  // namespace kilolayer
