"""Reads labelled hands and turns them into training batches; `synthetic` renders them."""
