// Units at inference, one image after another: what stands between two convolutions never leaves the cache.
//
//   a₁ = ReLU(scale·x + shift), where a BN stands before the first convolution, else x
//   aᵢ₊₁ = ReLU(convᵢ(aᵢ) + biasᵢ),  x' = h + conv_L(a_L) + bias_L, in an original unit ReLU of that
//   h = x, or a 1×1 convolution of a₁ with its bias
#pragma once
#include "batch.h"

namespace kilolayer {

struct FoldedConv {
  const num* packed;
  const float* bias;
  int32_t outputs, inputs, kernel;
  float unscaled;  // what sums of its products are multiplied by
  Weights sizes() const { return {nullptr, 0, 0, 0, 0, outputs, inputs, kernel}; }
};

struct FoldedUnit {
  int32_t depth;
  const FoldedConv* convs;
  const FoldedConv* projection;  // null where the shortcut is x itself
  const float *scale, *shift;  // null where the first convolution reads x as it is
  int32_t rectified;           // whether a ReLU stands behind the addition
};

struct ToCache {  // ReLU(y + bias), as the next convolution reads it: pixel p at place[p]
  num* out;
  const int32_t* place;
  int channels;
  const float* bias;
  Scaling& scaled;
  template <int P, int K>
  [[gnu::always_inline]] void write(vec (&y)[P][K], int64_t pixel, int c) const {
    vec shift[K];
    for (int k = 0; k < K; ++k) shift[k] = _mm512_loadu_ps(bias + c + k * LANES);
    Scaling own = scaled;  // in registers
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) {
      num* to = out + int64_t{place[pixel + p]} * channels + c;
#pragma GCC unroll 2
      for (int k = 0; k < K; ++k)
        store(to + k * LANES, own(_mm512_max_ps(_mm512_add_ps(y[p][k], shift[k]), _mm512_setzero_ps()), p));
    }
    scaled = own;
  }
};

struct Projected {  // y + bias
  bf16* out;
  int channels;
  const float* bias;
  template <int P, int K>
  [[gnu::always_inline]] void write(vec (&y)[P][K], int64_t pixel, int c) const {
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 2
      for (int k = 0; k < K; ++k) y[p][k] = _mm512_add_ps(y[p][k], _mm512_loadu_ps(bias + c + k * LANES));
    store_block(out + pixel * channels + c, channels, y);
  }
};

template <bool Rectified>
struct ToMap {  // x + y + bias, or ReLU of that
  const bf16* x;
  bf16* out;
  int channels;
  const float* bias;
  template <int P, int K>
  [[gnu::always_inline]] void write(vec (&y)[P][K], int64_t pixel, int c) const {
    vec shift[K];
    for (int k = 0; k < K; ++k) shift[k] = _mm512_loadu_ps(bias + c + k * LANES);
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 2
      for (int k = 0; k < K; ++k) {
        const int64_t here = (pixel + p) * channels + c + k * LANES;
        const vec sum = _mm512_add_ps(load(x + here), _mm512_add_ps(y[p][k], shift[k]));
        y[p][k] = Rectified ? _mm512_max_ps(sum, _mm512_setzero_ps()) : sum;
      }
    store_block(out + pixel * channels + c, channels, y);
  }
};

// Where a convolution of this kernel looks for the pixels of an image of this width: side by side, or framed.
struct Places {
  std::vector<int32_t> plain, framed;
  explicit Places(const Batch& b) : plain(b.area()), framed(b.area()) {
    for (int p = 0; p < b.area(); ++p) plain[p] = p, framed[p] = p / b.width * (b.width + 3) + p % b.width + 1;
  }
  const int32_t* of(int kernel) const { return (kernel == 1 ? plain : framed).data(); }
};

// One convolution of an image that lies in the cache as this convolution reads it.
template <class Store>
void convolve_cached(const Batch& b, const FoldedConv& conv, const num* a, const Range& range, const Store& out) {
  const float back = conv.unscaled * range.back();
  if (conv.kernel == 3) return convolve_3x3(conv.sizes(), conv.packed, back, {b.height, b.width, conv.inputs}, a, out, 0);
  convolve_1x1(conv.sizes(), conv.packed, back, a, b.area(), out, 0, [](int64_t, int) {});
}

