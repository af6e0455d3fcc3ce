#!/bin/bash
# What gpu_first.sh and gpu_next.sh share: the packages that travelled in .gpu/wheels, and the session.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD/src" PYTHONUNBUFFERED=1
if compgen -G ".gpu/wheels/*.whl" > /dev/null; then
    # Wheels of pure Python are zip files that Python reads as they are.
    PYTHONPATH="$PYTHONPATH:$(printf '%s:' "$PWD"/.gpu/wheels/*.whl)"
fi
exec python3 benchmarks/gpu_session.py "$@" --out "${OUT:-results/gpu-$1}"
