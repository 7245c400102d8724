"""The tasks of the benchmarks, for the kit and for every system it is measured against."""
