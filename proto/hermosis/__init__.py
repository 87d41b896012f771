"""The contract between workers and the service: protobuf messages (v1) and what they mean in bytes (wire)."""
