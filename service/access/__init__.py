"""What access needs from the disk: the file of API keys, and the certificates of TLS. The rules are in inference."""
