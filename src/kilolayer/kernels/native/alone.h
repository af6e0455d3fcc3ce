// A convolution by itself, where no unit can be computed whole: y = W∗x, and back.
#pragma once
#include "strided.h"

namespace kilolayer {

// `b` is x's; a stride of 2 is for 3×3.
inline void convolution_forward(const Batch& b, const Conv& conv, int stride) {
  const Weights& w = conv.weights;
  const Plain x{conv.in, w.inputs};
  const Written y{conv.out, w.outputs};
  if (stride == 2) return convolve_halving(b, w, x, y);
  std::vector<double> unused(2 * w.outputs);
  convolve(b, w, x, [&](Sums) { return y; }, unused.data());
}

inline void convolution_backward(const Batch& b, const Conv& conv, int stride, const bf16* dy, bf16* dx) {
  const Weights& w = conv.weights;
  const Plain gradient{dy, w.outputs}, x{conv.in, w.inputs};
  const Written out{dx, w.inputs};
  if (stride == 2) return differentiate_halving(b, conv, gradient, x, out);
  std::vector<double> unused(2 * w.inputs);
  differentiate(b, conv, gradient, x, [&](Sums) { return out; }, unused.data());
}

}  // namespace kilolayer
