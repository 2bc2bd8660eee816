"""The command `handpose`: serve, estimate, models, bench, trainer. It asks a service, or runs a model by itself."""
