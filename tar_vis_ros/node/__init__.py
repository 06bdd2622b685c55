"""The node tar_vis: images in, instances out."""
