"""Parts that every program needs: parameters, signals, DDS, child processes."""
