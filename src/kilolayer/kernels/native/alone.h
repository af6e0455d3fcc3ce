// A convolution by itself, where no unit can be computed whole: y = W∗x, and back.
#pragma once
#include "backward.h"

namespace kilolayer {

inline void convolution_forward(const Batch& b, const Conv& conv) {
  const Weights& w = conv.weights;
  std::vector<double> unused(2 * w.outputs);
  convolve(b, conv, Plain{conv.in, w.inputs}, [&](Sums) { return Written{conv.out, w.outputs}; }, unused.data());
}

inline void convolution_backward(const Batch& b, const Conv& conv, const bf16* dy, bf16* dx) {
  const Weights& w = conv.weights;
  std::vector<double> unused(2 * w.inputs);
  const auto written = [&](Sums) { return Written{dx, w.inputs}; };
  differentiate(b, conv, Plain{dy, w.outputs}, Plain{conv.in, w.inputs}, written, unused.data());
}

}  // namespace kilolayer
