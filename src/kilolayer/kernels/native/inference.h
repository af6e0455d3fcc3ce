// Residual units at inference, one image after another: what lies between two convolutions never leaves the cache.
//
//   a₁ = ReLU(scale·x + shift) if a BN precedes the first convolution, else x
//   aᵢ₊₁ = ReLU(convᵢ(aᵢ) + biasᵢ); x' = h + conv_L(a_L) + bias_L, and ReLU of that in an original unit
//   h = x. In a unit that changes shape, h is a 1×1 convolution of a₁ or x plus its bias, or a₁ or x with zeros in the additional
//   channels; every other pixel of it if a 3×3 convolution of F has a stride of 2
#pragma once
#include "conv_strided.h"

namespace kilolayer {

struct FoldedConv {
  const mul_t* packed;
  const float* bias;
  int32_t outputs, inputs, kernel, stride;
  float weight_unscale;  // the factor that removes the scale of the weights from a sum
  Weights sizes() const { return {nullptr, 0, 0, 0, 0, outputs, inputs, kernel}; }
};

struct FoldedUnit {
  int32_t depth;
  const FoldedConv* convs;
  const FoldedConv* projection;  // or null
  const float *scale, *shift;  // null if the first convolution reads x directly
  int32_t has_relu;  // whether a ReLU follows the addition
  int32_t activated;  // whether the shortcut reads a₁ instead of x
  int32_t padded;  // whether the shortcut pads with zero channels
  int stride() const {
    return std::any_of(convs, convs + depth, [](const FoldedConv& conv) { return conv.stride == 2; }) ? 2 : 1;
  }
};

struct CacheStore {  // ReLU(y + bias), in the form that the next convolution reads: pixel p at offsets[p]
  mul_t* out;
  const int32_t* offsets;
  int channels;
  const float* bias;
  Scaling& scaled;
  template <int P, int K>
  [[gnu::always_inline]] void write(vec (&y)[P][K], int64_t pixel, int c) const {
    vec shift[K];
    for (int k = 0; k < K; ++k) shift[k] = _mm512_loadu_ps(bias + c + k * LANES);
    Scaling copy = scaled;  // a copy in registers
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) {
      mul_t* to = out + int64_t{offsets[pixel + p]} * channels + c;
#pragma GCC unroll 2
      for (int k = 0; k < K; ++k)
        store(to + k * LANES, copy(relu(_mm512_add_ps(y[p][k], shift[k])), p));
    }
    scaled = copy;
  }
};

struct ResidualBiasStore {  // x + y + bias, or ReLU of that
  const bf16* x;
  bf16* out;
  int channels;
  const float* bias;
  vec floor;
  template <int P, int K>
  [[gnu::always_inline]] void write(vec (&y)[P][K], int64_t pixel, int c) const {
    vec shift[K];
    for (int k = 0; k < K; ++k) shift[k] = _mm512_loadu_ps(bias + c + k * LANES);
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 2
      for (int k = 0; k < K; ++k) {
        const int64_t index = (pixel + p) * channels + c + k * LANES;
        y[p][k] = _mm512_max_ps(floor, _mm512_add_ps(load(x + index), _mm512_add_ps(y[p][k], shift[k])));
      }
    store_block(out + pixel * channels + c, channels, y);
  }
};

// The size of the images, and the offsets at which a convolution of a given kernel finds their pixels: contiguous or framed.
struct Geometry : Batch {
  std::vector<int32_t> plain, framed;
  explicit Geometry(const Batch& b) : Batch(b), plain(b.area()), framed(b.area()) {
    for (int p = 0; p < b.area(); ++p) plain[p] = p, framed[p] = p / b.width * (b.width + 3) + p % b.width + 1;
  }
  const int32_t* offsets(int kernel) const { return (kernel == 1 ? plain : framed).data(); }
};

// One convolution of an image that already lies in the cache in the form it reads.
template <class Store>
void conv_cached(const Batch& b, const FoldedConv& conv, mul_t* a, const ScaleRange& range, const Store& out) {
  const float unscale = conv.weight_unscale * range.unscale();
  if (conv.kernel == 1) return conv_1x1(conv.sizes(), conv.packed, unscale, a, b.area(), out, 0, [](int64_t, int) {});
  const FramedImages f{b.height, b.width, conv.inputs};
  if (conv.stride == 2 || reads_frame(f)) clear_edges(f, a);
  if (conv.stride == 1) conv_3x3(conv.sizes(), conv.packed, unscale, f, a, out, 0);
  else conv_3x3_s2(conv.sizes(), conv.packed, unscale, f, a, out, 0);
}

// A 1×1 convolution of pixels in memory, chunk by chunk.
template <class Source, class Store>
void conv_chunks(const Batch& b, const FoldedConv& conv, const Source& source, mul_t* buffer, ScaleRange& range,
                 const Store& out) {
  for_chunks(0, b.area(), [&](int64_t pixel, int count) {
    const mul_t* a = load_chunk(source, pixel, count, buffer, range);
    conv_1x1(conv.sizes(), conv.packed, conv.weight_unscale * range.unscale(), a, count, out, pixel, [](int64_t, int) {});
  });
}

// The first convolution of a unit, which reads an image in memory.
template <class Source, class Store>
void conv_first(const Batch& b, const FoldedConv& conv, const Source& source, mul_t* buffer, ScaleRange& range,
                const Store& out) {
  if (conv.kernel == 1) return conv_chunks(b, conv, source, buffer, range, out);
  load_framed(source, {b.height, b.width, conv.inputs}, 0, buffer, range);
  conv_cached(b, conv, buffer, range, out);
}

