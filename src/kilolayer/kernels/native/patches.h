// A convolution of few channels, a stem's: the patches that it reads are laid out in the cache and multiplied as the
// pixels of a 1×1 convolution are. The images themselves get no gradient.
#pragma once
#include "backward.h"

namespace kilolayer {

struct Images {  // and how they are gone through
  const bf16* data;
  int32_t height, width, channels, kernel, stride, padding;

  int side() const { return kernel * channels; }  // numbers of a patch that lie side by side: at most WIDEST
  int inputs() const { return (kernel * side() + LANES - 1) / LANES * LANES; }
  int row() const { return (width + 2 * padding) * channels; }
  int64_t framed() const { return int64_t{height + 2 * padding} * row(); }
};

constexpr int WIDEST = 32;

inline void copy(const num* from, num* to, int count) {
  const uint32_t all = count < 32 ? (1u << count) - 1 : ~0u;
  if constexpr (sizeof(num) == 2) {
    _mm512_mask_storeu_epi16(to, all, _mm512_maskz_loadu_epi16(all, from));
  } else {
    const auto *source = reinterpret_cast<const float*>(from);
    auto* target = reinterpret_cast<float*>(to);
    _mm512_mask_storeu_ps(target, all & 0xffff, _mm512_maskz_loadu_ps(all & 0xffff, source));
    _mm512_mask_storeu_ps(target + LANES, all >> 16, _mm512_maskz_loadu_ps(all >> 16, source + LANES));
  }
}

// One image as numbers that are multiplied, inside a frame of zeros that is there already.
inline void enframe(const Images& of, int64_t n, num* frame, Scaling& scaled) {
  const int length = of.width * of.channels, whole = length / LANES * LANES;
  for (int y = 0; y < of.height; ++y) {
    const bf16* from = of.data + (n * of.height + y) * length;
    num* to = frame + int64_t{y + of.padding} * of.row() + of.padding * of.channels;
    for (int i = 0; i < whole; i += LANES) store(to + i, scaled(load(from + i), i / LANES));
    if (whole == length) continue;
    bf16 rest[LANES] = {};
    std::memcpy(rest, from + whole, (length - whole) * sizeof(bf16));
    num last[LANES];
    store(last, scaled(load(rest)));
    std::memcpy(to + whole, last, (length - whole) * sizeof(num));
  }
}

// A convolution's weights as those of a 1×1 convolution of patches, zeros where a patch is filled up.
struct Flat {
  std::vector<float> data;
  Weights weights;
  Flat(const Images& of, const Weights& w)
      : data(size_t(w.outputs) * of.inputs()), weights{data.data(), of.inputs(), 1, 0, 0, w.outputs, of.inputs(), 1} {}

