// 3×3 convolutions with a stride of 2: y[Y][X] = Σ W[ky][kx]·x[2Y + ky − 1][2X + kx − 1].
//
// Of what a pixel of x gives to y, every other column of the kernel falls out; so an even column meets the middle one
// only, an odd column the other two. Rows alike.
#pragma once
#include "batch.h"

namespace kilolayer {

// P pixels of y from (Y, X) on.
template <int P, int K, class Store>
void halving_block(const Framed& f, const num* image, const num* w, float back, int Y, int X, const Store& out, int64_t pixel, int c) {
  Kept<P, K> room;
  Block<P, K> sum(room);
  const int groups = f.channels / TERMS;
  for (int ky = 0; ky < 3; ++ky) {
    const int y = 2 * Y + ky - 1;
    if (y < 0 || y >= f.height) continue;
    const num* a = image + y * f.row() + 2 * X * f.channels;
    const num* weights = w + int64_t{ky} * groups * 3 * K * FACTOR;
    for (int i = 0; i < groups; ++i, weights += 3 * K * FACTOR) {
      sum.expect(3);
      factor weight[3][K];
      load_columns(weights, weight);
#pragma GCC unroll 40
      for (int j = 0; j <= 2 * P; ++j) {
        const factor input = broadcast(a + j * f.channels + TERMS * i);
#pragma GCC unroll 3
        for (int kx = j % 2; kx < 3; kx += 2) {
          const int p = (j - kx) / 2;
          if (j < kx || p >= P) continue;
#pragma GCC unroll 2
          for (int k = 0; k < K; ++k) sum.now[p][k] = multiply_add(weight[kx][k], input, sum.now[p][k]);
        }
      }
    }
  }
  sum.write(back, out, pixel, c);
}

// P pixels of the gradient of x from (y, x) on, x even; `f` frames the gradient of y, `w` is turned.
template <int P, int K, class Store>
void doubling_block(const Framed& f, const num* image, const num* w, float back, int y, int x, const Store& out, int64_t pixel, int c) {
  Kept<P, K> room;
  Block<P, K> sum(room);
  const int groups = f.channels / TERMS;
  for (int ky = y % 2 ? 0 : 1; ky < 3; ky += 2) {
    const int Y = (y + ky - 1) / 2;
    if (Y >= f.height) continue;
    const num* g = image + Y * f.row() + (x / 2 + 1) * f.channels;
    const num* weights = w + int64_t{ky} * groups * 3 * K * FACTOR;
    for (int i = 0; i < groups; ++i, weights += 3 * K * FACTOR) {
      sum.expect(2);
      factor weight[3][K];
      load_columns(weights, weight);
#pragma GCC unroll 10
      for (int j = 0; j <= P / 2; ++j) {
        const factor input = broadcast(g + j * f.channels + TERMS * i);
#pragma GCC unroll 3
        for (int kx = 0; kx < 3; ++kx) {
          const int p = 2 * j + (kx == 0 ? 1 : kx == 1 ? 0 : -1);
          if (p < 0 || p >= P) continue;
#pragma GCC unroll 2
          for (int k = 0; k < K; ++k) sum.now[p][k] = multiply_add(weight[kx][k], input, sum.now[p][k]);
        }
      }
    }
  }
  sum.write(back, out, pixel, c);
}

template <int K, class Store>
void halve_by(const Framed& f, const num* image, const num* packed, float back, int outputs, const Store& out, int64_t pixel) {
  constexpr int P = K == 1 ? 16 : 8;
  const int height = halved(f.height), width = halved(f.width);
  for (int c = 0; c < outputs; c += K * LANES, packed += int64_t{9} * f.channels * K * LANES)
    for (int y = 0; y < height; ++y) {
      const int64_t row = pixel + int64_t{y} * width;
      int x = 0;
      for (; x + P <= width; x += P) halving_block<P, K>(f, image, packed, back, y, x, out, row + x, c);
      for (; x + 7 <= width; x += 7) halving_block<7, K>(f, image, packed, back, y, x, out, row + x, c);
      for (; x < width; ++x) halving_block<1, K>(f, image, packed, back, y, x, out, row + x, c);
    }
}

template <int K, class Store>
void double_by(const Framed& f, const num* image, const num* packed, float back, int outputs, int height, int width, const Store& out,
               int64_t pixel) {
  constexpr int P = K == 1 ? 16 : 8;
  for (int c = 0; c < outputs; c += K * LANES, packed += int64_t{9} * f.channels * K * LANES)
    for (int y = 0; y < height; ++y) {
      const int64_t row = pixel + int64_t{y} * width;
      int x = 0;
      for (; x + P <= width; x += P) doubling_block<P, K>(f, image, packed, back, y, x, out, row + x, c);
      for (; x + 2 <= width; x += 2) doubling_block<2, K>(f, image, packed, back, y, x, out, row + x, c);
      if (x < width) doubling_block<1, K>(f, image, packed, back, y, x, out, row + x, c);
    }
}

// A framed image through a 3×3 convolution with a stride of 2.
template <class Store>
void halve(const Weights& w, const num* packed, float back, const Framed& f, const num* image, const Store& out, int64_t pixel) {
  const auto run = w.vectors() == 2 ? halve_by<2, Store> : halve_by<1, Store>;
  run(f, image, packed, back, w.outputs, out, pixel);
}

// And back, to `height` rows of `width` pixels.
template <class Store>
void double_up(const Weights& turned, const num* packed, float back, const Framed& f, const num* image, int height, int width,
               const Store& out, int64_t pixel) {
  const auto run = turned.vectors() == 2 ? double_by<2, Store> : double_by<1, Store>;
  run(f, image, packed, back, turned.outputs, height, width, out, pixel);
}

template <class Source>
struct EveryOther {  // pixels first, first + 2 …
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

// Rows of x in groups: its even columns, then its odd ones.
struct Parted {
  int width, channels;
  int groups() const { return (halved(width) + TERMS - 1) / TERMS; }
  int64_t half() const { return int64_t{groups()} * TERMS * channels; }
};

template <class Source>
void part(const Source& source, int64_t pixel, int rows, const Parted& parted, num* out, Scaling& scaled) {
  for (int y = 0; y < rows; ++y, pixel += parted.width)
    for (int odd = 0; odd < 2; ++odd, out += parted.half()) {
      // Where there are fewer odd columns than even ones, the last group is not reached.
      std::memset(out + parted.half() - TERMS * parted.channels, 0, TERMS * parted.channels * sizeof(num));
      fill_grouped(EveryOther<Source>{source, pixel + odd}, 0, odd ? parted.width / 2 : halved(parted.width), out, scaled);
    }
}

// Row ky of the gradient of W, for the outputs of a vector and TALL inputs; a group of the odd columns meets two columns of W.
inline void weigh_rows_halved(const Shifted& s, const num* g, const Parted& parted, const num* a, int height, int ky, float back,
                              Sum so_far, float* sums, int64_t column) {
  total sum[3][TALL] = {};
  int terms = 0;
  const auto settle = [&]() __attribute__((always_inline)) { add_rows_to(sums, column, s.channels, sum, back, so_far); };
  for (int Y = 0; Y < s.height; ++Y) {
    const int y = 2 * Y + ky - 1;
    if (y < 0 || y >= height) continue;
    if (SCALED && (terms += s.groups()) > LONGEST) settle(), terms = s.groups();
    const num* to = g + Y * s.row() + FACTOR;
    const num *even = a + 2 * y * parted.half(), *odd = even + parted.half();
    for (int j = 0; j < s.groups(); ++j, to += TERMS * FACTOR, even += TERMS * parted.channels, odd += TERMS * parted.channels) {
      const factor here = load_factor(to), next = load_factor(to + FACTOR);
#pragma GCC unroll 16
      for (int i = 0; i < TALL; ++i) {
        const factor one = broadcast(even + TERMS * i), other = broadcast(odd + TERMS * i);
        sum[0][i] = multiply_add(next, other, sum[0][i]);
        sum[1][i] = multiply_add(here, one, sum[1][i]);
        sum[2][i] = multiply_add(here, other, sum[2][i]);
      }
    }
  }
  settle();
}

// sums[row][column][input][output]; `a` is parted.
inline void weigh_halved(const Shifted& s, const num* g, const Parted& parted, const num* a, int height, float back, Sum so_far,
                         float* sums) {
  const int64_t column = int64_t{parted.channels} * s.channels;
  for (int o = 0; o < s.channels; o += LANES)
    for (int ky = 0; ky < 3; ++ky)
      for (int i = 0; i < parted.channels; i += TALL)
        weigh_rows_halved(s, g + o / LANES * s.vector(), parted, a + TERMS * i, height, ky, back, so_far,
                          sums + 3 * ky * column + int64_t{i} * s.channels + o, column);
}

}  // namespace kilolayer
