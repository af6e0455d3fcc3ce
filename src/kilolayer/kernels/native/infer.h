// Units at inference, one image after another: what stands between two convolutions never leaves the cache.
//
//   a₁ = ReLU(scale·x + shift), where a BN stands before the first convolution, else x
//   aᵢ₊₁ = ReLU(convᵢ(aᵢ) + biasᵢ),  x' = h + conv_L(a_L) + bias_L, in an original unit ReLU of that
//   h = x, or where the unit changes shape a 1×1 convolution of a₁ or x with its bias, or either with zeros in its further
//   channels; of every other pixel where a 3×3 convolution of F has a stride of 2
#pragma once
#include "strided.h"

namespace kilolayer {

struct FoldedConv {
  const num* packed;
  const float* bias;
  int32_t outputs, inputs, kernel, stride;
  float unscaled;  // what sums of its products are multiplied by
  Weights sizes() const { return {nullptr, 0, 0, 0, 0, outputs, inputs, kernel}; }
};

struct FoldedUnit {
  int32_t depth;
  const FoldedConv* convs;
  const FoldedConv* projection;  // or null
  const float *scale, *shift;  // null where the first convolution reads x as it is
  int32_t rectified;  // whether a ReLU stands behind the addition
  int32_t activated;  // whether the shortcut reads a₁, not x
  int32_t padded;     // whether the shortcut pads its channels
  int stride() const {
    return std::any_of(convs, convs + depth, [](const FoldedConv& conv) { return conv.stride == 2; }) ? 2 : 1;
  }
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
        store(to + k * LANES, own(relu(_mm512_add_ps(y[p][k], shift[k])), p));
    }
    scaled = own;
  }
};

struct ToMap {  // x + y + bias, or ReLU of that
  const bf16* x;
  bf16* out;
  int channels;
  const float* bias;
  vec least;
  template <int P, int K>
  [[gnu::always_inline]] void write(vec (&y)[P][K], int64_t pixel, int c) const {
    vec shift[K];
    for (int k = 0; k < K; ++k) shift[k] = _mm512_loadu_ps(bias + c + k * LANES);
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 2
      for (int k = 0; k < K; ++k) {
        const int64_t here = (pixel + p) * channels + c + k * LANES;
        y[p][k] = _mm512_max_ps(least, _mm512_add_ps(load(x + here), _mm512_add_ps(y[p][k], shift[k])));
      }
    store_block(out + pixel * channels + c, channels, y);
  }
};

// A size of images, and where a convolution of this kernel looks for their pixels: side by side, or framed.
struct Geometry : Batch {
  std::vector<int32_t> plain, framed;
  explicit Geometry(const Batch& b) : Batch(b), plain(b.area()), framed(b.area()) {
    for (int p = 0; p < b.area(); ++p) plain[p] = p, framed[p] = p / b.width * (b.width + 3) + p % b.width + 1;
  }
  const int32_t* places(int kernel) const { return (kernel == 1 ? plain : framed).data(); }
};

// One convolution of an image that lies in the cache as this convolution reads it.
template <class Store>
void convolve_cached(const Batch& b, const FoldedConv& conv, num* a, const Range& range, const Store& out) {
  const float back = conv.unscaled * range.back();
  if (conv.kernel == 1) return convolve_1x1(conv.sizes(), conv.packed, back, a, b.area(), out, 0, [](int64_t, int) {});
  const Framed f{b.height, b.width, conv.inputs};
  if (conv.stride == 2 || reads_frame(f)) clear_edges(f, a);
  if (conv.stride == 1) convolve_3x3(conv.sizes(), conv.packed, back, f, a, out, 0);
  else halve(conv.sizes(), conv.packed, back, f, a, out, 0);
}

// A 1×1 convolution of pixels in memory, of which it needs no more than a chunk at once.
template <class Source, class Store>
void convolve_chunks(const Batch& b, const FoldedConv& conv, const Source& source, num* room, Range& range, const Store& out) {
  chunks(0, b.area(), [&](int64_t pixel, int count) {
    const num* a = in_cache(source, pixel, count, room, range);
    convolve_1x1(conv.sizes(), conv.packed, conv.unscaled * range.back(), a, count, out, pixel, [](int64_t, int) {});
  });
}

// The first convolution, of an image in memory.
template <class Source, class Store>
void convolve_first(const Batch& b, const FoldedConv& conv, const Source& source, num* room, Range& range, const Store& out) {
  if (conv.kernel == 1) return convolve_chunks(b, conv, source, room, range, out);
  frame(source, {b.height, b.width, conv.inputs}, 0, room, range);
  convolve_cached(b, conv, room, range, out);
}

