"""The use case behind every protocol: predictor, batching, routing, errors, and the ports to the world."""
