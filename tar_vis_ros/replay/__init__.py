"""``tar-vis-replay``: send recorded images through a node; record, judge and show its answers."""
