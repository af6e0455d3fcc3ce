// What Python calls (library.py) on the way back: the gradients of what forward.cpp computes.
#include "activation.h"
#include "alone.h"
#include "patches.h"

extern "C" {

void kilolayer_unit_backward(const kilolayer::Batch* batch, const kilolayer::Unit* unit, const kilolayer::bf16* dy,
                             kilolayer::bf16* dx) {
  kilolayer::backward(*batch, *unit, dy, dx);
}

void kilolayer_activation_backward(const kilolayer::Batch* batch, const kilolayer::Norm* norm, int32_t channels,
                                   const kilolayer::bf16* t, const kilolayer::bf16* da, kilolayer::bf16* dt) {
  kilolayer::activation_backward(*batch, *norm, channels, t, da, dt);
}

void kilolayer_convolution_backward(const kilolayer::Batch* batch, const kilolayer::Conv* conv, const kilolayer::bf16* dy,
                                    kilolayer::bf16* dx) {
  kilolayer::convolution_backward(*batch, *conv, dy, dx);
}

void kilolayer_patches_backward(const kilolayer::Batch* batch, const kilolayer::Images* images, const kilolayer::Weights* weights,
                                const kilolayer::bf16* dy, float* dweight) {
  kilolayer::patches_backward(*batch, *images, *weights, dy, dweight);
}
}
