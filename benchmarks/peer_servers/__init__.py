"""The same service on other servers, each built as its documentation advises; started by `benchmarks.peers`."""