// h of a unit that changes shape: x or a₁ through the shortcut's 1×1 convolution.
template <class Source>
void projection_shortcut(const Batch& b, const Batch& output, const FoldedUnit& u, const Source& source, mul_t* buffer,
                         ScaleRange& range, bf16* h) {
  const FoldedConv& conv = *u.projection;
  const auto out = [&](bf16* to) { return BiasStore{to, conv.outputs, conv.bias, relu_floor(false)}; };
  if (u.stride() == 1) return conv_chunks(b, conv, source, buffer, range, out(h));
  const Batch row{1, 1, output.width, 1};
  for (int y = 0; y < output.height; ++y, h += int64_t{output.width} * conv.outputs)
    conv_chunks(row, conv, StridedLoad<Source>{source, int64_t{2} * y * b.width}, buffer, range, out(h));
}

// h of a unit that changes shape: x or a₁ with zeros in the additional channels.
template <class Source>
void padded_shortcut(const Batch& b, const Batch& output, const FoldedUnit& u, const Source& source, bf16* h) {
  const int inputs = source.channels, outputs = u.convs[u.depth - 1].outputs, stride = u.stride();
  by_lanes(source, [&](const auto& lanes, int c) {
    bf16* to = h + c;
    for (int y = 0; y < output.height; ++y)
      for (int x = 0; x < output.width; ++x, to += outputs) {
        int g = 0;
        for (const auto& lane : lanes) store(to + g++ * LANES, lane(int64_t{stride} * (y * b.width + x)));
      }
  });
  for (bf16* to = h; to < h + int64_t{output.area()} * outputs; to += outputs) std::memset(to + inputs, 0,
      (outputs - inputs) * sizeof(bf16));
}

// The scales of what each convolution of a unit reads; they carry over from image to image.
using Ranges = std::vector<ScaleRange>;

// One unit on one image of size `b`; `output` is the size of its output. If the unit keeps the shape, x and y may be the same
// memory: every pixel of x is read for the last time before that of y is written.
inline void infer_unit(const Geometry& b, const Geometry& output, const FoldedUnit& u, Ranges& ranges, const bf16* x, bf16* y) {
  const int last = u.depth - 1, inputs = u.convs[0].inputs, channels = u.convs[last].outputs;
  int64_t size = 0;
  for (int i = 0; i < u.depth; ++i) size = std::max(size, FramedImages{b.height, b.width, u.convs[i].inputs}.size());
  mul_t* rooms[2] = {buffers().a.take<mul_t>(size), buffers().g.take<mul_t>(size)};
  const auto with_load = [&](bool activated, const auto& run) {
    if (activated) run(BnReluLoad{{x, inputs, u.scale, u.shift}});
    else run(IdentityLoad{x, inputs});
  };
  if (u.projection) with_load(u.activated, [&](const auto& source) { projection_shortcut(b, output, u, source, rooms[0], ranges[0],
                                                                                    y); });
  if (u.padded) with_load(u.activated, [&](const auto& source) { padded_shortcut(b, output, u, source, y); });
  const bf16* shortcut = u.projection || u.padded ? y : x;
  const Geometry* at = &b;  // the size that the current convolution reads
  for (int i = 0; i < u.depth; ++i) {
    const FoldedConv& conv = u.convs[i];
    const Geometry* next = conv.stride == 2 ? &output : at;
    mul_t *from = rooms[i % 2], *to = rooms[(i + 1) % 2];
    const auto run_conv = [&](const auto& out) {
      if (i) conv_cached(*at, conv, from, ranges[i], out);
      else with_load(u.scale, [&](const auto& source) { conv_first(*at, conv, source, rooms[0], ranges[0], out); });
    };
    if (i < last)
      ranges[i + 1].fit([&](Scaling& scaled) {
        run_conv(CacheStore{to, next->offsets(u.convs[i + 1].kernel), conv.outputs, conv.bias, scaled});
      });
    else run_conv(ResidualBiasStore{shortcut, y, channels, conv.bias, relu_floor(u.has_relu)});
    at = next;
  }
}

constexpr int64_t RUN_GROUP_BYTES = 1 << 18;  // bytes of images that pass through a unit together, so that its weights are read once

// A run of units that keep the shape; only the first may change it.
inline void infer_run(const Batch& batch, const FoldedUnit* units, int count, const bf16* x, bf16* y) {
  const Geometry b(batch), output(batch.after_stride(units->stride()));
  const int64_t before = int64_t{b.area()} * units->convs->inputs,
      image = int64_t{output.area()} * units->convs[units->depth - 1].outputs;
  const int group = int(std::max<int64_t>(1, RUN_GROUP_BYTES / int64_t(image * sizeof(bf16))));
  parallel(b, [&](int, int from, int to) {
    std::vector<Ranges> ranges;
    for (int u = 0; u < count; ++u) ranges.emplace_back(units[u].depth, ScaleRange(ACTIVATION_LIMIT));
    for (int first = from; first < to; first += group)
      for (int u = 0; u < count; ++u)
        for (int n = first; n < std::min(to, first + group); ++n)
          infer_unit(u ? output : b, output, units[u], ranges[u], u ? y + n * image : x + n * before, y + n * image);
  });
}

}  // namespace kilolayer