// The first convolution, of an image in memory; a 1×1 convolution needs no more than a chunk of it at once.
template <class Source, class Store>
void convolve_first(const Batch& b, const FoldedConv& conv, const Source& source, num* room, Range& range, const Store& out) {
  if (conv.kernel == 3) {
    const Framed f{b.height, b.width, conv.inputs};
    frame(source, f, 0, room, range);
    return convolve_3x3(conv.sizes(), conv.packed, conv.unscaled * range.back(), f, room, out, 0);
  }
  chunks(0, b.area(), [&](int64_t pixel, int count) {
    const num* a = in_cache(source, pixel, count, room, range);
    convolve_1x1(conv.sizes(), conv.packed, conv.unscaled * range.back(), a, count, out, pixel, [](int64_t, int) {});
  });
}

// Of what each convolution of a unit reads; they hold from image to image.
using Ranges = std::vector<Range>;

// x and y may be the same: a pixel of x is read for the last time where that of y is written.
inline void infer(const Batch& b, const FoldedUnit& u, const Places& places, Ranges& ranges, const bf16* x, bf16* y) {
  const int last = u.depth - 1, channels = u.convs[last].outputs;
  int64_t size = 0;
  for (int i = 0; i < u.depth; ++i)
    size = std::max(size, Framed{b.height, b.width, std::max(u.convs[i].inputs, u.convs[i].outputs)}.size());
  if (u.projection) size = std::max(size, Framed{b.height, b.width, u.projection->inputs}.size());
  num* rooms[2] = {buffers().a.take<num>(size), buffers().g.take<num>(size)};
  const auto first = [&](const FoldedConv& conv, const auto& out) {
    if (u.scale) convolve_first(b, conv, Activated{{x, conv.inputs, u.scale, u.shift}}, rooms[0], ranges[0], out);
    else convolve_first(b, conv, Plain{x, conv.inputs}, rooms[0], ranges[0], out);
  };
  if (u.projection) first(*u.projection, Projected{y, channels, u.projection->bias});
  const bf16* shortcut = u.projection ? y : x;
  for (int i = 0; i < u.depth; ++i) {
    const FoldedConv& conv = u.convs[i];
    num *from = rooms[i % 2], *to = rooms[(i + 1) % 2];
    const auto through = [&](const auto& out) {
      if (i) convolve_cached(b, conv, from, ranges[i], out);
      else first(conv, out);
    };
    if (i < last)
      ranges[i + 1].fit([&](Scaling& scaled) {
        through(ToCache{to, places.of(u.convs[i + 1].kernel), conv.outputs, conv.bias, scaled});
      });
    else if (u.rectified) through(ToMap<true>{shortcut, y, channels, conv.bias});
    else through(ToMap<false>{shortcut, y, channels, conv.bias});
  }
}

constexpr int64_t NEAR = 1 << 18;  // bytes of images that go through a unit together, so that its weights are read once

// A run of units that keep the shape; the first may change the number of channels.
inline void infer_run(const Batch& b, const FoldedUnit* units, int count, const bf16* x, bf16* y) {
  const Places places(b);
  const int64_t before = int64_t{b.area()} * units->convs->inputs, image = int64_t{b.area()} * units->convs[units->depth - 1].outputs;
  const int together = int(std::max<int64_t>(1, NEAR / int64_t(image * sizeof(bf16))));
  parallel(b, [&](int, int from, int to) {
    std::vector<Ranges> ranges;
    for (int u = 0; u < count; ++u) ranges.emplace_back(units[u].depth, Range(ACTIVATIONS));
    for (int first = from; first < to; first += together)
      for (int u = 0; u < count; ++u)
        for (int n = first; n < std::min(to, first + together); ++n)
          infer(b, units[u], places, ranges[u], u ? y + n * image : x + n * before, y + n * image);
  });
}

}  // namespace kilolayer
