"""Codec: protobuf messages to records and back. Nothing beyond this folder and the servicers knows protobuf."""
