"""The fast path on a GPU: Triton kernels, and residual units as one autograd function over them.

`sums`, `pointwise` and `convolve` hold the kernels, which Triton compiles, or interprets on a CPU where
TRITON_INTERPRET is 1; `launch` calls them on tensors; `unit` and `activation` are the autograd functions;
`check` compares them with the plain layers. A map (N, C, H, W) with channels last is a matrix of M = N·H·W
rows and C columns.
"""

from kilolayer.system.folders import redirect_cache

redirect_cache("triton")
