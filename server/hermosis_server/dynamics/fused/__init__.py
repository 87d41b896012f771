"""The step of a batch on the CPU, fused: one pass over the rows, in place."""
