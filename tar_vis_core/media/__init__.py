"""Pictures and videos in, pictures and result files out."""
