// How a batch is traversed: by threads, images and chunks of pixels. Every thread has its own buffers.
//
// Images are assigned to threads in a fixed way, and the threads' sums are added in a fixed order: the same number of
// threads gives the same bits.
#pragma once
#include <omp.h>

#include "batch_norm.h"
#include "conv_wgrad.h"

namespace kilolayer {

inline int half_side(int side) { return (side + 1) / 2; }

struct Batch {
  int32_t images, height, width, threads;
  // The batch that a convolution with this stride writes when it reads this one.
  Batch after_stride(int stride) const {
    return stride == 2 ? Batch{images, half_side(height), half_side(width), threads} : *this;
  }
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

struct Buffers {  // one set per thread
  Scratch a, g, groups, shifted, sums;
};

inline Buffers& buffers() {
  thread_local Buffers buffers;
  return buffers;
}

template <int Index>
Scratch& batch_scratch() {  // of the calling thread, for data that spans the batch
  thread_local Scratch scratch;
  return scratch;
}

// Fp32 sums of `channels` channels. Every call of run() starts from zero and adds its sums to the thread's fp64 sums.
class WorkSums {
 public:
  WorkSums(ThreadSums& thread_sums, int thread, int channels) : partial_(thread_sums), thread_(thread), channels_(channels) {
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
  ThreadSums& partial_;
  int thread_, channels_;
};

template <class Work>
void for_chunks(int64_t first, int64_t last, const Work& work, int size = CHUNK) {
  for (int64_t p = first; p < last; p += size) work(p, int(std::min<int64_t>(size, last - p)));
}

// A chunk in the form its convolution reads. It is written to `buffer`, unless memory already holds that form.
template <class Source>
const mul_t* load_chunk(const Source& source, int64_t pixel, int count, mul_t* buffer, ScaleRange& range) {
  if constexpr (std::is_same_v<Source, IdentityLoad> && std::is_same_v<mul_t, bf16>) return source.t + pixel * source.channels;
  range.fit([&](Scaling& scaled) { fill(source, pixel, count, buffer, scaled); });
  return buffer;
}

template <class Source>
void load_framed(const Source& source, const FramedImages& f, int64_t pixel, mul_t* image, ScaleRange& range) {
  range.fit([&](Scaling& scaled) {
    for (int y = 0; y < f.rows(); ++y)
      fill(source, pixel + int64_t{y} * f.width, f.width, image + y * f.row() + f.channels, scaled);
  });
}

constexpr int64_t IMAGE_GROUP_BYTES = 1 << 18;
constexpr int IMAGE_GROUP_PIXELS = 512;

// Sends several small images through a 3×3 convolution together, so that the weights and their gradients are read once per group.
template <class Work>
void for_image_groups(const Batch& b, const Weights& w, int from, int to, const Work& work) {
  const int64_t bytes = int64_t{b.area()} * std::max(w.inputs, w.outputs) * sizeof(mul_t);
  const int size = int(std::clamp<int64_t>(IMAGE_GROUP_BYTES / bytes, 1, std::max(1, IMAGE_GROUP_PIXELS / b.area())));
  for (int n = from; n < to; n += size) work(n, std::min(size, to - n));
}

inline void clear_edges(const FramedImages& f, mul_t* image) {
  for (mul_t* row = image; row < image + f.size(); row += f.row()) {
    std::memset(row, 0, f.channels * sizeof(mul_t));
    std::memset(row + (f.width + 1) * f.channels, 0, 2 * f.channels * sizeof(mul_t));
  }
}

inline mul_t* framed_buffer(const FramedImages& f, Scratch& scratch) {
  mul_t* image = scratch.take<mul_t>(f.size());
  clear_edges(f, image);
  return image;
}

}  // namespace kilolayer
