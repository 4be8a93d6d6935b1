"""The messages and services of protos/onefold/v1, written by scripts/gen-protos: do not edit."""
