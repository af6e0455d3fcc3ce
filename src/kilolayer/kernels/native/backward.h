// The backward pass of a unit: from the gradient of x' to the gradients of x, of the weights and of BN's parameters.
#pragma once
#include "forward.h"

namespace kilolayer {

// Accumulates the gradient of a convolution's weights, per thread: [thread][row][column][in][out] for 3×3 convolutions,
// [thread][broadcast][vector] for 1×1 convolutions.
struct WeightGradientSums {
  const Weights& w;
  int threads;
  float* sums;
  bool has_output_vectors() const { return w.kernel == 3 || w.outputs >= w.inputs; }
  float* of(int thread) const { return sums + thread * w.size(); }

  void write(float* dweight) const {
    const int64_t size = w.size();
    for (int t = 1; t < threads; ++t)
      for (int64_t i = 0; i < size; ++i) sums[i] += of(t)[i];
    constexpr int TILE = LANES;  // both sides of a transposed tile stay in the cache
    const bool swapped = !has_output_vectors();
    const int rows = swapped ? w.outputs : w.inputs, columns = swapped ? w.inputs : w.outputs;
    const int64_t row = swapped ? w.out : w.in, column = swapped ? w.in : w.out;
    const float* from = sums;
    for (int y = 0; y < w.kernel; ++y)
      for (int x = 0; x < w.kernel; ++x, from += int64_t{1} * rows * columns)
        for (int top = 0; top < rows; top += TILE)
          for (int left = 0; left < columns; left += TILE)
            for (int c = left; c < left + TILE; ++c)
              for (int r = top; r < top + TILE; ++r)
                dweight[y * w.row + x * w.column + r * row + c * column] = from[int64_t{r} * columns + c];
  }
};

// The backward pass of one convolution: the gradients of its input and of its weights. `gradient` loads the gradient of the
// output, `input` loads what the convolution read; `b` is the batch of the input.
template <class Gradient, class Input, class MakeStore>
void conv_backward(const Batch& b, const Conv& conv, const Gradient& gradient, const Input& input,
                   const MakeStore& store, double* norm_sums) {
  const Weights& w = conv.weights;
  const Weights flipped = w.transposed();
  mul_t* packed = batch_scratch<0>().take<mul_t>(w.size());
  const float weight_unscale = pack(flipped, packed);
  const WeightGradientSums wgrad{w, b.workers(), batch_scratch<1>().take<float>(b.workers() * w.size())};
  ThreadSums thread_sums(b.threads, w.inputs);
  parallel(b, [&](int thread, int from, int to) {
    WorkSums work_sums(thread_sums, thread, w.inputs);
    const auto out = store(work_sums.sums);
    Buffers& buffers_of_thread = buffers();
    float* dw = wgrad.of(thread);
    Accumulate accumulate = Accumulate::OVERWRITE;
    ScaleRange gradients(GRADIENT_LIMIT), activations(ACTIVATION_LIMIT);
    if (w.kernel == 1) {
      mul_t* g_buffer = buffers_of_thread.g.take<mul_t>(int64_t{chunk_size(w)} * w.outputs);
      mul_t* pair_buffer = buffers_of_thread.shifted.take<mul_t>(int64_t{chunk_size(w)} * w.outputs);
      mul_t* a_groups = buffers_of_thread.groups.take<mul_t>(int64_t{chunk_size(w)} * w.inputs);
      const auto prefetch_next = [&](int64_t p, int count) {
        gradient.prefetch(p + CHUNK, count);
        input.prefetch(p + CHUNK, count);
      };
      for_chunks(int64_t{from} * b.area(), int64_t{to} * b.area(), [&](int64_t pixel, int count) {
        const mul_t* g = load_chunk(gradient, pixel, count, g_buffer, gradients);
        const mul_t* g_groups = pair_all_pixels(g, w.outputs, count, pair_buffer);
        activations.fit([&](Scaling& scaled) { fill_grouped(input, pixel, count, a_groups, scaled); });
        work_sums.run([&] {
          conv_1x1(flipped, packed, weight_unscale * gradients.unscale(), g, count, out, pixel, prefetch_next);
        });
        const int groups = (count + TERMS - 1) / TERMS;
        const float unscale = gradients.unscale() * activations.unscale();
        if (wgrad.has_output_vectors()) wgrad_1x1(g_groups, w.outputs, a_groups, w.inputs, groups, unscale, accumulate, dw);
        else wgrad_1x1(a_groups, w.inputs, g_groups, w.outputs, groups, unscale, accumulate, dw);
        accumulate = Accumulate::ADD;
      }, chunk_size(w));
    } else if (conv.stride == 2) {
      const Batch output = b.after_stride(2);
      const FramedImages f{output.height, output.width, w.outputs};
      const ShiftedGradient s{output.height, output.width, w.outputs};
      const ColumnSplit split{b.width, w.inputs};
      mul_t* g = framed_buffer(f, buffers_of_thread.g);
      mul_t* shifted = buffers_of_thread.shifted.take<mul_t>(s.size());
      mul_t* a = buffers_of_thread.groups.take<mul_t>(2 * b.height * split.half());
      for (int n = from; n < to; ++n, accumulate = Accumulate::ADD) {
        const int64_t pixel = int64_t{n} * b.area();
        load_framed(gradient, f, int64_t{n} * output.area(), g, gradients);
        work_sums.run([&] {
          dgrad_3x3_s2(flipped, packed, weight_unscale * gradients.unscale(), f, g, b.height, b.width, out, pixel);
        });
        shift_columns(f, g, s, shifted);
        activations.fit([&](Scaling& scaled) { split_columns(input, pixel, b.height, split, a, scaled); });
        wgrad_3x3_s2(s, shifted, split, a, b.height, gradients.unscale() * activations.unscale(), accumulate, dw);
      }
    } else {
      for_image_groups(b, w, from, to, [&](int n, int images) {
        const FramedImages f{b.height, b.width, w.outputs, images};
        const ShiftedGradient s{b.height, b.width, w.outputs, images};
        const int64_t pixel = int64_t{n} * b.area();
        mul_t* g = framed_buffer(f, buffers_of_thread.g);
        mul_t* shifted = buffers_of_thread.shifted.take<mul_t>(s.size());
        const int64_t row = int64_t{TERMS} * s.groups() * w.inputs;
        mul_t* a_groups = buffers_of_thread.groups.take<mul_t>(s.rows() * row);
        load_framed(gradient, f, pixel, g, gradients);
        work_sums.run([&] { conv_3x3(flipped, packed, weight_unscale * gradients.unscale(), f, g, out, pixel); });
        shift_columns(f, g, s, shifted);
        activations.fit([&](Scaling& scaled) {
          for (int y = 0; y < s.rows(); ++y)
            fill_grouped(input, pixel + int64_t{y} * b.width, b.width, a_groups + y * row, scaled);
        });
        wgrad_3x3(s, shifted, a_groups, w.inputs, gradients.unscale() * activations.unscale(), accumulate, dw);
        accumulate = Accumulate::ADD;
      });
    }
  });
  wgrad.write(conv.dweight);
  thread_sums.reduce(norm_sums);
}

// dx = dh + BN's backward pass of the gradient in `out`; the result replaces it.
template <class Shortcut>
void add_bn_backward(const Batch& b, const Conv& conv, const Shortcut& dh, const Coefficients& coefficients, bf16* out) {
  const int channels = conv.weights.inputs;
  const BnBackwardLoad source{out, conv.in, channels, coefficients.first.data(), coefficients.second.data(),
                              coefficients.third.data()};
  parallel(b, [&](int, int from, int to) {
    by_pixels(int64_t{from} * b.area(), int64_t{to} * b.area(), channels, [&](int64_t pixel, int count) {
      by_lanes(source, [&](auto& lanes, int c) {
        for (int64_t p = pixel; p < pixel + count; ++p) {
          int index = c;
          for (auto& lane : lanes) {
            store(out + p * channels + index, _mm512_add_ps(dh.lane(index)(p), lane(p)));
            index += LANES;
          }
        }
      });
    });
  });
}

// Adds `dy`, the gradient of h, to the pixels of dx that a zero-padded shortcut read.
inline void padded_shortcut_backward(const Batch& b, const Batch& last, const Unit& u, const bf16* dy, bf16* dx) {
  const int inputs = u.convs[0].weights.inputs, outputs = u.last().weights.outputs;
  parallel(last, [&](int, int from, int to) {
    for (int64_t row = int64_t{from} * last.height; row < int64_t{to} * last.height; ++row) {
      const int64_t above = row / last.height * b.height + row % last.height * u.padded;
      for (int x = 0; x < last.width; ++x)
        for (int c = 0; c < inputs; c += LANES) {
          bf16* at = dx + (above * b.width + x * u.padded) * inputs + c;
          store(at, _mm512_add_ps(load(at), load(dy + (row * last.width + x) * outputs + c)));
        }
    }
  });
}

// In an original unit: the gradient of h + BN(t), which is dy where x' > 0, with the two backward sums of the final BN and, if
// there is a projection, of the projection's BN.
inline void relu_backward(const Batch& b, const Unit& u, const bf16* dy, bf16* out, double* norm_sums,
                          double* projection_sums) {
  const int channels = u.last().weights.outputs;
  ThreadSums thread_sums(b.threads, channels), projection_thread_sums(b.threads, channels);
  parallel(b, [&](int thread, int from, int to) {
    WorkSums work_sums(thread_sums, thread, channels), projection_work(projection_thread_sums, thread, channels);
    for_chunks(int64_t{from} * b.area(), int64_t{to} * b.area(), [&](int64_t pixel, int count) {
      work_sums.run([&] {
        correlate(work_sums.sums, channels, pixel, count, [&](int64_t at, int, vec& t) {
          const __mmask16 open = _mm512_cmp_ps_mask(load(u.y + at), _mm512_setzero_ps(), _CMP_GT_OQ);
          const vec g = _mm512_maskz_mov_ps(open, load(dy + at));
          t = load(u.last().out + at);
          store(out + at, g);
          return g;
        });
      });
      if (!u.projection) return;
      projection_work.run([&] {
        correlate(projection_work.sums, channels, pixel, count, [&](int64_t at, int, vec& t) {
          t = load(u.projection->out + at);
          return load(out + at);
        });
      });
    });
  });
  thread_sums.reduce(norm_sums);
  projection_thread_sums.reduce(projection_sums);
}

// Calls act with a load of the gradient of a convolution's output. Empty coefficients: `g` is that gradient. Otherwise `g` is
// the gradient of the output of the BN behind the convolution.
template <class Do>
void with_gradient(const Conv& conv, const bf16* g, const Coefficients& coefficients, const Do& run) {
  const int channels = conv.weights.outputs;
  if (coefficients.first.empty()) run(IdentityLoad{g, channels});
  else run(BnBackwardLoad{g, conv.out, channels, coefficients.first.data(), coefficients.second.data(),
                          coefficients.third.data()});
}

inline void backward(const Batch& b, const Unit& u, const bf16* dy, bf16* dx) {
  std::vector<Batch> at{b};  // at[i] is what convolution i reads; the last is x'
  for (int i = 0; i < u.depth; ++i) at.push_back(at.back().after_stride(u.convs[i].stride));
  const Batch& last = at.back();
  Coefficients dnorm(0);  // the backward pass of the BN behind the current convolution
  Coefficients dprojection_norm(0);  // the backward pass of the BN behind the projection
  std::vector<double> norm_sums, projection_sums;
  if (u.final_norm) {
    const int channels = u.last().weights.outputs;
    bf16* masked_dy = batch_scratch<4>().take<bf16>(int64_t(last.count()) * channels);
    norm_sums.resize(2 * channels), projection_sums.resize(2 * channels);
    relu_backward(last, u, dy, masked_dy, norm_sums.data(), projection_sums.data());
    dnorm = bn_backward_coefficients(*u.final_norm, channels, norm_sums.data(), last.count());
    if (u.projection) {
      const Norm& norm = *u.projection->norm;
      dprojection_norm = bn_backward_coefficients(norm, channels, projection_sums.data(), last.count());
    }
    dy = masked_dy;
  }
  const bf16* g = dy;
  for (int i = u.depth - 1; i >= 0; --i) {
    const Conv& conv = u.convs[i];
    const int inputs = conv.weights.inputs;
    const Coefficients coefficients = conv.norm ? bn_coefficients(*conv.norm, inputs) : Coefficients(0);
    norm_sums.resize(2 * inputs);
    const int64_t size = int64_t(at[i].count()) * inputs;
    bf16* out = i == 0 ? dx : i % 2 ? batch_scratch<2>().take<bf16>(size) : batch_scratch<3>().take<bf16>(size);
    const auto run_backward = [&](const auto& gradient, const auto& input) {
      const auto masked = [&](Sums s) {
        return ReluBackwardStore{conv.in, out, inputs, coefficients.first.data(), coefficients.second.data(), s};
      };
      const auto added = [&](Sums s) { return ResidualStore{dy, out, inputs, s}; };
      const auto written = [&](Sums) { return PlainStore{out, inputs}; };
      if constexpr (std::is_same_v<std::decay_t<decltype(input)>, BnReluLoad>)
        conv_backward(at[i], conv, gradient, input, masked, norm_sums.data());
      else if (u.identity()) conv_backward(at[i], conv, gradient, input, added, norm_sums.data());
      else conv_backward(at[i], conv, gradient, input, written, norm_sums.data());
    };
    with_input(conv, coefficients, [&](const auto& input) {
      with_gradient(conv, g, dnorm, [&](const auto& gradient) { run_backward(gradient, input); });
    });
    if (conv.norm) dnorm = bn_backward_coefficients(*conv.norm, inputs, norm_sums.data(), at[i].count());
    g = out;
  }
  const Conv& first = u.convs[0];
  if (first.norm) {
    if (u.identity()) add_bn_backward(b, first, IdentityLoad{dy, first.weights.inputs}, dnorm, dx);
    else add_bn_backward(b, first, ZeroLoad{}, dnorm, dx);
  }
  if (u.padded) padded_shortcut_backward(b, last, u, dy, dx);
  if (!u.projection) return;
  const Conv& conv = *u.projection;
  const int inputs = conv.weights.inputs;
  norm_sums.resize(2 * inputs);
  with_gradient(conv, dy, dprojection_norm, [&](const auto& gradient) {
    const IdentityLoad input{conv.in, inputs};
    const auto added = [&](Sums s) { return ResidualStore{dx, dx, inputs, s}; };
    const auto written = [&](Sums) { return PlainStore{u.dread, inputs}; };
    if (u.dread) conv_backward(last, conv, gradient, input, written, norm_sums.data());
    else conv_backward(last, conv, gradient, input, added, norm_sums.data());
  });
}

}  // namespace kilolayer
