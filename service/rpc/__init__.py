"""The gRPC adapter: thin converters between `handpose.v1` messages and the predictor.

This file stays without imports: the client loads the generated messages below it, and must not load a server with them.
"""
