// The convolution of a stem, which reads few channels: im2col in the cache, then a 1×1 convolution over the patches. The images
// get no gradient.
#pragma once
#include "backward.h"

namespace kilolayer {

struct Images {  // the images, and the kernel that passes over them
  const bf16* data;
  int32_t height, width, channels, kernel, stride, padding;

  int side() const { return kernel * channels; }  // contiguous numbers in one row of a patch; at most MAX_PATCH_ROW
  int inputs() const { return (kernel * side() + LANES - 1) / LANES * LANES; }
  int row() const { return (width + 2 * padding) * channels; }
  int64_t framed() const { return int64_t{height + 2 * padding} * row(); }
};

constexpr int MAX_PATCH_ROW = 32;

inline void copy_row(const mul_t* from, mul_t* to, int count) {
  const uint32_t all = count < 32 ? (1u << count) - 1 : ~0u;
  if constexpr (sizeof(mul_t) == 2) {
    _mm512_mask_storeu_epi16(to, all, _mm512_maskz_loadu_epi16(all, from));
  } else {
    const auto *source = reinterpret_cast<const float*>(from);
    auto* target = reinterpret_cast<float*>(to);
    _mm512_mask_storeu_ps(target, all & 0xffff, _mm512_maskz_loadu_ps(all & 0xffff, source));
    _mm512_mask_storeu_ps(target + LANES, all >> 16, _mm512_maskz_loadu_ps(all >> 16, source + LANES));
  }
}

// Converts one image to mul_t, inside a frame of zeros that the caller has cleared.
inline void load_image(const Images& of, int64_t n, mul_t* frame, Scaling& scaled) {
  const int length = of.width * of.channels, full = length / LANES * LANES;
  for (int y = 0; y < of.height; ++y) {
    const bf16* from = of.data + (n * of.height + y) * length;
    mul_t* to = frame + int64_t{y + of.padding} * of.row() + of.padding * of.channels;
    for (int i = 0; i < full; i += LANES) store(to + i, scaled(load(from + i), i / LANES));
    if (full == length) continue;
    bf16 tail[LANES] = {};
    std::memcpy(tail, from + full, (length - full) * sizeof(bf16));
    mul_t last[LANES];
    store(last, scaled(load(tail)));
    std::memcpy(to + full, last, (length - full) * sizeof(mul_t));
  }
}

// The weights as those of a 1×1 convolution of patches; zero where a patch is padded.
struct Im2colWeights {
  std::vector<float> data;
  Weights weights;
  Im2colWeights(const Images& of, const Weights& w)
      : data(size_t(w.outputs) * of.inputs()), weights{data.data(), of.inputs(), 1, 0, 0, w.outputs, of.inputs(), 1} {}

