"""``python -m clusterkit``."""

from clusterkit.ops.cli import main

main()
