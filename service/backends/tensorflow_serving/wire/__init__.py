"""TensorFlow Serving's messages, generated from proto/tensorflow_serving; see there why they are our own."""
