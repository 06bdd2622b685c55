"""Files that strangers wrote, and files that are written whole or not at all."""
