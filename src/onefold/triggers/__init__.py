"""What may set something off, told in order to whoever watches."""
