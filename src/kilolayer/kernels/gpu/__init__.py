"""The Triton backend: kernels for a GPU, and residual units as one autograd function over them.

`reduction_kernels`, `pointwise_kernels` and `conv_kernels` hold the kernels. Triton compiles them, or
interprets them on a CPU with TRITON_INTERPRET=1. `launch` calls them on tensors; `triton_unit` and
`triton_bn_relu` are the autograd functions; `self_check` compares them with the plain layers. A channels-last
map (N, C, H, W) is a matrix of M = N·H·W rows (pixels) and C columns.
"""

from kilolayer.system.folders import redirect_cache

redirect_cache("triton")
