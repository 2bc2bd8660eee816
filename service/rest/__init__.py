"""The REST protocol: parses requests, calls the predictor, renders answers. Knows nothing of models or metrics."""
