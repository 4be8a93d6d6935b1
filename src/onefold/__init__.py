"""onefold: one true profile per person. Importing this package imports nothing else, so that clients stay light."""
