#!/bin/bash
# The second chance: put what the first session brought back into results/gpu-first/, an unfinished ResNet-1001 into
# .gpu/state/, then from the repository's root: benchmarks/gpu_next.sh [--rehearse]
exec "$(dirname "$0")/gpu_session.sh" next "$@"
