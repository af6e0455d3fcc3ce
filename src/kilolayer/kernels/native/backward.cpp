// Functions that Python calls (native_library.py): the backward passes of what forward.cpp computes.
#include "bn_relu.h"
#include "conv.h"
#include "im2col.h"

extern "C" {

void kilolayer_unit_backward(const kilolayer::Batch* batch, const kilolayer::Unit* unit, const kilolayer::bf16* dy,
                             kilolayer::bf16* dx) {
  kilolayer::backward(*batch, *unit, dy, dx);
}

void kilolayer_bn_relu_backward(const kilolayer::Batch* batch, const kilolayer::Norm* norm, int32_t channels,
                                   const kilolayer::bf16* t, const kilolayer::bf16* da, kilolayer::bf16* dt) {
  kilolayer::bn_relu_backward(*batch, *norm, channels, t, da, dt);
}

void kilolayer_conv_backward(const kilolayer::Batch* batch, const kilolayer::Conv* conv, const kilolayer::bf16* dy,
                                    kilolayer::bf16* dx) {
  kilolayer::single_conv_backward(*batch, *conv, dy, dx);
}

void kilolayer_im2col_backward(const kilolayer::Batch* batch, const kilolayer::Images* images, const kilolayer::Weights* weights,
                                const kilolayer::bf16* dy, float* dweight) {
  kilolayer::im2col_backward(*batch, *images, *weights, dy, dweight);
}
}
