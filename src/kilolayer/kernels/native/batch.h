// How a batch is gone through: by threads, images and chunks of pixels, each with memory of its own.
//
// Threads share the images out in one fixed way, and their sums are added in their order: equal bits for an equal
// number of threads.
#pragma once
#include <omp.h>

#include "norm.h"
#include "weigh.h"

namespace kilolayer {

inline int halved(int side) { return (side + 1) / 2; }

struct Batch {
  int32_t images, height, width, threads;
  // Of what a convolution writes that reads this.
  Batch behind(int stride) const { return stride == 2 ? Batch{images, halved(height), halved(width), threads} : *this; }
  int area() const { return height * width; }
  int workers() const { return std::max(1, std::min(threads, images)); }
  double count() const { return double(images) * area(); }
};

template <class Work>
void parallel(const Batch& b, const Work& work) {
  const int threads = b.workers();
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (int t = 0; t < threads; ++t) work(t, int(int64_t{b.images} * t / threads), int(int64_t{b.images} * (t + 1) / threads));
}

struct Buffers {  // a thread's own
  Scratch a, g, groups, shifted, sums;
};

inline Buffers& buffers() {
  thread_local Buffers own;
  return own;
}

template <int Index>
Scratch& whole() {  // the calling thread's, for what spans the batch
  thread_local Scratch own;
  return own;
}

// Two rows of zeros for `channels` sums; every piece of work starts from them and adds them to its thread's.
class Piece {
 public:
  Piece(Partial& partial, int thread, int channels) : partial_(partial), thread_(thread), channels_(channels) {
    float* data = buffers().sums.take<float>(2 * channels);
    sums = {data, data + channels};
  }
  template <class Work>
  void run(const Work& work) {
    std::fill(sums.first, sums.first + 2 * channels_, 0.0f);
    work();
    partial_.add(thread_, sums);
  }
  Sums sums;

 private:
  Partial& partial_;
  int thread_, channels_;
};

template <class Work>
void chunks(int64_t first, int64_t last, const Work& work, int size = CHUNK) {
  for (int64_t p = first; p < last; p += size) work(p, int(std::min<int64_t>(size, last - p)));
}

// A chunk as its convolution reads it: made in `room`, unless it lies so in memory.
template <class Source>
const num* in_cache(const Source& source, int64_t pixel, int count, num* room, Range& range) {
  if constexpr (std::is_same_v<Source, Plain> && std::is_same_v<num, bf16>) return source.t + pixel * source.channels;
  range.fit([&](Scaling& scaled) { fill(source, pixel, count, room, scaled); });
  return room;
}

template <class Source>
void frame(const Source& source, const Framed& f, int64_t pixel, num* image, Range& range) {
  range.fit([&](Scaling& scaled) {
    for (int y = 0; y < f.rows(); ++y)
      fill(source, pixel + int64_t{y} * f.width, f.width, image + y * f.row() + f.channels, scaled);
  });
}

constexpr int64_t TOGETHER = 1 << 18;  // bytes
constexpr int NEIGHBOURS = 512;  // pixels

// Of small images several go through a 3×3 convolution together, so that its weights and their gradients are read once for all.
template <class Work>
void together(const Batch& b, const Weights& w, int from, int to, const Work& work) {
  const int64_t bytes = int64_t{b.area()} * std::max(w.inputs, w.outputs) * sizeof(num);
  const int most = int(std::clamp<int64_t>(TOGETHER / bytes, 1, std::max(1, NEIGHBOURS / b.area())));
  for (int n = from; n < to; n += most) work(n, std::min(most, to - n));
}

inline void clear_edges(const Framed& f, num* image) {
  for (num* row = image; row < image + f.size(); row += f.row()) {
    std::memset(row, 0, f.channels * sizeof(num));
    std::memset(row + (f.width + 1) * f.channels, 0, 2 * f.channels * sizeof(num));
  }
}

inline num* framed(const Framed& f, Scratch& scratch) {
  num* image = scratch.take<num>(f.size());
  clear_edges(f, image);
  return image;
}

}  // namespace kilolayer
