"""What the service shows of itself: metrics and logs."""
