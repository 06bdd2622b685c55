"""What every program here needs of its process: parameters, signals, DDS, children."""
