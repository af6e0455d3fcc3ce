"""What every test needs: one thread each, since the suite runs on all cores at once."""

import os
from collections.abc import Iterator

import pytest
import torch

from kilolayer import kernels
from kilolayer.data.pictures import inspection_cache

pytest_plugins = ["fault_counts", "kernel_products"]
torch.set_num_threads(1)
if not torch.cuda.is_available():
    # Read when Triton is imported: its kernels run on the CPU then.
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True, scope="session")
def cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What the tests look at is not remembered in the user's own cache."""
    place = tmp_path_factory.mktemp("cache") / "images.sqlite"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inspection_cache, "cache_path", lambda: place)
        yield


@pytest.fixture(autouse=True, scope="session")
def kernels_compiled() -> None:
    """A command that a test starts says nothing of compiling them."""
    kernels.unavailable_reason()
