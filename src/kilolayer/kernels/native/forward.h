// The forward pass of a residual unit.
//
//   t₀ = x, tᵢ = convᵢ(aᵢ); aᵢ = ReLU(BNᵢ(tᵢ₋₁)), or tᵢ₋₁ if no BN precedes convᵢ
//   x' = h + t_L; in the original unit, whose last convolution is followed by BN: x' = ReLU(h + BN(t_L))
//   h = x. In a unit that changes shape, h is a 1×1 convolution of x (followed by BN in the original unit), or pixels of x with
//   zeros in the additional channels
//
// BN needs the sums of its input over the whole batch, so every convolution is one pass over the batch. Everything else is
// computed while that pass reads (prologues.h) and writes (epilogues.h).
#pragma once
#include "conv_strided.h"

namespace kilolayer {

struct Conv {
  Weights weights;
  float* dweight;  // has the strides of the weights
  const Norm* norm;  // the BN before the convolution, or null
  const bf16* in;
  bf16* out;
  int32_t stride;  // 1; a 3×3 convolution may have 2
};

struct Unit {
  int32_t depth;
  const Conv* convs;
  const Norm* final_norm;  // the BN behind the last convolution in an original unit, or null
  const bf16* h;  // the shortcut's output: x itself, or the memory of x', where it stays until F is added
  bf16* y;  // x'
  const Conv* projection;  // the shortcut's convolution, or null; with a BN behind it, or else it writes h
  bf16* dread;  // receives the gradient of the projection's input if that is a strided copy of x, else null
  int32_t padded;  // the stride of a zero-padded shortcut; 0 for other shortcuts
  const Conv& last() const { return convs[depth - 1]; }
  bool identity() const { return !projection && !padded; }
};

inline void channel_sums(const Batch& b, const bf16* t, int channels, double* norm_sums) {
  ThreadSums thread_sums(b.threads, channels);
  parallel(b, [&](int thread, int from, int to) {
    WorkSums work_sums(thread_sums, thread, channels);
    for_chunks(int64_t{from} * b.area(), int64_t{to} * b.area(), [&](int64_t pixel, int count) {
      work_sums.run([&] {
        correlate(work_sums.sums, channels, pixel, count, [&](int64_t at, int, vec& y) { return y = load(t + at); });
      });
    });
  });
  thread_sums.reduce(norm_sums);
}

// One convolution over the batch. `b` is the batch of the input; `store(sums)` makes the store for one chunk of work.
template <class Source, class MakeStore>
void conv_forward(const Batch& b, const Conv& conv, const Source& source, const MakeStore& store, double* norm_sums) {
  const Weights& w = conv.weights;
  mul_t* packed = batch_scratch<0>().take<mul_t>(w.size());
  const float weight_unscale = pack(w, packed);
  ThreadSums thread_sums(b.threads, w.outputs);
  parallel(b, [&](int thread, int from, int to) {
    WorkSums work_sums(thread_sums, thread, w.outputs);
    const auto out = store(work_sums.sums);
    ScaleRange range(ACTIVATION_LIMIT);
    if (w.kernel == 1) {
      mul_t* buffer = buffers().a.take<mul_t>(int64_t{chunk_size(w)} * w.inputs);
      const auto prefetch_next = [&](int64_t p, int count) { source.prefetch(p + CHUNK, count); };
      for_chunks(int64_t{from} * b.area(), int64_t{to} * b.area(), [&](int64_t pixel, int count) {
        const mul_t* a = load_chunk(source, pixel, count, buffer, range);
        work_sums.run([&] { conv_1x1(w, packed, weight_unscale * range.unscale(), a, count, out, pixel, prefetch_next); });
      }, chunk_size(w));
    } else if (conv.stride == 2) {
      const FramedImages f{b.height, b.width, w.inputs};
      mul_t* image = framed_buffer(f, buffers().a);
      for (int n = from; n < to; ++n) {
        load_framed(source, f, int64_t{n} * b.area(), image, range);
        work_sums.run([&] {
          conv_3x3_s2(w, packed, weight_unscale * range.unscale(), f, image, out, int64_t{n} * b.after_stride(2).area());
        });
      }
    } else {
      for_image_groups(b, w, from, to, [&](int n, int images) {
        const FramedImages f{b.height, b.width, w.inputs, images};
        const int64_t pixel = int64_t{n} * b.area();
        mul_t* image = framed_buffer(f, buffers().a);
        load_framed(source, f, pixel, image, range);
        work_sums.run([&] { conv_3x3(w, packed, weight_unscale * range.unscale(), f, image, out, pixel); });
      });
    }
  });
  thread_sums.reduce(norm_sums);
}

template <class Do>
void with_input(const Conv& conv, const Coefficients& coefficients, const Do& run) {
  const int channels = conv.weights.inputs;
  if (conv.norm) run(BnReluLoad{{conv.in, channels, coefficients.first.data(), coefficients.second.data()}});
  else run(IdentityLoad{conv.in, channels});
}

// x' = ReLU(h + BN(t))
template <class Shortcut>
void add_relu(const Batch& b, const Unit& u, const Coefficients& coefficients, const Shortcut& h) {
  const int channels = u.last().weights.outputs;
  const AffineLoad source{u.last().out, channels, coefficients.first.data(), coefficients.second.data()};
  parallel(b, [&](int, int from, int to) {
    by_pixels(int64_t{from} * b.area(), int64_t{to} * b.area(), channels, [&](int64_t pixel, int count) {
      by_lanes(source, [&](auto& lanes, int c) {
        for (int64_t p = pixel; p < pixel + count; ++p) {
          int index = c;
          for (auto& lane : lanes) {
            store(u.y + p * channels + index, relu(_mm512_add_ps(h.lane(index)(p), lane(p))));
            index += LANES;
          }
        }
      });
    });
  });
}

// `input_sums`: Σ x and Σ x² if the previous unit has computed them, else null. `sums` receives those of x' in a pre-activation unit.
inline void forward(const Batch& b, const Unit& u, const double* input_sums, double* sums) {
  Batch at = b;  // the batch that the current convolution reads
  for (int i = 0; i < u.depth; ++i) at = at.after_stride(u.convs[i].stride);
  const Batch last = at;
  std::vector<double> norm_sums;
  if (u.projection) {
    const Conv& conv = *u.projection;
    const int outputs = conv.weights.outputs;
    norm_sums.resize(2 * outputs);
    const auto plain = [&](Sums s) { return StatisticsStore{conv.out, outputs, s}; };
    conv_forward(last, conv, IdentityLoad{conv.in, conv.weights.inputs}, plain, norm_sums.data());
    if (conv.norm) finalize_statistics(*conv.norm, outputs, norm_sums.data(), last.count());
  }
  at = b;
  for (int i = 0; i < u.depth; at = at.after_stride(u.convs[i++].stride)) {
    const Conv& conv = u.convs[i];
    const int inputs = conv.weights.inputs, outputs = conv.weights.outputs;
    if (i == 0 && conv.norm) {
      norm_sums.resize(2 * inputs);
      if (input_sums) std::copy(input_sums, input_sums + 2 * inputs, norm_sums.data());
      else channel_sums(b, conv.in, inputs, norm_sums.data());
    }
    if (conv.norm) finalize_statistics(*conv.norm, inputs, norm_sums.data(), at.count());
    const Coefficients coefficients = conv.norm ? bn_coefficients(*conv.norm, inputs) : Coefficients(0);
    norm_sums.resize(2 * outputs);
    with_input(conv, coefficients, [&](const auto& source) {
      const auto plain = [&](Sums s) { return StatisticsStore{conv.out, outputs, s}; };
      const auto added = [&](Sums s) { return ResidualStore{u.h, u.y, outputs, s}; };
      if (i + 1 < u.depth || u.final_norm) conv_forward(at, conv, source, plain, norm_sums.data());
      else conv_forward(at, conv, source, added, sums);
    });
  }
  if (!u.final_norm) return;
  const int channels = u.last().weights.outputs;
  finalize_statistics(*u.final_norm, channels, norm_sums.data(), last.count());
  const Coefficients coefficients = bn_coefficients(*u.final_norm, channels);
  if (!u.projection) return add_relu(last, u, coefficients, IdentityLoad{u.h, channels});
  const Coefficients projected = bn_coefficients(*u.projection->norm, channels);
  add_relu(last, u, coefficients, AffineLoad{u.projection->out, channels, projected.first.data(), projected.second.data()});
}

}  // namespace kilolayer
