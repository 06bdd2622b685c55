"""``tar-vis-replay``: recorded images through a node, its answers recorded, judged and shown."""
