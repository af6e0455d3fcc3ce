// The forward pass of a unit.
//
//   t₀ = x, tᵢ = convᵢ(aᵢ), aᵢ = ReLU(BNᵢ(tᵢ₋₁)) or, where no BN stands before convᵢ, tᵢ₋₁
//   x' = h + t_L, or in the original unit, whose last convolution has a BN behind it, x' = ReLU(h + BN(t_L))
//   h = x, or where the unit changes shape a 1×1 convolution of x, in the original unit with a BN behind it, or pixels of
//   x with zeros in its further channels
//
// A BN needs its input's sums over the whole batch, so there is one pass over the batch per convolution; all else
// happens while that pass reads (loads.h) and writes (stores.h).
#pragma once
#include "strided.h"

namespace kilolayer {

struct Conv {
  Weights weights;
  float* dweight;  // strides as the weights'
  const Norm* norm;  // of the BN before it, or null
  const bf16* in;
  bf16* out;
  int32_t stride;  // 1, or of a 3×3 convolution 2
};

struct Unit {
  int32_t depth;
  const Conv* convs;
  const Norm* end;  // of the BN behind the last convolution in an original unit, or null
  const bf16* h;  // what is added to F: x, or where x' will be, which holds it until then
  bf16* y;  // x'
  const Conv* projection;  // the shortcut's, or null; its BN stands behind it, and without one it writes h
  bf16* dread;  // for the gradient of what that reads, where that is not x but the pixels of x that a stride leaves
  int32_t padded;  // where h is padded with channels, the stride of its pixels in x, otherwise 0
  const Conv& last() const { return convs[depth - 1]; }
  bool identity() const { return !projection && !padded; }
};

inline void moments(const Batch& b, const bf16* t, int channels, double* total) {
  Partial partial(b.threads, channels);
  parallel(b, [&](int thread, int from, int to) {
    Piece piece(partial, thread, channels);
    chunks(int64_t{from} * b.area(), int64_t{to} * b.area(), [&](int64_t pixel, int count) {
      piece.run([&] {
        correlate(piece.sums, channels, pixel, count, [&](int64_t at, int, vec& y) { return y = load(t + at); });
      });
    });
  });
  partial.total(total);
}

// One convolution over the batch, `b` its input's; `store(sums)` makes its store for a piece of work.
template <class Source, class MakeStore>
void convolve(const Batch& b, const Conv& conv, const Source& source, const MakeStore& store, double* total) {
  const Weights& w = conv.weights;
  num* packed = whole<0>().take<num>(w.size());
  const float unscaled = pack(w, packed);
  Partial partial(b.threads, w.outputs);
  parallel(b, [&](int thread, int from, int to) {
    Piece piece(partial, thread, w.outputs);
    const auto out = store(piece.sums);
    Range range(ACTIVATIONS);
    if (w.kernel == 1) {
      num* room = buffers().a.take<num>(int64_t{chunk_of(w)} * w.inputs);
      const auto ahead = [&](int64_t p, int count) { source.expect(p + CHUNK, count); };
      chunks(int64_t{from} * b.area(), int64_t{to} * b.area(), [&](int64_t pixel, int count) {
        const num* a = in_cache(source, pixel, count, room, range);
        piece.run([&] { convolve_1x1(w, packed, unscaled * range.back(), a, count, out, pixel, ahead); });
      }, chunk_of(w));
    } else if (conv.stride == 2) {
      const Framed f{b.height, b.width, w.inputs};
      num* image = framed(f, buffers().a);
      for (int n = from; n < to; ++n) {
        frame(source, f, int64_t{n} * b.area(), image, range);
        piece.run([&] { halve(w, packed, unscaled * range.back(), f, image, out, int64_t{n} * b.behind(2).area()); });
      }
    } else {
      together(b, w, from, to, [&](int n, int images) {
        const Framed f{b.height, b.width, w.inputs, images};
        const int64_t pixel = int64_t{n} * b.area();
        num* image = framed(f, buffers().a);
        frame(source, f, pixel, image, range);
        piece.run([&] { convolve_3x3(w, packed, unscaled * range.back(), f, image, out, pixel); });
      });
    }
  });
  partial.total(total);
}

template <class Do>
void with_input(const Conv& conv, const Coefficients& of, const Do& act) {
  const int channels = conv.weights.inputs;
  if (conv.norm) act(Activated{{conv.in, channels, of.first.data(), of.second.data()}});
  else act(Plain{conv.in, channels});
}

// x' = ReLU(h + BN(t))
template <class Shortcut>
void activate(const Batch& b, const Unit& u, const Coefficients& of, const Shortcut& h) {
  const int channels = u.last().weights.outputs;
  const Affine source{u.last().out, channels, of.first.data(), of.second.data()};
  parallel(b, [&](int, int from, int to) {
    by_pixels(int64_t{from} * b.area(), int64_t{to} * b.area(), channels, [&](int64_t pixel, int count) {
      by_lanes(source, [&](auto& lanes, int c) {
        for (int64_t p = pixel; p < pixel + count; ++p) {
          int here = c;
          for (auto& lane : lanes) {
            store(u.y + p * channels + here, relu(_mm512_add_ps(h.lane(here)(p), lane(p))));
            here += LANES;
          }
        }
      });
    });
  });
}

// `known`: Σ x and Σ x², where the unit before has left them; `sums`: those of x', of a pre-activation unit.
inline void forward(const Batch& b, const Unit& u, const double* known, double* sums) {
  Batch at = b;  // of what the convolution at hand reads
  for (int i = 0; i < u.depth; ++i) at = at.behind(u.convs[i].stride);
  const Batch last = at;
  std::vector<double> total;
  if (u.projection) {
    const Conv& conv = *u.projection;
    const int outputs = conv.weights.outputs;
    total.resize(2 * outputs);
    const auto plain = [&](Sums s) { return WithStatistics{conv.out, outputs, s}; };
    convolve(last, conv, Plain{conv.in, conv.weights.inputs}, plain, total.data());
    if (conv.norm) measure(*conv.norm, outputs, total.data(), last.count());
  }
  at = b;
  for (int i = 0; i < u.depth; at = at.behind(u.convs[i++].stride)) {
    const Conv& conv = u.convs[i];
    const int inputs = conv.weights.inputs, outputs = conv.weights.outputs;
    if (i == 0 && conv.norm) {
      total.resize(2 * inputs);
      if (known) std::copy(known, known + 2 * inputs, total.data());
      else moments(b, conv.in, inputs, total.data());
    }
    if (conv.norm) measure(*conv.norm, inputs, total.data(), at.count());
    const Coefficients of = conv.norm ? affine(*conv.norm, inputs) : Coefficients(0);
    total.resize(2 * outputs);
    with_input(conv, of, [&](const auto& source) {
      const auto plain = [&](Sums s) { return WithStatistics{conv.out, outputs, s}; };
      const auto added = [&](Sums s) { return Added{u.h, u.y, outputs, s}; };
      if (i + 1 < u.depth || u.end) convolve(at, conv, source, plain, total.data());
      else convolve(at, conv, source, added, sums);
    });
  }
  if (!u.end) return;
  const int channels = u.last().weights.outputs;
  measure(*u.end, channels, total.data(), last.count());
  const Coefficients of = affine(*u.end, channels);
  if (!u.projection) return activate(last, u, of, Plain{u.h, channels});
  const Coefficients behind = affine(*u.projection->norm, channels);
  activate(last, u, of, Affine{u.projection->out, channels, behind.first.data(), behind.second.data()});
}

}  // namespace kilolayer
