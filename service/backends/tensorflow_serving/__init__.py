"""Runs the models on TensorFlow Serving, over gRPC and without TensorFlow in this process.

wire/        the messages, generated from proto/tensorflow_serving
tensors      arrays to messages and back
failures     gRPC status codes to the service's errors, in one table
client       the connections
catalogue    which versions and labels the model servers really have, checked and warmed
backend      the `Backend` port on top of these: balance, retry, give up at the deadline
management   listing, promoting and rolling back versions for `python -m service models`
"""