  // Calls visit(index, offset) for every weight: `index` into data, `offset` into `w`.
  template <class Visit>
  static void for_each(const Images& of, const Weights& w, const Visit& visit) {
    for (int o = 0; o < w.outputs; ++o)
      for (int y = 0; y < w.kernel; ++y)
        for (int x = 0; x < w.kernel; ++x)
          for (int i = 0; i < w.inputs; ++i)
            visit(int64_t{o} * of.inputs() + (y * w.kernel + x) * w.inputs + i,
                  o * w.out + y * w.row + x * w.column + i * w.in);
  }
};

// Calls act(state, pixel, count, patches, unscale) for every chunk of output pixels; `state` is start(thread).
template <class Start, class Act>
void for_patches(const Batch& b, const Images& of, const Start& start, const Act& act) {
  parallel(b, [&](int thread, int from, int to) {
    ScaleRange range(ACTIVATION_LIMIT);
    mul_t* frame = buffers().a.take<mul_t>(of.framed() + MAX_PATCH_ROW);
    mul_t* buffer = buffers().groups.take<mul_t>(int64_t{CHUNK} * of.inputs() + MAX_PATCH_ROW);
    std::memset(frame, 0, (of.framed() + MAX_PATCH_ROW) * sizeof(mul_t));
    std::memset(buffer, 0, (int64_t{CHUNK} * of.inputs() + MAX_PATCH_ROW) * sizeof(mul_t));
    auto state = start(thread);
    for (int n = from; n < to; ++n) {
      range.fit([&](Scaling& scaled) { load_image(of, n, frame, scaled); });
      for_chunks(0, b.area(), [&](int64_t first, int count) {
        for (int p = 0; p < count; ++p) {
          const int64_t y = (first + p) / b.width * of.stride, x = (first + p) % b.width * of.stride;
          const mul_t* corner = frame + y * of.row() + x * of.channels;
          for (int ky = 0; ky < of.kernel; ++ky)
            copy_row(corner + ky * of.row(), buffer + p * of.inputs() + ky * of.side(), of.side());
        }
        act(state, int64_t{n} * b.area() + first, count, buffer, range.unscale());
      });
    }
  });
}

// Calls run(state, multiply) for every chunk; multiply(store) computes it. `b` is the batch of the output.
template <class Start, class Run>
void conv_patches(const Batch& b, const Images& of, const Weights& w, const Start& start, const Run& run) {
  Im2colWeights im2col(of, w);
  Im2colWeights::for_each(of, w, [&](int64_t index, int64_t offset) { im2col.data[index] = w.data[offset]; });
  mul_t* packed = batch_scratch<0>().take<mul_t>(im2col.weights.size());
  const float weight_unscale = pack(im2col.weights, packed);
  for_patches(b, of, start, [&](auto& state, int64_t pixel, int count, const mul_t* patches, float unscale) {
    run(state, [&](const auto& out) {
      conv_1x1(im2col.weights, packed, weight_unscale * unscale, patches, count, out, pixel, [](int64_t, int) {});
    });
  });
}

// Computes Σ y and Σ y² too, for the BN that follows.
inline void im2col_forward(const Batch& b, const Images& of, const Weights& w, bf16* y, double* sums) {
  ThreadSums thread_sums(b.threads, w.outputs);
  conv_patches(b, of, w, [&](int thread) { return WorkSums(thread_sums, thread, w.outputs); },
               [&](WorkSums& work_sums, const auto& multiply) {
    work_sums.run([&] { multiply(StatisticsStore{y, w.outputs, work_sums.sums}); });
  });
  thread_sums.reduce(sums);
}

// At inference: y + bias, or ReLU(y + bias).
inline void im2col_infer(const Batch& b, const Images& of, const Weights& w, const float* bias, bool has_relu, bf16* y) {
  const BiasStore out{y, w.outputs, bias, relu_floor(has_relu)};
  conv_patches(b, of, w, [](int) { return 0; }, [&](int, const auto& multiply) { multiply(out); });
}

inline void im2col_backward(const Batch& b, const Images& of, const Weights& w, const bf16* dy, float* dweight) {
  Im2colWeights im2col(of, w);
  const WeightGradientSums wgrad{im2col.weights, b.workers(), batch_scratch<1>().take<float>(b.workers() * im2col.weights.size())};
  const int inputs = of.inputs(), outputs = w.outputs;
  struct ThreadState {
    mul_t *g, *g_groups, *a_groups;
    float* sums;
    ScaleRange range;
    Accumulate accumulate = Accumulate::OVERWRITE;
  };
  for_patches(b, of, [&](int thread) {
    const auto buffer = [&](Scratch& scratch, int channels) { return scratch.take<mul_t>(int64_t{CHUNK} * channels); };
    return ThreadState{buffer(buffers().g, outputs), buffer(buffers().shifted, outputs), buffer(buffers().sums, inputs),
                       wgrad.of(thread), ScaleRange(GRADIENT_LIMIT)};
  }, [&](ThreadState& state, int64_t pixel, int count, const mul_t* patches, float unscale) {
    const mul_t* g = pair_all_pixels(load_chunk(IdentityLoad{dy, outputs}, pixel, count, state.g, state.range), outputs, count,
                                     state.g_groups);
    const mul_t* a = pair_all_pixels(patches, inputs, count, state.a_groups);
    const int groups = (count + TERMS - 1) / TERMS;
    unscale *= state.range.unscale();
    if (wgrad.has_output_vectors()) wgrad_1x1(g, outputs, a, inputs, groups, unscale, state.accumulate, state.sums);
    else wgrad_1x1(a, inputs, g, outputs, groups, unscale, state.accumulate, state.sums);
    state.accumulate = Accumulate::ADD;
  });
  wgrad.write(im2col.data.data());
  Im2colWeights::for_each(of, w, [&](int64_t index, int64_t offset) { dweight[offset] = im2col.data[index]; });
}

}  // namespace kilolayer
