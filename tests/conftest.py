"""What every test needs: one thread each, since the suite runs on all cores at once."""

import torch

torch.set_num_threads(1)
