"""The engine room: optimizer state of many sessions, stepped in batches, served over gRPC."""

__version__ = "0.1.0"
