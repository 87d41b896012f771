"""Memory that survives the process: bytes and records only, no tensors."""
