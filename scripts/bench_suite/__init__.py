"""The figures that onefold answers for, each measured against a floor of the same run on the same machine."""
