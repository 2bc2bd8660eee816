"""Measurements of the running service and of its peers; nothing here is imported by the product."""
