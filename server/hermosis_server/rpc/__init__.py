"""The gRPC door: translate in, call the engine, translate out."""