// h of a unit that changes shape: x or a₁ through its 1×1 convolution.
template <class Source>
void project(const Batch& b, const Batch& behind, const FoldedUnit& u, const Source& source, num* room, Range& range, bf16* h) {
  const FoldedConv& conv = *u.projection;
  const auto out = [&](bf16* to) { return Biased{to, conv.outputs, conv.bias, least(false)}; };
  if (u.stride() == 1) return convolve_chunks(b, conv, source, room, range, out(h));
  const Batch row{1, 1, behind.width, 1};
  for (int y = 0; y < behind.height; ++y, h += int64_t{behind.width} * conv.outputs)
    convolve_chunks(row, conv, EveryOther<Source>{source, int64_t{2} * y * b.width}, room, range, out(h));
}

// Or those with zeros in its further channels.
template <class Source>
void pad(const Batch& b, const Batch& behind, const FoldedUnit& u, const Source& source, bf16* h) {
  const int inputs = source.channels, outputs = u.convs[u.depth - 1].outputs, stride = u.stride();
  by_lanes(source, [&](const auto& lanes, int c) {
    bf16* to = h + c;
    for (int y = 0; y < behind.height; ++y)
      for (int x = 0; x < behind.width; ++x, to += outputs) {
        int g = 0;
        for (const auto& lane : lanes) store(to + g++ * LANES, lane(int64_t{stride} * (y * b.width + x)));
      }
  });
  for (bf16* to = h; to < h + int64_t{behind.area()} * outputs; to += outputs) std::memset(to + inputs, 0, (outputs - inputs) * sizeof(bf16));
}

// Of what each convolution of a unit reads; they hold from image to image.
using Ranges = std::vector<Range>;

// Of images of size `b`, `behind` of the unit. Where it keeps the shape x and y may be the same: a pixel of x is read for the
// last time where that of y is written.
inline void infer(const Geometry& b, const Geometry& behind, const FoldedUnit& u, Ranges& ranges, const bf16* x, bf16* y) {
  const int last = u.depth - 1, inputs = u.convs[0].inputs, channels = u.convs[last].outputs;
  int64_t size = 0;
  for (int i = 0; i < u.depth; ++i) size = std::max(size, Framed{b.height, b.width, u.convs[i].inputs}.size());
  num* rooms[2] = {buffers().a.take<num>(size), buffers().g.take<num>(size)};
  const auto read = [&](bool activated, const auto& act) {
    if (activated) act(Activated{{x, inputs, u.scale, u.shift}});
    else act(Plain{x, inputs});
  };
  if (u.projection) read(u.activated, [&](const auto& source) { project(b, behind, u, source, rooms[0], ranges[0], y); });
  if (u.padded) read(u.activated, [&](const auto& source) { pad(b, behind, u, source, y); });
  const bf16* shortcut = u.projection || u.padded ? y : x;
  const Geometry* at = &b;  // of what the convolution at hand reads
  for (int i = 0; i < u.depth; ++i) {
    const FoldedConv& conv = u.convs[i];
    const Geometry* next = conv.stride == 2 ? &behind : at;
    num *from = rooms[i % 2], *to = rooms[(i + 1) % 2];
    const auto through = [&](const auto& out) {
      if (i) convolve_cached(*at, conv, from, ranges[i], out);
      else read(u.scale, [&](const auto& source) { convolve_first(*at, conv, source, rooms[0], ranges[0], out); });
    };
    if (i < last)
      ranges[i + 1].fit([&](Scaling& scaled) {
        through(ToCache{to, next->places(u.convs[i + 1].kernel), conv.outputs, conv.bias, scaled});
      });
    else through(ToMap{shortcut, y, channels, conv.bias, least(u.rectified)});
    at = next;
  }
}

constexpr int64_t NEAR = 1 << 18;  // bytes of images that go through a unit together, so that its weights are read once

// A run of units that keep the shape; the first may change it.
inline void infer_run(const Batch& batch, const FoldedUnit* units, int count, const bf16* x, bf16* y) {
  const Geometry b(batch), behind(batch.behind(units->stride()));
  const int64_t before = int64_t{b.area()} * units->convs->inputs, image = int64_t{behind.area()} * units->convs[units->depth - 1].outputs;
  const int together = int(std::max<int64_t>(1, NEAR / int64_t(image * sizeof(bf16))));
  parallel(b, [&](int, int from, int to) {
    std::vector<Ranges> ranges;
    for (int u = 0; u < count; ++u) ranges.emplace_back(units[u].depth, Range(ACTIVATIONS));
    for (int first = from; first < to; first += together)
      for (int u = 0; u < count; ++u)
        for (int n = first; n < std::min(to, first + together); ++n)
          infer(u ? behind : b, behind, units[u], ranges[u], u ? y + n * image : x + n * before, y + n * image);
  });
}

}  // namespace kilolayer
