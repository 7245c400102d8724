"""The same work under every system that runs Python side by side: measured, compared, shown."""
