"""Fuzzing: hostile bytes and values at every door of the service, until something breaks.

    python -m tests.fuzz                          all targets, two at a time, a minute each
    python -m tests.fuzz images rpc --minutes 30

`targets` lists the doors. Each target takes bytes (or values of a strategy) and raises when the service does what it
must never do: an exception that is not in its contract, a 5xx that is not meant, INTERNAL or UNKNOWN over gRPC, an
error in the log, no answer in time. Nothing here is patched: what is fuzzed is what is served, on a model that costs
nothing.
"""
