"""Small re-creations of networks as others built them, faults and all, and of clean ones."""
