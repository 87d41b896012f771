"""The doors of the sidecar, one file a room."""
