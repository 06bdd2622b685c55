"""Time, memory and cost of the whole step beside a reference."""
