"""Large jobs without a server: a folder or a bucket of pictures through the same predictor, on one machine or many."""
