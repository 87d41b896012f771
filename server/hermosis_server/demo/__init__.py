"""The demo: a small network trained on handwritten digits by worker processes, compared with one process."""
