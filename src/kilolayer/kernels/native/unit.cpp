// What Python calls (library.py): the forward and the backward pass of a residual unit, of BN with ReLU, and of
// a convolution; runs of units at inference.
//
// Activations and their gradients are bf16, channels last; parameters and their gradients fp32.
#include "activation.h"
#include "alone.h"
#include "infer.h"
#include "patches.h"

extern "C" {

void kilolayer_unit_forward(const kilolayer::Batch* batch, const kilolayer::Unit* unit, const double* known, double* sums) {
  kilolayer::forward(*batch, *unit, known, sums);
}

void kilolayer_unit_backward(const kilolayer::Batch* batch, const kilolayer::Unit* unit, const kilolayer::bf16* dy,
                             kilolayer::bf16* dx) {
  kilolayer::backward(*batch, *unit, dy, dx);
}

void kilolayer_activation_forward(const kilolayer::Batch* batch, const kilolayer::Norm* norm, int32_t channels,
                                  const kilolayer::bf16* t, const double* known, kilolayer::bf16* a) {
  kilolayer::activation_forward(*batch, *norm, channels, t, known, a);
}

void kilolayer_activation_backward(const kilolayer::Batch* batch, const kilolayer::Norm* norm, int32_t channels,
                                   const kilolayer::bf16* t, const kilolayer::bf16* da, kilolayer::bf16* dt) {
  kilolayer::activation_backward(*batch, *norm, channels, t, da, dt);
}

void kilolayer_convolution_forward(const kilolayer::Batch* batch, const kilolayer::Conv* conv) {
  kilolayer::convolution_forward(*batch, *conv);
}

void kilolayer_convolution_backward(const kilolayer::Batch* batch, const kilolayer::Conv* conv, const kilolayer::bf16* dy,
                                    kilolayer::bf16* dx) {
  kilolayer::convolution_backward(*batch, *conv, dy, dx);
}

void kilolayer_patches_forward(const kilolayer::Batch* batch, const kilolayer::Images* images, const kilolayer::Weights* weights,
                               kilolayer::bf16* y, double* sums) {
  kilolayer::patches_forward(*batch, *images, *weights, y, sums);
}

void kilolayer_patches_backward(const kilolayer::Batch* batch, const kilolayer::Images* images, const kilolayer::Weights* weights,
                                const kilolayer::bf16* dy, float* dweight) {
  kilolayer::patches_backward(*batch, *images, *weights, dy, dweight);
}

void kilolayer_patches_infer(const kilolayer::Batch* batch, const kilolayer::Images* images, const kilolayer::Weights* weights,
                             const float* bias, int32_t rectified, kilolayer::bf16* y) {
  kilolayer::patches_infer(*batch, *images, *weights, bias, rectified, y);
}

float kilolayer_pack(const kilolayer::Weights* weights, kilolayer::num* packed) { return kilolayer::pack(*weights, packed); }

void kilolayer_infer(const kilolayer::Batch* batch, const kilolayer::FoldedUnit* units, int32_t count,
                     const kilolayer::bf16* x, kilolayer::bf16* y) {
  kilolayer::infer_run(*batch, units, count, x, y);
}
}
