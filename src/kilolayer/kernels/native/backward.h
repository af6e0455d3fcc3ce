// The backward pass of a unit: from the gradient of x' to those of x, the weights and BN's parameters.
#pragma once
#include "forward.h"

namespace kilolayer {

// What a convolution's weight gradient is collected in: [thread][row][column][in][out], for 1×1 convolutions
// [thread][broadcast][vector].
struct Collected {
  const Weights& w;
  int threads;
  float* sums;
  bool outputs_in_vectors() const { return w.kernel == 3 || w.outputs >= w.inputs; }
  float* of(int thread) const { return sums + thread * w.size(); }

  void write(float* dweight) const {
    const int64_t size = w.size();
    for (int t = 1; t < threads; ++t)
      for (int64_t i = 0; i < size; ++i) sums[i] += of(t)[i];
    constexpr int TILE = LANES;  // a transposition's two sides stay in the cache
    const bool swapped = !outputs_in_vectors();
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

// The gradient through one convolution, and of its weights: `gradient` is that of its output, `input` what it read, `b` of
// that.
template <class Gradient, class Input, class MakeStore>
void differentiate(const Batch& b, const Conv& conv, const Gradient& gradient, const Input& input,
                   const MakeStore& store, double* total) {
  const Weights& w = conv.weights;
  const Weights turned = w.transposed();
  num* packed = whole<0>().take<num>(w.size());
  const float unscaled = pack(turned, packed);
  const Collected collected{w, b.workers(), whole<1>().take<float>(b.workers() * w.size())};
  Partial partial(b.threads, w.inputs);
  parallel(b, [&](int thread, int from, int to) {
    Piece piece(partial, thread, w.inputs);
    const auto out = store(piece.sums);
    Buffers& own = buffers();
    float* dw = collected.of(thread);
    Sum so_far = Sum::BEGINS;
    Range gradients(GRADIENTS), activations(ACTIVATIONS);
    if (w.kernel == 1) {
      num* room = own.g.take<num>(int64_t{chunk_of(w)} * w.outputs);
      num* second = own.shifted.take<num>(int64_t{chunk_of(w)} * w.outputs);
      num* a_groups = own.groups.take<num>(int64_t{chunk_of(w)} * w.inputs);
      const auto ahead = [&](int64_t p, int count) {
        gradient.expect(p + CHUNK, count);
        input.expect(p + CHUNK, count);
      };
      chunks(int64_t{from} * b.area(), int64_t{to} * b.area(), [&](int64_t pixel, int count) {
        const num* g = in_cache(gradient, pixel, count, room, gradients);
        const num* g_groups = grouped(g, w.outputs, count, second);
        activations.fit([&](Scaling& scaled) { fill_grouped(input, pixel, count, a_groups, scaled); });
        piece.run([&] { convolve_1x1(turned, packed, unscaled * gradients.back(), g, count, out, pixel, ahead); });
        const int groups = (count + TERMS - 1) / TERMS;
        const float back = gradients.back() * activations.back();
        if (collected.outputs_in_vectors()) weigh_1x1(g_groups, w.outputs, a_groups, w.inputs, groups, back, so_far, dw);
        else weigh_1x1(a_groups, w.inputs, g_groups, w.outputs, groups, back, so_far, dw);
        so_far = Sum::GOES_ON;
      }, chunk_of(w));
    } else if (conv.stride == 2) {
      const Batch behind = b.behind(2);
      const Framed f{behind.height, behind.width, w.outputs};
      const Shifted s{behind.height, behind.width, w.outputs};
      const Parted parted{b.width, w.inputs};
      num* g = framed(f, own.g);
      num* shifted = own.shifted.take<num>(s.size());
      num* a = own.groups.take<num>(2 * b.height * parted.half());
      for (int n = from; n < to; ++n, so_far = Sum::GOES_ON) {
        const int64_t pixel = int64_t{n} * b.area();
        frame(gradient, f, int64_t{n} * behind.area(), g, gradients);
        piece.run([&] { double_up(turned, packed, unscaled * gradients.back(), f, g, b.height, b.width, out, pixel); });
        shift(f, g, s, shifted);
        activations.fit([&](Scaling& scaled) { part(input, pixel, b.height, parted, a, scaled); });
        weigh_halved(s, shifted, parted, a, b.height, gradients.back() * activations.back(), so_far, dw);
      }
    } else {
      together(b, w, from, to, [&](int n, int images) {
        const Framed f{b.height, b.width, w.outputs, images};
        const Shifted s{b.height, b.width, w.outputs, images};
        const int64_t pixel = int64_t{n} * b.area();
        num* g = framed(f, own.g);
        num* shifted = own.shifted.take<num>(s.size());
        const int64_t row = int64_t{TERMS} * s.groups() * w.inputs;
        num* a_groups = own.groups.take<num>(s.rows() * row);
        frame(gradient, f, pixel, g, gradients);
        piece.run([&] { convolve_3x3(turned, packed, unscaled * gradients.back(), f, g, out, pixel); });
        shift(f, g, s, shifted);
        activations.fit([&](Scaling& scaled) {
          for (int y = 0; y < s.rows(); ++y)
            fill_grouped(input, pixel + int64_t{y} * b.width, b.width, a_groups + y * row, scaled);
        });
        weigh_3x3(s, shifted, a_groups, w.inputs, gradients.back() * activations.back(), so_far, dw);
        so_far = Sum::GOES_ON;
      });
    }
  });
  collected.write(conv.dweight);
  partial.total(total);
}

// dx = dh + BN's backward pass of what lies in `out`, which it replaces.
template <class Shortcut>
void finish(const Batch& b, const Conv& conv, const Shortcut& dh, const Coefficients& of, bf16* out) {
  const int channels = conv.weights.inputs;
  const Normalised source{out, conv.in, channels, of.first.data(), of.second.data(), of.third.data()};
  parallel(b, [&](int, int from, int to) {
    by_pixels(int64_t{from} * b.area(), int64_t{to} * b.area(), channels, [&](int64_t pixel, int count) {
      by_lanes(source, [&](auto& lanes, int c) {
        for (int64_t p = pixel; p < pixel + count; ++p) {
          int here = c;
          for (auto& lane : lanes) {
            store(out + p * channels + here, _mm512_add_ps(dh.lane(here)(p), lane(p)));
            here += LANES;
          }
        }
      });
    });
  });
}

// Adds what the pixels that a padded shortcut took of x get from `dy`, the gradient of h.
inline void pass_padded(const Batch& b, const Batch& last, const Unit& u, const bf16* dy, bf16* dx) {
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

// In an original unit: the gradient of h + BN(t), which is dy where x' > 0, with BN's two sums; and those of the
// projection's BN.
inline void open(const Batch& b, const Unit& u, const bf16* dy, bf16* out, double* total, double* of_projection) {
  const int channels = u.last().weights.outputs;
  Partial partial(b.threads, channels), second(b.threads, channels);
  parallel(b, [&](int thread, int from, int to) {
    Piece piece(partial, thread, channels), other(second, thread, channels);
    chunks(int64_t{from} * b.area(), int64_t{to} * b.area(), [&](int64_t pixel, int count) {
      piece.run([&] {
        correlate(piece.sums, channels, pixel, count, [&](int64_t at, int, vec& t) {
          const __mmask16 open = _mm512_cmp_ps_mask(load(u.y + at), _mm512_setzero_ps(), _CMP_GT_OQ);
          const vec g = _mm512_maskz_mov_ps(open, load(dy + at));
          t = load(u.last().out + at);
          store(out + at, g);
          return g;
        });
      });
      if (!u.projection) return;
      other.run([&] {
        correlate(other.sums, channels, pixel, count, [&](int64_t at, int, vec& t) {
          t = load(u.projection->out + at);
          return load(out + at);
        });
      });
    });
  });
  partial.total(total);
  second.total(of_projection);
}

// The gradient of a convolution's output from `g`, which is that or, where there are coefficients, the gradient of the BN behind it.
template <class Do>
void with_gradient(const Conv& conv, const bf16* g, const Coefficients& of, const Do& act) {
  const int channels = conv.weights.outputs;
  if (of.first.empty()) act(Plain{g, channels});
  else act(Normalised{g, conv.out, channels, of.first.data(), of.second.data(), of.third.data()});
}

inline void backward(const Batch& b, const Unit& u, const bf16* dy, bf16* dx) {
  std::vector<Batch> at{b};  // of what each convolution reads, and of x'
  for (int i = 0; i < u.depth; ++i) at.push_back(at.back().behind(u.convs[i].stride));
  const Batch& last = at.back();
  Coefficients above(0);  // the backward pass of the BN behind the convolution at hand
  Coefficients behind(0);  // and behind the projection
  std::vector<double> total, second;
  if (u.end) {
    const int channels = u.last().weights.outputs;
    bf16* opened = whole<4>().take<bf16>(int64_t(last.count()) * channels);
    total.resize(2 * channels), second.resize(2 * channels);
    open(last, u, dy, opened, total.data(), second.data());
    above = before(*u.end, channels, total.data(), last.count());
    if (u.projection) behind = before(*u.projection->norm, channels, second.data(), last.count());
    dy = opened;
  }
  const bf16* g = dy;
  for (int i = u.depth - 1; i >= 0; --i) {
    const Conv& conv = u.convs[i];
    const int inputs = conv.weights.inputs;
    const Coefficients of = conv.norm ? affine(*conv.norm, inputs) : Coefficients(0);
    total.resize(2 * inputs);
    const int64_t size = int64_t(at[i].count()) * inputs;
    bf16* out = i == 0 ? dx : i % 2 ? whole<2>().take<bf16>(size) : whole<3>().take<bf16>(size);
    const auto through = [&](const auto& gradient, const auto& input) {
      const auto masked = [&](Sums s) { return Masked{conv.in, out, inputs, of.first.data(), of.second.data(), s}; };
      const auto added = [&](Sums s) { return Added{dy, out, inputs, s}; };
      const auto written = [&](Sums) { return Written{out, inputs}; };
      if constexpr (std::is_same_v<std::decay_t<decltype(input)>, Activated>)
        differentiate(at[i], conv, gradient, input, masked, total.data());
      else if (u.identity()) differentiate(at[i], conv, gradient, input, added, total.data());
      else differentiate(at[i], conv, gradient, input, written, total.data());
    };
    with_input(conv, of, [&](const auto& input) { with_gradient(conv, g, above, [&](const auto& gradient) { through(gradient, input); }); });
    if (conv.norm) above = before(*conv.norm, inputs, total.data(), at[i].count());
    g = out;
  }
  const Conv& first = u.convs[0];
  if (first.norm) {
    if (u.identity()) finish(b, first, Plain{dy, first.weights.inputs}, above, dx);
    else finish(b, first, Nothing{}, above, dx);
  }
  if (u.padded) pass_padded(b, last, u, dy, dx);
  if (!u.projection) return;
  const Conv& conv = *u.projection;
  const int inputs = conv.weights.inputs;
  total.resize(2 * inputs);
  with_gradient(conv, dy, behind, [&](const auto& gradient) {
    const Plain input{conv.in, inputs};
    const auto added = [&](Sums s) { return Added{dx, dx, inputs, s}; };
    const auto written = [&](Sums) { return Written{u.dread, inputs}; };
    if (u.dread) differentiate(last, conv, gradient, input, written, total.data());
    else differentiate(last, conv, gradient, input, added, total.data());
  });
}

}  // namespace kilolayer
