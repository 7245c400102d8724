"""The operator's command: everything that runs on the control machine, and nothing a worker needs."""