  // visit(here, there) for every weight, at `here` in data and at `there` in `w`.
  template <class Visit>
  static void each(const Images& of, const Weights& w, const Visit& visit) {
    for (int o = 0; o < w.outputs; ++o)
      for (int y = 0; y < w.kernel; ++y)
        for (int x = 0; x < w.kernel; ++x)
          for (int i = 0; i < w.inputs; ++i)
            visit(int64_t{o} * of.inputs() + (y * w.kernel + x) * w.inputs + i, o * w.out + y * w.row + x * w.column + i * w.in);
  }
};

// act(thread, pixel, count, patches, range) for every chunk of the output's pixels.
template <class Start, class Act>
void by_patches(const Batch& b, const Images& of, const Start& start, const Act& act) {
  parallel(b, [&](int thread, int from, int to) {
    Range range(ACTIVATIONS);
    num* frame = buffers().a.take<num>(of.framed() + WIDEST);
    num* room = buffers().groups.take<num>(int64_t{CHUNK} * of.inputs() + WIDEST);
    std::memset(frame, 0, (of.framed() + WIDEST) * sizeof(num));
    std::memset(room, 0, (int64_t{CHUNK} * of.inputs() + WIDEST) * sizeof(num));
    auto own = start(thread);
    for (int n = from; n < to; ++n) {
      range.fit([&](Scaling& scaled) { enframe(of, n, frame, scaled); });
      chunks(0, b.area(), [&](int64_t first, int count) {
        for (int p = 0; p < count; ++p) {
          const int64_t y = (first + p) / b.width * of.stride, x = (first + p) % b.width * of.stride;
          const num* corner = frame + y * of.row() + x * of.channels;
          for (int ky = 0; ky < of.kernel; ++ky)
            copy(corner + ky * of.row(), room + p * of.inputs() + ky * of.side(), of.side());
        }
        act(own, int64_t{n} * b.area() + first, count, room, range.back());
      });
    }
  });
}

// run(own, through) for every chunk of them; through(store) multiplies it. `b` is the output's.
template <class Start, class Run>
void convolve_patches(const Batch& b, const Images& of, const Weights& w, const Start& start, const Run& run) {
  Flat flat(of, w);
  Flat::each(of, w, [&](int64_t here, int64_t there) { flat.data[here] = w.data[there]; });
  num* packed = whole<0>().take<num>(flat.weights.size());
  const float unscaled = pack(flat.weights, packed);
  by_patches(b, of, start, [&](auto& own, int64_t pixel, int count, const num* patches, float back) {
    run(own, [&](const auto& out) {
      convolve_1x1(flat.weights, packed, unscaled * back, patches, count, out, pixel, [](int64_t, int) {});
    });
  });
}

// With Σ y and Σ y² for a BN behind it.
inline void patches_forward(const Batch& b, const Images& of, const Weights& w, bf16* y, double* sums) {
  Partial partial(b.threads, w.outputs);
  convolve_patches(b, of, w, [&](int thread) { return Piece(partial, thread, w.outputs); }, [&](Piece& piece, const auto& through) {
    piece.run([&] { through(WithStatistics{y, w.outputs, piece.sums}); });
  });
  partial.total(sums);
}

// At inference: y + bias, or ReLU of that.
inline void patches_infer(const Batch& b, const Images& of, const Weights& w, const float* bias, bool rectified, bf16* y) {
  const Biased out{y, w.outputs, bias, least(rectified)};
  convolve_patches(b, of, w, [](int) { return 0; }, [&](int, const auto& through) { through(out); });
}

inline void patches_backward(const Batch& b, const Images& of, const Weights& w, const bf16* dy, float* dweight) {
  Flat flat(of, w);
  const Collected collected{flat.weights, b.workers(), whole<1>().take<float>(b.workers() * flat.weights.size())};
  const int inputs = of.inputs(), outputs = w.outputs;
  struct Own {
    num *g, *g_groups, *a_groups;
    float* sums;
    Range range;
    Sum so_far = Sum::BEGINS;
  };
  by_patches(b, of, [&](int thread) {
    const auto room = [&](Scratch& scratch, int channels) { return scratch.take<num>(int64_t{CHUNK} * channels); };
    return Own{room(buffers().g, outputs), room(buffers().shifted, outputs), room(buffers().sums, inputs), collected.of(thread), Range(GRADIENTS)};
  }, [&](Own& own, int64_t pixel, int count, const num* patches, float back) {
    const num* g = grouped(in_cache(Plain{dy, outputs}, pixel, count, own.g, own.range), outputs, count, own.g_groups);
    const num* a = grouped(patches, inputs, count, own.a_groups);
    const int groups = (count + TERMS - 1) / TERMS;
    back *= own.range.back();
    if (collected.outputs_in_vectors()) weigh_1x1(g, outputs, a, inputs, groups, back, own.so_far, own.sums);
    else weigh_1x1(a, inputs, g, outputs, groups, back, own.so_far, own.sums);
    own.so_far = Sum::GOES_ON;
  });
  collected.write(flat.data.data());
  Flat::each(of, w, [&](int64_t here, int64_t there) { dweight[there] = flat.data[here]; });
}

}  // namespace kilolayer
